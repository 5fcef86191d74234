"""Commands as their users run them: produce, import, migrate, and what they say when something is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.demo import run as demo
from tests.support.world import OPERATOR, RECORDER, World, completed, started

pytestmark = pytest.mark.integration

EXPORT = Path(demo.__file__).parent / "walkthroughs" / "first-webhook.json"


async def read_topic(world: World) -> list[tuple[bytes | None, bytes | None]]:
    return [(m.key, m.value) for m in await world.events()]


async def test_produce_sends_each_line_keyed_by_its_user(world: World, tmp_path: Path) -> None:
    events = [completed(f"user-{i % 7}-é", "a", i) for i in range(2_993)]
    events += [started(f"user-{i}-é", i) for i in range(7)]
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join(json.dumps(e) for e in events))
    done = world.command("produce", str(file), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"sent": 3_000, "not_sent": []}
    got = await read_topic(world)
    assert sorted(v for _, v in got if v) == sorted(json.dumps(e).encode() for e in events)
    assert all(key == json.loads(value)["mcp_server_user_id"].encode() for key, value in got if key and value)


async def test_produce_names_each_bad_line_and_sends_the_rest(world: World) -> None:
    lines = [
        json.dumps(completed("ann", "a", 1)),
        "not json",
        "",
        json.dumps(completed("ann", "b", -1)),
        json.dumps(completed("ann", "c", 3)),
        json.dumps(completed("ann", "d", 4) | {"type": "step-liked"}),
    ]
    done = world.command("produce", "-", stdin="\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert done.returncode == 1
    assert "line 2: not-json" in done.stderr
    assert "line 4: too-early: completed_at: -1 milliseconds since the epoch is 1969-12-31" in done.stderr
    assert "line 6: unknown-type" in done.stderr
    assert "line 7: not-json" in done.stderr
    assert "4 of 6 events were not sent" in done.stderr
    assert {json.loads(v)["step_id"] for _, v in await read_topic(world) if v} == {"a", "c"}


async def test_a_line_too_large_for_kafka_is_named_and_the_rest_is_sent(world: World) -> None:
    large = json.dumps(completed("ann", "a", 1) | {"ignored": "x" * 1_100_000})
    lines = [json.dumps(completed("ann", "b", 1)), large, json.dumps(completed("ann", "c", 1))]
    done = world.command("produce", "-", stdin="\n".join(lines).encode())
    assert done.returncode == 1
    assert "line 2: Kafka refused it" in done.stderr
    assert len(await read_topic(world)) == 2


@pytest.mark.parametrize(
    ("args", "more", "code", "told"),
    [
        (("produce", "nowhere.ndjson"), {}, 2, "nowhere.ndjson: No such file"),
        (("produce", "-"), {"topic": "no-such-topic"}, 2, "no-such-topic: run `stepstream migrate`"),
        (("produce", "-"), {"kafka_bootstrap_servers": "127.0.0.1:1"}, 1, "Kafka at 127.0.0.1:1"),
        (("migrate",), {"kafka_bootstrap_servers": "127.0.0.1:1"}, 1, "Kafka at 127.0.0.1:1"),
        (("verify",), {"database_url": "postgresql://u:hidden@127.0.0.1:1/db"}, 1, "PostgreSQL at 127.0.0.1:1/db"),
        (("verify",), {"database_url": "nonsense"}, 2, "STEPSTREAM_DATABASE_URL"),
        (("run", RECORDER, "--port", "0"), {"database_url": "postgresql://u:hidden@127.0.0.1:1/db"}, 1, "PostgreSQL at 127.0.0.1:1/db"),
        (("import", str(EXPORT), "--server", "none"), {}, 1, "no MCP server with the slug `none`"),
        (("import", "nowhere.json", "--server", "none"), {}, 2, "nowhere.json"),
    ],
)  # fmt: skip
async def test_an_error_says_what_where_and_what_to_do(
    world: World, args: tuple[str, ...], more: dict[str, str], code: int, told: str
) -> None:
    done = world.command(*args, **more)
    assert done.returncode == code, done.stderr
    assert told in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


async def test_migrate_is_idempotent_and_creates_topics(world: World) -> None:
    done = world.command("migrate", topic=world.settings.topic + ".more")
    assert done.returncode == 0
    assert "created topic" in done.stderr
    again = world.command("migrate", topic=world.settings.topic + ".more")
    assert "nothing to do" in again.stderr


def in_a_shell(world: World, text: str, service: str = OPERATOR) -> tuple[int, str]:
    """The exit code of `stepstream`, which the text has as `$B`, and what is on stderr."""
    env = world.environment(service) | {"B": f"{sys.executable} -m services.operator_cli"}
    done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("command", ["keys list", "keys list -o json", "--help"])
def test_an_output_that_cannot_be_written_is_a_line(world: World, command: str) -> None:
    closed = (1, "error: cannot write: standard output is closed\n")
    assert in_a_shell(world, f"$B {command} >&-") == closed
    assert in_a_shell(world, f"$B {command} <&- >&-") == closed
    assert in_a_shell(world, f"$B {command} >&- 2>&-") == (1, "")
    assert in_a_shell(world, f"$B {command} >/dev/full") == (
        1,
        "error: cannot write: No space left on device\n",
    )
    assert in_a_shell(world, f"$B {command} | true; exit ${{PIPESTATUS[0]}}")[1] == ""

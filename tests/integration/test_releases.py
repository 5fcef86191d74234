"""What the producers of every release have written counts today: tests/releases/README.md.

`test_write_a_release` writes the folder of the version in pyproject.toml, once, where it is asked to.
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.generate import FOLDER as SCHEMAS
from services.runtime.database import load_queries
from services.runtime.kafka import Record
from services.runtime.version import VERSION
from tests.support.agents import GENERATIONS, agent
from tests.support.world import MCP, RELAY, Message, World, completed, eventually, shown, skipped, started

pytestmark = pytest.mark.integration

RELEASES = Path(__file__).parents[1] / "releases"
#: In the order in which they refer to one another.
PLATFORM = (
    *("organization", "mcp_servers", "mcp_server_user", "mcp_server_session", "walkthroughs"),
    *("walkthrough_steps", "mcp_server_walkthroughs"),
)


def _releases() -> list[str]:
    return sorted(folder.name for folder in RELEASES.iterdir() if folder.is_dir())


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _lines(release: str, name: str) -> list[Any]:
    return [json.loads(line) for line in (RELEASES / release / name).read_text("utf-8").splitlines()]


async def _asked(world: World, release: str) -> dict[str, Any]:
    """What the statements of a release say."""
    statements = load_queries(str(RELEASES / release / "expected.py"))
    found = {}
    for name, statement in statements.items():
        rows = await world.db.fetch(statement)
        found[name] = [json.loads(json.dumps(list(row), default=str)) for row in rows]
    return found


async def _restore(world: World, release: str) -> None:
    """The platform's rows, by the columns that they had."""
    for line in _lines(release, "platform.ndjson"):
        columns = ", ".join(line["row"])
        await world.db.execute(
            f"insert into {line['table']} ({columns})"
            f" select {columns} from jsonb_populate_record(null::{line['table']}, $1)",
            json.dumps(line["row"]),
        )


def test_the_first_release_is_there_and_no_file_of_it_is_missing() -> None:
    assert "0.1.0" in _releases()
    for release in _releases():
        names = {file.name for file in (RELEASES / release).iterdir()}
        assert names == {"records.ndjson", "platform.ndjson", "expected.sql", "expected.json"}


@pytest.mark.parametrize("release", _releases())
async def test_what_a_release_has_written_counts(world: World, release: str) -> None:
    records = [
        Message(_bytes(r["key"]), _bytes(r["value"]), [(n, _bytes(v) or b"") for n, v in r["headers"]])
        for r in _lines(release, "records.ndjson")
    ]
    expected = json.loads((RELEASES / release / "expected.json").read_text("utf-8"))
    assert all(expected.values()), "each statement says something"
    await _restore(world, release)
    await world.produce(records)
    assert sorted(map(_content, await world.events())) == sorted((m.key, m.value) for m in records)
    world.start_both()
    await world.drained()
    assert await _asked(world, release) == expected
    assert await world.dead_letters() == []
    await world.assert_exact()


@pytest.mark.parametrize("release", _releases())
def test_what_is_expected_of_a_release_is_what_a_plain_walk_over_its_records_says(release: str) -> None:
    events = [json.loads(_bytes(r["value"]) or b"") for r in _lines(release, "records.ndjson")]
    erased = {e["mcp_server_user_id"] for e in events if e["type"] == "user-erased"}
    left = [e for e in events if e["mcp_server_user_id"] not in erased]
    covered: dict[tuple[str, str], int] = {}
    for e in left:
        if e["type"] == "step-corrected":
            key = e["mcp_server_user_id"], e["step_id"]
            covered[key] = max(e["covers_until"], covered.get(key, 0))
    first: dict[tuple[str, str, str], tuple[int, str]] = {}
    for e in left:
        kind, user, step = e["type"], e["mcp_server_user_id"], e.get("step_id", "")
        for name, at in e.items():
            if not name.endswith("_at") or name == "corrected_at" or kind == "step-shown":
                continue
            if kind == "step-completed" and at <= covered.get((user, step), -1):
                continue
            of = "step-completed" if name == "completed_at" else kind, user, step
            first[of] = min((at, e["event_id"].lower()), first.get(of, (at, "g")))
    expected = json.loads((RELEASES / release / "expected.json").read_text("utf-8"))
    assert {(u, s): (at, i) for i, u, _, s, _, _, at, _ in expected["completions"]} == {
        (u, s): (at, f"wtsc_{i}") for (kind, u, s), (at, i) in first.items() if kind == "step-completed"
    }
    assert {u: (at, i) for i, u, _, _, _, at in expected["starts"]} == {
        u: (at, f"wtst_{i}") for (kind, u, _), (at, i) in first.items() if kind == "walkthrough-started"
    }
    assert {(u, s): at for u, _, s, at, _ in expected["skips"]} == {
        (u, s): at for (kind, u, s), (at, _) in first.items() if kind == "step-skipped"
    }
    shown_at = [
        (e["mcp_server_user_id"], e["step_id"], e["shown_at"]) for e in left if e["type"] == "step-shown"
    ]
    assert {(u, s): (f, last) for u, s, f, last, _ in expected["showings"]} == {
        (u, s): (min(of), max(of))
        for u, s, _ in shown_at
        for of in ([at for user, step, at in shown_at if (user, step) == (u, s)],)
    }
    assert [name for (name,) in expected["erased"]] == sorted(erased)


def _content(record: Record) -> tuple[bytes | None, bytes | None]:
    return record.key, record.value


# --- writing one -----------------------------------------------------------------------------------------

_WHERE = {"walkthrough_id": "wt_a", "mcp_server_id": "srv_1"}


async def _mcp(world: World) -> None:
    """Agents of both generations: one goes through, one skips, one looks and leaves."""
    service = await world.start_mcp()
    for generation in GENERATIONS:
        url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
        async with agent(f"{url}/all-{generation}", generation) as one:
            await one.start()
            for step in "abc":
                await one.next(current_step_id=step)
        async with agent(f"{url}/skips-{generation}", generation) as one:
            await one.start()
            await one.next(current_step_id="a")
            await one.call("skip_step", step_id="b", reason="Zoë has it\nalready")
            await one.next(current_step_id="c")
        async with agent(f"{url}/looks-{generation}", generation) as one:
            await one.start()


async def _files(world: World, folder: Path) -> None:
    """`produce`: each type, late and repeated; `backfill`: completions from before, by way of the outbox."""
    events = [
        started("ann", 1_000_000),
        completed("ann", "b", 3_000_000, metadata={"é": [1, None, {"x": "💥"}]}),
    ]
    events += [completed("ann", "a", 2_000_000), events[1], completed("ann", "a", 2_500_000)]
    events += [
        skipped("bob", "b", 5_000_000, reason="no"),
        shown("bob", "a", 1),
        shown("bob", "a", 9, version="v2"),
    ]
    events += [completed("bob", "a", 4_000_000), completed("Ünï ✓", "a", 7_000_000), started("gone", 5)]
    examples = sorted((SCHEMAS / "examples" / "valid").glob("*.json"))
    values = [json.dumps(event).encode() for event in events]
    for file in examples:
        event = json.loads(file.read_bytes())
        event |= {name: value for name, value in _WHERE.items() if name in event}
        event |= {"mcp_server_user_id": "bob", "mcp_server_session_id": "s_bob"}
        event |= {"step_id": "d"} if "step_id" in event else {}
        values.append(json.dumps(event, ensure_ascii=False).encode())
    sent = world.command("produce", "-", stdin=b"\n".join(values))
    assert sent.returncode == 0, sent.stderr
    file = folder / "completions.csv"
    rows = [
        f"{user},wt_a,{step},2025-11-0{day}T00:00:00Z"
        for day, user in enumerate(("cid", "dan"), 1)
        for step in "ab"
    ]
    file.write_text("\n".join(["mcp_server_user_id,walkthrough_id,step_id,completed_at", *rows]))
    filled = world.command("backfill", str(file), "--server", "srv_1", "--execute")
    assert filled.returncode == 0, filled.stderr


async def _operator(world: World) -> None:
    """A completion that is mended, one that is removed, and somebody who is forgotten."""
    for arguments in (
        ("completions", "correct", "ann", "a", "--completed-at", "2000-01-02T00:00:00Z"),
        ("completions", "remove", "bob", "a"),
        ("erase", "gone"),
    ):
        done = world.command(*arguments, "--execute")
        assert done.returncode == 0, done.stderr


async def _write_a_release(world: World, tmp_path: Path) -> None:
    folder = RELEASES / VERSION
    assert not (folder / "records.ndjson").exists(), "a release is written once: raise the version first"
    await world.offer()
    await world.db.execute("update walkthrough_steps set metadata = '{\"optional\": true}' where id = 'b'")
    await world.people(["ann", "bob", "cid", "dan", "Ünï ✓", "gone"])
    world.start_both()
    world.start(RELAY)
    await _mcp(world)
    await _files(world, tmp_path)
    await world.relayed()
    await world.drained()

    async def sent() -> bool:
        return (
            await world.db.fetchval(
                "select count(*) from walkthrough_starts where mcp_server_user_id = 'gone'"
            )
            == 1
        )

    await eventually(sent, "all is recorded")
    # Before anybody is forgotten: the rows that events refer to.
    rows = [
        {"table": table, "row": json.loads(row[0])}
        for table in PLATFORM
        for row in await world.db.fetch(f"select to_jsonb(t) from {table} t order by 1::text")
    ]
    await _operator(world)
    await world.drained()
    assert MCP not in {service.name for service in world.services}
    records = sorted(await world.events(), key=lambda r: (r.partition, r.offset))
    lines = [
        {"key": _text(r.key), "value": _text(r.value), "headers": [[n, _text(v)] for n, v in r.headers]}
        for r in records
    ]
    (folder / "platform.ndjson").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    (folder / "records.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = await _asked(world, VERSION)
    (folder / "expected.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if "STEPSTREAM_WRITE_RELEASE" in os.environ:
    test_write_a_release = _write_a_release

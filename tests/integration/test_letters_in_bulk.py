"""Dead letters by source, out as lines of JSON, and back in mended."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.completion_recorder.mending import MendedFile, RedrivePlan, open_mended
from tests.support.world import Message, World, completed, moment

pytestmark = pytest.mark.integration

COMMAND = f"{sys.executable} -m services.operator_cli"
#: What `jq` would do: the time was written as text.
MEND = """
import json, sys
for line in sys.stdin:
    letter = json.loads(line)
    value = json.loads(letter["value"])
    value["completed_at"] = int(value["completed_at"])
    letter["value"] = json.dumps(value)
    print(json.dumps(letter))
"""


def sent(source: bytes | None, event: dict[str, Any]) -> Message:
    of = Message.of(event)
    return Message(of.key, of.value, [("ce_source", source), ("x", b"\xff")] if source is not None else [])


async def exported(world: World, *args: str) -> list[dict[str, Any]]:
    done = await world.invoke("dlq", "export", *args)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_1500_letters_with_one_wrong_field_are_mended_with_a_pipe(world: World, tmp_path: Path) -> None:
    await world.offer()
    people = [f"p{i:03}" for i in range(300)]
    await world.people(people)
    events = [completed(p, step, 1_000 + i) for p in people for i, step in enumerate("abcde")]
    wrong = [e | {"completed_at": str(e["completed_at"])} for e in events]
    await world.produce([sent(b"/shop", e) for e in wrong])
    await world.produce([Message(b"p000", b"no json")])
    world.start_both()
    await world.drained()
    (tmp_path / "mend.py").write_text(MEND)
    pipe = (
        f"{COMMAND} dlq export --class invalid-event | {sys.executable} {tmp_path}/mend.py | tee {tmp_path}/mended"
        f" | {COMMAND} dlq redrive --from-file - --rate 5000 --execute -o json"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        ["sh", "-c", pipe],
        env=world.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sent"] == 1_500
    await world.drained()
    assert await world.completions() == {
        (e["mcp_server_user_id"], e["step_id"]): (e["completed_at"], e["event_id"]) for e in events
    }
    await world.assert_exact()
    assert [x["error_class"] for x in await exported(world)] == ["not-json"]
    again = await world.invoke(
        "dlq", "redrive", "--from-file", f"{tmp_path}/mended", "--execute", "-o", "json"
    )
    told = json.loads(again.stdout)
    assert (told["sent"], len(told["handled"]), told["problems"]) == (0, 1_500, [])
    assert "handled meanwhile, left out: " in again.stderr


@pytest.fixture
async def some(world: World) -> World:
    """Letters of two sources and none, and one that is no text."""
    await world.offer()
    await world.people(["ann", "bob"])
    await world.produce(
        [
            *(sent(b"/shop", completed("ann", step, 5) | {"completed_at": str(moment(5))}) for step in "abc"),
            sent(b"/app", completed("bob", "nothing", 1_000)),
            sent(b"/app\x07", completed("bob", "a", 5, event_id="no-uuid")),
            Message(b"\xff", b"\x1f\x8b\x08"),
        ]
    )
    world.start_both()
    await world.drained()
    return world


async def test_they_are_counted_and_filtered_by_source(some: World) -> None:
    done = await some.invoke("dlq", "summary", "--json")
    summary = json.loads(done.stdout)
    assert [(t["source"], t["error_class"], t["letters"]) for t in summary] == [
        ("/shop", "invalid-event", 3),
        ("(no source)", "invalid-event", 1),
        ("(no source)", "not-json", 1),
        ("/app", "unknown-step", 1),
    ]
    assert "compressed with gzip" in summary[2]["example"]["error"]
    assert summary[0]["since"] <= summary[0]["newest"]
    listed = json.loads((await some.invoke("dlq", "list", "--source", "/shop", "-o", "json")).stdout)
    assert summary[0]["example"]["id"] in {x["id"] for x in listed}
    assert {(x["source"], x["key"]) for x in listed} == {("/shop", "ann")}
    assert len(listed) == 3
    assert (await some.invoke("dlq", "drop", "--source", "(no source)", "--execute")).returncode == 0
    table = await some.invoke("dlq", "summary")
    assert "4 dead letters by source" in table.stdout
    assert "(no source)" not in table.stdout


async def test_what_is_mended_keeps_key_event_id_and_headers_and_is_checked_before_anything_is_sent(
    some: World, tmp_path: Path
) -> None:
    file = tmp_path / "letters.ndjson"
    assert await exported(some, "--to-file", str(file)) == []
    assert file.stat().st_mode & 0o077 == 0
    letters = [json.loads(line) for line in file.read_text().splitlines()]
    raw = next(x for x in letters if x["error_class"] == "not-json")
    assert (raw["key_base64"], raw["value_base64"]) == ("/w==", "H4sI")
    a, b, c = (x for x in letters if x["source"] == "/shop")
    no_uuid = next(x for x in letters if x["source"] == "(no source)" and "key" in x)
    value = json.loads(a["value"]) | {"completed_at": moment(5)}

    mended = tmp_path / "mended.ndjson"

    async def redrive(*lines: Any) -> tuple[int, dict[str, Any], str]:
        mended.write_text(
            "".join(line if isinstance(line, str) else f"{json.dumps(line)}\n" for line in lines)
        )
        before = len(await some.events())
        done = await some.invoke("dlq", "redrive", "--from-file", str(mended), "--execute", "-o", "json")
        if done.returncode:
            assert len(await some.events()) == before
        return done.returncode, json.loads(done.stdout), done.stderr

    code, told, errors = await redrive(
        a | {"value": value},
        b,
        c | {"value": value},
        raw | {"value_base64": "e30="},
        no_uuid | {"key": "ann", "value": value},
        "{\n",
        "\n",
        a | {"value": value},
        a | {"offset": 999},
        {"value": value},
        a | {"headers": [], "partition": 77, "value_base64": ""},
    )
    assert code == 1
    assert {p["line"]: p["error"].partition(": ")[2] or p["error"] for p in told["problems"]} == {
        2: "invalid-event: completed_at: Input should be a valid integer; completed_at is text "
        "and would be 946684800005 in milliseconds: send it without quotes",
        3: "event_id is another one than the letter's; it has to stay, so that the event counts once",
        4: "invalid-event: event: it has no `type`; there are step-completed, walkthrough-started, step-skipped, "
        "step-shown",
        5: "the key is another one than the letter's; it has to stay",
        6: "it is no JSON",
        8: "line 1 mends this letter, too",
        9: f"there is no such dead letter of {some.settings.topic}",
        10: "topic, partition and offset say which letter it is",
        11: "it has to have either value or value_base64",
    }
    assert "9 lines cannot be sent; nothing was sent" in errors
    code, told, _ = await redrive(a | {"value": value, "headers": []}, no_uuid | {"value": value})
    assert [p["error"].partition(": ")[2][:24] for p in told["problems"]] == [
        "the headers are other on",
        "mcp_server_user_id is no",
    ]
    refused = await some.invoke("dlq", "redrive", "--from-file", str(file), "--key", "ann")
    assert refused.returncode == 2

    new = json.loads(no_uuid["value"]) | {"event_id": "00000000-0000-4000-8000-0000000000fe"}
    right = [a | {"value": value}, no_uuid | {"value": json.dumps(new)}]
    mended.write_text("".join(f"{json.dumps(line)}\n" for line in right))
    args = ("dlq", "redrive", "--from-file", str(mended), "--execute")
    assert some.command(*args, crash_at="operator.redrive-sent:1").returncode < 0
    code, told, errors = await redrive(*right)
    assert (code, told["sent"], told["sent_before"]) == (0, 0, 2)
    assert "1 letter held no event id that can be read" in errors
    await some.drained()
    assert await some.completions() == {
        ("ann", value["step_id"]): (moment(5), value["event_id"]),
        ("bob", "a"): (moment(5), new["event_id"]),
    }
    (copy,) = (
        r for r in await some.events() if r.key == b"ann" and "stepstream-redrive-of" in dict(r.headers)
    )
    assert copy.headers[:2] == (("ce_source", b"/shop"), ("x", b"\xff"))


@pytest.mark.parametrize("instead", ["", "{", "another letter's line"])
async def test_a_file_that_changes_while_it_is_read_sends_nothing_wrong(
    some: World, tmp_path: Path, instead: str
) -> None:
    """Where each line is was noted before: what is there now may be no line, or mend another letter."""
    lines = [json.dumps(letter) for letter in await exported(some, "--source", "/shop")]
    assert len(lines[0]) == len(lines[1])
    mended = tmp_path / "mended.ndjson"
    mended.write_text("\n".join(lines[:1]))
    plan = RedrivePlan()
    with open_mended(str(mended)) as opened:
        file = MendedFile(opened, some.db)
        await file.note()
        mended.write_text(lines[1] if instead.startswith("another") else instead)
        opened.seek(0, 2)
        assert [portion async for portion in file.check(some.settings, plan)] == []
        problems = [problem async for page in file.problems() for _, problem in page]
    assert [problem.partition(": ")[2] for problem in problems] == ["the file has changed while it was read"]

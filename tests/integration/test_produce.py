"""`produce` and `backfill` at their rough edges: forms of files, ends in the middle, and what they say of it."""

import asyncio
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.world import PATIENCE, World, completed, eventually, moment

pytestmark = pytest.mark.integration

EVENTS = [completed(f"user-{i % 7}", "abcde"[i % 5], i) for i in range(50)]
LINES = "".join(json.dumps(event) + "\n" for event in EVENTS).encode()
FORMS = {
    "lines": LINES,
    "gzip": gzip.compress(LINES),
    "an array": json.dumps(EVENTS).encode(),
    "an array over several lines": json.dumps(EVENTS, indent=2).encode(),
    "objects over several lines": "\n".join(json.dumps(e, indent=2) for e in EVENTS).encode(),
    "an array in gzip": gzip.compress(json.dumps(EVENTS).encode()),
}


async def sent(world: World) -> list[dict[str, Any]]:
    return sorted(
        (json.loads(r.value or b"") for r in await world.events()), key=lambda e: str(e["event_id"])
    )


@pytest.mark.parametrize("form", FORMS)
async def test_each_form_of_a_file_is_sent_whole(world: World, form: str, tmp_path: Path) -> None:
    by_pipe = world.command("produce", "-", stdin=FORMS[form])
    assert by_pipe.returncode == 0, by_pipe.stderr
    assert "50 events sent and acknowledged" in by_pipe.stderr
    told = " ".join(by_pipe.stderr.split())
    assert f"check-events --topic {world.settings.topic} --source /stepstream/produce --from -1h`" in told
    assert told.endswith("`stepstream dlq summary --source /stepstream/produce`")
    wanted = sorted(EVENTS, key=lambda e: str(e["event_id"]))
    assert await sent(world) == wanted
    file = tmp_path / "events"
    file.write_bytes(FORMS[form])
    checked = await world.invoke("produce", str(file), "--dry-run", "-o", "json")
    assert json.loads(checked.stdout) == {"dry_run": True, "would_send": 50, "not_sent": []}
    assert await sent(world) == wanted


async def test_a_dry_run_names_what_is_wrong_and_asks_nobody(world: World) -> None:
    """Not even where Kafka is."""
    events = [EVENTS[0], {"type": "step-completed"}, EVENTS[1], EVENTS[2] | {"completed_at": 1_764_000_000}]
    done = world.command(
        "produce",
        "-",
        "--dry-run",
        stdin=json.dumps(events, indent=1).encode(),
        kafka_bootstrap_servers="127.0.0.1:1",
    )
    assert done.returncode == 1
    assert "2 events would be sent; nothing was sent" in done.stderr
    assert "element 2: invalid-event: event_id: Field required" in done.stderr
    assert "element 4: too-early: completed_at" in done.stderr
    assert "2 of 4 are no events" in done.stderr
    assert await world.events() == []


async def test_an_element_that_is_no_event_is_named_and_the_rest_is_sent(world: World) -> None:
    events: list[Any] = [EVENTS[0], 17, EVENTS[1]]
    done = world.command("produce", "-", "-o", "json", stdin=json.dumps(events).encode())
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["sent"] == 2
    assert [item["element"] for item in said["not_sent"]] == [2]
    assert "should be an object" in said["not_sent"][0]["error"]


async def test_gzip_that_is_cut_off_is_told_and_what_came_before_it_is_sent(world: World) -> None:
    noise = [completed("ann", "a", i, metadata={"noise": os.urandom(200).hex()}) for i in range(3_000)]
    whole = gzip.compress("".join(json.dumps(e) + "\n" for e in noise).encode())
    done = world.command("produce", "-", stdin=whole[: len(whole) // 2])
    assert done.returncode == 2
    assert "its gzip is cut off" in done.stderr
    assert 0 < len(await world.events()) < 3_000
    assert f"{len(await world.events()):,} events sent and acknowledged" in done.stderr


async def test_the_source_of_what_is_produced_is_a_choice(world: World) -> None:
    world.command("produce", "-", stdin=json.dumps(EVENTS[0]).encode())
    world.command("produce", "-", "--source", "/shop", stdin=json.dumps(EVENTS[1]).encode())
    sources = {dict(r.headers)["ce_source"] for r in await world.events()}
    assert sources == {b"/stepstream/produce", b"/shop"}
    wrong = world.command("produce", "-", "--source", "a\tb", stdin=b"")
    assert wrong.returncode == 2
    assert "printable" in wrong.stderr


async def ended_by(world: World, number: signal.Signals, *args: str, into: bytes, seen: int) -> Any:
    """A command that reads from a pipe which stays open, after `seen` of its events are in the topic."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.operator_cli", *args),
        env=world.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(into)

    async def there() -> bool:
        return len(await world.events()) >= seen

    await eventually(there, "they are there")
    process.send_signal(number)
    out, err = await asyncio.wait_for(_outputs(process), PATIENCE)
    return process.returncode, out.decode(), err.decode()


async def _outputs(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Without closing its input."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
    await process.wait()
    return out, err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_whoever_ends_produce_is_told_what_was_sent(
    world: World, number: signal.Signals, code: int
) -> None:
    """It waits for more from a pipe when the signal comes."""
    returned, out, err = await ended_by(world, number, "produce", "-", "-o", "json", into=LINES, seen=50)
    assert returned == code, err
    assert json.loads(out) == {
        "sent": 50,
        "not_sent": [],
        "ended": f"ended by {number.name}",
        "read_to": "line 50",
    }
    assert "50 events sent and acknowledged" in err
    assert f"error: ended by {number.name}, read up to line 50. To go on, send the file again" in err
    assert "Traceback" not in err
    assert "Fatal" not in err


#: Imported by a program as it starts, before anything of ours: it says when, and waits until it is interrupted.
WAITING = """
import os, sys
WHERE = {where!r}
class Finder:
    def find_spec(self, name, *rest):
        if name == WHERE:
            os.write(1, b"there\\n")
            import time
            time.sleep({patience})
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("module", ["stepstream", "services.operator_cli"])
@pytest.mark.parametrize(
    "where",
    ["typer", "services.operator_cli.register", "services.operations.produce", "aiokafka.producer.sender"],
)
async def test_whoever_ends_produce_while_it_is_being_loaded_is_told(
    world: World, tmp_path: Path, where: str, module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WAITING.format(where=where, patience=PATIENCE))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "produce", "-"),
        env=world.environment() | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"there\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(_outputs(process), PATIENCE)
    assert process.returncode == 130
    assert err.decode() == "interrupted: nothing was sent or changed\n"


async def test_whoever_ends_another_command_is_told(world: World, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        WAITING.format(where="services.sankey_aggregator.verify", patience=PATIENCE)
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "stepstream", "verify"),
        env=world.environment() | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"there\n"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(_outputs(process), PATIENCE)
    assert (process.returncode, err.decode()) == (130, "interrupted\n")


# --- backfill ------------------------------------------------------------------------------------------------

HEAD = ("mcp_server_user_id", "walkthrough_id", "step_id", "completed_at")


def table(rows: Sequence[Sequence[Any]], head: Sequence[str] = HEAD, delimiter: str = ",") -> bytes:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([head, *rows])
    return text.getvalue().encode()


ROWS = [("ann", "wt_a", step, moment(1_000_000 + n)) for n, step in enumerate("abc")]
OTHERS = ("Person", "wt; name", "walkthrough_id", "step_id", "finished")
TABLES = {
    "old.csv": (table(ROWS), [], ""),
    "semicolons.csv": (table(ROWS, delimiter=";"), [], "separated by semicolons"),
    "tabs.tsv": (table(ROWS, delimiter="\t"), [], "separated by tabs"),
    "bars.csv": (table(ROWS, delimiter="|"), ["--delimiter", "|"], ""),
    "tabs.txt": (table(ROWS, delimiter="\t"), ["--delimiter", "tab"], ""),
    "mark.csv": (b"\xef\xbb\xbf" + table(ROWS), [], ""),
    "packed.csv.gz": (gzip.compress(table(ROWS, delimiter=";")), [], "separated by semicolons"),
    "mapped.csv": (
        table([(u, "a;b\nc", w, s, at) for u, w, s, at in ROWS], OTHERS, ";"),
        ["--column", "mcp_server_user_id=Person", "--column", "completed_at=finished"],
        "separated by semicolons",
    ),
    "array.json": (json.dumps([dict(zip(HEAD, row, strict=True)) for row in ROWS], indent=2).encode(), [], ""),
    "mapped.ndjson": (
        "".join(json.dumps({"who": u, "walkthrough_id": w, "step_id": s, "at": at, "x": 1}) + "\n" for u, w, s, at in ROWS).encode(),
        ["--column", "mcp_server_user_id=who", "--column", "completed_at=at"],
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
async def test_each_form_of_a_table_gives_the_same_events(world: World, tmp_path: Path, name: str) -> None:
    content, options, told = TABLES[name]
    await world.offer()
    await world.people(["ann"])
    file = tmp_path / name
    file.write_bytes(content)
    done = await world.invoke("backfill", str(file), *options, "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert told in done.stderr
    assert told or "separated" not in done.stderr
    assert json.loads(done.stdout)["left_out"] == []
    events = await sent(world)
    assert sorted((e["mcp_server_user_id"], e["walkthrough_id"], e["step_id"], e["completed_at"]) for e in events) == [
        tuple(row) for row in ROWS
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (table(ROWS), ["--column", "completed_at=finished"], "--column names finished; its columns are mcp_server_user_id,"),
        (b"who;what;when\nann;a;1\n", ["--column", "completed_at=then"], "names then; its columns are who, what, when"),
        (b"who;what;when\nann;a;1\n", [], "its columns are who, what, when; missing: completed_at"),
        (table(ROWS), ["--column", "when=completed_at"], "there is no field `when`; the fields are mcp_server"),
        (table(ROWS), ["--column", "completed_at"], "`completed_at` is not FIELD=NAME"),
        (table(ROWS), ["--delimiter", ";;"], "`;;` is not one character"),
        (table(ROWS, ("who", *HEAD[1:])), [], "missing: mcp_server_user_id. --column mcp_server_user_id=NAME says"),
        (table(ROWS) + b'"ann","' + b"x" * 200_000 + b'"\n', [], "after line 4 it is no CSV: field larger"),
        (gzip.compress(table(ROWS))[:-9], [], "its gzip is broken or cut off"),
    ],
)  # fmt: skip
async def test_a_table_that_cannot_be_read_is_told(
    world: World, tmp_path: Path, content: bytes, options: list[str], told: str
) -> None:
    file = tmp_path / "old.csv"
    file.write_bytes(content)
    done = await world.invoke("backfill", str(file), *options)
    assert done.returncode == 2
    assert told in done.stderr


async def test_a_line_with_too_many_fields_is_left_out_and_named(world: World, tmp_path: Path) -> None:
    await world.offer()
    await world.people(["ann"])
    file = tmp_path / "old.csv"
    file.write_bytes(table([ROWS[0], (*ROWS[1], "more"), ROWS[2][:3]]))
    done = await world.invoke("backfill", str(file), "-o", "json")
    said = json.loads(done.stdout)
    assert said["counts"]["step-completed"] == 1
    assert [(item["where"], item["reason"].partition(":")[0]) for item in said["left_out"]] == [
        ("line 3", "it has more fields than the first line names"),
        ("line 4", "completed_at"),
    ]


async def test_whoever_leaves_all_rows_out_is_told_and_fails(world: World, tmp_path: Path) -> None:
    await world.offer()
    await world.people(["ann"])
    file = tmp_path / "old.csv"
    file.write_bytes(table([("nobody", *row[1:]) for row in ROWS]))
    for more, told in ([], "nothing would be sent"), (["--execute"], "nothing was sent"):
        done = await world.invoke("backfill", str(file), *more)
        assert (done.returncode, f"{told}: 3 rows left out" in done.stderr) == (1, True), done.stderr
        assert "line 2: there is no such user" in done.stderr
    file.write_bytes(table([("nobody", *ROWS[0][1:]), *ROWS[1:]]))
    assert (await world.invoke("backfill", str(file))).returncode == 0
    file.write_bytes(table([]))
    assert (await world.invoke("backfill", str(file))).returncode == 0


@pytest.mark.parametrize("name", ["old.csv", "old.ndjson"])
async def test_people_of_a_table_may_be_named_by_their_organizations_ids(
    world: World, tmp_path: Path, name: str
) -> None:
    """Those of the organization whose walkthrough it is: another one's `u-1` is somebody else."""
    await world.offer()
    await world.db.execute("insert into organization (id, name, created_at) values ('acme', 'acme', now())")
    await world.invoke("register", "people", "--organization", "acme", "--distinct-id", "u-2")
    await world.invoke("register", "people", "--organization", "acme", "--distinct-id", "u-1")
    done = await world.invoke(
        "register", "people", "--organization", "org", "--distinct-id", "u-1", "-o", "json"
    )
    (ann,) = json.loads(done.stdout)
    rows = [(user, *ROWS[n][1:]) for n, user in enumerate(["u-1", "u-1", "u-2"])]
    head = ("distinct_id", *HEAD[1:])
    lines = [json.dumps(dict(zip(head, row, strict=True))) for row in rows]
    both = json.dumps(dict(zip(head, rows[0], strict=True)) | {"mcp_server_user_id": "ann"})
    file = tmp_path / name
    file.write_bytes(table(rows, head) if name.endswith("csv") else "\n".join([*lines, both]).encode())
    done = await world.invoke("backfill", str(file), "--server", "srv_1", "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    left = {item["where"]: item["reason"] for item in json.loads(done.stdout)["left_out"]}
    where = "line 4" if name.endswith("csv") else "line 3"
    assert left.pop(where).startswith("nobody is registered under that distinct_id")
    assert list(left.values()) == (
        [] if name.endswith("csv") else ["the line: give either mcp_server_user_id or distinct_id"]
    )
    assert [e["mcp_server_user_id"] for e in await sent(world)] == [ann["mcp_server_user_id"]] * 2


async def test_whoever_ends_backfill_is_told_what_was_sent_and_goes_on_later(
    world: World, tmp_path: Path
) -> None:
    """The first portion is sent; the pipe stays open, and more would come."""
    people = [f"u{n}" for n in range(1_100)]
    await world.offer()
    await world.people(people)
    rows = [(user, "wt_a", step, moment(n * 10)) for user in people for n, step in enumerate("abcde")]
    pipe = tmp_path / "old.csv"
    os.mkfifo(pipe)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.operator_cli", "backfill", str(pipe), "--execute"),
        env=world.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with await asyncio.to_thread(pipe.open, "wb") as into:
        await asyncio.to_thread(into.write, table(rows))
        await asyncio.to_thread(into.flush)

        async def there() -> bool:
            return len(await world.events()) == 5_000

        await eventually(there, "the first portion is there")
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 143, err.decode()
    assert "5,000 events sent and acknowledged" in err.decode()
    assert "ended by SIGTERM" in err.decode()
    whole = tmp_path / "whole.csv"
    whole.write_bytes(table(rows))
    world.start_both()
    await world.drained()
    again = await world.invoke("backfill", str(whole), "--execute", "-o", "json")
    assert json.loads(again.stdout)["sent"] == 500
    await world.drained()
    assert {key: at for key, (at, _) in (await world.completions()).items()} == {
        (user, step): at for user, _, step, at in rows
    }
    await world.assert_exact()

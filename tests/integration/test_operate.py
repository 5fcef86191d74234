"""Status, lag, keys and backfill, as an operator uses them."""

import asyncio
import hashlib
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from services.consumers.lag import read_groups
from services.operations import status
from services.operations.status import Status
from services.operator_cli.status import status_page
from tests.support.world import AGGREGATOR, RECORDER, RELAY, World, completed, eventually, members, moment

pytestmark = pytest.mark.integration


# --- status and lag --------------------------------------------------------------------------------------


async def test_status_and_lag_say_how_far_everything_is_and_what_is_down(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    await world.produce([completed("ann", s, i) for i, s in enumerate("abc")])
    nothing = json.loads((await world.invoke("status", "-o", "json")).stdout)
    assert [g["lag"] for g in nothing["groups"]] == [3, 3]
    assert all(g["lag_seconds"] > 0 for g in nothing["groups"])
    assert nothing["newest"] == {"recorded": None, "counted": None}
    assert sum("is in its group" in p for p in nothing["problems"]) == 2
    recorder, _ = world.start_both()
    await world.drained()
    await world.produce([completed("nobody", "a", 1)])
    await world.drained()
    (await world.start(RELAY).ready()).kill()
    await world.put_in_outbox([("ann", "{}")])
    recorder.terminate()
    await world.produce([completed("bob", "a", 86_400_000)])
    seen = json.loads((await world.invoke("status", "-o", "json")).stdout)
    groups = {g["service"]: g for g in seen["groups"]}
    assert (groups[RECORDER]["state"], groups[RECORDER]["members"], groups[RECORDER]["lag"]) == (
        "Empty",
        {},
        1,
    )
    (member,) = groups[AGGREGATOR]["members"].items()
    assert member[1] == [0, 1, 2]
    assert seen["newest"] == {"recorded": "2000-01-01T00:00:00Z", "counted": "2000-01-01T00:00:00Z"}
    assert seen["dead_letters"] == {"in_topic": 1, "handled": 0}
    assert seen["outbox"]["waiting"] == 1
    table = " ".join((await world.invoke("status")).stdout.split())
    assert "no completion-recorder is in its group (Empty), behind by 1 event" in table
    assert "no outbox-relay is connected to the database" in table
    assert "1 waiting, the oldest for" in table
    parts = json.loads((await world.invoke("lag", "--group", RECORDER, "-o", "json")).stdout)
    assert [p["lag"] for p in parts[0]["partitions"]].count(1) == 1
    assert (await world.invoke("lag", "--fail-above", "1")).returncode == 0
    for limit in ("0", "1ms"):
        above = await world.invoke("lag", "--fail-above", limit)
        assert above.returncode == 3
        assert "completion-recorder" in above.stderr
    assert (await world.invoke("lag", "--fail-above", "lots")).returncode == 2


async def test_status_works_without_kafka_and_without_the_database(world: World) -> None:
    without = await world.invoke("status", "-o", "json", kafka_bootstrap_servers="127.0.0.1:1")
    assert without.returncode == 1
    seen = json.loads(without.stdout)
    assert (seen["kafka"], seen["database"]) == (False, True)
    assert "Kafka at 127.0.0.1:1" in seen["problems"][0]
    neither = await world.invoke(
        "status", kafka_bootstrap_servers="127.0.0.1:1", database_url="postgresql://u:secret@127.0.0.1:1/x"
    )
    assert neither.returncode == 1
    assert "PostgreSQL at 127.0.0.1:1" in neither.stdout
    assert "secret" not in neither.stdout + neither.stderr
    assert (await world.invoke("lag", kafka_bootstrap_servers="127.0.0.1:1")).returncode == 1


async def test_the_marker_of_a_transaction_is_no_lag(world: World) -> None:
    """A producer of somebody else uses transactions: what follows the last event is read by nobody."""
    await world.offer()
    await world.people(["ann"])
    world.start_both()
    for service in world.services:
        await service.ready()
    topic = world.settings.topic
    async with world.producing(transactional_id=topic) as producer, producer.transaction():
        await producer.send(topic, json.dumps(completed("ann", "a", 1)).encode(), key=b"ann")

    async def counted() -> bool:
        return len(await world.transitions()) == 1

    await eventually(counted, "it is counted")

    async def passed() -> bool:
        return all(group.lag == 0 for group in await read_groups(world.settings))

    await eventually(passed, "there is no lag")
    assert len(await members(world, RECORDER)) == 1


async def test_a_transaction_that_stays_open_is_a_problem_and_a_short_one_is_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others sent behind it waits, and no lag shows that."""
    monkeypatch.setattr(status, "_LONG_TRANSACTION_MS", 1_800_000)
    await world.offer()
    await world.people(["ann", "bob"])
    world.start_both()
    topic, now = world.settings.topic, int(time.time() * 1000)
    async with world.producing(transactional_id=topic) as producer:
        for name, sent_at, is_problem in (("ann", None, False), ("bob", now - 3_600_000, True)):
            async with producer.transaction():
                value = json.dumps(completed(name, "a", 1)).encode()
                await producer.send_and_wait(
                    topic, value, key=name.encode(), partition=1, timestamp_ms=sent_at
                )
                await world.produce([completed(name, "b", 2)])
                shown = await world.invoke("status", "-o", "json")
                seen = json.loads(shown.stdout)
                problems = [p for p in seen["problems"] if "transaction has been open for" in p]
                assert seen["held_back"] >= 1
                assert len(problems) == is_problem
                assert shown.returncode == (3 if is_problem else 0)
            await world.drained()
        assert "open for 1h" in problems[0]
        assert "in partition 1: what anybody sent there since waits" in problems[0]
    assert {user for user, _ in await world.completions()} == {"ann", "bob"}


async def test_watching_goes_on_until_it_is_ended(world: World) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.operator_cli", "lag", "--watch", "--every", "10ms"),
        *("-o", "json"),
        env=world.environment(),
        stdout=asyncio.subprocess.PIPE,
        # What a shell has put into the background ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for _ in range(3):
        assert len(json.loads(await process.stdout.readline())) == 2
    process.send_signal(signal.SIGINT)
    await process.stdout.read()
    assert await process.wait() == 0


def test_durations_are_told_in_two_units() -> None:
    from services.runtime.text import format_duration

    assert [format_duration(s) for s in (0.2, 59, 61, 3_700, 90_061)] == ["0s", "59s", "1m1s", "1h1m", "1d1h"]
    assert status_page(Status(0)) is not None


# --- keys ------------------------------------------------------------------------------------------------


async def test_a_key_is_shown_once_and_kept_as_a_hash(world: World) -> None:
    await world.offer()
    made = await world.invoke(
        "keys", "create", "--organization", "org", "--name", "for [x]", "--expires-in", "1h"
    )
    assert made.returncode == 0
    match = re.fullmatch(r"sst_([0-9a-f]{12})_([\w-]{43})\n", made.stdout)
    assert match
    row = await world.db.fetchrow("select * from api_keys")
    assert row is not None
    assert (row["id"], row["organization_id"], row["name"]) == (match[1], "org", "for [x]")
    assert row["hash"] == hashlib.sha256(match[2].encode()).digest()
    assert match[2] not in repr(dict(row))
    assert 3_500 < (row["expires_at"] - row["created_at"]).total_seconds() <= 3_600

    async def states() -> list[str]:
        listed = await world.invoke("keys", "list", "--organization", "org", "-o", "json")
        assert match[2] not in listed.stdout
        return [key["state"] for key in json.loads(listed.stdout)]

    assert await states() == ["valid"]
    assert "for [x]" in (await world.invoke("keys", "list")).stdout
    plan = await world.invoke("keys", "revoke", match[1])
    assert "nothing was changed" in plan.stderr
    assert await states() == ["valid"]
    assert (await world.invoke("keys", "revoke", made.stdout.strip(), "--execute")).returncode == 0
    assert await states() == ["revoked"]
    forever = await world.invoke("keys", "create", "--organization", "org")
    assert "until it is revoked" in forever.stderr
    assert (await world.invoke("keys", "create", "--organization", "nobody")).returncode == 2
    assert (
        await world.invoke("keys", "create", "--organization", "org", "--expires-in", "0s")
    ).returncode == 2
    assert (await world.invoke("keys", "revoke", "abc")).returncode == 2


# --- backfill --------------------------------------------------------------------------------------------


async def fill(world: World, *args: str) -> dict[str, Any]:
    done = await world.invoke("backfill", *args, "-o", "json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


async def test_from_a_file_twice_changes_nothing_the_second_time(world: World, tmp_path: Path) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    await world.db.execute("insert into mcp_server_user (id) values ('cat')")  # without a session
    table = tmp_path / "old.csv"
    table.write_text(
        "mcp_server_user_id,walkthrough_id,step_id,completed_at,mcp_server_session_id,mcp_server_id,metadata\n"
        'ann,wt_a,a,2025-03-01T10:00:00Z,,,"{""from"": ""csv""}"\n'
        "ann,wt_a,b,1740823260000,s_ann,srv_1,\n"
        "bob,wt_a,a,1740823200,,,\n"
        "bob,wt_a,a,2025-03-01 10:00,,,\n"
        "zed,wt_a,a,1740823200000,,,\n"
        "ann,wt_a,q,1740823200000,,,\n"
        "cat,wt_a,c,1740823200000,,,\n"
    )
    lines = tmp_path / "old.ndjson"
    lines.write_text(
        json.dumps(
            {
                "mcp_server_user_id": "bob",
                "walkthrough_id": "wt_a",
                "step_id": "b",
                "completed_at": 1740823200000,
            }
        )
        + '\n\n{"mcp_server_user_id": "bob"\n{"mcp_server_user_id": "bob", "walkthrough_id": "wt_a"}\n'
    )
    world.start_both()
    plan = await fill(world, str(table))
    assert plan["counts"]["step-completed"] == 2
    assert [(x["where"], x["reason"].partition(":")[0]) for x in plan["left_out"]] == [
        ("line 4", "completed_at"),
        ("line 5", "completed_at"),
        ("line 6", "there is no such user"),
        ("line 7", "there is no such step in that walkthrough"),
        ("line 8", "no session of that person is known"),
    ]
    assert await world.events() == []
    for _ in range(2):
        await fill(world, str(table), "--server", "srv_1", "--execute")
        await fill(world, str(lines), "--execute")
        await world.drained()
        assert {key: at for key, (at, _) in (await world.completions()).items()} == {
            ("ann", "a"): 1740823200000,
            ("ann", "b"): 1740823260000,
            ("bob", "b"): 1740823200000,
            ("cat", "c"): 1740823200000,
        }
        assert len(await world.events()) == 4
    session = await world.db.fetchrow("select * from mcp_server_session where mcp_server_user_id = 'cat'")
    assert session is not None
    assert (session["title"], session["mcp_server_slug"]) == ("backfill", "srv_1")
    assert await world.db.fetchval(
        "select metadata from walkthrough_step_completions where step_id = 'a'"
    ) == ('{"from": "csv"}')
    await world.assert_exact()


async def test_the_same_events_again_before_the_first_were_recorded(world: World, tmp_path: Path) -> None:
    await world.offer()
    await world.people(["ann"])
    lines = tmp_path / "old.ndjson"
    lines.write_text(
        json.dumps(
            {
                "mcp_server_user_id": "ann",
                "walkthrough_id": "wt_a",
                "step_id": "a",
                "completed_at": 1740823200000,
            }
        )
    )
    for _ in range(2):
        await fill(world, str(lines), "--execute")
    first, second = await world.events()
    assert first.value == second.value
    world.start_both()
    await world.drained()
    assert len(await world.completions()) == 1
    assert await world.dead_letters() == []


BEFORE_2000 = "milliseconds since the epoch is 1970-01-21; no time is before 2000-01-01"


async def test_from_progress_with_estimated_times_that_never_beat_real_ones(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob", "cat", "dee", "eve", "fay"])
    rows = [
        (
            "ann",
            '["a", "gone", "b", "c"]',
            moment(1_000_000),
            moment(4_000_000),
        ),  # a and b before Stepstream, c with it
        ("bob", '["b", "a"]', None, moment(9_000_000)),
        ("cat", '["a"]', None, None),
        ("dee", '["a"]', moment(1_000_000), 2**42),  # active now
        ("fay", '["a"]', 1_764_000_000, 1_764_000_000),  # seconds
        ("eve", "[]", moment(5_000_000), moment(5_000_000)),
    ]
    await world.db.executemany(
        "insert into walkthrough_progress (id, mcp_server_user_id, walkthrough_id, completed_steps, started_at,"
        " last_activity_at) values ('wtp_' || $1, $1, 'wt_a', $2, $3, $4)",
        rows,
    )
    await world.produce([completed("ann", "c", 3_000_000)])
    world.start_both()
    await world.drained()
    plan = await fill(world, "--from-progress")
    assert plan["counts"]["step-completed"] == 4
    assert plan["counts"]["walkthrough-started"] == 2
    assert plan["counts"]["steps whose time is estimated"] == 5
    assert plan["counts"]["step ids of progress that no step has (any more)"] == 1
    assert [(x["where"], x["reason"].partition(":")[0]) for x in plan["left_out"]] == [
        ("progress wtp_cat", "neither start nor last activity is known, so no time is"),
        ("progress wtp_dee", "active within the last hour"),
        ("progress wtp_fay", f"1764000000 {BEFORE_2000}"),
        ("progress wtp_fay", f"1764000001 {BEFORE_2000}"),
    ]
    for _ in range(2):
        await fill(world, "--from-progress", "--execute")
        await world.drained()
        assert await in_order(world, "ann") == [
            ("a", moment(1_666_666)),
            ("b", moment(2_333_333)),
            ("c", moment(3_000_000)),
        ]
        assert [s for s, _ in await in_order(world, "bob")] == list("ba")
    assert await world.db.fetchval("select count(*) from walkthrough_starts") == 2
    await world.assert_exact()


async def in_order(world: World, user: str) -> list[tuple[str, int]]:
    found = await world.completions()
    return sorted(((s, at) for (u, s), (at, _) in found.items() if u == user), key=lambda pair: pair[1])


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "name a file, or say --from-progress"),
        (("nowhere.csv",), "No such file"),
        (("--from-progress", "--server", "nope"), "no server with the slug"),
    ],
)
async def test_backfill_says_what_makes_no_sense(world: World, args: tuple[str, ...], told: str) -> None:
    done = await world.invoke("backfill", *args)
    assert done.returncode == 2
    assert told in done.stderr


async def test_columns_that_lack_or_are_unknown_are_named(world: World, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("mcp_server_user_id,walkthrough_id,step_id\n")
    assert "missing: completed_at" in (await world.invoke("backfill", str(file))).stderr
    file.write_text("mcp_server_user_id,walkthrough_id,step_id,completed_at,colour\n")
    assert "unknown columns colour" in (await world.invoke("backfill", str(file))).stderr
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in (await world.invoke("backfill", str(file))).stderr

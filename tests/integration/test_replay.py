"""Replays change nothing in the tables, and mend what lacks; the plan says what it will do, and what is gone."""

import json
import random
import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from services.consumers.lag import GROUPS, read_groups
from services.operations import offsets
from services.operations import replay as replaying
from services.operations import skip as skipping
from services.runtime.errors import RefusedError, StepstreamError
from tests.support.logs import needs_logs, oracle, path
from tests.support.world import AGGREGATOR, RECORDER, Message, World, completed, eventually

pytestmark = pytest.mark.integration

TABLES = ("walkthrough_step_completions", "sankey_journeys", "sankey_transitions", "sankey_endings")


async def tables(world: World) -> list[list[tuple[Any, ...]]]:
    return [
        sorted((tuple(row) for row in await world.db.fetch(f"select * from {name}")), key=repr)
        for name in TABLES
    ]


async def remove_head(world: World, share: float) -> int:
    """What retention does; returns how many events are gone."""
    (group,) = await read_groups(world.settings, [RECORDER], ages=False)
    upto = {p.partition: p.begin + int((p.end - p.begin) * share) for p in group.positions}
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    topic = world.settings.topic
    await admin.delete_records({TopicPartition(topic, p): RecordsToDelete(o) for p, o in upto.items()})
    await admin.close()
    return sum(upto.values())


async def plan_of(world: World, *args: str) -> dict[str, Any]:
    done = await world.invoke("replay", *args, "-o", "json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@needs_logs
async def test_real_log_whole_ranges_twice_and_without_its_head(world: World) -> None:
    events = list(oracle().events(path("receipt")))
    await world.db.execute(oracle().rows(path("receipt")))
    random.Random(4).shuffle(events)
    await world.produce(events)
    services = world.start_both()
    await world.drained()
    before = await tables(world)
    assert sum(len(part) for part in before) > len(events)

    async def again(*replays: tuple[str, ...]) -> None:
        for replay in replays:
            done = await world.invoke("replay", *replay, "--execute")
            assert done.returncode == 0, done.stderr
        services[:] = world.start_both()
        await world.drained()
        for service in services:
            assert service.terminate() == 0
        assert await tables(world) == before

    for service in services:
        assert service.terminate() == 0
    whole = ("--from-beginning",)
    await again(("--group", RECORDER, *whole), ("--group", AGGREGATOR, *whole))
    for group in GROUPS:  # each alone, in part, and ranges fed through twice
        for args in (("--from-offset", "10", "--to-offset", "400"), ("--from", "-1h", "--to", "-0s")):
            done = await world.invoke("replay", "--group", group, *args, "--execute")
            assert done.returncode == 0, done.stderr
            assert "is where it was" in done.stderr
            assert await tables(world) == before
    assert all(group.lag == 0 for group in await read_groups(world.settings))
    await again(("--group", AGGREGATOR, "--from-offset", "100", "--partitions", "0,2"))
    gone = await remove_head(world, 0.4)
    plan = await plan_of(world, "--group", RECORDER, "--from-beginning")
    assert sum(p["expired"] for p in plan["partitions"]) == gone
    assert plan["events"] == len(events) - gone
    told = await world.invoke("replay", "--group", RECORDER, "--from-beginning")
    assert f"{gone:,} of the wanted events have expired" in told.stderr
    await again(("--group", RECORDER, *whole), ("--group", AGGREGATOR, *whole))


async def test_it_mends_what_the_database_lacks(world: World) -> None:
    """Rows were deleted by mistake: a range fed through brings them back, and the counts with them."""
    await world.offer()
    people = [f"p{i}" for i in range(20)]
    await world.people(people)
    await world.produce([completed(p, s, i) for p in people for i, s in enumerate("abc")])
    recorder, aggregator = world.start_both()
    await world.drained()
    before = await tables(world)
    await world.db.execute("delete from walkthrough_step_completions where step_id = 'b'")
    await world.drained()
    assert recorder.terminate() == 0
    done = await world.invoke("replay", "--group", RECORDER, "--from", "-1h", "--to", "-0s", "--execute")
    assert done.returncode == 0, done.stderr
    assert aggregator.process.poll() is None
    await world.drained()
    assert await tables(world) == before


async def test_refused_while_the_group_has_members(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", "a", 1)])
    world.start_both()
    await world.drained()
    for group in GROUPS:
        for bound in ((), ("--to", "-0s")):
            refused = await world.invoke("replay", "--group", group, "--from-beginning", *bound, "--execute")
            assert refused.returncode == 4
            assert "1 member: stop every" in refused.stderr
        shown = await world.invoke("replay", "--group", group, "--from-beginning")
        assert shown.returncode == 0
        assert "refused until then" in shown.stderr
    assert all(group.lag == 0 for group in await read_groups(world.settings))


async def test_the_broker_refuses_too_should_a_member_come_meanwhile(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", "a", 1)])
    world.start_both()
    await world.drained()
    plan = await replaying.make_plan(
        world.settings, RECORDER, replaying.ReplayStart(beginning=True), replaying.ReplayEnd(), None
    )
    before = await tables(world), await world.db.fetch("select * from recorded_offsets order by partition")
    with pytest.raises(RefusedError, match="got members meanwhile, and nothing was changed"):
        await replaying._set_offsets(world.settings, plan)
    after = await tables(world), await world.db.fetch("select * from recorded_offsets order by partition")
    assert after == before
    assert all(group.lag == 0 for group in await read_groups(world.settings))


@pytest.mark.parametrize("command", ["replay", "skip"])
async def test_a_command_that_freezes_while_it_moves_positions_lets_them_go(
    world: World, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", "a", 1)])
    world.start_both()
    await world.drained()
    module = replaying if command == "replay" else skipping
    set_positions = module.set_positions

    async def set_and_freeze(db: Any, *arguments: Any) -> None:
        await set_positions(db, *arguments)
        await world.ended(db)

    monkeypatch.setattr(module, "set_positions", set_and_freeze)
    monkeypatch.setattr(offsets, "_TRANSACTION_SECONDS", 1.0)
    before = await world.db.fetch("select * from recorded_offsets order by partition")
    if command == "replay":
        beginning, end = replaying.ReplayStart(beginning=True), replaying.ReplayEnd()
        plan = await replaying.make_plan(world.settings, RECORDER, beginning, end, None)
        moving = replaying._set_offsets(world.settings, plan)
    else:
        (at,) = [r["partition"] for r in before if r["next_offset"] > 0]
        moving = skipping.skip(
            world.settings, skipping.EventSkip(RECORDER, world.settings.topic, at, 1, 2, 0)
        )
    with pytest.raises(StepstreamError):
        await moving
    assert await world.db.fetch("select * from recorded_offsets order by partition") == before
    await world.produce([completed("ann", "b", 2)])
    await world.drained()


async def test_the_plan_finds_offsets_by_time_and_never_skips(world: World) -> None:
    at = (int(time.time()) // 60 - 60) * 60_000  # older ones could expire while the test runs
    producer_times = [at + i * 60_000 for i in range(10)]
    await world.offer()
    await world.people(["ann"])

    async with world.producing() as producer:
        for n, moment in enumerate(producer_times):
            message = Message.of(completed("ann", "abcde"[n % 5], n))
            await producer.send_and_wait(
                world.settings.topic, message.value, key=message.key, partition=1, timestamp_ms=moment
            )
    for service in world.start_both():
        await service.ready()
    await world.drained()
    for service in world.services:
        service.terminate()

    async def on_partition_1(*args: str) -> tuple[int, int, int]:
        plan = await plan_of(world, "--group", RECORDER, *args)
        (found,) = [p for p in plan["partitions"] if p["partition"] == 1]
        assert found["present"] == 10
        return found["new"], found["until"], found["events"]

    fourth = datetime.fromtimestamp(at / 1000 + 180, timezone(timedelta(hours=2))).isoformat()
    assert await on_partition_1("--from", fourth) == (3, 10, 7)
    assert await on_partition_1("--from", str((at + 150_001) // 1000)) == (3, 10, 7)
    assert await on_partition_1("--from", str(at + 180_001)) == (4, 10, 6)
    assert await on_partition_1("--from", "-1m") == (10, 10, 0)
    assert await on_partition_1("--from-offset", "7") == (7, 10, 3)
    assert await on_partition_1("--from-offset", "70") == (10, 10, 0)
    assert await on_partition_1("--from-offset", "2", "--to-offset", "5") == (2, 5, 3)
    assert await on_partition_1("--from-offset", "2", "--to-offset", "99") == (2, 10, 8)
    assert await on_partition_1("--from-offset", "2", "--to", str(at + 240_000)) == (2, 4, 2)
    await remove_head(world, 0.5)
    plan = await plan_of(world, "--group", RECORDER, "--from", str(at))
    assert [(p["new"], p["expired"], p["expired_at_most"]) for p in plan["partitions"] if p["present"]] == [
        (5, 5, True)
    ]
    told = await world.invoke("replay", "--group", RECORDER, "--from", str(at))
    assert "up to 5 of the wanted events have expired" in told.stderr


async def test_a_database_that_is_an_older_copy_is_not_left_with_gaps(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", s, i) for i, s in enumerate("abcde")])
    for service in world.start_both():
        await service.ready()
    await world.drained()
    for service in world.services:
        service.terminate()
    # Restored from when two of the five events had been judged, and counted.
    for table in ("recorded_offsets", "counted_offsets"):
        await world.db.execute(f"update {table} set next_offset = 2, reads_from = 2 where next_offset = 5")
    await world.db.execute("delete from walkthrough_step_completions where step_id in ('c', 'd', 'e')")
    status = await world.invoke("status")
    assert "the database has only what is before 2" in " ".join(status.stdout.split())
    assert status.returncode == 3
    for group, args in (
        (RECORDER, ("--from-offset", "3")),
        (RECORDER, ("--from-offset", "3", "--to-offset", "5")),
        (AGGREGATOR, ("--from-beginning", "--to-offset", "5")),
    ):
        plan = await plan_of(world, "--group", group, *args)
        assert max(p["until"] for p in plan["partitions"]) <= 2, "nothing is left out"
    # An old version's aggregator, say: it is past what the recorder has judged.
    await world.db.execute("update counted_offsets set next_offset = 5, reads_from = 5 where next_offset = 2")
    refused = await world.invoke(
        "replay", "--group", AGGREGATOR, "--from-beginning", "--to-offset", "5", "--execute"
    )
    assert refused.returncode == 4
    assert "up to offset 2" in refused.stderr
    await world.db.execute("update counted_offsets set next_offset = 2, reads_from = 2 where next_offset = 5")
    world.services.clear()
    world.start_both()

    async def all_back() -> bool:
        # Not from Kafka's offsets: there both groups have been at the end all the time.
        places = await world.db.fetch(
            "select max(next_offset) as at from recorded_offsets"
            " union all select max(next_offset) from counted_offsets"
        )
        return [place["at"] for place in places] == [5, 5]

    await eventually(all_back, "both services read on where the database is")
    await world.drained()
    assert len(await world.completions()) == 5
    await world.assert_exact()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "where to begin"),
        (("--from-beginning", "--from-offset", "3"), "one of"),
        (("--from-beginning", "--to", "-1h", "--to-offset", "3"), "--to or --to-offset"),
        (("--from", "yesterday"), "is not a time"),
        (("--from", "2026-11-24T09:00:00"), "is not a time"),
        (("--from-beginning", "--partitions", "a"), "no list of numbers"),
        (("--from-beginning", "--partitions", "7"), "has partitions 0 to 2, and no 7"),
    ],
)
async def test_what_makes_no_sense_is_said(world: World, args: tuple[str, ...], told: str) -> None:
    done = await world.invoke("replay", "--group", RECORDER, *args)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())

"""The recorder's transaction against a real PostgreSQL."""

import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from aiokafka import ConsumerRecord, TopicPartition

from schemas import Rejection
from services.completion_recorder import transaction
from services.completion_recorder.judge import Refused, read
from services.completion_recorder.load_counts import Load
from services.completion_recorder.waiting import count_waiting, resuming
from services.consumers.stored_positions import Advance, read_positions
from services.runtime.database import Pool
from services.runtime.kafka import next_offsets
from tests.support.world import Message, World, completed, eventually, moment, started

pytestmark = pytest.mark.integration

NOW = 10**13


async def record(world: World, pool: Pool, events: Sequence[dict[str, Any]], first: int = 0) -> list[Refused]:
    """Hands events to the recorder as the records of partition 0 from offset `first` on."""
    return (await transaction.record(pool, load_of(world, events, 0, first))).refused


def load_of(world: World, events: Sequence[dict[str, Any]], partition: int, first: int) -> Load:
    topic = world.settings.topic
    records = [
        ConsumerRecord(topic, partition, first + i, 0, 0, b"k", json.dumps(e).encode(), None, 0, 0, ())
        for i, e in enumerate(events)
    ]
    accepted, refused = read(records, NOW)
    assert refused == []
    return Load(topic, next_offsets(records), accepted)


async def rows(world: World) -> list[tuple[Any, ...]]:
    found = await world.db.fetch("select * from walkthrough_step_completions order by id")
    return [tuple(row) for row in found]


async def test_the_row_is_the_winning_event(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    event = completed("ann", "a", 42, metadata={"stepOrder": 1, "isLastStep": False})
    await record(world, pool, [event])
    (row,) = await world.db.fetch("select * from walkthrough_step_completions")
    assert dict(row) | {"metadata": json.loads(row["metadata"])} == {
        "id": "wtsc_" + event["event_id"],
        "mcp_server_user_id": "ann",
        "walkthrough_id": "wt_a",
        "step_id": "a",
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": "s_ann",
        "completed_at": moment(42),
        "metadata": {"stepOrder": 1, "isLastStep": False},
    }


async def test_any_order_batching_and_duplication_gives_the_same_table_byte_for_byte(world: World) -> None:
    await world.offer()
    people = [f"p{i}" for i in range(8)]
    await world.people(people)
    await world.people(["other"])
    await world.db.execute(
        "update mcp_server_session set mcp_server_user_id = null where mcp_server_session_id = 's_other'"
    )
    pool = await world.recorder_pool()
    chance = random.Random(3)
    events = [
        completed(chance.choice(people), chance.choice("abcde"), chance.randrange(20), metadata={"n": i})
        for i in range(150)
    ]
    # One event id under different contents: which one stays must not depend on the order either.
    events += [e | {"mcp_server_session_id": "s_other", "metadata": {"n": -1}} for e in events[:40]]
    seen = set()
    for _ in range(6):
        sent = chance.sample(events, len(events)) + chance.choices(events, k=60)
        await world.db.execute("delete from walkthrough_step_completions")
        first = 0
        while first < len(sent):
            size = chance.randint(1, 90)
            await record(world, pool, sent[first : first + size], first)
            first += size
        seen.add(tuple(await rows(world)))
    assert len(seen) == 1
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key = e["mcp_server_user_id"], e["step_id"]
        best[key] = min(best.get(key, (10**13, "")), (e["completed_at"], e["event_id"]))
    assert await world.completions() == best


async def test_an_upsert_that_changes_nothing_writes_nothing(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    events = [completed("ann", step, i) for i, step in enumerate("abc")]
    await record(world, pool, events)
    before = await world.db.fetch("select ctid, xmin, * from walkthrough_step_completions order by id")
    await record(world, pool, events[::-1])
    after = await world.db.fetch("select ctid, xmin, * from walkthrough_step_completions order by id")
    assert before == after
    assert await world.db.fetchval("select count(*) from sankey_dirty") == 0


async def test_unknown_references_are_refused_and_the_rest_is_kept(world: World) -> None:
    await world.offer()
    await world.offer("wt_b", "z", "srv_1")
    await world.people(["ann"])
    pool = await world.recorder_pool()
    refused = await record(
        world,
        pool,
        [
            # The refused event is the earlier one: the later, valid one must count.
            completed("ann", "a", 1, mcp_server_session_id="s_nobody"),
            completed("ann", "a", 2),
            completed("nobody", "a", 1),
            completed("ann", "nothing", 1),
            completed("ann", "z", 1),
            completed("ann", "b", 1, mcp_server_id="none"),
            completed("ann", "b", 1, walkthrough_id="none"),
        ],
    )
    assert sorted(r.rejection for r in refused) == sorted(
        [
            Rejection.UNKNOWN_SESSION,
            Rejection.UNKNOWN_USER,
            Rejection.UNKNOWN_STEP,
            Rejection.STEP_OF_ANOTHER_WALKTHROUGH,
            Rejection.UNKNOWN_SERVER,
            Rejection.UNKNOWN_WALKTHROUGH,
        ]
    )
    assert {k: t for k, (t, _) in (await world.completions()).items()} == {("ann", "a"): moment(2)}


async def test_what_an_event_refers_to_has_to_belong_together(world: World) -> None:
    """Else one organization's figures would show ids of another."""
    await world.offer()
    await world.offer("wt_b", "z", "srv_2")
    await world.offer("wt_of_b", "xy", "srv_of_b")
    await world.db.execute("insert into organization (id, name, created_at) values ('org_b', 'b', now())")
    for table, row in (("mcp_servers", "srv_of_b"), ("walkthroughs", "wt_of_b")):
        await world.db.execute(f"update {table} set organization_id = 'org_b' where id = $1", row)
    await world.people(["ann", "bob"])
    await world.people(["ann"], "srv_2", "t_")
    await world.people(["ann"], "srv_of_b", "b_")
    await world.people(["nobody-yet"], session="u_")
    await world.db.execute(
        "update mcp_server_session set mcp_server_user_id = null where mcp_server_user_id = 'nobody-yet'"
    )
    pool = await world.recorder_pool()
    on_b = {"mcp_server_id": "srv_of_b", "mcp_server_session_id": "b_ann"}
    wrong = [
        completed("ann", "a", 1, **on_b),
        completed("ann", "x", 1, walkthrough_id="wt_of_b"),
        started("ann", 1, **on_b),
        completed("ann", "b", 1, mcp_server_session_id="t_ann"),
        completed("ann", "b", 1, mcp_server_session_id="b_ann"),
        completed("ann", "c", 1, mcp_server_session_id="s_bob"),
    ]
    right = [
        completed("ann", "y", 2, walkthrough_id="wt_of_b", **on_b),
        # A session that the platform knows no user of, and a server that does not offer the walkthrough any more.
        completed("ann", "d", 2, mcp_server_session_id="u_nobody-yet"),
        completed("ann", "z", 2, walkthrough_id="wt_b"),
    ]
    refused = await record(world, pool, [*wrong, *right])
    assert [r.rejection for r in refused] == [
        *[Rejection.SERVER_OF_ANOTHER_ORGANIZATION] * 3,
        *[Rejection.SESSION_OF_ANOTHER_SERVER] * 2,
        Rejection.SESSION_OF_ANOTHER_USER,
    ]
    assert set(await world.completions()) == {("ann", step) for step in "ydz"}
    # Alone in a batch they are judged on the quick way.
    assert await record(world, pool, right, first=9) == []


async def test_an_event_id_used_for_two_steps_is_refused_alone(world: World) -> None:
    await world.offer()
    people = [f"p{i}" for i in range(20)]
    await world.people(people)
    pool = await world.recorder_pool()
    events = [completed(p, s, 5) for p in people for s in "ab"]
    thief = completed("p3", "c", 1, event_id=events[10]["event_id"])
    refused = await record(world, pool, [*events[:25], thief, *events[25:]])
    assert [(r.rejection, r.record.offset) for r in refused] == [(Rejection.REUSED_EVENT_ID, 25)]
    assert refused[0].message == "event_id: another user's event, at 0:10, has it and comes first"
    assert len(await world.completions()) == len(events)
    # Alone, against the table; and one that an earlier event of its own row beats.
    again = completed("p4", "c", 1_764_000_000_000, event_id=events[10]["event_id"])
    late = completed("p4", "a", 9, event_id=events[10]["event_id"])
    refused_then = await record(world, pool, [again, late], first=50)
    assert [r.record.offset for r in refused_then] == [50, 51]
    assert {r.message for r in refused_then} == {
        "event_id: another user's event, of 2000-01-01T00:00:00.005Z, is recorded under it"
    }
    assert len(await world.completions()) == len(events)


async def test_which_event_of_a_reused_id_counts_is_the_first_of_the_log_however_it_is_batched(
    world: World,
) -> None:
    await world.offer()
    people = [f"p{i}" for i in range(12)]
    await world.people(people)
    pool = await world.recorder_pool()
    same = "00000000-0000-4000-8000-00000000abcd"
    events = [completed(p, s, 99 - i, event_id=same) for i, p in enumerate(people) for s in "cab"]
    events += [started(p, 5, event_id=same) for p in people]
    for size in (len(events), 7, 1):
        await world.db.execute("delete from walkthrough_step_completions; delete from walkthrough_starts")
        refused = [
            r
            for first in range(0, len(events), size)
            for r in await record(world, pool, events[first : first + size], first)
        ]
        assert {r.rejection for r in refused} == {Rejection.REUSED_EVENT_ID}
        assert len(refused) == len(events) - 2
        assert set(await world.completions()) == {("p0", "c")}
        assert await world.db.fetchval("select mcp_server_user_id from walkthrough_starts") == "p0"
        assert {r.message for r in refused if r.record.offset == 1 and size == len(events)} <= {
            "event_id: an event of this user and another step, at 0:0, has it and comes first"
        }


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_an_id_is_that_of_the_first_of_the_log_also_where_that_is_beaten(
    world: World, order: Sequence[int]
) -> None:
    """However it is batched, and read again: the id of one that is beaten is kept with it."""
    await world.offer()
    await world.people(["ann", "bob"])
    pool = await world.recorder_pool()
    same = "00000000-0000-4000-8000-00000000abcd"
    first_of_a = completed("ann", "a", 1)
    later_of_a, of_b = completed("ann", "a", 5, event_id=same), completed("bob", "b", 9, event_id=same)
    events = [[first_of_a, later_of_a, of_b][i] for i in order]
    named = next(e for e in events if e["event_id"] == same)
    expected = {("ann", "a"): (first_of_a["completed_at"], first_of_a["event_id"])}
    if named is of_b:
        expected["bob", "b"] = (of_b["completed_at"], same)
    for size in (3, 2, 1):
        await world.db.execute("delete from walkthrough_step_completions; delete from later_completions")
        for _ in range(2):  # once more, as a replay does
            refused = [
                r
                for first in range(0, 3, size)
                for r in await record(world, pool, events[first : first + size], first)
            ]
            assert [events[r.record.offset] for r in refused] == [
                e for e in events if e["event_id"] == same and e is not named
            ], size
            assert await world.completions() == expected


async def test_what_is_beaten_takes_no_id_that_another_row_has_once_it_counts(world: World) -> None:
    """A correction makes the next completion count: were its id another row's, neither could."""
    await world.offer()
    await world.people(["ann", "bob"])
    pool = await world.recorder_pool()
    of_b, first_of_a = completed("bob", "b", 9), completed("ann", "a", 1)
    beaten = completed("ann", "a", 5, event_id=of_b["event_id"])
    (refused,) = await record(world, pool, [of_b, first_of_a, beaten])
    assert refused.rejection is Rejection.REUSED_EVENT_ID
    assert refused.record.offset == 2
    assert await world.db.fetchval("select count(*) from later_completions") == 0


async def test_of_another_organizations_event_nothing_is_told(world: World) -> None:
    await world.offer()
    await world.offer("wt_of_b", "xy", "srv_of_b")
    await world.db.execute("insert into organization (id, name, created_at) values ('org_b', 'b', now())")
    for table, row in (("mcp_servers", "srv_of_b"), ("walkthroughs", "wt_of_b")):
        await world.db.execute(f"update {table} set organization_id = 'org_b' where id = $1", row)
    await world.people(["ann"])
    await world.people(["ann"], "srv_of_b", "b_")
    pool = await world.recorder_pool()
    here = completed("ann", "a", 5)
    on_b = {"walkthrough_id": "wt_of_b", "mcp_server_id": "srv_of_b", "mcp_server_session_id": "b_ann"}
    there = completed("ann", "x", 5, event_id=here["event_id"], **on_b)
    (beside,) = await record(world, pool, [here, there])
    (later,) = await record(world, pool, [there], first=2)
    assert beside.message == "event_id: another event before this one has it"
    assert later.message == "event_id: another event is recorded under it"


async def test_offsets_never_go_backwards(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    await record(world, pool, [completed("ann", "a", 1)], first=99)
    await record(world, pool, [completed("ann", "b", 2)], first=10)
    assert await world.recorded() == 100


async def test_a_batch_of_bad_events_alone_still_moves_the_recorder_on(world: World) -> None:
    pool = await world.recorder_pool()
    await transaction.record(
        pool, Load(world.settings.topic, {TopicPartition(world.settings.topic, 2): 7}, [])
    )
    assert await world.recorded() == 7


async def test_only_a_change_on_old_ground_leaves_a_mark(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    pool = await world.recorder_pool()
    await record(world, pool, [completed("ann", "a", 5), completed("bob", "a", 5)], first=0)
    marks = "select mcp_server_user_id, walkthrough_id from sankey_dirty"
    assert await world.db.fetch(marks) == []
    await record(world, pool, [completed("ann", "a", 3), completed("bob", "a", 9)], first=0)
    assert [tuple(m) for m in await world.db.fetch(marks)] == [("ann", "wt_a")]
    await record(world, pool, [completed("bob", "a", 2)], first=2)
    assert len(await world.db.fetch(marks)) == 1


async def test_a_row_that_leaves_a_journey_no_event_names_leaves_a_mark(world: World) -> None:
    """A step moved to another walkthrough, and an earlier event under the new one takes the row along."""
    await world.offer()
    await world.offer("wt_b", "z")
    await world.people(["ann"])
    pool = await world.recorder_pool()
    await record(world, pool, [completed("ann", "a", 5), completed("ann", "b", 6)])
    await world.db.execute("update walkthrough_steps set walkthrough_id = 'wt_b' where id = 'a'")
    assert await record(world, pool, [completed("ann", "a", 3, walkthrough_id="wt_b")], first=2) == []
    marks = await world.db.fetch("select mcp_server_user_id, walkthrough_id from sankey_dirty")
    assert [tuple(m) for m in marks] == [("ann", "wt_a")]


async def test_a_row_that_a_constraint_of_the_platform_refuses_harms_no_other(world: World) -> None:
    await world.offer()
    people = [f"p{i}" for i in range(30)]
    await world.people(people)
    await world.db.execute(
        "alter table walkthrough_step_completions add constraint platforms_own check (completed_at % 100 <> 13)"
    )
    pool = await world.recorder_pool()
    refused = await record(world, pool, [completed(p, "a", i) for i, p in enumerate(people)])
    assert [r.rejection for r in refused] == [Rejection.REFUSED_BY_DATABASE]
    assert "platforms_own" in refused[0].message
    assert len(await world.completions()) == 29


async def test_an_event_whose_reference_is_being_deleted_waits_and_no_other(world: World) -> None:
    """Waiting with parents locked could deadlock with the deletion, and PostgreSQL might cancel that one."""
    await world.offer()
    people = [f"p{i}" for i in range(50)]
    await world.people(people)
    pool = await world.recorder_pool()
    other = await asyncpg.connect(world.settings.dsn)
    deleting = other.transaction()
    await deleting.start()
    await other.execute("delete from mcp_server_user where id = 'p7'")
    assert await record(world, pool, [completed(p, "a", 1) for p in people]) == []
    assert len(await world.completions()) == 49
    await deleting.commit()
    await other.close()
    resumed = await anext(resuming(pool, 100))
    assert [r.rejection for r in resumed.refused.values()] == [Rejection.UNKNOWN_USER]
    assert len(await world.completions()) == 49


async def test_two_recorders_on_the_same_rows_neither_deadlock_nor_lose(world: World) -> None:
    """Badly keyed events: the same users in several partitions."""
    await world.offer()
    people = [f"p{i:02}" for i in range(40)]
    await world.people(people)
    pool = await world.recorder_pool()
    chance = random.Random(1)
    events = [completed(p, s, chance.randrange(100)) for p in people for s in "abcde" for _ in range(3)]

    async def recorder(number: int) -> None:
        mine = chance.sample(events, len(events))
        for i in range(0, len(mine), 60):
            part = mine[i : i + 60]
            while True:
                try:
                    await transaction.record(pool, load_of(world, part, number, i))
                except asyncpg.LockNotAvailableError:
                    continue
                break

    async with asyncio.timeout(60):
        await asyncio.gather(*(recorder(n) for n in range(3)))
    # What one of them had locked was set aside by another.
    while (await count_waiting(pool))[0]:
        async for _ in resuming(pool, 1_000):
            pass
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key = e["mcp_server_user_id"], e["step_id"]
        best[key] = min(best.get(key, (10**13, "")), (e["completed_at"], e["event_id"]))
    assert await world.completions() == best


async def test_it_runs_on_the_platforms_own_constraint_over_three_columns(world: World) -> None:
    await world.db.execute(
        "alter table walkthrough_step_completions drop constraint wtsc_user_step_unique,"
        " add constraint wtsc_user_step_unique unique (mcp_server_user_id, walkthrough_id, step_id)"
    )
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    await record(world, pool, [completed("ann", "a", 5)])
    await record(world, pool, [completed("ann", "a", 3), completed("ann", "a", 9)], first=1)
    assert {k: t for k, (t, _) in (await world.completions()).items()} == {("ann", "a"): moment(3)}


async def test_bad_events_go_to_the_dead_letters_byte_for_byte(world: World) -> None:
    from tests.support.world import RECORDER, Message

    await world.offer()
    await world.people(["ann"])
    bad = [
        Message(b"k", b"\xff\xfe", [("h", b"\xff\xff"), ("ok", b"1")]),
        Message(None, b"[]"),
        Message(b"k", None, [("h", b"")]),
        Message(b"", b""),
        Message.of(completed("nobody", "a", 1)),
        Message(b"big", b"x" * 1_000_000),
    ]
    good = [completed("ann", s, i) for i, s in enumerate("abc")]
    await world.produce([bad[0], good[0], *bad[1:4], good[1], *bad[4:], good[2]])
    service = world.start(RECORDER)

    async def passed() -> bool:
        return await world.recorded() == 9

    await eventually(passed, "all events judged")
    assert service.terminate() == 0
    letters = await world.dead_letters()
    own = {h for letter in letters for h, _ in letter.headers if h.startswith("stepstream-")}
    assert own == {
        "stepstream-topic",
        "stepstream-partition",
        "stepstream-offset",
        "stepstream-timestamp",
        "stepstream-error-class",
        "stepstream-error",
    }
    got = sorted(
        (str(m.key), str(m.value), [h for h in m.headers if not h[0].startswith("stepstream-")])
        for m in letters
    )
    assert got == sorted((str(m.key), str(m.value), m.headers) for m in bad)
    classes = sorted(dict(m.headers)["stepstream-error-class"].decode() for m in letters)
    assert classes == sorted(
        ["not-json", "invalid-event", "empty-value", "empty-value", "unknown-user", "not-json"]
    )
    assert set(await world.completions()) == {("ann", s) for s in "abc"}


async def test_a_position_of_before_positions_said_where_they_read_on_moves_on(world: World) -> None:
    topic = world.settings.topic
    await world.db.execute(
        "insert into recorded_offsets (topic, partition, next_offset) values ($1, 0, 5)", topic
    )
    (position,) = (await read_positions(world.db, "completion-recorder", topic)).values()
    advance = Advance("completion-recorder", topic, {0: (position, position.past(9))})
    await advance.write(world.db)
    assert await world.db.fetchrow("select reads_from, next_offset from recorded_offsets") == (9, 9)


async def test_the_event_that_is_recorded_keeps_its_id_beside_a_stranger_that_is_before_it_in_the_log(
    world: World,
) -> None:
    """A copy of it, read with the stranger, is no stranger itself; an earlier time under the id counts."""
    await world.offer()
    await world.people(["ann", "bob"])
    recorded = completed("ann", "a", 1_000)
    pool = await world.recorder_pool()
    assert await record(world, pool, [recorded]) == []
    stranger = completed("bob", "a", 5, event_id=recorded["event_id"])
    earlier = recorded | {"completed_at": recorded["completed_at"] - 1}
    refused = await record(world, pool, [stranger, recorded, earlier], first=1)
    assert [r.record.offset for r in refused] == [1]
    assert await world.completions() == {
        ("ann", "a"): (earlier["completed_at"], recorded["event_id"]),
    }


async def test_events_of_a_user_in_several_partitions_are_exact_where_transactions_meet(world: World) -> None:
    """A producer that chooses partitions by other keys than ours: shares of one batch meet at the same rows."""
    await world.offer()
    people = [f"p{i}" for i in range(6)]
    await world.people(people)
    chance = random.Random(11)
    events = [
        completed(chance.choice(people), chance.choice("abcde"), chance.randrange(9)) for _ in range(500)
    ]
    sent = chance.sample([*events, *chance.choices(events, k=200)], 700)
    await world.produce([replace(Message.of(e), key=str(i).encode()) for i, e in enumerate(sent)])
    world.start("completion-recorder", batch_max_records=40, recorder_connections=4)
    world.start("sankey-aggregator")
    await world.drained()
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key = e["mcp_server_user_id"], e["step_id"]
        best[key] = min(best.get(key, (10**13, "")), (e["completed_at"], e["event_id"]))
    assert await world.completions() == best
    assert await world.dead_letters() == []
    await world.assert_exact()

"""Corrections: what counts is a function of the set of events, and an operator mends it for good."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import ConsumerRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import OPERATOR_SOURCES, Rejection
from services.completion_recorder import transaction
from services.completion_recorder.against_topic import verify_against_topic
from services.completion_recorder.judge import read
from services.completion_recorder.load_counts import Load
from services.completion_recorder.topic_parts import TopicStart
from services.completion_recorder.transaction import Recorded
from services.completion_recorder.waiting import count_waiting, resuming
from services.runtime.database import Pool
from services.runtime.kafka import next_offsets
from tests.support.world import (
    AGGREGATOR,
    RECORDER,
    Message,
    World,
    completed,
    corrected,
    moment,
)

pytestmark = pytest.mark.integration

NOW = 10**13
Event = dict[str, Any]


def what_counts(events: Sequence[Event]) -> dict[tuple[str, str], tuple[int, str]]:
    """The rule in plain words: nothing that a correction covers, then the smallest."""
    rows: dict[tuple[str, str], tuple[int, str]] = {}
    for key in {(e["mcp_server_user_id"], e["step_id"]) for e in events}:
        mine = [e for e in events if (e["mcp_server_user_id"], e["step_id"]) == key]
        corrections = [e for e in mine if e["type"] == "step-corrected"]
        covered = max((e["covers_until"] for e in corrections), default=0)
        left = [e for e in mine if e["type"] == "step-completed" and e["completed_at"] > covered]
        if corrections:
            newest = max(corrections, key=lambda e: (e["corrected_at"], e["event_id"]))
            left += [newest] if "completed_at" in newest else []
        if left:
            rows[key] = min((e["completed_at"], e["event_id"]) for e in left)
    return rows


def load_of(world: World, events: Sequence[Event], first: int = 0) -> Load:
    topic, headers = world.settings.topic, [("ce_source", OPERATOR_SOURCES[0].encode())]
    records = [
        ConsumerRecord(
            topic,
            0,
            first + i,
            0,
            0,
            e["mcp_server_user_id"].encode(),
            json.dumps(e).encode(),
            None,
            0,
            0,
            headers,
        )
        for i, e in enumerate(events)
    ]
    accepted, refused = read(records, NOW)
    assert refused == []
    return Load(topic, next_offsets(records), accepted)


async def record(
    world: World, pool: Pool, events: Sequence[Event], first: int = 0, *, by_parts: bool = False
) -> Recorded:
    return await transaction.record(pool, load_of(world, events, first), by_parts=by_parts)


EMPTY = "delete from walkthrough_step_completions; delete from later_completions; delete from completion_corrections"
times = st.integers(0, 6)
steps = st.sampled_from("aaab")
completions = st.builds(completed, st.just("ann"), steps, times)
corrections = st.builds(corrected, st.just("ann"), steps, times, times, st.none() | times)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Event], list[list[Event]]]:
    """A set of events; and all of them in some order, some twice, in batches."""
    events = draw(st.lists(completions | corrections, min_size=3, max_size=8))
    copies = draw(st.permutations([*events, *draw(st.lists(st.sampled_from(events), max_size=4))]))
    alone = draw(st.booleans())
    cuts = range(1, len(copies)) if alone else sorted(draw(st.sets(st.integers(1, len(copies)), max_size=4)))
    return events, [copies[a:b] for a, b in itertools.pairwise([0, *cuts, len(copies)]) if a < b]


async def test_what_counts_is_a_function_of_the_set_of_events(world: World) -> None:
    """In any order, any batches, at once or by parts, with copies; and again."""
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    loop = asyncio.get_running_loop()

    async def hold(events: list[Event], batches: list[list[Event]], by_parts: bool) -> None:
        await world.db.execute(EMPTY)
        expected = what_counts(events)
        for again in (False, True):
            for batch in batches:
                await record(world, pool, batch, by_parts=by_parts)
            assert await world.completions() == expected, again

    @settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(histories(), st.booleans())
    def judge(history: tuple[list[Event], list[list[Event]]], by_parts: bool) -> None:
        asyncio.run_coroutine_threadsafe(hold(*history, by_parts), loop).result()

    await asyncio.to_thread(judge)


@pytest.mark.parametrize(
    ("events", "left"),
    [
        # The newest has the smaller cover; what it does not cover has lost, or has been covered, before.
        (
            [
                completed("ann", "a", 3),
                completed("ann", "a", 5),
                corrected("ann", "a", 3, 4, to=6),
                corrected("ann", "a", 5, 2),
            ],
            1,
        ),
        # What the older one said is later than the newer one covers.
        ([completed("ann", "a", 1), corrected("ann", "a", 3, 1, to=6), corrected("ann", "a", 5, 2)], None),
    ],
)
async def test_corrections_that_take_each_other_back_come_to_the_same_in_every_order(
    world: World, events: list[Event], left: int | None
) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    expected = what_counts(events)
    assert [e for _, e in expected.values()] == ([] if left is None else [events[left]["event_id"]])
    for order in itertools.permutations(events):
        await world.db.execute(EMPTY)
        for event in order:
            await record(world, pool, [event])
        assert await world.completions() == expected, order


# --- as an operator does it ------------------------------------------------------------------------------


async def mended(world: World, *args: str) -> dict[str, Any]:
    done = await world.invoke("completions", *args, "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["recorded"]
    return dict(told["event"])


async def replayed(world: World) -> None:
    """Everything again, from the first event, by both groups."""
    for service in world.services:
        service.terminate()
    for group in (RECORDER, AGGREGATOR):
        done = await world.invoke("replay", "--group", group, "--from-beginning", "--execute")
        assert done.returncode == 0, done.stderr
    world.start_both()
    await world.drained()


async def agrees(world: World) -> dict[str, Any]:
    """Counts equal rows, and rows what the topic holds."""
    await world.assert_exact()
    done = await world.invoke("verify", "--against-topic", "-o", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


async def test_a_wrong_row_is_mended_for_good(world: World) -> None:
    """Corrected, removed, done again in truth; each survives a replay, and the counts follow."""
    await world.offer()
    await world.people(["ann", "bob"])
    wrong = completed("ann", "a", 1)
    await world.produce(
        [wrong, completed("ann", "b", 50), completed("ann", "a", 60), completed("bob", "a", 5)]
    )
    world.start_both()
    await world.drained()

    plan = await world.invoke("completions", "correct", "ann", "a", "--completed-at", str(moment(70)))
    assert plan.returncode == 0, plan.stderr
    assert "nothing was changed" in plan.stderr
    assert ("ann", "a") in await world.completions()
    assert (await world.completions())["ann", "a"] == (wrong["completed_at"], wrong["event_id"])

    event = await mended(world, "correct", "ann", "a", "--completed-at", str(moment(70)))
    await world.drained()
    assert (await world.completions())["ann", "a"] == (moment(70), event["event_id"])
    assert await world.transitions() == {(0, None, "b"): 1, (1, "b", "a"): 1, (0, None, "a"): 1}
    await world.produce([wrong])
    await replayed(world)
    assert (await world.completions())["ann", "a"] == (moment(70), event["event_id"])
    counts = await agrees(world)
    assert (counts["corrections"], counts["covered"], counts["rows_without_event"]) == (1, 3, 0)

    again = await mended(world, "remove", "ann", "a")
    assert again["covers_until"] >= event["covers_until"]
    assert ("ann", "a") not in await world.completions()
    await replayed(world)
    assert ("ann", "a") not in await world.completions()

    real = completed("ann", "a", again["covers_until"] + 1)
    await world.produce([real])
    await world.drained()
    assert (await world.completions())["ann", "a"] == (real["completed_at"], real["event_id"])
    await replayed(world)
    assert (await world.completions())["ann", "a"] == (real["completed_at"], real["event_id"])
    await agrees(world)
    assert await world.dead_letters() == []

    shown = json.loads((await world.invoke("completions", "show", "ann", "--step", "a", "-o", "json")).stdout)
    assert [(e["state"], e["completed_at"]) for e in shown] == [
        ("counts", real["completed_at"]),
        ("correction", None),
    ]


async def test_what_came_before_its_correction_was_read_counts_when_it_is_later(world: World) -> None:
    """It lost against the wrong one when it was read; the correction covers that one alone."""
    await world.offer()
    await world.people(["ann"])
    wrong, right, later = (completed("ann", "a", at) for at in (1, 50, 60))
    removal = corrected("ann", "a", 9, 9)
    await world.produce([wrong, later, right, removal])
    world.start_both()
    await world.drained()
    assert await world.completions() == {("ann", "a"): (right["completed_at"], right["event_id"])}
    await replayed(world)
    assert await world.completions() == {("ann", "a"): (right["completed_at"], right["event_id"])}
    await agrees(world)


async def test_who_is_wrong_about_a_correction_is_told(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    for args, told in (
        (("remove", "nobody", "a"), "there is no such person"),
        (("remove", "ann", "a"), "there is nothing to remove"),
        (("correct", "ann", "a", "--completed-at", "-1h"), "--session"),
        (("correct", "ann", "a", "--completed-at", "-1h", "--session", "s_none"), "no session `s_none`"),
        (("correct", "ann", "none", "--completed-at", "-1h", "--session", "s_ann"), "no step `none`"),
        (
            ("correct", "ann", "a", "--completed-at", "1", "--session", "s_ann"),
            "no time is before 2000-01-01",
        ),
    ):
        done = await world.invoke("completions", *args, "--execute")
        assert done.returncode == 2, (args, done.stderr)
        assert told in done.stderr, (args, done.stderr)
    await world.people(["bob"])
    done = await world.invoke(
        "completions", "correct", "ann", "a", "--completed-at", "-1h", "--session", "s_bob", "--execute"
    )
    assert done.returncode == 4
    assert "belongs to another user" in done.stderr
    assert await world.events() == []
    done = await world.invoke(
        "completions", "correct", "ann", "a", "--completed-at", "-1h", "--session", "s_ann"
    )
    assert done.returncode == 0, done.stderr


# --- who may ---------------------------------------------------------------------------------------------


async def test_what_decides_about_a_person_counts_from_trusted_sources_and_by_its_key(world: World) -> None:
    """Else it is a dead letter with words that say what to set; redriven once that is set, it counts."""
    await world.offer()
    await world.people(["ann", "bob"])
    erasure = completed("ann", "a", 5, type="user-erased", erased_at=moment(5))
    removal = corrected("bob", "a", 5, 5)
    crm = [("ce_source", b"crm")]
    await world.produce(
        [
            completed("ann", "a", 1),
            completed("bob", "a", 1),
            Message(None, json.dumps(erasure).encode(), [("ce_source", OPERATOR_SOURCES[0].encode())]),
            Message(b"ann", json.dumps(erasure).encode()),
            Message(b"ann", json.dumps(erasure).encode(), crm),
            Message(b"bob", json.dumps(removal).encode(), crm),
            Message(b"ann", json.dumps(removal).encode(), crm),
        ]
    )
    recorder, _ = world.start_both()
    await world.drained()
    assert set(await world.completions()) == {("ann", "a"), ("bob", "a")}
    letters = [dict(letter.headers) for letter in await world.dead_letters()]
    assert [letter["stepstream-error-class"] for letter in letters] == [Rejection.NOT_ALLOWED.encode()] * 5
    assert sum(b"STEPSTREAM_TRUSTED_SOURCES" in letter["stepstream-error"] for letter in letters) == 3
    assert sum(b"the key of a record" in letter["stepstream-error"] for letter in letters) == 2
    recorder.terminate()

    world.start(RECORDER, trusted_sources="crm, billing")
    done = await world.invoke("dlq", "redrive", "--class", "not-allowed", "--execute")
    assert done.returncode == 0, done.stderr
    await world.drained()
    assert await world.completions() == {}
    assert await world.db.fetchval("select array_agg(id) from mcp_server_user") == ["bob"]
    await world.assert_exact()


async def test_the_events_of_earlier_versions_of_erase_are_honoured(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    erasure = completed("ann", "a", 5, type="user-erased", erased_at=moment(5))
    await world.produce(
        [Message(b"ann", json.dumps(erasure).encode(), [("ce_source", b"/stepstream/erase")])]
    )
    world.start_both()
    await world.drained()
    assert await world.dead_letters() == []
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 0


async def test_a_file_of_events_decides_about_nobody(world: World, tmp_path: Path) -> None:
    file = tmp_path / "events.ndjson"
    erasure = completed("ann", "a", 5, type="user-erased", erased_at=moment(5))
    lines = [completed("ann", "a", 1), erasure, corrected("ann", "a", 1, 1)]
    file.write_text("\n".join(map(json.dumps, lines)))
    done = await world.invoke("produce", str(file), "-o", "json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["sent"] == 1
    assert ["stepstream erase" in told["not_sent"][0]["error"], told["not_sent"][1]["line"]] == [True, 3]


# --- beside locks, references and erasure ----------------------------------------------------------------


async def test_a_correction_waits_alone_for_whoever_holds_the_person(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    pool = await world.recorder_pool()
    await record(world, pool, [completed("ann", "a", 1)])
    async with pool.acquire() as other, other.transaction():
        await other.execute("select from mcp_server_user where id = 'ann' for key share")
        recorded = await record(world, pool, [corrected("ann", "a", 5, 5), completed("bob", "a", 1)], 1)
        assert recorded.waiting == 1
        assert set(await world.completions()) == {("ann", "a"), ("bob", "a")}
    assert [r.done async for r in resuming(pool, 100)] == [1]
    assert set(await world.completions()) == {("bob", "a")}


async def test_a_completion_and_its_correction_at_two_recorders_at_once(world: World) -> None:
    """Whoever comes second sees what the first did."""
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    for at, event in enumerate([completed("ann", "a", 1), corrected("ann", "a", 5, 5)] * 5):
        await asyncio.gather(
            record(world, pool, [event], 10 * at),
            record(world, pool, [corrected("ann", "a", 4, 4)], 10 * at + 5),
        )
    while (await count_waiting(pool))[0]:
        async for _ in resuming(pool, 100):
            pass
    assert await world.completions() == {}


async def test_the_references_of_a_correction_are_judged_as_those_of_a_completion(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    events = [
        corrected("ann", "none", 1, 1),
        corrected("ann", "a", 1, 1, mcp_server_session_id="none"),
        corrected("nobody", "a", 1, 1),
        corrected("ann", "b", 1, 1, 1),
    ]
    recorded = await record(world, pool, events)
    assert [r.rejection for r in recorded.refused] == [
        Rejection.UNKNOWN_STEP,
        Rejection.UNKNOWN_SESSION,
        Rejection.UNKNOWN_USER,
    ]
    assert await world.completions() == {("ann", "b"): (moment(1), events[3]["event_id"])}


async def test_what_goes_takes_its_corrections_with_it(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    await record(
        world, pool, [corrected("ann", "a", 1, 1, 1), completed("ann", "a", 8), completed("ann", "b", 3)]
    )
    assert await world.db.fetchval("select count(*) from later_completions") == 1
    await world.db.execute("delete from walkthrough_steps where id = 'a'")
    for table in ("completion_corrections", "later_completions"):
        assert await world.db.fetchval(f"select count(*) from {table}") == 0


async def test_covered_completions_are_counted_and_are_no_dead_letters(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    pool = await world.recorder_pool()
    recorded = await record(world, pool, [corrected("ann", "a", 5, 5), completed("ann", "a", 1)])
    assert (recorded.refused, recorded.covered) == ([], 1)


async def test_a_row_that_a_correction_covers_is_found(world: World) -> None:
    """Somebody writes by hand, and past the recorder."""
    await world.offer()
    await world.people(["ann", "bob"])
    covered = completed("ann", "a", 1)
    await world.produce([covered, corrected("ann", "a", 5, 5), corrected("bob", "a", 5, 5, 3)])
    world.start_both()
    await world.drained()
    await agrees(world)
    await world.insert(covered)
    await world.db.execute("delete from completion_corrections where mcp_server_user_id = 'bob'")
    outcome = await verify_against_topic(world.settings, TopicStart())
    assert outcome.by_cause == {"covered-row": 1, "not-corrected": 1}
    assert (await world.invoke("verify", "--against-topic")).returncode == 3
    await replayed(world)
    await agrees(world)


@pytest.mark.parametrize("together", [True, False])
async def test_an_id_whose_completion_a_correction_beats_in_the_same_load_stays_taken(
    world: World, together: bool
) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    pool = await world.recorder_pool()
    first = completed("ann", "a", 20)
    await record(world, pool, [first], 0)
    # What it says is before the row, which is a later completion from then on.
    correction = corrected("ann", "a", 30, 10, 5)
    again = completed("bob", "b", 40, event_id=first["event_id"])
    if together:
        refused = (await record(world, pool, [correction, again], 1)).refused
    else:
        await record(world, pool, [correction], 1)
        refused = (await record(world, pool, [again], 2)).refused
    assert [r.rejection for r in refused] == [Rejection.REUSED_EVENT_ID]

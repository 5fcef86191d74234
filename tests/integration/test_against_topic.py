"""The tables against the topic: what lacks is named with its event, and what has a reason is no difference."""

import asyncio
import json
import random
from typing import Any

import pytest

from services.completion_recorder import against_topic
from services.completion_recorder.against_topic import TopicComparison, verify_against_topic
from services.completion_recorder.dead_letters import read_partitions
from services.completion_recorder.topic_parts import TopicStart
from services.consumers.lag import read_groups
from tests.support.world import (
    OPERATOR,
    RECORDER,
    Message,
    Service,
    World,
    completed,
    eventually,
    moment,
    shown,
    skipped,
    started,
)

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i}" for i in range(8)]
BEGINNING = TopicStart()
GONE = completed("left", "a", 1)
UNKNOWN = completed("new", "a", 1)
ERASURE = {
    "type": "user-erased",
    "event_id": completed("left", "a", 1)["event_id"],
    "mcp_server_user_id": "left",
    "erased_at": moment(9),
}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against_topic, "_CHECK_AGAIN", 0)


@pytest.fixture
async def judged(world: World) -> World:
    """Events that are in the tables, in order and out of it, and some that are not; all have been judged."""
    await world.offer()
    await world.people([*PEOPLE, "left"])
    events = [completed(p, s, 10 + i) for p in PEOPLE for i, s in enumerate("abcd")]
    late = [completed(p, "a", 5, metadata={"b": [1, 2.5], "a": "ü"}) for p in PEOPLE[:3]]
    await world.produce(
        [
            GONE,
            *events,
            *random.Random(1).sample(events, 9),
            *late,
            completed(PEOPLE[0], "a", 7),
            *(started(p, 4) for p in PEOPLE),
            started(PEOPLE[0], 2),
            UNKNOWN,
            Message(b"p0", b"not json"),
            Message(b"p0", None),
            ERASURE,
        ]
    )
    await in_transactions(world)
    await judge(world)
    return world


async def in_transactions(world: World) -> None:
    """One that never happened, and one that did; their markers are read by nobody."""
    async with world.producing(transactional_id=world.settings.topic) as producer:
        for step, commits in (("e", False), ("e", True)):
            await producer.begin_transaction()
            event = completed("p1", step, 1 + commits)
            await producer.send(world.settings.topic, json.dumps(event).encode(), key=b"p1")
            await (producer.commit_transaction() if commits else producer.abort_transaction())


async def judge(world: World, *, go_on: bool = False) -> Service:
    """Has the recorder read all that there is."""
    recorder = world.start(RECORDER)

    async def passed() -> bool:
        (group,) = await read_groups(world.settings, [RECORDER])
        return group.lag == 0

    await eventually(passed, "the recorder has passed all")
    if not go_on:
        assert recorder.terminate() == 0
    return recorder


async def found(
    world: World, start: TopicStart = BEGINNING, portion: int = 7, **more: Any
) -> TopicComparison:
    return await verify_against_topic(world.settings_of(OPERATOR), start, portion=portion, **more)


def causes(outcome: TopicComparison) -> dict[str, str]:
    """The cause by event."""
    return {d["id"].partition("_")[2] or d["id"]: d["cause"] for d in outcome.differences}


async def place(world: World, event: dict[str, Any]) -> str:
    """The last place of an event in the topic, as P:O."""
    places = [
        f"{record.partition}:{record.offset}"
        async for record in read_partitions(world.settings, world.settings.topic)
        if record.value and event["event_id"].encode() in record.value
    ]
    return places[-1]


async def test_all_that_was_judged_is_there_or_has_its_reason(judged: World) -> None:
    outcome = await found(judged)
    assert outcome.differing == 0, outcome
    counts = outcome.counts
    assert set(outcome.agreement.values()) == {"same"}
    assert (counts.completions, counts.starts, counts.erasures) == (48, 9, 1)
    assert counts.unreadable == {"not-json": 1, "empty-value": 1}
    assert (counts.of_erased, counts.without_references) == (1, {"unknown-user": 1})
    assert (outcome.rows_without_event, sum(p.not_judged for p in outcome.parts)) == (0, 0)
    # The user comes later than the event: only the dead letter says that it was refused.
    await judged.people(["new"])
    assert (await found(judged)).counts.dead_letters == 1
    # A step goes, and its completions with it.
    await judged.db.execute("delete from walkthrough_steps where id = 'c'")
    outcome = await found(judged)
    assert outcome.differing == 0
    assert outcome.counts.without_references["unknown-step"] >= len(PEOPLE)
    told = await judged.invoke("verify", "--against-topic")
    assert told.returncode == 0, told.stderr
    assert f"{outcome.counts.events} events" in told.stderr
    assert "exact" in told.stderr


async def test_each_thing_that_a_hand_did_is_named_with_its_event(judged: World) -> None:
    db = judged.db
    rows = {(r["mcp_server_user_id"], r["step_id"]): r["id"][5:] for r in await db.fetch(COMPLETIONS)}
    await db.execute(f"{DELETE} where mcp_server_user_id = 'p5' and step_id = 'b'")
    await db.execute(
        f"{UPDATE} completed_at = {moment(1000)} where mcp_server_user_id = 'p5' and step_id = 'c'"
    )
    await db.execute(f"{UPDATE} metadata = '{{}}' where mcp_server_user_id = 'p1' and step_id = 'a'")
    await db.execute(f"{UPDATE} completed_at = {moment(3)} where mcp_server_user_id = 'p6' and step_id = 'd'")
    await db.execute("delete from walkthrough_starts where mcp_server_user_id = 'p7'")
    await db.execute("delete from erased_users")
    await judged.people(["left"])
    await judged.produce([{**ERASURE, "mcp_server_user_id": "p4"}])
    await judge(judged)
    await judged.people(["p4"])
    await judged.insert(completed("p4", "a", 10))
    outcome = await found(judged)
    assert [d["mcp_server_user_id"] for d in outcome.differences if d["cause"] == "rows-left"] == ["p4"]
    told = causes(outcome)
    assert told[rows["p5", "b"]] == "no-row"
    assert told[rows["p5", "c"]] == "later-row"
    assert told[rows["p1", "a"]] == "other-content"
    assert told[rows["p6", "d"]] == "other-content"
    assert told[GONE["event_id"]] == "no-row"
    assert sorted(d["kind"] for d in outcome.differences if d["cause"] == "not-noted") == ["erasure"]
    assert [d["mcp_server_user_id"] for d in outcome.differences if d["kind"] == "start"] == ["p7"]
    assert outcome.unlike == [], "the recorder had read it all"
    assert outcome.rows_without_event == 1, "of p4; edited rows are told once"
    as_json = await judged.invoke("verify", "--against-topic", "-o", "json")
    assert as_json.returncode == 3
    shown = json.loads(as_json.stdout)
    assert shown["differing"] == len(shown["differences"]) == sum(shown["by_cause"].values())
    told_to_people = await judged.invoke("verify", "--against-topic")
    assert told_to_people.returncode == 3
    assert await place(judged, {"event_id": rows["p5", "b"]}) in told_to_people.stdout
    assert rows["p5", "b"] in told_to_people.stdout
    assert "events of the topic not in the tables" in told_to_people.stderr


COMPLETIONS = "select * from walkthrough_step_completions"
DELETE = "delete from walkthrough_step_completions"
UPDATE = "update walkthrough_step_completions set"


async def test_an_event_that_was_passed_unread_is_found(judged: World) -> None:
    """The digest says that it was not read; what is behind the position is not judged, and no difference."""
    skipped, later = completed("p2", "e", 1), completed("p2", "e", 2)
    await judged.produce([skipped])
    where = await place(judged, skipped)
    await judged.produce([later])
    partition, offset = map(int, where.split(":"))
    change = "update recorded_offsets set next_offset = $2, reads_from = $2 where partition = $1"
    await judged.db.execute(change, partition, offset + 1)
    outcome = await found(judged)
    assert causes(outcome) == {skipped["event_id"]: "no-row"}
    assert outcome.unlike == [partition]
    assert outcome.differing == 2
    assert [p.not_judged for p in outcome.parts if p.not_judged] == [1]
    await judged.db.execute(
        "insert into gone_events (topic, partition, cause, from_offset, until_offset)"
        " values ($1, $2, 'skipped', $3::bigint, $3::bigint + 1)",
        judged.settings.topic,
        partition,
        offset,
    )
    assert causes(await found(judged)) == {skipped["event_id"]: "skipped"}
    await judged.db.execute("update gone_events set acknowledged_at = now()")
    outcome = await found(judged, TopicStart(offset=offset), partitions=[partition])
    assert (outcome.differing, outcome.counts.skipped, outcome.counts.events) == (0, 1, 1)
    assert outcome.agreement == {partition: "not comparable"}
    told = await judged.invoke("verify", "--against-topic")
    assert told.returncode == 3
    assert f"the recorder has not read what the topic holds of partition {partition}" in told.stderr


async def test_what_was_removed_comes_back_with_a_replay(judged: World) -> None:
    await judged.db.execute(f"{DELETE} where step_id in ('a', 'b')")
    await judged.db.execute(f"{UPDATE} completed_at = {moment(1000)} where step_id = 'd'")
    assert (await found(judged)).differing > 0
    done = await judged.invoke(*REPLAY)
    assert done.returncode == 0, done.stderr
    outcome = await found(judged)
    assert (outcome.differing, outcome.rows_without_event) == (0, 0)


REPLAY = ("replay", "--group", RECORDER, "--from-beginning", "--to-offset", "1000", "--execute")


async def test_what_waits_for_a_lock_is_no_difference(judged: World) -> None:
    recorder = await judge(judged, go_on=True)
    async with judged.connection() as holder, holder.transaction():
        await holder.execute("select from mcp_server_user where id = 'p3' for update")
        await judged.produce([completed("p3", "e", 1)])

        async def waits() -> bool:
            return bool(await judged.db.fetchval("select count(*) from waiting_events"))

        await eventually(waits, "it waits")
        outcome = await found(judged)
    assert (outcome.differing, outcome.counts.waiting) == (0, 1)
    assert recorder.terminate() == 0


async def test_from_a_time_or_an_offset_on_and_rows_of_others(judged: World) -> None:
    first = await found(judged, TopicStart(offset=3), partitions=[0, 2])
    assert {p.partition: p.start for p in first.parts} == {0: 3, 2: 3}
    assert first.rows_without_event is None
    nothing = await judged.invoke("verify", "--against-topic", "--from", "-0s", "-o", "json")
    assert json.loads(nothing.stdout)["events"] == 0
    everything = await judged.invoke("verify", "--against-topic", "--from", "-1h", "-o", "json")
    assert json.loads(everything.stdout)["events"] == (await found(judged)).counts.events
    await judged.insert(completed("p4", "e", 1))
    outcome = await found(judged)
    assert (outcome.differing, outcome.rows_without_event) == (0, 1)
    assert [(r["mcp_server_user_id"], r["step_id"]) for r in outcome.rows] == [("p4", "e")]
    told = await judged.invoke("verify", "--against-topic")
    assert "1 row of no event that the topic holds: of other writers" in told.stderr


async def test_while_traffic_flows_nothing_is_called_a_difference(judged: World) -> None:
    """Other events replace rows all the time, and new ones come behind where the reading ends."""
    recorder = await judge(judged, go_on=True)
    chance = random.Random(3)

    async def traffic() -> None:
        for round_ in range(12):
            times = [1_000_000 - 1_000 * round_ - i for i in range(60)]
            await judged.produce(
                [
                    make(chance.choice(PEOPLE), "e", at)
                    for at in times
                    for make in (
                        completed,
                        skipped,
                        lambda who, step, at: shown(who, step, at + 120 * (at % 2)),
                    )
                ]
            )

    flowing = asyncio.create_task(traffic())
    while not flowing.done():
        outcome = await found(judged, portion=50)
        assert (outcome.differing, outcome.rows_without_event) == (0, 0), outcome
    await flowing
    assert recorder.terminate() == 0


async def test_the_same_event_id_with_two_contents_is_no_difference(judged: World) -> None:
    one = completed("p2", "e", 50)
    await judged.produce([one, one | {"completed_at": moment(40)}, one | {"completed_at": moment(60)}])
    await judge(judged)
    assert (await found(judged)).differing == 0
    await judged.db.execute(
        f"{UPDATE} completed_at = {moment(50)} where step_id = 'e' and mcp_server_user_id = 'p2'"
    )
    assert causes(await found(judged)) == {one["event_id"]: "later-row"}


async def of_showings(world: World) -> dict[str, list[str]]:
    """Skips and showings of each person, all judged, with copies and in no order: the ids of each one's showings."""
    showings = {p: [shown(p, "a", at, version=f"v{at}") for at in (10, 20, 30)] for p in PEOPLE}
    events = [e for theirs in showings.values() for e in theirs]
    events += [skipped(p, "a", at, reason=f"for the {at}th time") for p in PEOPLE for at in (7, 8)]
    events.append(skipped("left", "a", 1))
    await world.produce(random.Random(2).sample(events, len(events)) + events[::5])
    await judge(world)
    return {p: [e["event_id"] for e in theirs] for p, theirs in showings.items()}


async def test_a_showing_between_the_first_and_the_last_of_its_row_leaves_no_trace(judged: World) -> None:
    await of_showings(judged)
    outcome = await found(judged)
    assert (outcome.differing, outcome.rows_without_event) == (0, 0), outcome
    assert (outcome.counts.skips, outcome.counts.showings) == (17 + 4, 24 + 5)
    told = await judged.invoke("verify", "--against-topic")
    assert told.returncode == 0, told.stderr
    assert "21 skips, 29 showings" in told.stderr


async def test_skips_and_showings_that_a_hand_changed_are_named_with_their_events(judged: World) -> None:
    ids = await of_showings(judged)
    db = judged.db
    await judged.people(["left"])
    skips = {
        r[0]: r[1][5:] for r in await db.fetch("select mcp_server_user_id, id from walkthrough_step_skips")
    }
    for change in (
        "delete from walkthrough_step_skips where mcp_server_user_id = 'p1'",
        "update walkthrough_step_skips set reason = 'another' where mcp_server_user_id = 'p2'",
        "update walkthrough_step_skips set skipped_at = skipped_at + 1000 where mcp_server_user_id = 'p3'",
        "delete from walkthrough_step_showings where mcp_server_user_id = 'p1'",
        f"update walkthrough_step_showings set first_id = 'x', first_shown_at = {moment(15)}"
        " where mcp_server_user_id = 'p2'",
        f"update walkthrough_step_showings set last_id = 'x', last_shown_at = {moment(25)}"
        " where mcp_server_user_id = 'p3'",
        "update walkthrough_step_showings set last_version = 'v9' where mcp_server_user_id = 'p4'",
        f"update walkthrough_step_showings set first_shown_at = {moment(5)} where mcp_server_user_id = 'p5'",
        # Nothing that was read says so: rows without an event.
        f"update walkthrough_step_showings set last_id = 'x', last_shown_at = {moment(35)}"
        " where mcp_server_user_id = 'p6'",
        f"insert into walkthrough_step_showings values ('x', 'y', 'p0', 'wt_a', 'b', 'srv_1', 's_p0', {moment(1)},"
        f" {moment(2)})",
        f"insert into walkthrough_step_skips values ('x', 'p0', 'wt_a', 'b', 'srv_1', 's_p0', {moment(1)})",
        f"insert into walkthrough_step_skips values ('x', 'left', 'wt_a', 'b', 'srv_1', 's_left', {moment(1)})",
    ):
        await db.execute(change)
    outcome = await found(judged)
    told = causes(outcome)
    assert {k: told[v] for k, v in skips.items() if v in told} == {
        "p1": "no-row",
        "p2": "other-content",
        "p3": "later-row",
    }
    assert {p: [told.get(i) for i in theirs] for p, theirs in ids.items() if set(theirs) & told.keys()} == {
        "p1": ["no-row"] * 3,
        "p2": ["later-row", None, None],
        "p3": [None, None, "earlier-row"],
        "p4": [None, None, "other-content"],
        "p5": ["other-content", None, None],
    }
    assert [d["mcp_server_user_id"] for d in outcome.differences if d["cause"] == "rows-left"] == ["left"]
    assert sorted((r["kind"], r["mcp_server_user_id"]) for r in outcome.rows) == [
        ("showing", "p0"),
        ("showing", "p0"),
        ("showing", "p6"),
        ("skip", "left"),
        ("skip", "p0"),
    ]
    assert outcome.rows_without_event == 4
    shown_to_people = await judged.invoke("verify", "--against-topic")
    assert "p3 is shown a" in shown_to_people.stdout
    assert "the last showing of the row is of an earlier event" in " ".join(shown_to_people.stdout.split())
    assert "p2 skips a" in shown_to_people.stdout
    done = await judged.invoke(*REPLAY)
    assert done.returncode == 0, done.stderr
    # What is before or after all that the topic holds stays, as for completions.
    assert set(causes(await found(judged)).values()) == {"other-content"}


async def test_showings_and_skips_under_one_id_with_several_contents_are_no_difference(judged: World) -> None:
    await judged.people(["all"])
    await judged.db.execute(
        "update mcp_server_session set mcp_server_user_id = null where mcp_server_user_id = 'all'"
    )
    one, other = shown("p2", "e", 50, version="v5"), skipped("p2", "e", 50, reason="b")
    for at in (50, 40, 60):
        for session in ("s_p2", "s_all"):
            more = {"mcp_server_session_id": session}
            await judged.produce(
                [
                    *(one | {"shown_at": moment(at), "version": v} | more for v in ("v6", "v5", "v4")),
                    *(other | {"skipped_at": moment(at), "reason": r} | more for r in ("c", "b", "a")),
                    shown("p3", "e", at, event_id=one["event_id"]),
                ]
            )
    await judge(judged)
    outcome = await found(judged)
    assert (outcome.differing, outcome.rows_without_event) == (0, 0), outcome
    await judged.db.execute("update walkthrough_step_showings set last_shown_at = last_shown_at - 1")
    told = [d for d in (await found(judged)).differences if d["cause"] == "earlier-row"]
    assert {(d["mcp_server_user_id"], d["happened_at"]) for d in told} == {
        ("p2", moment(60)),
        ("p3", moment(60)),
    }


async def test_a_topic_that_was_made_anew_is_not_held_against_an_old_position(judged: World) -> None:
    await judged.db.execute("update recorded_offsets set topic_id = 'another'")
    outcome = await found(judged)
    assert (outcome.counts.events, outcome.differing) == (0, 0)
    assert all("made anew" in p.note for p in outcome.parts)
    assert sum(p.not_judged for p in outcome.parts) > 0


async def test_verify_says_that_recorder_and_aggregator_have_read_different_events(judged: World) -> None:
    await judged.db.execute(COPY_POSITIONS)
    assert (await judged.invoke("verify", "--against-topic")).returncode == 0
    await judged.drain_marks()
    await judged.invoke("rebuild", "--execute")
    await judged.db.execute("update counted_offsets set digest = digest + 1 where partition = 1")
    for command in (("verify", "--wait", "1s"), ("verify", "--against-topic")):
        told = await judged.invoke(*command)
        assert told.returncode == 3
        assert "recorder and aggregator have read different events of partition 1" in told.stderr


COPY_POSITIONS = """
insert into counted_offsets (topic, partition, next_offset, reads_from, digest, digest_events, digest_from)
select topic, partition, next_offset, reads_from, digest, digest_events, digest_from from recorded_offsets
"""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--from", "-2h"), "are for --against-topic"),
        (("--against-topic", "--from", "-2h", "--from-offset", "3"), "--from or --from-offset"),
        (("--against-topic", "--from", "yesterday"), "is not a time"),
        (("--against-topic", "--partitions", "7"), "has partitions 0 to 2, and no 7"),
        (("--against-topic", "--sample", "5"), "--sample is of the comparison without"),
    ],
)
async def test_what_makes_no_sense_is_said(world: World, args: tuple[str, ...], told: str) -> None:
    done = await world.invoke("verify", *args)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.replace("│", " ").split())

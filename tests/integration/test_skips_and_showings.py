"""What people skip and what they are shown: rows that are a function of the set of events, however these come."""

import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import Rejection
from services.completion_recorder.advance import mark_all
from services.completion_recorder.guard import belongs_to_topic
from services.consumers.lag import RECORDER
from services.runtime.database import Pool
from tests.integration.test_erase import erased, traces
from tests.integration.test_locks import hand, locked, resume, waiting
from tests.support.world import World, completed, corrected, eventually, moment, shown, skipped, started

pytestmark = pytest.mark.integration

TABLES = ("walkthrough_step_skips", "walkthrough_step_showings")
Rows = dict[tuple[str, str], tuple[Any, ...]]


async def prepare(world: World, people: Iterable[str] = ("ann", "bob")) -> Pool:
    """People on two servers; one session is of nobody yet, so that all may have it."""
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_2")
    await world.people(people)
    await world.people(people, "srv_2", "t_")
    await world.people(["all"])
    await world.db.execute(
        "update mcp_server_session set mcp_server_user_id = null where mcp_server_session_id = 's_all'"
    )
    return await world.recorder_pool()


async def hand_all(
    world: World, pool: Pool, events: Sequence[dict[str, Any]], first: int = 0, size: int = 1000
) -> None:
    """Hands events to the recorder in loads of so many; none is refused, none waits."""
    for i in range(0, len(events), size):
        recorded = await hand(world, pool, events[i : i + size], first + i)
        assert (recorded.refused, recorded.waiting) == ([], 0)


async def rows(world: World) -> tuple[Rows, Rows]:
    """The skips and the showings, by user and step."""
    skips = await world.db.fetch("select * from walkthrough_step_skips")
    showings = await world.db.fetch("select * from walkthrough_step_showings")
    return (
        {
            (r["mcp_server_user_id"], r["step_id"]): (
                *(r["id"], r["skipped_at"], r["walkthrough_id"]),
                *(r["mcp_server_id"], r["mcp_server_session_id"], r["reason"], r["metadata"]),
            )
            for r in skips
        },
        {
            (r["mcp_server_user_id"], r["step_id"]): (
                *(r["first_id"], r["first_shown_at"], r["walkthrough_id"]),
                *(r["mcp_server_id"], r["mcp_server_session_id"]),
                *(r["last_id"], r["last_shown_at"], r["last_version"]),
            )
            for r in showings
        },
    )


def expected(events: Iterable[dict[str, Any]]) -> tuple[Rows, Rows]:
    """The same from the events alone, with none of our code."""
    of: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for event in events:
        key = event["type"], event["mcp_server_user_id"], event.get("step_id", "")
        of.setdefault(key, []).append(event)
    skips: Rows = {}
    showings: Rows = {}
    where = ("mcp_server_id", "mcp_server_session_id")
    for (kind, user, step), theirs in of.items():
        if kind == "step-skipped":
            e = min(
                theirs,
                key=lambda e: (
                    *(e["skipped_at"], e["event_id"], *(e[name] for name in where)),
                    *(e.get("reason") or "", _text(e.get("metadata")) or ""),
                ),
            )
            skips[user, step] = (
                *(
                    f"wtss_{e['event_id']}",
                    e["skipped_at"],
                    e["walkthrough_id"],
                    *(e[name] for name in where),
                ),
                *(e.get("reason"), _text(e.get("metadata"))),
            )
        elif kind == "step-shown":
            first = min(theirs, key=lambda e: (e["shown_at"], e["event_id"], *(e[name] for name in where)))
            last = max(theirs, key=lambda e: (e["shown_at"], e["event_id"], e.get("version") or ""))
            showings[user, step] = (
                *(f"wtsh_{first['event_id']}", first["shown_at"], first["walkthrough_id"]),
                *(first[name] for name in where),
                *(f"wtsh_{last['event_id']}", last["shown_at"], last.get("version")),
            )
    return skips, showings


def _text(metadata: dict[str, Any] | None) -> str | None:
    """As PostgreSQL writes it, where it is as simple as in these tests."""
    return None if metadata is None else json.dumps(metadata)


async def as_written(world: World) -> list[Any]:
    """The rows and which transaction wrote each."""
    return [await world.db.fetch(f"select ctid, xmin, * from {table} order by ctid") for table in TABLES]


async def empty(world: World) -> None:
    for table in TABLES:
        await world.db.execute(f"delete from {table}")
    await world.db.execute("delete from sankey_dirty")


async def marks(world: World) -> set[tuple[str, str]]:
    return {
        tuple(r) for r in await world.db.fetch("select mcp_server_user_id, walkthrough_id from sankey_dirty")
    }


# --- which events count ---------------------------------------------------------------------------------


async def test_a_skip_is_kept_with_its_reason_and_metadata(world: World) -> None:
    pool = await prepare(world)
    event = skipped("ann", "a", 7, reason="not needed\n\thére", metadata={"b": [1, 2.5], "a": None})
    await hand_all(world, pool, [event, skipped("ann", "b", 8)])
    found = await world.db.fetch(
        "select *, metadata ->> 'b' as b from walkthrough_step_skips order by step_id"
    )
    assert [(r["id"], r["skipped_at"], r["reason"], r["b"]) for r in found] == [
        ("wtss_" + event["event_id"], moment(7), "not needed\n\thére", "[1, 2.5]"),
        (found[1]["id"], moment(8), None, None),
    ]
    assert await world.completions() == {}


async def test_of_skips_the_first_counts_and_of_showings_the_first_and_the_last(world: World) -> None:
    pool = await prepare(world)
    on_b = {"mcp_server_session_id": "s_all"}
    events = [
        shown("ann", "a", 20, version="v2", metadata={"not": "kept"}),
        shown("ann", "a", 30, version="v3", **on_b),
        shown("ann", "a", 10, version="v1", **on_b),
        shown("ann", "a", 40),
        shown("bob", "a", 5, version="v1"),
        skipped("ann", "a", 45, reason="late"),
        skipped("ann", "a", 42, reason="first"),
        skipped("ann", "a", 43, **on_b),
    ]
    await hand_all(world, pool, events, size=1)
    assert await rows(world) == expected(events)
    ((_, first_at, _, _, session, _, last_at, version),) = [
        row for (user, _), row in (await rows(world))[1].items() if user == "ann"
    ]
    assert (first_at, session, last_at, version) == (moment(10), "s_all", moment(40), None)


async def test_a_completion_and_a_correction_leave_skips_and_showings_as_they_are(world: World) -> None:
    pool = await prepare(world)
    events = [shown("ann", "a", 1), skipped("ann", "a", 2)]
    await hand_all(world, pool, events)
    before = await as_written(world)
    await hand_all(world, pool, [completed("ann", "a", 3), corrected("ann", "a", 9, 9)], first=2)
    assert await as_written(world) == before
    assert await world.completions() == {}


IDS = [f"00000000-0000-4000-8000-0000000000{n:02x}" for n in (1, 0xFF)]


def an_event(draw: Any) -> dict[str, Any]:
    """Few users, steps, times and ids, so that much collides: also different contents under one id."""
    user, step = draw(["ann", "bob"]), draw("ab")
    more: dict[str, Any] = {"event_id": draw(IDS), "mcp_server_session_id": draw([f"s_{user}", "s_all"])}
    if draw([True, False]):
        return shown(user, step, draw(range(3)), version=draw([None, "v1", "v2"]), **more)
    metadata = draw([None, {"n": 1}, {"n": 2}])
    return skipped(user, step, draw(range(3)), reason=draw([None, "one", "Two"]), metadata=metadata, **more)


@st.composite
def histories(draw: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Events, the same ones in another order with some of them twice, and the size of a load."""
    events = [an_event(lambda of: draw(st.sampled_from(of))) for _ in range(draw(st.integers(1, 12)))]
    again = draw(st.lists(st.sampled_from(events), max_size=6))
    return events, draw(st.permutations(events + again)), draw(st.integers(1, 20))


async def test_any_order_any_copies_and_any_cut_into_loads_give_the_same_rows(world: World) -> None:
    pool = await prepare(world)
    drawn: list[tuple[list[dict[str, Any]], list[dict[str, Any]], int]] = []

    @given(histories())
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def draw(history: tuple[list[dict[str, Any]], list[dict[str, Any]], int]) -> None:
        drawn.append(history)

    draw()
    offset = 0
    for events, sent, size in drawn:
        await empty(world)
        await hand_all(world, pool, sent, offset, size)
        offset += len(sent)
        assert await rows(world) == expected(events), (sent, size)
        # What is read again, in whatever order, writes nothing.
        before = await as_written(world)
        await hand_all(world, pool, sent[::-1], offset, size + 1)
        offset += len(sent)
        assert await as_written(world) == before
        assert await marks(world) == set()


async def test_different_contents_under_one_id_give_the_same_row_whichever_comes_first(world: World) -> None:
    pool = await prepare(world)
    one, other = shown("ann", "a", 1, version="v1"), skipped("ann", "a", 1, reason="b")
    contents = [{"mcp_server_session_id": session} for session in ("s_ann", "s_all")]
    events = [one | c | {"version": v} for c in contents for v in ("v1", "v2", None)]
    events += [other | c | {"reason": r} for c in contents for r in ("b", "a", None)]
    events += [other | c | {"metadata": m} for c in contents for m in ({"n": 1}, {"n": 2})]
    chance = random.Random(7)
    for first in range(0, 40 * len(events), len(events)):
        await empty(world)
        await hand_all(world, pool, chance.sample(events, len(events)), first, chance.choice([1, 2, 5]))
        assert await rows(world) == expected(events)


async def test_an_id_that_other_rows_have_is_no_dead_letter(world: World) -> None:
    """Neither table wants its ids to be unique: an id used twice only competes by its time."""
    pool = await prepare(world)
    events = [
        make(user, step, at, event_id=IDS[0])
        for make in (skipped, shown)
        for at, (user, step) in enumerate([("ann", "a"), ("ann", "b"), ("bob", "a"), ("ann", "a")])
    ]
    others = [completed("ann", "a", 1, event_id=IDS[0]), started("bob", 1, event_id=IDS[0])]
    await hand_all(world, pool, events + others)
    assert await rows(world) == expected(events)


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [skipped, shown])
async def test_each_reference_is_judged(world: World, make: Any) -> None:
    pool = await prepare(world)
    await world.offer("wt_of_b", "o", "srv_of_b")
    await world.db.execute("insert into organization (id, name, created_at) values ('org_b', 'b', now())")
    await world.db.execute("update mcp_servers set organization_id = 'org_b' where id = 'srv_of_b'")
    await world.people(["ann"], "srv_of_b", "o_")
    wrong = {
        Rejection.UNKNOWN_USER: make("nobody", "a", 1, mcp_server_session_id="s_all"),
        Rejection.UNKNOWN_WALKTHROUGH: make("ann", "a", 1, walkthrough_id="none"),
        Rejection.UNKNOWN_STEP: make("ann", "none", 1),
        Rejection.UNKNOWN_SERVER: make("ann", "a", 1, mcp_server_id="none"),
        Rejection.UNKNOWN_SESSION: make("ann", "a", 1, mcp_server_session_id="none"),
        Rejection.STEP_OF_ANOTHER_WALKTHROUGH: make("ann", "x", 1),
        Rejection.SERVER_OF_ANOTHER_ORGANIZATION: make(
            "ann", "a", 1, mcp_server_id="srv_of_b", mcp_server_session_id="o_ann"
        ),
        Rejection.SESSION_OF_ANOTHER_SERVER: make("ann", "a", 1, mcp_server_session_id="t_ann"),
        Rejection.SESSION_OF_ANOTHER_USER: make("ann", "a", 1, mcp_server_session_id="s_bob"),
    }
    good = make("ann", "a", 9)
    recorded = await hand(world, pool, [*wrong.values(), good])
    assert [r.rejection for r in recorded.refused] == list(wrong)
    assert await rows(world) == expected([good])


async def test_what_postgresql_alone_refuses_is_a_dead_letter_and_the_rest_counts(world: World) -> None:
    pool = await prepare(world)
    await world.db.execute(
        "alter table walkthrough_step_skips add constraint no_b check (step_id <> 'b');"
        "alter table walkthrough_step_showings add constraint no_c check (step_id <> 'c')"
    )
    events = [make("ann", step, 1) for make in (skipped, shown) for step in "abc"]
    recorded = await hand(world, pool, [*events, completed("ann", "b", 1)])
    assert {r.message for r in recorded.refused} == {
        "PostgreSQL refuses it: CheckViolationError no_b",
        "PostgreSQL refuses it: CheckViolationError no_c",
    }
    assert await rows(world) == expected([events[0], events[2], events[3], events[4]])
    assert set(await world.completions()) == {("ann", "b")}


# --- rows that go ---------------------------------------------------------------------------------------

PARENTS: dict[str, tuple[str, set[tuple[str, str]]]] = {
    "a step": ("delete from walkthrough_steps where id = 'a'", {("ann", "b"), ("bob", "b")}),
    "a session": (
        "delete from mcp_server_session where mcp_server_session_id = 's_ann'",
        {("bob", "a"), ("bob", "b")},
    ),
    "a user": ("delete from mcp_server_user where id = 'bob'", {("ann", "a"), ("ann", "b")}),
    "a server": ("delete from mcp_servers where id = 'srv_1'", set()),
    "a walkthrough": ("delete from walkthroughs where id = 'wt_a'", set()),
}


@pytest.mark.parametrize("make", [skipped, shown])
@pytest.mark.parametrize("what", PARENTS)
async def test_rows_go_with_what_they_refer_to_and_leave_marks(world: World, what: str, make: Any) -> None:
    statement, left = PARENTS[what]
    pool = await prepare(world)
    events = [make(user, step, 1) for user in ("ann", "bob") for step in "ab"]
    await hand_all(world, pool, events)
    assert await marks(world) == set()
    await world.db.execute(statement)
    assert {key for table in await rows(world) for key in table} == left
    gone = {(e["mcp_server_user_id"], e["step_id"]) for e in events} - left
    assert await marks(world) == {(user, "wt_a") for user, _ in gone}


async def test_nothing_of_somebody_who_is_erased_is_kept_whichever_comes_first(world: World) -> None:
    pool = await prepare(world, ["ann-who-leaves", "bob"])
    theirs = [make("ann-who-leaves", "a", at) for make in (skipped, shown) for at in (1, 2)]
    bobs = [skipped("bob", "a", 1), shown("bob", "a", 1)]
    await hand_all(world, pool, [*theirs[:2], bobs[0]])
    recorded = await hand(world, pool, [*theirs[2:], erased("ann-who-leaves"), *bobs], first=3)
    assert recorded.refused == []
    assert await traces(world, "ann-who-leaves") == {"sankey_dirty.mcp_server_user_id": 1}
    recorded = await hand(world, pool, theirs, first=8)
    assert (recorded.refused, recorded.of_erased) == ([], 4)
    assert await rows(world) == expected(bobs)


# --- a replay -------------------------------------------------------------------------------------------


def some_events(seed: int, count: int = 300) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [an_event(chance.choice) | {"event_id": completed("", "", 0)["event_id"]} for _ in range(count)]


async def test_a_replay_marks_the_journeys_that_it_changes_and_no_others(world: World) -> None:
    pool = await prepare(world)
    events = some_events(1)
    await hand_all(world, pool, events, size=70)
    before = await as_written(world)
    await hand_all(world, pool, events, size=41)
    assert await as_written(world) == before
    assert await marks(world) == set()
    for damage in (
        "delete from walkthrough_step_skips where mcp_server_user_id = 'bob' and step_id = 'b'",
        "delete from walkthrough_step_showings where mcp_server_user_id = 'bob'",
        "update walkthrough_step_showings set last_version = null, last_shown_at = first_shown_at,"
        " last_id = first_id where mcp_server_user_id = 'bob'",
        "update walkthrough_step_showings set first_id = 'wtsh_x', first_shown_at = last_shown_at"
        " where mcp_server_user_id = 'bob'",
    ):
        await world.db.execute(damage)
        await world.db.execute("delete from sankey_dirty")
        await hand_all(world, pool, events, size=41)
        assert await rows(world) == expected(events), damage
        assert await marks(world) == {("bob", "wt_a")}, damage


@pytest.mark.parametrize("end", ["first", "last"])
async def test_a_replay_that_changes_one_end_of_a_showing_marks_its_journey(world: World, end: str) -> None:
    pool = await prepare(world)
    events = [shown("ann", "a", at) for at in (1, 5, 9)]
    await hand_all(world, pool, events)
    other = "last" if end == "first" else "first"
    await world.db.execute(
        f"update walkthrough_step_showings set {end}_id = {other}_id, {end}_shown_at = {other}_shown_at;"
        " delete from sankey_dirty"
    )
    await hand_all(world, pool, events)
    assert await rows(world) == expected(events)
    assert await marks(world) == {("ann", "wt_a")}


async def test_a_replay_together_with_what_is_new_gives_the_same_rows(world: World) -> None:
    pool = await prepare(world)
    events = some_events(2)
    await hand_all(world, pool, events[:200], size=50)
    await world.db.execute("delete from walkthrough_step_showings where step_id = 'a'")
    await hand_all(world, pool, events, size=300)
    assert await rows(world) == expected(events)


# --- locks ----------------------------------------------------------------------------------------------


async def test_a_locked_row_holds_up_what_would_change_it_alone(world: World) -> None:
    pool = await prepare(world)
    before = [make(user, "a", 50) for make in (skipped, shown) for user in ("ann", "bob")]
    await hand_all(world, pool, before)
    lock_both = [f"select from {table} where mcp_server_user_id = 'ann' for update" for table in TABLES]
    more = [make(user, step, 40) for make in (skipped, shown) for user in ("ann", "bob") for step in "ab"]
    async with locked(world, *lock_both):
        recorded = await hand(world, pool, [*more, completed("ann", "a", 1)], first=4)
        assert recorded.waiting == 2
        waits_for = await world.db.fetch("select waits_for from waiting_events order by 1")
        assert [r[0] for r in waits_for] == [
            "walkthrough_step_showings ann a",
            "walkthrough_step_skips ann a",
        ]
        held_up = [e for e in more if (e["mcp_server_user_id"], e["step_id"]) == ("ann", "a")]
        assert await rows(world) == expected([*before, *(e for e in more if e not in held_up)])
        assert set(await world.completions()) == {("ann", "a")}
    assert await resume(pool) == (2, [])
    assert await rows(world) == expected([*before, *more])
    # The aggregator has passed their offsets: a mark tells it.
    assert await marks(world) == {("ann", "wt_a")}


@pytest.mark.parametrize("make", [skipped, shown])
async def test_status_says_who_has_locked_a_row(world: World, make: Any) -> None:
    pool = await prepare(world)
    await hand_all(world, pool, [make("ann", "a", 50)])
    table = TABLES[make is shown]
    async with locked(world, f"select from {table} for update") as pid:
        await hand(world, pool, [make("ann", "a", 40)], first=1)
        status = json.loads((await world.invoke("status", "-o", "json")).stdout)
    assert status["events_waiting"]["locked_by"][0]["pid"] == pid
    assert any(f"{table} ann a; locked by" in problem for problem in status["problems"])


async def test_a_row_that_somebody_is_writing_holds_up_few_and_loses_nothing(world: World) -> None:
    people = [f"p{i:03}" for i in range(60)]
    pool = await prepare(world, people)
    events = [make(p, "a", i) for i, p in enumerate(people) for make in (skipped, shown)]
    theirs = (
        "insert into walkthrough_step_showings"
        " select 'wtsh_x', 'wtsh_x', id, 'wt_a', 'a', 'srv_1', 's_' || id, 0, 0 from mcp_server_user"
        " where id = 'p007'",
        "insert into walkthrough_step_skips"
        " select 'wtss_x', id, 'wt_a', 'a', 'srv_1', 's_' || id, 0 from mcp_server_user where id = 'p030'",
    )
    async with locked(world, *theirs):
        recorded = await hand(world, pool, events)
        assert 2 <= recorded.waiting < 30
    while await waiting(world):
        await resume(pool)
    assert await rows(world) == expected(events)


# --- another log, another database ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [skipped, shown])
async def test_a_row_of_either_says_that_the_database_is_the_topics(world: World, make: Any) -> None:
    pool = await prepare(world)

    async def belongs() -> bool:
        return await belongs_to_topic(world.db, world.settings.topic, [], has_recorded=True)

    assert not await belongs()
    await hand_all(world, pool, [make("ann", "a", 1)])
    assert await belongs()


async def test_where_all_journeys_are_marked_those_of_skips_and_showings_are_too(world: World) -> None:
    pool = await prepare(world)
    await hand_all(world, pool, [skipped("ann", "a", 1), shown("bob", "a", 1)])
    assert await marks(world) == set()
    async with pool.acquire() as connection:
        await mark_all(connection)
    assert await marks(world) == {("ann", "wt_a"), ("bob", "wt_a")}


# --- from Kafka -----------------------------------------------------------------------------------------


async def test_through_kafka_beside_completions_and_again_under_another_group(world: World) -> None:
    people = [f"p{i:02}" for i in range(30)]
    await prepare(world, people)
    chance = random.Random(5)
    events = [
        make(chance.choice(people), chance.choice("abcde"), chance.randrange(10**9))
        for make in (skipped, shown, completed)
        for _ in range(400)
    ]
    sent = events + chance.choices(events, k=200)
    chance.shuffle(sent)
    both = world.start_both(poll_max_records=200)
    await world.produce([*sent, skipped("p01", "none", 1), shown("nobody", "a", 1)])
    await world.drained()
    assert await rows(world) == expected(events)
    classes = sorted(dict(m.headers)["stepstream-error-class"].decode() for m in await world.dead_letters())
    assert classes == ["unknown-step", "unknown-user"]
    await world.assert_exact()
    before = await as_written(world)
    for service in both:
        assert service.terminate() == 0
    world.services.clear()
    again = {"group_prefix": world.settings.group_prefix + "again."}
    world.settings = world.settings.model_copy(update=again)
    world.start_both()
    await world.drained()
    assert await as_written(world) == before


async def test_a_change_by_hand_leaves_marks_and_the_recorders_own_does_not(world: World) -> None:
    await prepare(world)
    await world.produce([skipped("ann", "a", 1), shown("ann", "a", 1), shown("ann", "a", 3)])
    recorder = world.start(RECORDER)

    async def recorded() -> bool:
        return await world.recorded() == 3

    await eventually(recorded, "all is recorded")
    recorder.terminate()
    assert await marks(world) == set()
    for statement in (
        "update walkthrough_step_skips set skipped_at = skipped_at + 1",
        "update walkthrough_step_showings set last_shown_at = last_shown_at + 1",
        "insert into walkthrough_step_showings"
        f" values ('x', 'x', 'ann', 'wt_a', 'b', 'srv_1', 's_ann', {moment(1)}, {moment(1)})",
    ):
        await world.db.execute(statement)
        assert await marks(world) == {("ann", "wt_a")}, statement
        await world.db.execute("delete from sankey_dirty")


async def test_a_step_that_moved_to_another_walkthrough_takes_its_showing_along(world: World) -> None:
    """The event that changes the row names the journey that it is in now; the one that it leaves is marked."""
    pool = await prepare(world)
    await hand_all(world, pool, [shown("ann", "a", 5, version="v1")])
    await world.db.execute("update walkthrough_steps set walkthrough_id = 'wt_b' where id = 'a'")
    late = shown("ann", "a", 3, walkthrough_id="wt_b")
    await hand_all(world, pool, [late], first=1)
    ((_, first_at, walkthrough, *_, last_at, version),) = (await rows(world))[1].values()
    assert (first_at, walkthrough, last_at, version) == (moment(3), "wt_b", moment(5), "v1")
    assert await marks(world) == {("ann", "wt_a")}

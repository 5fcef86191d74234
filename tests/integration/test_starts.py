"""People who open a walkthrough: when a journey begins, who left before the first step, and exactness."""

import asyncio
import random
from collections import Counter
from datetime import date, timedelta
from typing import Any

import pytest

from tests.support.world import World, completed, eventually, moment, started

pytestmark = pytest.mark.integration

DAY = 86_400_000
Cells = Counter[tuple[Any, ...]]


def day(ms: int) -> date:
    return date(1970, 1, 1) + timedelta(days=ms // DAY)


def expected(events: list[dict[str, Any]]) -> tuple[Cells, Cells]:
    """Transitions with their time, and endings, by cohort: from the events alone, with none of our code."""
    firsts: dict[tuple[str, ...], dict[str, Any]] = {}
    for event in events:
        at = event.get("started_at", event.get("completed_at"))
        key = (event["mcp_server_user_id"], event["walkthrough_id"], event.get("step_id", ""))
        kept = firsts.get(key)
        if kept is None or (at, event["event_id"]) < (kept["at"], kept["event_id"]):
            firsts[key] = event | {"at": at}
    journeys: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in sorted(
        firsts.values(), key=lambda e: (e["at"], e["type"] == "step-completed", e["event_id"])
    ):
        journeys.setdefault((event["mcp_server_user_id"], event["walkthrough_id"]), []).append(event)
    transitions: Cells = Counter()
    endings: Cells = Counter()
    for (_, walkthrough), happened in journeys.items():
        cohort = (walkthrough, happened[0]["mcp_server_id"], day(happened[0]["at"]))
        steps = [e for e in happened if e["type"] == "step-completed"]
        opened = happened[0] if happened[0]["type"] == "walkthrough-started" else None
        for i, step in enumerate(steps):
            before = steps[i - 1] if i else opened
            key = (*cohort, i, steps[i - 1]["step_id"] if i else None, step["step_id"])
            transitions[*key, "journeys"] += 1
            transitions[*key, "elapsed"] += step["at"] - before["at"] if before else 0
            transitions[*key, "timed"] += bool(before)
        last = steps[-1] if steps else happened[0]
        endings[*cohort, len(steps), steps[-1]["step_id"] if steps else None, day(last["at"])] += 1
    return Counter({k: n for k, n in transitions.items() if n}), endings


async def counted(world: World) -> tuple[Cells, Cells]:
    transitions: Cells = Counter()
    for r in await world.db.fetch("select * from sankey_transitions"):
        key = (
            *(r["walkthrough_id"], r["mcp_server_id"], r["began_on"]),
            *(r["position"], r["from_step_id"], r["to_step_id"]),
        )
        transitions[*key, "journeys"] += r["journeys"]
        transitions[*key, "elapsed"] += int(r["elapsed_ms"])
        transitions[*key, "timed"] += r["timed_journeys"]
    endings: Cells = Counter()
    for r in await world.db.fetch("select * from sankey_endings"):
        cohort = (r["walkthrough_id"], r["mcp_server_id"], r["began_on"])
        endings[*cohort, r["steps_done"], r["step_id"], r["last_active_on"]] += r["journeys"]
    return Counter({k: n for k, n in transitions.items() if n}), Counter(
        {k: n for k, n in endings.items() if n}
    )


async def prepare(world: World, people: list[str]) -> None:
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_2")
    await world.people(people)
    await world.people(people, "srv_2", "t_")


def traffic(chance: random.Random, people: list[str], count: int) -> list[dict[str, Any]]:
    """Starts and steps on two servers, in any order, many of them more than once; some never started."""
    events = []
    for _ in range(count):
        who, at = chance.choice(people), chance.randrange(5 * DAY)
        walkthrough, steps, server = chance.choice([("wt_a", "abcde", "srv_1"), ("wt_b", "xyz", "srv_2")])
        server = chance.choice([server, "srv_1"])
        session = ("s_" if server == "srv_1" else "t_") + who
        where = {"walkthrough_id": walkthrough, "mcp_server_id": server, "mcp_server_session_id": session}
        if chance.random() < 0.3 and int(who[1:]) % 3:
            events.append(started(who, at, **where))
        else:
            events.append(completed(who, chance.choice(steps), at, **where))
    return events


async def test_starts_and_steps_in_any_order_with_repeats_are_exact(world: World) -> None:
    people = [f"p{i:03}" for i in range(900)]
    await prepare(world, people)
    chance = random.Random(11)
    events = traffic(chance, people, 3_000)
    sent = events + chance.choices(events, k=800)
    chance.shuffle(sent)
    world.start_both(poll_max_records=300)
    await world.produce(sent)
    await world.drained()
    want = expected(events)
    assert await counted(world) == want
    assert any(key[3] == 0 for key in want[1]), "somebody only opened it"
    assert any(key[3] == 0 and key[-1] == "timed" for key in want[0])
    assert await world.dead_letters() == []
    await world.assert_exact()


async def test_a_replay_of_either_group_changes_nothing(world: World) -> None:
    people = [f"p{i:03}" for i in range(40)]
    await prepare(world, people)
    events = traffic(random.Random(12), people, 600)
    await world.produce(events)
    both = world.start_both()
    await world.drained()
    before = await world.db.fetchval(
        "select array_agg(s.*::text || s.xmin order by id) from walkthrough_starts s"
    )
    for service in both:
        assert service.terminate() == 0
    world.services.clear()
    again = {"group_prefix": world.settings.group_prefix + "again."}
    world.settings = world.settings.model_copy(update=again)
    world.start_both()
    await world.drained()
    assert (
        await world.db.fetchval("select array_agg(s.*::text || s.xmin order by id) from walkthrough_starts s")
        == before
    )
    assert await counted(world) == expected(events)


async def test_starts_that_vanish_in_flight_are_followed(world: World) -> None:
    """Sessions, users and a server are deleted; what is left counts as if the rest had never been."""
    people = [f"p{i:03}" for i in range(120)]
    await prepare(world, people)
    events = traffic(random.Random(13), people, 2_500)
    world.start_both(poll_max_records=200)
    await world.produce(events[:1_000])
    sending = asyncio.create_task(world.produce(events[1_000:]))

    async def some() -> bool:
        return await world.recorded() > 700

    await eventually(some, "some events are recorded", every=0.01)
    gone_users, gone_sessions = people[:15], [f"s_{p}" for p in people[10:40]]
    await world.db.execute(
        "delete from mcp_server_session where mcp_server_session_id = any($1)", gone_sessions
    )
    await world.db.execute("delete from mcp_server_user where id = any($1)", gone_users)
    await world.db.execute("delete from mcp_servers where id = 'srv_2'")
    await sending
    await world.drained()
    left = [
        e
        for e in events
        if e["mcp_server_user_id"] not in gone_users
        and e["mcp_server_session_id"] not in gone_sessions
        and e["mcp_server_id"] != "srv_2"
    ]
    # The losing events of a row that was deleted are gone too: what counts is what the tables hold.
    rows = await world.db.fetch(
        "select 'walkthrough-started' as type, substr(id, 6) as event_id, mcp_server_user_id, walkthrough_id,"
        " '' as step_id, mcp_server_id, started_at as at from walkthrough_starts union all"
        " select 'step-completed', substr(id, 6), mcp_server_user_id, walkthrough_id, step_id, mcp_server_id,"
        " completed_at from walkthrough_step_completions"
    )
    held = [
        {k: v for k, v in dict(r).items() if k not in {"at", "step_id"}}
        | ({"started_at": r["at"]} if r["type"] == "walkthrough-started" else {"completed_at": r["at"]})
        | ({} if r["type"] == "walkthrough-started" else {"step_id": r["step_id"]})
        for r in rows
    ]
    assert {h["event_id"] for h in held} <= {e["event_id"] for e in left}
    assert await counted(world) == expected(held)
    await world.assert_exact()


async def test_a_start_mended_inserted_or_deleted_by_hand_is_followed(world: World) -> None:
    await prepare(world, ["p1", "p2"])
    world.start_both()
    await world.produce([started("p1", DAY + 5), completed("p1", "a", DAY + 9), completed("p2", "a", 7)])
    await world.drained()
    assert (await world.endings())[1, "a"] == 2
    await world.db.execute(
        f"update walkthrough_starts set started_at = {moment(3)} where mcp_server_user_id = 'p1'"
    )
    await world.db.execute(
        "insert into walkthrough_starts values ('by_hand', 'p2', 'wt_a', 'srv_1', 's_p2', $1, null)",
        moment(1),
    )
    await world.drained()
    rows = await world.db.fetch("select began_on, elapsed_ms, timed_journeys from sankey_transitions")
    assert [(r["began_on"], int(r["elapsed_ms"]), r["timed_journeys"]) for r in rows] == [
        (date(2000, 1, 1), DAY + 6 + 6, 2)
    ]
    await world.db.execute("truncate walkthrough_starts")
    await world.drained()
    rows = await world.db.fetch("select began_on, elapsed_ms, timed_journeys from sankey_transitions")
    assert sorted((r["began_on"], int(r["elapsed_ms"]), r["timed_journeys"]) for r in rows) == [
        (date(2000, 1, 1), 0, 0),
        (date(2000, 1, 2), 0, 0),
    ]
    await world.assert_exact()


async def test_a_start_with_unknown_references_is_a_dead_letter(world: World) -> None:
    await prepare(world, ["p1"])
    world.start_both()
    await world.produce(
        [
            started("nobody", 1),
            started("p1", 1, walkthrough_id="wt_none"),
            started("p1", 1, mcp_server_session_id="s_none"),
            started("p1", 2),
        ]
    )
    await world.drained()
    classes = sorted(dict(m.headers)["stepstream-error-class"].decode() for m in await world.dead_letters())
    assert classes == ["unknown-session", "unknown-user", "unknown-walkthrough"]
    assert await world.endings() == Counter({(0, None): 1})

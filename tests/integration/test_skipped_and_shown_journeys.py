"""Skips and showings in journeys and counts: exact after any change of the rows, found and mended when corrupted."""

import asyncio
import random
from typing import Any

import pytest

from services.sankey_aggregator.rebuild import rebuild
from services.sankey_aggregator.verify import verify
from tests.support.truth import differences
from tests.support.world import AGGREGATOR, OPERATOR, World, completed, eventually, moment

pytestmark = pytest.mark.integration

DAY = 86_400_000
STEPS = "abcde"

#: Each way in which what a journey knows of skips and showings can be wrong.
CORRUPTIONS = {
    "skips forgotten": "update sankey_journeys set skipped = null",
    "skipped and done swapped": "update sankey_journeys set skipped = array(select not s from unnest(skipped) as s)"
    " where skipped is not null",
    "showings forgotten": "update sankey_journeys set shown_at = null, shown_step_id = null",
    "shown at other times": "update sankey_journeys set shown_at = array(select s - 7 from unnest(shown_at) as s)"
    " where shown_at is not null",
    "another step shown": "update sankey_journeys set shown_step_id = 'q'",
    "first showings moved": "update sankey_journeys set first_shown_at = first_shown_at + 90000000",
    "skipped cells as done": "update sankey_transitions as cell set skipped = false where skipped"
    " and not exists (select from sankey_transitions as other where not other.skipped"
    " and other.position = cell.position and other.to_step_id = cell.to_step_id)",
    "active times": "update sankey_transitions set active_ms = active_ms + 5",
    "active journeys": "update sankey_transitions set active_journeys = active_journeys + 1",
    "skips in endings": "update sankey_endings set steps_skipped = steps_skipped + 1",
    "shown in endings": "update sankey_endings set shown_step_id = null where shown_step_id = 'c'",
}


async def skip(world: World, user: str, step: str, at: int) -> None:
    await world.db.execute(
        "insert into walkthrough_step_skips values ($1, $2, 'wt_a', $3, 'srv_1', $4, $5)"
        " on conflict do nothing",
        f"wtss_{user}{step}",
        user,
        step,
        f"s_{user}",
        moment(at),
    )


async def show(world: World, user: str, step: str, first: int, last: int) -> None:
    await world.db.execute(
        "insert into walkthrough_step_showings values"
        " ($1, $2, $3, 'wt_a', $4, 'srv_1', $5, $6, $7)"
        " on conflict (mcp_server_user_id, step_id) do update"
        " set last_shown_at = greatest(walkthrough_step_showings.last_shown_at, excluded.last_shown_at)",
        f"wtsh_{user}{step}1",
        f"wtsh_{user}{step}2",
        user,
        step,
        f"s_{user}",
        moment(first),
        moment(last),
    )


async def start(world: World, user: str, at: int) -> None:
    await world.db.execute(
        "insert into walkthrough_starts values ($1, $2, 'wt_a', 'srv_1', $3, $4) on conflict do nothing",
        f"wtst_{user}",
        user,
        f"s_{user}",
        moment(at),
    )


async def journey(world: World, user: str) -> dict[str, Any]:
    row = await world.db.fetchrow("select * from sankey_journeys where mcp_server_user_id = $1", user)
    assert row is not None
    return {name: value for name, value in row.items() if value is not None}


async def change_something(world: World, chance: random.Random, people: list[str]) -> None:
    """One change of any of the tables, in any order of times."""
    user, step, at = chance.choice(people), chance.choice(STEPS), chance.randrange(3 * DAY)
    match chance.randrange(10):
        case 0 | 1:
            await skip(world, user, step, at)
        case 2 | 3 | 4:
            await show(world, user, step, at, at + chance.choice([0, 1000, DAY]))
        case 5 | 6:
            await world.db.execute(
                "delete from walkthrough_step_completions where mcp_server_user_id = $1 and step_id = $2",
                user,
                step,
            )
            await world.insert(completed(user, step, at))
        case 7:
            await start(world, user, at)
        case 8:
            table = chance.choice(
                ["walkthrough_step_skips", "walkthrough_step_showings", "walkthrough_step_completions"]
            )
            await world.db.execute(
                f"delete from {table} where mcp_server_user_id = $1 and step_id = $2", user, step
            )
        case _:
            await world.db.execute(
                "update walkthrough_step_skips set skipped_at = skipped_at + $2 where mcp_server_user_id = $1",
                user,
                chance.randrange(-DAY, DAY),
            )


async def test_a_skip_is_a_link_of_its_own_until_the_step_is_done(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    await world.insert(completed("ann", "a", 1000))
    await skip(world, "ann", "b", 2000)
    await world.insert(completed("ann", "c", 3000))
    await world.drain_marks()
    cells = "select position, from_step_id, to_step_id, skipped, journeys from sankey_transitions order by 1"
    assert [tuple(row) for row in await world.db.fetch(cells)] == [
        (0, None, "a", False, 1),
        (1, "a", "b", True, 1),
        (2, "b", "c", False, 1),
    ]
    ends = "select steps_done, steps_skipped, step_id, journeys from sankey_endings"
    assert [tuple(row) for row in await world.db.fetch(ends)] == [(2, 1, "c", 1)]
    assert (await journey(world, "ann"))["steps_skipped"] == 1
    await world.insert(completed("ann", "b", 2500))
    await world.drain_marks()
    assert [tuple(row) for row in await world.db.fetch(cells)] == [
        (0, None, "a", False, 1),
        (1, "a", "b", False, 1),
        (2, "b", "c", False, 1),
    ]
    assert [tuple(row) for row in await world.db.fetch(ends)] == [(3, 0, "c", 1)]
    await world.assert_exact()


async def test_what_stood_before_somebody_is_what_was_shown_last_and_is_not_done(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob", "cat"])
    await world.insert(completed("ann", "a", 1000))
    for user, step, first, last in [
        ("ann", "a", 500, 9000),  # read again after it was done
        ("ann", "b", 1000, 5000),
        ("ann", "c", 2000, 2000),
        ("bob", "a", 700, 700),
    ]:
        await show(world, user, step, first, last)
    await skip(world, "cat", "a", 100)
    await world.drain_marks()
    ann = await journey(world, "ann")
    assert (ann["shown_step_id"], ann["shown_at"], ann["began_at"]) == ("b", [moment(500)], moment(1000))
    bob = await journey(world, "bob")
    assert (bob["shown_step_id"], bob["first_shown_at"], bob["began_at"], bob["last_active_at"]) == (
        "a",
        *[moment(700)] * 3,
    )
    assert (await journey(world, "cat"))["step_ids"] == ["a"]
    cell = "select active_ms, active_journeys from sankey_transitions where to_step_id = 'a' and not skipped"
    assert tuple(await world.db.fetchrow(cell) or ()) == (500, 1)
    # Who begins is no longer somebody who was only shown something.
    await start(world, "bob", 800)
    await world.drain_marks()
    assert (await journey(world, "bob")).keys().isdisjoint({"first_shown_at"})
    assert (await journey(world, "bob"))["began_at"] == moment(800)
    await world.assert_exact()


@pytest.mark.parametrize("seed", [1, 2])
async def test_counts_are_exact_after_any_changes_beside_a_running_aggregator(
    world: World, seed: int
) -> None:
    await world.offer()
    people = [f"p{n}" for n in range(8)]
    await world.people(people)
    world.start(AGGREGATOR)
    chance = random.Random(seed)
    for _ in range(12):
        for _ in range(20):
            await change_something(world, chance, people)
        await eventually(lambda: _no_marks(world), "all marks are worked off")
        await world.assert_exact()
    verdict = await verify(world.settings_of(OPERATOR))
    assert verdict.differing == 0
    assert verdict.totals["skips"] > 0
    assert verdict.totals["showings"] > 0
    await world.db.execute("delete from walkthrough_steps where id = 'b'")
    await world.db.execute("delete from mcp_server_user where id = 'p1'")
    await world.db.execute("truncate walkthrough_step_showings")
    await eventually(lambda: _no_marks(world), "all marks are worked off")
    await world.assert_exact()


async def _no_marks(world: World) -> bool:
    return not await world.db.fetchval("select count(*) from sankey_dirty")


async def test_each_corruption_is_found_and_rebuilt(world: World) -> None:
    await world.offer()
    people = [f"p{n}" for n in range(12)]
    await world.people(people)
    chance = random.Random(3)
    for _ in range(150):
        await change_something(world, chance, people)
    await show(world, "p0", "c", 5, 5)
    await world.people(["zoe"])
    await show(world, "zoe", "c", 5, 5)
    await world.drain_marks()
    await world.assert_exact()
    for name, statement in CORRUPTIONS.items():
        await world.db.execute(statement)
        async with world.db.transaction(isolation="repeatable_read"):
            assert await differences(world.db), f"the truth does not see: {name}"
        assert (await verify(world.settings_of(OPERATOR), wait=0)).differing > 0, name
        rebuilt = await rebuild(world.settings_of(OPERATOR), execute=True)
        assert rebuilt.differing > 0, name
        await world.drain_marks()
        await world.assert_exact()
        assert (await verify(world.settings_of(OPERATOR), wait=0)).differing == 0, name


async def test_what_an_aggregator_of_before_passed_over_is_counted_by_the_first_of_this_version(
    world: World,
) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    await world.insert(completed("ann", "a", 1000))
    await world.drain_marks()
    await world.db.execute("insert into counted_offsets (topic, partition, next_offset) values ('t', 0, 0)")
    await world.db.execute("update counted_offsets set follows_showings = false")
    # As the recorder writes them: an event follows, and no mark.
    async with world.db.transaction():
        await world.db.execute("set local stepstream.recorder = 'on'")
        await skip(world, "ann", "b", 2000)
        await show(world, "bob", "a", 5, 5)
    assert await world.db.fetchval("select count(*) from sankey_dirty") == 0
    service = world.start(AGGREGATOR)
    await service.ready()
    await eventually(lambda: _no_marks(world), "all marks are worked off")
    await world.assert_exact()
    assert await world.db.fetchval("select bool_and(follows_showings) from counted_offsets")
    await asyncio.to_thread(service.terminate)
    await world.start(AGGREGATOR).ready()
    assert await world.db.fetchval("select count(*) from sankey_dirty") == 0, "only once"

"""A broken producer, and a wrong database: the recorder stops, says what to do, and nothing has moved."""

import random
from typing import Any

import pytest

from services.runtime.lag import lags
from tests.support.world import AGGREGATOR, RECORDER, Message, Service, World, completed, eventually

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:03}" for i in range(200)]


async def ended(service: Service) -> str:
    """Waits for the end by the flood; returns what it said last."""

    async def over() -> bool:
        return service.process.poll() is not None

    await eventually(over, f"{service.name} ends")
    assert service.process.returncode == 3
    return service.log.read_text()


async def committed(world: World) -> int:
    return next(lag.committed for lag in await lags(world.settings) if lag.group == RECORDER)


def good(chance: random.Random, count: int) -> list[dict[str, Any]]:
    return [completed(chance.choice(PEOPLE), chance.choice("abcde"), n) for n in range(count)]


async def test_a_hundred_bad_in_a_row_stop_it_where_it_was(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    await world.produce(good(random.Random(1), 300))
    service = world.start(RECORDER)
    world.start(AGGREGATOR)
    await world.drained()
    assert service.terminate() == 0
    before, recorded = await committed(world), await world.recorded()

    await world.produce([Message(b"p001", b"{} nothing") for _ in range(100)])
    told = await ended(world.start(RECORDER))
    assert "100 bad events in a row on partition" in told
    assert "not-json 100; the first on partition" in told
    assert "STEPSTREAM_FLOOD_PERCENT=100 STEPSTREAM_FLOOD_IN_A_ROW=0" in told
    assert "Traceback" not in told
    assert (await committed(world), await world.recorded()) == (before, recorded)
    assert await world.dead_letters() == []

    # As the message says: the operator lets them go to the dead letters.
    world.services = world.services[1:2]
    world.start(RECORDER, flood_percent=100, flood_in_a_row=0)
    await world.drained()
    assert len(await world.dead_letters()) == 100
    await world.assert_exact()


async def test_more_than_one_percent_stop_it_and_a_restart_does_not_forget(world: World) -> None:
    """Batches of one event or few: what was seen before the last batch counts after a restart, too."""
    await world.offer()
    await world.people(PEOPLE)
    chance = random.Random(2)
    bad = [Message.of(e | {"completed_at": -1}) for e in good(chance, 130)]
    mixed = [*bad, *(Message.of(e) for e in good(chance, 1_500))]
    chance.shuffle(mixed)
    await world.produce(mixed)
    first = world.start(RECORDER, poll_max_records=40)
    assert "of the last" in await ended(first)
    letters = len(await world.dead_letters())
    assert 50 < letters <= 100
    recorded = await world.recorded()
    again = world.start(RECORDER, poll_max_records=40)
    await ended(again)
    assert await world.recorded() - recorded < 40 * 3
    assert len(await world.dead_letters()) <= 101

    # Let pass by the operator, they are forgiven: afterwards a few bad events are few again.
    world.services.clear()
    lenient = world.start(RECORDER, flood_percent=100, flood_in_a_row=0)
    world.start(AGGREGATOR)
    await world.drained()
    assert lenient.terminate() == 0
    world.start(RECORDER)
    await world.produce([*(Message.of(e | {"completed_at": -1}) for e in good(chance, 5)), *good(chance, 50)])
    await world.drained()
    assert len(await world.dead_letters()) == 135
    await world.assert_exact()


async def test_a_wrong_database_stops_it(world: World) -> None:
    """Nothing that the events refer to exists: no deletion looks like that."""
    await world.produce(good(random.Random(3), 2_000))
    told = await ended(world.start(RECORDER))
    assert "unknown-user" in told
    assert (await committed(world), await world.recorded()) == (0, 0)
    assert await world.dead_letters() == []


async def test_a_database_with_the_right_server_but_nobody_in_it_stops_it_too(world: World) -> None:
    await world.offer()
    await world.produce(good(random.Random(3), 2_000))
    told = await ended(world.start(RECORDER))
    assert "Is it the one that belongs to this topic?" in told
    assert await world.dead_letters() == []


async def test_what_was_deleted_since_is_no_flood_in_a_replay(world: World) -> None:
    """Half of the people, a step, and all sessions of others are gone; then everything is read again."""
    await world.offer()
    await world.people(PEOPLE)
    await world.offer("wt_b", "xyz", "srv_2")
    await world.people(["gone"], "srv_2")
    on_b = {"walkthrough_id": "wt_b", "mcp_server_id": "srv_2"}
    await world.produce(good(random.Random(4), 3_000))
    # A whole tenant's traffic, in a row: afterwards nothing of it exists any more.
    await world.produce([completed("gone", random.choice("xyz"), n, **on_b) for n in range(400)])
    services = world.start_both(poll_max_records=500)
    await world.drained()
    for service in services:
        assert service.terminate() == 0
    await world.db.execute("delete from mcp_server_user where id < 'p100' or id = 'gone'")
    await world.db.execute("delete from walkthrough_steps where id = 'c'")
    await world.db.execute("delete from mcp_servers where id = 'srv_2'")
    await world.db.execute("delete from walkthroughs where id = 'wt_b'")
    await world.set_offsets()
    world.start_both(poll_max_records=500)
    await world.drained()
    assert await world.transitions() == await world.walked()
    assert len(await world.dead_letters()) > 1_000
    await world.assert_exact()

"""A wrong database stops the recorder, and nothing has moved; a broken producer stops nobody."""

import random
from typing import Any

import pytest

from services.runtime.lag import lags
from tests.support.world import AGGREGATOR, RECORDER, Message, Service, World, completed, eventually

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:03}" for i in range(200)]


async def ended(service: Service) -> str:
    """Waits for the end by the guard; returns what it said last."""

    async def over() -> bool:
        return service.process.poll() is not None

    await eventually(over, f"{service.name} ends")
    assert service.process.returncode == 3
    return service.log.read_text()


async def committed(world: World) -> int:
    return next(lag.committed for lag in await lags(world.settings) if lag.group == RECORDER)


def good(chance: random.Random, count: int) -> list[dict[str, Any]]:
    return [completed(chance.choice(PEOPLE), chance.choice("abcde"), n) for n in range(count)]


def of_source(source: str, key: bytes | None, value: bytes) -> Message:
    return Message(key, value, [("ce_source", source.encode())])


async def test_a_newcomers_flood_goes_to_the_dead_letters_and_stops_nobody(world: World) -> None:
    """Garbage, unknown references and wrong times by the thousand, at once, beside a good producer."""
    await world.offer()
    await world.people(PEOPLE)
    chance = random.Random(1)
    await world.produce(good(chance, 300))
    world.start_both()
    await world.drained()
    bad = [of_source("newcomer", b"nobody", b"{} nothing") for _ in range(3_000)]
    bad += [
        of_source("newcomer", b"x", Message.of(completed("x", "a", n)).value or b"") for n in range(3_000)
    ]
    await world.produce(bad)
    await world.produce(good(chance, 100))
    await world.drained()
    assert len(await world.dead_letters()) == 6_000
    told = await world.db.fetch(
        "select source, rejection, organization_id, events, fields from refused_events order by rejection"
    )
    assert [(r["source"], r["rejection"], r["events"]) for r in told] == [
        ("newcomer", "not-json", 3_000),
        ("newcomer", "unknown-user", 3_000),
    ]
    # Garbage is nobody's; the other names a server of the organization that offers the walkthrough.
    assert [r["organization_id"] for r in told] == ["", "org"]
    assert "secret" not in told[1]["fields"]

    async def counted() -> bool:
        rows = {r["source"]: r for r in await world.db.fetch("select * from event_sources")}
        if len(rows) < 2:
            return False
        newcomer, others = rows["newcomer"], rows["(no source)"]
        return (newcomer["events"], newcomer["refused"], newcomer["known"], others["known"]) == (
            6_000,
            6_000,
            False,
            True,
        )

    await eventually(counted, "what the newcomer sent is counted")

    without_key = [Message(None, Message.of(e).value, [("ce_source", b"/old")]) for e in good(chance, 200)]
    await world.produce(without_key)
    await world.drained()

    async def is_told() -> str | None:
        page = (await world.invoke("status")).stdout
        return page if "/old" in page else None

    page = " ".join((await eventually(is_told, "status tells of the source without keys")).split())
    assert "events of /old: 100% without a key: counted exactly" in page
    assert "6,000 events of newcomer refused" in page
    assert "not-json, unknown-user" in page
    await world.assert_exact()


async def test_a_flood_that_was_dealt_with_stops_no_replay(world: World) -> None:
    """And is not told again: events that were judged before say nothing of their producer."""
    await world.offer()
    await world.people(PEOPLE)
    await world.produce(good(random.Random(2), 300))
    await world.produce([of_source("newcomer", None, b"\x00\x00\x00\x00\x07avro")] * 2_000)
    services = world.start_both(wrong_database_guard=False)
    await world.drained()
    for service in services:
        assert service.terminate() == 0
    before = await world.db.fetch("select source, rejection, events from refused_events")
    await world.set_offsets()
    world.services.clear()
    world.start_both()
    await world.drained()
    assert await world.db.fetch("select source, rejection, events from refused_events") == before
    assert len(await world.dead_letters()) == 4_000
    await world.assert_exact()


async def test_a_wrong_database_stops_it(world: World) -> None:
    """Nothing that the events refer to exists: no deletion looks like that."""
    await world.produce(good(random.Random(3), 2_000))
    told = await ended(world.start(RECORDER))
    assert "unknown-user 2,000; from (no source) 2,000" in told
    assert "Traceback" not in told
    assert (await committed(world), await world.recorded()) == (0, 0)
    assert await world.dead_letters() == []


async def test_a_database_with_the_right_server_but_nobody_in_it_stops_it_too(world: World) -> None:
    await world.offer()
    await world.produce(good(random.Random(3), 2_000))
    told = await ended(world.start(RECORDER))
    assert "is it the one that belongs to this topic?" in told
    assert await world.dead_letters() == []
    # As the message says: the operator lets them go to the dead letters.
    world.services.clear()
    world.start(RECORDER, wrong_database_guard=False)
    world.start(AGGREGATOR)
    await world.drained()
    assert len(await world.dead_letters()) == 2_000


async def test_rows_that_were_lost_with_their_database_are_not_taken_for_bad_events(world: World) -> None:
    """The platform's tables were emptied under a service that had recorded: it stops soon."""
    await world.offer()
    await world.people(PEOPLE)
    await world.produce(good(random.Random(3), 300))
    world.start_both()
    await world.drained()
    await world.db.execute("delete from mcp_server_user")
    await world.produce(good(random.Random(4), 6_000))
    told = await ended(world.services[0])
    assert "this database holds nothing that was recorded" in told
    assert len(await world.dead_letters()) <= 2_000


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

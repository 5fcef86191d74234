"""A wrong database stops the recorder, and nothing has moved; a broken producer stops nobody."""

import asyncio
import random
import uuid
from typing import Any

import pytest

from services.consumers.lag import lags
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


def event_of(source: str, event: dict[str, Any], *, keyed: bool = True) -> Message:
    message = Message.of(event)
    return of_source(source, message.key if keyed else None, message.value or b"")


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


#: What producers do wrong, and how many of it are dead letters.
MISTAKES: dict[str, tuple[list[Message], int]] = {
    "/log": ([of_source("/log", None, b"INFO started")] * 500, 500),
    "/avro": ([of_source("/avro", b"p001", b"\x00\x00\x00\x00\x07avro")] * 500, 500),
    "/seconds": (
        [event_of("/seconds", completed("p001", "a", n, completed_at=1_750_000_000)) for n in range(500)],
        500,
    ),
    "/other-database": ([event_of("/other-database", completed("x", "a", n)) for n in range(500)], 500),
    "/one-id": (
        [event_of("/one-id", completed(person, "a", 1, event_id=str(uuid.UUID(int=7)))) for person in PEOPLE],
        len(PEOPLE) - 1,
    ),
    "/one-person": ([event_of("/one-person", completed("p001", "b", n)) for n in range(500)], 0),
    "/no-key": ([event_of("/no-key", completed(p, "c", 1), keyed=False) for p in PEOPLE], 0),
    "/large": ([of_source("/large", b"p001", b"x" * 1_000_000)] * 5, 5),
    "/eraser": (
        [of_source("/eraser", None, b'{"type":"user-erased","mcp_server_user_id":"p001","erased_at":1}')]
        * 50,
        50,
    ),
}


async def test_each_mistake_beside_a_good_producer_whose_events_are_counted_meanwhile(world: World) -> None:
    await world.offer()
    newcomers = [f"q{number}" for number in range(len(MISTAKES))]
    await world.people([*PEOPLE, *newcomers])
    await world.produce(event_of("/good", event) for event in good(random.Random(5), 300))
    services = world.start_both(poll_max_records=200)
    for newcomer, (messages, _) in zip(newcomers, MISTAKES.values(), strict=True):
        mistakes = asyncio.create_task(world.produce(messages))
        await world.produce([event_of("/good", completed(newcomer, "a", 1))])

        async def is_counted(person: str = newcomer) -> bool:
            return await world.db.fetchval(
                "select true from sankey_journeys where mcp_server_user_id = $1", person
            )

        await eventually(is_counted, "the good event is counted")
        await mistakes
    await world.drained()
    assert all(service.process.poll() is None for service in services)
    refused = await world.db.fetch("select source, sum(events)::int from refused_events group by source")
    assert dict(refused) == {source: count for source, (_, count) in MISTAKES.items() if count}
    assert await world.db.fetchval("select count(*) from mcp_server_user") == len(PEOPLE) + len(newcomers)
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

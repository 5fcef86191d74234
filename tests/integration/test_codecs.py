"""Every codec of Kafka is read, whoever compressed it: other clients, our own, or the broker."""

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.protocol.fetch import FetchRequest
from confluent_kafka import Producer

from services.consumers.reader import reader
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES
from services.runtime.settings import DEAD_LETTER_SUFFIX
from tests.support.world import AGGREGATOR, RECORDER, Message, World, completed

pytestmark = pytest.mark.integration

#: In the order of the number that a batch's attributes hold.
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def large(user: str, step: str, at: int) -> Message:
    """An event that is smaller when it is compressed even alone: clients keep a codec only then."""
    return Message.of(completed(user, step, at, metadata={"note": "the same again, " * 100}))


def codecs_in(batches: bytes) -> Iterator[tuple[int, str]]:
    """Offset after each record batch, and its codec: the lowest three bits of its attributes."""
    while batches:
        base, length, attributes, delta = struct.unpack_from(">qi9xhi", batches)
        yield base + delta + 1, CODECS[attributes & 0b111]
        batches = batches[12 + length :]


async def stored(world: World, topic: str) -> dict[tuple[int, int], str]:
    """The codec of each record batch as the broker keeps it, by partition and the offset after it."""
    found: dict[tuple[int, int], str] = {}
    async with reader(world.settings) as consumer:
        partitions = [TopicPartition(topic, number) for number in range(3)]
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        for partition in partitions:
            at = begins[partition]
            while at < ends[partition]:
                batches = dict(codecs_in(await fetch(consumer, partition, at)))
                found |= {(partition.partition, after): codec for after, codec in batches.items()}
                at = max(batches)
    return found


async def fetch(consumer: AIOKafkaConsumer, partition: TopicPartition, offset: int) -> bytes:
    """Record batches from this offset on, as they are."""
    client = consumer._client
    wanted = [(partition.topic, [(partition.partition, offset, 2**26)])]
    leader = client.cluster.leader_for_partition(partition)
    answer = await client.send(leader, FetchRequest(0, 1, 2**26, 0, wanted))
    ((_, ((_, error, *_, batches),)),) = answer.topics
    assert error == 0
    return batches


async def send_with_librdkafka(world: World, codec: str, messages: Sequence[Message]) -> None:
    def send() -> None:
        producer = Producer(
            {
                "bootstrap.servers": ",".join(world.settings.kafka_bootstrap_servers),
                "partitioner": "murmur2_random",
                "compression.type": codec,
                "linger.ms": 10_000,  # until it is flushed
            }
        )
        failed: list[object] = []
        for m in messages:
            producer.produce(
                world.settings.topic, m.value, m.key, on_delivery=lambda e, _: failed.append(e) if e else None
            )
        assert producer.flush(30) == 0
        assert failed == []

    await asyncio.to_thread(send)


async def send_with_aiokafka(world: World, codec: str, messages: Sequence[Message]) -> None:
    await world.produce(messages, compression_type=None if codec == "none" else codec)


SENDERS = {"librdkafka": send_with_librdkafka, "aiokafka": send_with_aiokafka}


@pytest.mark.parametrize("client", SENDERS)
async def test_events_of_every_codec_count_and_bad_ones_are_dead_letters(world: World, client: str) -> None:
    """All codecs in one topic: one that cannot be read would hold up the others of its partition."""
    people = {codec: [f"{codec}-{i}" for i in range(20)] for codec in CODECS}
    await world.offer(steps="abc")
    await world.people(name for names in people.values() for name in names)
    kept: dict[tuple[int, int], str] = {}
    for codec, names in people.items():
        good = [large(name, step, at) for at, step in enumerate("abc", 1) for name in names]
        await SENDERS[client](world, codec, [*good, Message(names[0].encode(), b"no json " * 100)])
        after = await stored(world, world.settings.topic)
        assert {after[batch] for batch in after.keys() - kept} == {codec}
        kept = after
    world.start_both()
    await world.drained()
    assert (await world.completions()).keys() == {
        (name, step) for names in people.values() for name in names for step in "abc"
    }
    assert await world.transitions() == {(0, None, "a"): 100, (1, "a", "b"): 100, (2, "b", "c"): 100}
    await world.assert_exact()
    letters = await world.dead_letters()
    assert {letter.key for letter in letters} == {names[0].encode() for names in people.values()}
    assert {letter.value for letter in letters} == {b"no json " * 100}


@pytest.fixture
async def compressing(addresses: tuple[str, str], template: str, codec: str) -> AsyncIterator[World]:
    """Topics that the broker itself compresses with the codec, whatever a producer sends."""
    topic = f"t_{uuid.uuid4().hex[:12]}"
    options = {"compression.type": codec, "max.message.bytes": str(DEAD_LETTER_MAX_BYTES)}
    admin = AIOKafkaAdminClient(bootstrap_servers=addresses[0])
    await admin.start()
    names = (topic, topic + DEAD_LETTER_SUFFIX)
    await admin.create_topics([NewTopic(name, 3, 1, topic_configs=options) for name in names])
    await admin.close()
    made = await World.make(*addresses, template, topic=topic)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("codec", CODECS[1:])
async def test_commands_read_topics_that_the_broker_compresses(compressing: World, codec: str) -> None:
    world = compressing
    await world.offer(steps="abc")
    await world.people(["ann", "bob"])
    bad = b"no json " * 100
    await world.produce(
        [large(name, step, at) for at, step in enumerate("abc", 1) for name in ("ann", "bob", "cat")]
    )
    await world.produce([Message(b"ann", bad), Message(b"bob", bad)])
    services = world.start_both()
    await world.drained()
    for topic in (world.settings.topic, world.settings.dead_letter_topic):
        assert set((await stored(world, topic)).values()) == {codec}

    letters = json.loads((await world.invoke("dlq", "list", "-o", "json")).stdout)
    assert sorted(x["key"] for x in letters) == ["ann", "bob", "cat", "cat", "cat"]
    bobs = next(x["id"] for x in letters if x["key"] == "bob")
    shown = json.loads((await world.invoke("dlq", "show", bobs, "-o", "json")).stdout)
    assert shown["value"].encode() == bad
    await world.people(["cat"])
    redriven = await world.invoke("dlq", "redrive", "--key", "cat", "--execute", "-o", "json")
    assert json.loads(redriven.stdout)["sent"] == 3
    erased = await world.invoke("erase", "ann", "--execute", "-o", "json")
    assert json.loads(erased.stdout)["removed"]["dead_letters"] == 1
    await world.drained()
    left = json.loads((await world.invoke("dlq", "list", "-o", "json")).stdout)
    assert [x["key"] for x in left] == ["bob"]
    assert set((await stored(world, world.settings.dead_letter_topic)).values()) == {codec}

    for service in services:
        assert service.terminate() == 0
    before = await world.completions()
    assert before.keys() == {(name, step) for name in ("bob", "cat") for step in "abc"}
    ranges = ("--from-beginning", "--to", "2100-01-01T00:00:00Z", "--execute", "-o", "json")
    for group in (RECORDER, AGGREGATOR):
        fed = await world.invoke("replay", "--group", group, *ranges)
        assert json.loads(fed.stdout)["events"] == len(await world.events()) == 9 + 2 + 3 + 1
    assert await world.completions() == before
    await world.assert_exact()


#: A module that cannot be loaded, found before the installed one.
_BROKEN = "raise ImportError('libcramjam.so: cannot open shared object file')"
_READING = (
    ("run", RECORDER, "--port", "0"),
    ("run", AGGREGATOR, "--port", "0"),
    ("replay", "--group", RECORDER, "--from-beginning", "--to-offset", "9", "--execute"),
    ("dlq", "list"),
    ("dlq", "redrive", "--key", "ann", "--execute"),
    ("erase", "ann", "--execute"),
    ("lag",),
)


async def test_without_a_codec_nothing_that_reads_starts(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not such a record is there now: once it came, all partitions would stand still."""
    await world.offer()
    await world.people(["ann"])
    await world.produce([completed("ann", "a", 1)])
    services = world.start_both()
    await world.drained()
    for service in services:
        assert service.terminate() == 0
    await world.produce([completed("ann", "b", 2)])
    (tmp_path / "cramjam.py").write_text(_BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ends = await asyncio.gather(
        *(asyncio.to_thread(world.command, *command, anew=True) for command in _READING)
    )
    for command, end in zip(_READING, ends, strict=True):
        assert end.returncode == 2, (command, end.stderr)
        assert "snappy, lz4 and zstd cannot be read" in end.stderr, command
        assert "cramjam" in end.stderr, command
        assert "gzip" not in end.stderr, command
    assert len(await world.completions()) == 1

"""Reading ranges of offsets of a topic, as commands, lag and lookups do."""

import pytest
from aiokafka import TopicPartition

from services.consumers.reader import SilentError, read_first, read_range, reader
from services.runtime.kafka import Record
from tests.support.world import World

pytestmark = pytest.mark.integration


async def send(world: World, partition: int, count: int) -> None:
    """So many records, and the marker of their transaction behind them."""
    topic = world.settings.topic
    async with (
        world.producing(transactional_id=f"{topic}-{partition}") as producer,
        producer.transaction(),
    ):
        for number in range(count):
            await producer.send(topic, str(number).encode(), key=b"k", partition=partition)


async def test_a_range_is_read_to_its_end_where_markers_of_transactions_end_it_too(world: World) -> None:
    await send(world, 0, 5)
    await send(world, 1, 3)
    one, two = (TopicPartition(world.settings.topic, p) for p in (0, 1))
    read: dict[int, list[int]] = {0: [], 1: []}
    async with reader(world.settings) as consumer:
        async for piece in read_range(consumer, {one: (1, 4), two: (0, 4)}, at_most=2):
            assert len(piece.records) <= 2
            for record in piece.records:
                read[record.partition].append(record.offset)
            last = piece
    assert read == {0: [1, 2, 3], 1: [0, 1, 2]}
    assert (last.passed, last.finished) == (7, {one, two})


async def test_the_first_of_each_range_is_found_and_none_where_only_a_marker_is(world: World) -> None:
    await send(world, 0, 5)
    await send(world, 1, 3)
    one, two = (TopicPartition(world.settings.topic, p) for p in (0, 1))
    found: dict[TopicPartition, Record | None] = {}
    async with reader(world.settings) as consumer:
        await read_first(consumer, {one: (2, 5), two: (3, 4)}, found)
    first = found[one]
    assert first is not None
    assert (first.offset, found[two]) == (2, None)


async def test_silence_ends_the_reading_of_what_does_not_come(world: World) -> None:
    await send(world, 0, 2)
    tp = TopicPartition(world.settings.topic, 0)
    read: list[int] = []

    async def read_on() -> None:
        async with reader(world.settings) as consumer:
            async for piece in read_range(consumer, {tp: (0, 100)}, patience=0.5):
                read.extend(record.offset for record in piece.records)

    with pytest.raises(SilentError):
        await read_on()
    assert read == [0, 1]

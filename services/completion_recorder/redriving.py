"""Dead letters sent again to the topic that they came from.

Before copies are sent, `dead_letters_handled` says from where on they can be found; an operator who was
interrupted in between looks there first, for the header `stepstream-redrive-of`. A second copy would harm no
completion; but one that is refused again would be a second dead letter, and counted as one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiolimiter import AsyncLimiter

from services.completion_recorder.dead_letters import (
    REDRIVE_HEADER,
    Letter,
    Source,
    Staying,
    columns,
    read_partitions,
    source_at,
)
from services.consumers.reader import reader
from services.runtime.crashpoints import crash_point
from services.runtime.database import Connection, load_queries
from services.runtime.errors import StepstreamError
from services.runtime.kafka import (
    DEAD_LETTER_HEADERS,
    DEAD_LETTER_MAX_BYTES,
)
from services.runtime.producer import NULL, producer
from services.runtime.settings import Settings

SQL = load_queries(__file__)

#: Copies that are on their way at once, and noted together.
_AT_ONCE = 100


@dataclass
class Redriven:
    """What was sent again."""

    sent: int = 0
    #: Sent by somebody who was interrupted before it was noted.
    found_sent: int = 0
    #: These cannot be sent.
    stay: Staying = field(default_factory=Staying)


async def redrive(
    settings: Settings,
    db: Connection,
    portions: AsyncIterator[Sequence[Letter]],
    rate: float,
    progressed: Callable[[Sequence[Letter], Redriven], None],
) -> Redriven:
    """Sends letters to the topic that they came from: key, value and headers as they were.

    Their history goes along in headers behind their own, so that what fails again says all that it went
    through.

    Args:
        settings: where Kafka is.
        db: a connection that is alone at it.
        portions: what to send, with what `settle_interrupted` found.
        rate: the most that are sent in a second.
        tell: called with letters that are in the topic, and how far this is.

    Raises:
        StepstreamError: Kafka cannot be reached, or refuses one.
    """
    outcome = Redriven()
    limiter = AsyncLimiter(max(1.0, rate / 10), 0.1 if rate >= 10 else 1 / rate)
    size = max(1, min(_AT_ONCE, int(rate)))
    async with _sender(settings) as (sender, consumer):
        async for portion in portions:
            able = outcome.stay.leave(settings.topic, portion)
            there = [letter for letter in able if not letter.is_waiting]
            outcome.found_sent += len(there)
            progressed(there, outcome)
            rest = [letter for letter in able if letter.is_waiting]
            for i in range(0, len(rest), size):
                some = rest[i : i + size]
                await _send(sender, consumer, db, some, limiter)
                outcome.sent += len(some)
                progressed(some, outcome)
    return outcome


@contextlib.asynccontextmanager
async def _sender(settings: Settings) -> AsyncIterator[tuple[AIOKafkaProducer, AIOKafkaConsumer]]:
    """What sends, and what looks how far partitions go."""
    async with (
        producer(settings, max_request_size=DEAD_LETTER_MAX_BYTES, linger_ms=5) as sender,
        reader(settings) as consumer,
    ):
        yield await sender.start(), consumer


async def _send(
    producer: AIOKafkaProducer,
    consumer: AIOKafkaConsumer,
    db: Connection,
    letters: Sequence[Letter],
    limiter: AsyncLimiter,
) -> None:
    """Sends some, and notes before and after."""
    await producer.client.force_metadata_update()
    aims = [_partition(producer, letter.source.topic, letter.record.key) for letter in letters]
    tps = [TopicPartition(x.source.topic, aim) for x, aim in zip(letters, aims, strict=True)]
    ends = await consumer.end_offsets(list(set(tps)))
    of_letters = columns(letter.source for letter in letters)
    await db.execute(SQL["redrive_begin"], *of_letters, aims, [ends[tp] for tp in tps])
    crash_point("operator.redrive-noted")
    futures = []
    for letter, aim in zip(letters, aims, strict=True):
        await limiter.acquire()
        try:
            futures.append(
                await producer.send(
                    letter.source.topic,
                    NULL if letter.record.value is None else letter.record.value,
                    key=letter.record.key,
                    partition=aim,
                    headers=_with_history(letter),
                )
            )
        except KafkaError as error:
            raise StepstreamError(f"{letter.source}: Kafka refuses it: {error}") from error
    results = await asyncio.gather(*futures, return_exceptions=True)
    crash_point("operator.redrive-sent")
    arrived = [(x, r) for x, r in zip(letters, results, strict=True) if not isinstance(r, BaseException)]
    await db.execute(
        SQL["redrive_arrived"], *columns(x.source for x, _ in arrived), [r.offset for _, r in arrived]
    )
    if failed := [r for r in results if isinstance(r, BaseException)]:
        raise StepstreamError(
            f"{len(failed)} were not acknowledged ({failed[0]}). Run it again: what arrived is found and "
            "not sent twice"
        )


def _partition(producer: AIOKafkaProducer, topic: str, key: bytes | None) -> int:
    """Where Kafka's default partitioner puts the key; without one, the first partition."""
    partitions = sorted(producer.client.cluster.partitions_for_topic(topic) or ())
    if not partitions:
        raise StepstreamError(f"Kafka has no topic {topic} any more: these letters cannot be sent again")
    return int(producer._partitioner(key, partitions, partitions)) if key is not None else partitions[0]  # noqa: SLF001 - the producer's own choice, known before it sends


def _with_history(letter: Letter) -> list[tuple[str, bytes]]:
    """The record's own headers, then each failure, then what this is a copy of."""
    history = [
        (name, str(value).encode())
        for f in letter.failures
        if f.error_class != "unknown"
        for name, value in zip(
            DEAD_LETTER_HEADERS, (*f.source, f.timestamp, f.error_class, f.error), strict=True
        )
    ]
    source = letter.source
    mark = f"{source.topic}/{source.partition}/{source.offset}".encode()
    return [*letter.headers, *history, (REDRIVE_HEADER, mark)]


async def settle_interrupted(settings: Settings, db: Connection) -> set[Source]:
    """Looks which of the letters whose sending was interrupted had arrived, and notes that.

    The others wait again.

    Returns:
        Those that had arrived.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    rows = await db.fetch(SQL["redrive_interrupted"], settings.topic)
    if not rows:
        return set()
    begin: dict[int, int] = {}
    for row in rows:
        begin[row["to_partition"]] = min(
            row["searched_from"], begin.get(row["to_partition"], row["searched_from"])
        )
    unsure = {Source(row["topic"], row["partition"], row["offset"]) for row in rows}
    arrived: dict[Source, int] = {}
    async with aclosing(read_partitions(settings, settings.topic, begin)) as records:
        async for record in records:
            for name, value in record.headers:
                source = _source(value) if name == REDRIVE_HEADER else None
                if source in unsure:
                    arrived[source] = record.offset
    await db.execute(SQL["redrive_arrived"], *columns(arrived), list(arrived.values()))
    await db.execute(SQL["redrive_failed"], *columns(unsure - arrived.keys()))
    return set(arrived)


def _source(mark: bytes | None) -> Source | None:
    """What a record says that it is a copy of; None where it says nothing that can be read."""
    try:
        topic, partition, offset = (mark or b"").decode().rsplit("/", 2)
        return source_at(topic, int(partition), int(offset))
    except ValueError:
        return None

"""Dead letters: what was refused and why, sent again or let go.

A dead letter is known by where its record was: topic, partition and offset. What was done with it is kept in
`dead_letters_handled`, so that nothing is sent twice. Before copies are sent, the table says from where on
they can be found; an operator who was interrupted in between looks there first, for the header
`stepstream-redrive-of`.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiolimiter import AsyncLimiter

from services.consumers.batches import ERROR_CLASS as UNREADABLE_BATCH
from services.consumers.lag import partitions_of
from services.consumers.reader import read_range, reader
from services.runtime.crashpoints import crash_point
from services.runtime.database import Connection, load_queries
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.kafka import (
    DEAD_LETTER_HEADERS,
    DEAD_LETTER_MAX_BYTES,
    Record,
    admin_client,
    check_codecs,
    unreachable,
)
from services.runtime.producer import NULL, producer
from services.runtime.settings import Settings
from services.runtime.sources import source_of

SQL = load_queries(__file__)

#: The header of a redriven record: the dead letter that it is a copy of, as topic/partition/offset.
REDRIVE_HEADER = "stepstream-redrive-of"
#: Copies that are on their way at once, and noted together.
_AT_ONCE = 100
#: So many letters, or of so many bytes, are looked up at once.
_LOOKED_UP = 2_000
_LOOKED_UP_BYTES = 16 * 1024 * 1024
#: The largest numbers that PostgreSQL's `integer` and `bigint` hold.
_MAX_PARTITION, _MAX_OFFSET = 2**31 - 1, 2**63 - 1


class Source(NamedTuple):
    """Where the refused record was; a dead letter that does not say so is known by its own place."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True)
class Failure:
    """One time that a record was refused."""

    source: Source
    timestamp: int
    error_class: str
    error: str


@dataclass
class Letter:
    """A dead letter, with all the times that it failed; the last one counts."""

    record: Record
    failures: list[Failure]
    headers: list[tuple[str, bytes]]
    action: str | None = None

    @property
    def last(self) -> Failure:
        """The failure that made it."""
        return self.failures[-1]

    @property
    def source(self) -> Source:
        """What it is known by."""
        return self.last.source

    @property
    def sender(self) -> str:
        """Who sent the refused record, by its own word."""
        return source_of(self.headers)

    @property
    def is_waiting(self) -> bool:
        """Whether nobody has redriven or dropped it."""
        return self.action in {None, "redriving"}


@dataclass(frozen=True)
class Filter:
    """Which letters; what is None does not matter."""

    error_class: str | None = None
    partition: int | None = None
    since: int | None = None
    until: int | None = None
    key: str | None = None
    sender: str | None = None
    ids: frozenset[str] = field(default_factory=frozenset)

    def matches(self, letter: Letter) -> bool:
        """Whether the letter is one of these."""
        last = letter.last
        return (
            (self.error_class is None or last.error_class == self.error_class)
            and (self.partition is None or last.source.partition == self.partition)
            and (self.since is None or last.timestamp >= self.since)
            and (self.until is None or last.timestamp < self.until)
            and (self.key is None or (letter.record.key or b"") == self.key.encode())
            and (self.sender is None or letter.sender == self.sender)
            and (not self.ids or str(last.source) in self.ids)
        )


# --- reading -------------------------------------------------------------------------------------------


def parse(record: Record) -> Letter:
    """Reads the headers that the recorder added; the last set is the newest failure."""
    own, failures = _split(record)
    if not failures:
        place = Source(record.topic, record.partition, record.offset)
        failures = [Failure(place, record.timestamp, "unknown", "it does not say why it was refused")]
    return Letter(record, failures, own)


def _split(record: Record) -> tuple[list[tuple[str, bytes]], list[Failure]]:
    """The record's own headers, and its failures in order."""
    own: list[tuple[str, bytes]] = []
    failures: list[Failure] = []
    headers, at, size = list(record.headers), 0, len(DEAD_LETTER_HEADERS)
    while at < len(headers):
        names = tuple(name for name, _ in headers[at : at + size])
        if names == DEAD_LETTER_HEADERS:
            values = [(value or b"").decode(errors="replace") for _, value in headers[at : at + size]]
            with contextlib.suppress(ValueError):
                topic, partition, offset, timestamp, error_class, error = values
                source = place(topic, int(partition), int(offset))
                failures.append(Failure(source, int(timestamp), error_class, error))
            at += size
        else:
            if headers[at][0] != REDRIVE_HEADER:
                own.append(headers[at])
            at += 1
    return own, failures


def place(topic: str, partition: int, offset: int) -> Source:
    """Where a record may have been.

    Raises:
        ValueError: no record can have been there.
    """
    topic.encode()  # a lone surrogate is no character of a name, and PostgreSQL would refuse it
    if "\0" in topic or not (0 <= partition <= _MAX_PARTITION and 0 <= offset <= _MAX_OFFSET):
        raise ValueError("no place of a record")
    return Source(topic, partition, offset)


async def read_letters(
    settings: Settings, db: Connection, wanted: Filter, *, handled: bool = False
) -> AsyncGenerator[Letter]:
    """As `read_portions`, one by one.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    async with aclosing(read_portions(settings, db, wanted, handled=handled)) as portions:
        async for portion in portions:
            for letter in portion:
                yield letter


async def read_portions(
    settings: Settings,
    db: Connection,
    wanted: Filter,
    *,
    handled: bool = False,
    also: Container[Source] = (),
) -> AsyncGenerator[list[Letter]]:
    """The letters that match and wait, in the order in which Kafka has them; in each portion, oldest first.

    Each comes once: a recorder that crashed may have sent one twice. Bounded in memory, by a portion: which
    ones were read is in a temporary table of PostgreSQL.

    Args:
        settings: where Kafka is.
        db: a connection; between two portions others may use it.
        wanted: which.
        handled: all that match, also those that do not wait.
        also: of those that do not wait, these.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    await db.execute(SQL["letters_begin_reading"])
    async with aclosing(_portions(settings)) as portions:
        async for portion in portions:
            rows = await db.fetch(SQL["letters_note_read"], *columns(letter.source for letter in portion))
            new = {Source(r["topic"], r["partition"], r["offset"]): r["action"] for r in rows}
            found = []
            for letter in portion:
                if letter.source in new:
                    letter.action = new.pop(letter.source)
                    if wanted.matches(letter) and (handled or letter.is_waiting or letter.source in also):
                        found.append(letter)
            if found:
                yield sorted(found, key=lambda letter: (letter.last.timestamp, letter.source))


async def _portions(settings: Settings) -> AsyncGenerator[list[Letter]]:
    portion: list[Letter] = []
    size = 0
    async with aclosing(read_partitions(settings, settings.dead_letter_topic)) as records:
        async for record in records:
            portion.append(parse(record))
            size += (
                len(record.value or b"")
                + len(record.key or b"")
                + sum(len(v or b"") for _, v in record.headers)
            )
            if len(portion) == _LOOKED_UP or size >= _LOOKED_UP_BYTES:
                yield portion
                portion, size = [], 0
    if portion:
        yield portion


async def read_partitions(
    settings: Settings,
    topic: str,
    begin: dict[int, int] | None = None,
    ends: dict[TopicPartition, int] | None = None,
) -> AsyncGenerator[Record]:
    """A topic's records as far as it goes now; with `begin`, of those partitions from these offsets.

    `ends` is filled with how far the partitions go.

    Raises:
        ConfigurationError: a codec cannot be read.
        StepstreamError: Kafka cannot be reached.
    """
    check_codecs()
    async with (
        admin_client(settings) as admin,
        reader(settings, max_partition_fetch_bytes=DEAD_LETTER_MAX_BYTES) as consumer,
    ):
        try:
            every = await partitions_of(admin, topic)
            partitions = [p for p in every if begin is None or p.partition in begin]
            last = await consumer.end_offsets(partitions) if partitions else {}
            if ends is not None:
                ends.update(last)
            begins = await consumer.beginning_offsets(list(last)) if last else {}
            first = {p: max(begins[p], (begin or {}).get(p.partition, 0)) for p in last}
            async for piece in read_range(consumer, {p: (first[p], last[p]) for p in last}):
                for record in piece.records:
                    yield record
        except KafkaError as error:
            raise unreachable(settings, error) from error


async def find_one(settings: Settings, db: Connection, identifier: str) -> Letter:
    """The letter of that id, handled or not.

    Raises:
        StepstreamError: Kafka cannot be reached.
        UsageError: there is none.
    """
    wanted = Filter(ids=frozenset([identifier]))
    async with aclosing(read_letters(settings, db, wanted, handled=True)) as letters:
        async for letter in letters:
            return letter
    raise UsageError(f"there is no dead letter {identifier}; `stepstream dlq list --all` shows their ids")


# --- sending again -------------------------------------------------------------------------------------


def is_event_of(topic: str, letter: Letter) -> bool:
    """Whether a letter can be sent to the topic again: it came from there, and is no whole batch."""
    return letter.source.topic == topic and letter.last.error_class != UNREADABLE_BATCH


@dataclass
class Redriven:
    """What was sent again."""

    sent: int = 0
    #: Sent by somebody who was interrupted before it was noted.
    found_sent: int = 0
    #: Of another topic, or whole batches: these cannot be sent.
    stay: int = 0


async def redrive(
    settings: Settings,
    db: Connection,
    portions: AsyncIterator[Sequence[Letter]],
    rate: float,
    tell: Callable[[Sequence[Letter], Redriven], None],
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
    async with _sender(settings) as (producer, consumer):
        async for portion in portions:
            able = [letter for letter in portion if is_event_of(settings.topic, letter)]
            outcome.stay += len(portion) - len(able)
            there = [letter for letter in able if not letter.is_waiting]
            outcome.found_sent += len(there)
            tell(there, outcome)
            rest = [letter for letter in able if letter.is_waiting]
            for i in range(0, len(rest), size):
                some = rest[i : i + size]
                await _send(producer, consumer, db, some, limiter)
                outcome.sent += len(some)
                tell(some, outcome)
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
    places = [TopicPartition(x.source.topic, aim) for x, aim in zip(letters, aims, strict=True)]
    ends = await consumer.end_offsets(list(set(places)))
    of_letters = columns(letter.source for letter in letters)
    await db.execute(SQL["letters_begin_redrive"], *of_letters, aims, [ends[place] for place in places])
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
        SQL["letters_redriven"], *columns(x.source for x, _ in arrived), [r.offset for _, r in arrived]
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
    rows = await db.fetch(SQL["letters_redriving"], settings.topic)
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
    await db.execute(SQL["letters_redriven"], *columns(arrived), list(arrived.values()))
    await db.execute(SQL["letters_not_redriven"], *columns(unsure - arrived.keys()))
    return set(arrived)


def _source(mark: bytes | None) -> Source | None:
    """What a record says that it is a copy of; None where it says nothing that can be read."""
    try:
        topic, partition, offset = (mark or b"").decode().rsplit("/", 2)
        return place(topic, int(partition), int(offset))
    except ValueError:
        return None


def columns(sources: Iterable[Source]) -> tuple[list[str], list[int], list[int]]:
    """As PostgreSQL takes them: topics, partitions and offsets."""
    found = list(sources)
    return [s.topic for s in found], [s.partition for s in found], [s.offset for s in found]


async def drop(db: Connection, letters: Sequence[Letter]) -> None:
    """Lets the letters go: they are neither listed nor redriven any more; Kafka removes them in its time."""
    await db.execute(SQL["letters_drop"], *columns(letter.source for letter in letters))


# --- as JSON --------------------------------------------------------------------------------------------


def encoded_headers(letter: Letter) -> list[dict[str, Any]]:
    """The record's own headers, in order."""
    return [{"name": name} | encoded("value", value) for name, value in letter.headers]


def encoded(name: str, value: bytes | None) -> dict[str, Any]:
    """Bytes for JSON: as text under the name where they are UTF-8, else as base64 under `NAME_base64`."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}

"""Dead letters: what was refused and why, sent again or let go.

A dead letter is known by where its record was: topic, partition and offset. What was done with it is kept in
`dead_letters_handled`, so that nothing is sent twice. Before copies are sent, the table says from where on
they can be found; an operator who was interrupted in between looks there first, for the header
`stepstream-redrive-of`.
"""

import asyncio
import base64
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiolimiter import AsyncLimiter

from services.operator_cli.options import print_json, print_table, safe, say
from services.runtime.batches import ERROR_CLASS as UNREADABLE_BATCH
from services.runtime.crashpoints import passing
from services.runtime.database import Connection, load_queries
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.kafka import (
    DEAD_LETTER_HEADERS,
    DEAD_LETTER_MAX_BYTES,
    NULL,
    Record,
    admin_client,
    check_codecs,
    make_producer,
    unreachable,
)
from services.runtime.lag import partitions_of, reader
from services.runtime.settings import Settings
from services.runtime.sources import NO_SOURCE, source_of
from services.runtime.text import told_time

SQL = load_queries(__file__)

#: The header of a redriven record: the dead letter that it is a copy of, as topic/partition/offset.
REDRIVE_HEADER = "stepstream-redrive-of"
#: Copies that are on their way at once, and noted together.
_AT_ONCE = 100
_BODY_SHOWN = 4_000
_SHOWN = 20
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
    def key(self) -> str:
        """Its key, for people."""
        return "" if self.record.key is None else safe(self.record.key.decode(errors="backslashreplace"))


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
            values = [value.decode(errors="replace") for _, value in headers[at : at + size]]
            with contextlib.suppress(ValueError):
                topic, partition, offset, timestamp, error_class, error = values
                source = _place(topic, int(partition), int(offset))
                failures.append(Failure(source, int(timestamp), error_class, error))
            at += size
        else:
            if headers[at][0] != REDRIVE_HEADER:
                own.append(headers[at])
            at += 1
    return own, failures


def _place(topic: str, partition: int, offset: int) -> Source:
    """Where a record may have been.

    Raises:
        ValueError: no record can have been there.
    """
    if "\0" in topic or not (0 <= partition <= _MAX_PARTITION and 0 <= offset <= _MAX_OFFSET):
        raise ValueError("no place of a record")
    return Source(topic, partition, offset)


async def read_letters(
    settings: Settings, db: Connection, wanted: Filter, *, handled: bool = False
) -> AsyncIterator[Letter]:
    """The letters that match and wait, as Kafka has them; with `handled`, all that match.

    Each comes once: a recorder that crashed may have sent one twice. Bounded in memory: which ones were read
    is in a temporary table of PostgreSQL.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    await db.execute(SQL["letters_begin_reading"])
    async for portion in _portions(settings):
        rows = await db.fetch(SQL["letters_note_read"], *_columns(letter.source for letter in portion))
        new = {Source(r["topic"], r["partition"], r["offset"]): r["action"] for r in rows}
        for letter in portion:
            if letter.source in new:
                letter.action = new.pop(letter.source)
                if wanted.matches(letter) and (handled or letter.action in {None, "redriving"}):
                    yield letter


async def _portions(settings: Settings) -> AsyncIterator[list[Letter]]:
    portion: list[Letter] = []
    size = 0
    async for record in read_partitions(settings, settings.dead_letter_topic):
        portion.append(parse(record))
        size += len(record.value or b"") + len(record.key or b"")
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
) -> AsyncIterator[Record]:
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
            async for record in _read_to(consumer, last, begin or {}):
                yield record
        except KafkaError as error:
            raise unreachable(settings, error) from error


async def _read_to(
    consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int], begin: Mapping[int, int]
) -> AsyncIterator[Record]:
    begins = await consumer.beginning_offsets(list(ends)) if ends else {}
    left = {p for p in ends if max(begins[p], begin.get(p.partition, 0)) < ends[p]}
    consumer.assign(list(left))
    for partition in left:
        consumer.seek(partition, max(begins[partition], begin.get(partition.partition, 0)))
    while left:
        for partition, records in (await consumer.getmany(timeout_ms=200)).items():
            for record in records:
                if record.offset < ends[partition]:
                    yield record
        for partition in list(left):
            if await consumer.position(partition) >= ends[partition]:
                left.discard(partition)
                consumer.pause(partition)


async def find(settings: Settings, db: Connection, wanted: Filter, *, handled: bool = False) -> list[Letter]:
    """The letters that match and wait, oldest first; with `handled`, all that match.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    letters = [letter async for letter in read_letters(settings, db, wanted, handled=handled)]
    letters.sort(key=lambda letter: (letter.last.timestamp, letter.source))
    return letters


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


async def redrive(
    settings: Settings,
    db: Connection,
    letters: Sequence[Letter],
    rate: float,
    progress: Callable[[int, int], None],
) -> Redriven:
    """Sends the letters to the topic that they came from: key, value and headers as they were.

    Their history goes along in headers behind their own, so that what fails again says all that it went
    through.

    Args:
        settings: where Kafka is.
        db: a connection that is alone at it.
        letters: what to send, oldest first.
        rate: the most that are sent in a second.
        progress: told of sent, of how many.

    Raises:
        StepstreamError: Kafka cannot be reached, or refuses one.
    """
    outcome = Redriven()
    letters = [letter for letter in letters if is_event_of(settings.topic, letter)]
    await _settle_interrupted(settings, db, letters, outcome)
    rest = [letter for letter in letters if letter.action != "redriven"]
    if not rest:
        return outcome
    producer = make_producer(settings, max_request_size=DEAD_LETTER_MAX_BYTES, linger_ms=5)
    try:
        try:
            await producer.start()
        except KafkaError as error:
            raise unreachable(settings, error) from error
        limiter = AsyncLimiter(max(1.0, rate / 10), 0.1 if rate >= 10 else 1 / rate)
        size = max(1, min(_AT_ONCE, int(rate)))
        for i in range(0, len(rest), size):
            await _send(producer, settings, db, rest[i : i + size], limiter)
            outcome.sent += len(rest[i : i + size])
            progress(outcome.sent, len(rest))
    finally:
        with contextlib.suppress(TimeoutError, KafkaError):
            await asyncio.wait_for(producer.stop(), 10)
    return outcome


async def _send(
    producer: AIOKafkaProducer,
    settings: Settings,
    db: Connection,
    letters: Sequence[Letter],
    limiter: AsyncLimiter,
) -> None:
    """Sends some, and notes before and after."""
    await producer.client.force_metadata_update()
    aims = [_partition(producer, letter.source.topic, letter.record.key) for letter in letters]
    topics = {letter.source.topic for letter in letters}
    ends = await _ends(settings, topics)
    columns = _columns(letter.source for letter in letters)
    searched = [ends[TopicPartition(x.source.topic, aim)] for x, aim in zip(letters, aims, strict=True)]
    await db.execute(SQL["letters_begin_redrive"], *columns, aims, searched)
    passing("operator.redrive-noted")
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
    passing("operator.redrive-sent")
    arrived = [(x, r) for x, r in zip(letters, results, strict=True) if not isinstance(r, BaseException)]
    await db.execute(
        SQL["letters_redriven"], *_columns(x.source for x, _ in arrived), [r.offset for _, r in arrived]
    )
    if failed := [r for r in results if isinstance(r, BaseException)]:
        raise StepstreamError(
            f"{len(failed)} were not acknowledged ({failed[0]}). Run it again: what arrived is found and "
            "not sent "
            "twice"
        )


def _partition(producer: AIOKafkaProducer, topic: str, key: bytes | None) -> int:
    """Where Kafka's default partitioner puts the key; without one, the first partition."""
    partitions = sorted(producer.client.cluster.partitions_for_topic(topic) or ())
    if not partitions:
        raise StepstreamError(f"Kafka has no topic {topic} any more: these letters cannot be sent again")
    return int(producer._partitioner(key, partitions, partitions)) if key is not None else partitions[0]  # noqa: SLF001 - the producer's own choice, known before it sends


async def _ends(settings: Settings, topics: Iterable[str]) -> dict[TopicPartition, int]:
    async with admin_client(settings) as admin, reader(settings) as consumer:
        partitions = [p for topic in topics for p in await partitions_of(admin, topic)]
        return dict(await consumer.end_offsets(partitions))


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


async def _settle_interrupted(
    settings: Settings, db: Connection, letters: Sequence[Letter], outcome: Redriven
) -> None:
    """Of letters whose sending was interrupted: which had arrived?"""
    unsure = {letter.source: letter for letter in letters if letter.action == "redriving"}
    if not unsure:
        return
    rows = await db.fetch(SQL["letters_handled"], list({source.topic for source in unsure}))
    begin: dict[str, dict[int, int]] = {}
    for row in rows:
        if Source(row["topic"], row["partition"], row["offset"]) in unsure:
            of_topic = begin.setdefault(row["topic"], {})
            to = row["to_partition"]
            of_topic[to] = min(row["searched_from"], of_topic.get(to, row["searched_from"]))
    for topic, offsets in begin.items():
        async for record in read_partitions(settings, topic, offsets):
            for name, value in record.headers:
                if name == REDRIVE_HEADER and (letter := unsure.get(_source(value))):
                    letter.action = "redriven"
                    await db.execute(SQL["letters_redriven"], *_columns([letter.source]), [record.offset])
                    outcome.found_sent += 1
    sources = [s for s, letter in unsure.items() if letter.action == "redriving"]
    await db.execute(SQL["letters_not_redriven"], *_columns(sources))


def _source(mark: bytes) -> Source:
    topic, partition, offset = mark.decode(errors="replace").rsplit("/", 2)
    return Source(topic, int(partition), int(offset))


def _columns(sources: Iterable[Source]) -> tuple[list[str], list[int], list[int]]:
    found = list(sources)
    return [s.topic for s in found], [s.partition for s in found], [s.offset for s in found]


async def drop(db: Connection, letters: Sequence[Letter]) -> int:
    """Lets the letters go: they are neither listed nor redriven any more; Kafka removes them in its time."""
    await db.execute(SQL["letters_drop"], *_columns(letter.source for letter in letters))
    return len(letters)


# --- telling -------------------------------------------------------------------------------------------


def letter_json(letter: Letter, *, body: bool = False) -> dict[str, Any]:
    """A letter for programs; with `body`, its value and headers too: text where it is UTF-8, else base64."""
    found: dict[str, Any] = {
        "id": str(letter.source),
        "topic": letter.source.topic,
        "error_class": letter.last.error_class,
        "error": letter.last.error,
        "source": letter.sender,
        "came_at": told_time(letter.last.timestamp),
        "key": letter.key if letter.record.key is not None else None,
        "failures": len(letter.failures),
        "action": letter.action,
    }
    if body:
        found["history"] = [
            {"id": str(f.source), "error_class": f.error_class, "error": f.error} for f in letter.failures
        ]
        found |= encoded("value", letter.record.value)
        found["headers"] = encoded_headers(letter)
    return found


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


def show_list(letters: Sequence[Letter], *, as_json: bool) -> None:
    """By error class, then the newest ones."""
    if as_json:
        print_json([letter_json(letter) for letter in letters])
        return
    if not letters:
        say("no dead letters wait here")
        return
    classes = Counter(letter.last.error_class for letter in letters)
    rows = []
    for name, count in classes.most_common():
        times = [x.last.timestamp for x in letters if x.last.error_class == name]
        rows.append((name, count, told_time(min(times)), told_time(max(times))))
    print_table("by error class", ("error class", "letters", "first", "last"), rows)
    newest = list(reversed(letters))
    # What says nothing of any of them is left out.
    columns: dict[str, Callable[[Letter], Any]] = {
        "id": lambda x: str(x.source),
        "came at": lambda x: told_time(x.last.timestamp),
        "error class": lambda x: x.last.error_class,
        "key": lambda x: x.key,
        "source": lambda x: x.sender,
        "error": lambda x: x.last.error,
    }
    if all(x.sender == NO_SOURCE for x in letters):
        del columns["source"]
    if any(len(x.failures) > 1 for x in letters):
        columns["failed"] = lambda x: f"{len(x.failures)} times" if len(x.failures) > 1 else "once"
    if any(x.action for x in letters):
        columns["handled"] = lambda x: x.action or ""
    rows_ = [[tell(x) for tell in columns.values()] for x in newest]
    print_table("newest first", list(columns), rows_, _SHOWN)
    say("[dim]`stepstream dlq show ID` shows one with what it holds[/]")


def show_one(letter: Letter, *, as_json: bool) -> None:
    """One letter with what it holds; nothing in it can speak to the terminal."""
    if as_json:
        print_json(letter_json(letter, body=True))
        return
    facts = [
        ("id", str(letter.source)),
        ("topic", letter.source.topic),
        ("came at", told_time(letter.last.timestamp)),
        ("handled", letter.action or "no"),
        ("key", letter.key if letter.record.key is not None else "none"),
        *((f"header {safe(n)}", _shown(v)) for n, v in letter.headers),
        *(
            (f"failure {i}", f"{f.error_class} at {f.source}: {f.error}")
            for i, f in enumerate(letter.failures, 1)
        ),
        ("value", _shown(letter.record.value)),
    ]
    print_table("", ("", ""), facts)


def _shown(value: bytes | None) -> str:
    if value is None:
        return "none"
    text = safe(value[:_BODY_SHOWN].decode(errors="backslashreplace"))
    return text if len(value) <= _BODY_SHOWN else f"{text} … ({len(value):,} bytes; -o json shows all)"


def one_of(letters: Sequence[Letter], identifier: str) -> Letter:
    """The letter of that id.

    Raises:
        UsageError: there is none.
    """
    for letter in letters:
        if str(letter.source) == identifier:
            return letter
    raise UsageError(f"there is no dead letter {identifier}; `stepstream dlq list --all` shows their ids")

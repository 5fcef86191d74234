"""Dead letters: what was refused and why, read or let go.

A dead letter is known by where its record was: topic, partition and offset. What was done with it is kept in
`dead_letters_handled`, so that nothing is sent twice; `redriving` sends them.
"""

import base64
import contextlib
from collections.abc import AsyncGenerator, Container, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from aiokafka.errors import KafkaError

from services.completion_recorder.cutting import CUT_HEADERS, Cut, read_cut
from services.consumers.batches import ERROR_CLASS as UNREADABLE_BATCH
from services.consumers.lag import partitions_of
from services.consumers.reader import read_range, reader
from services.runtime.database import Connection, load_queries
from services.runtime.errors import UsageError
from services.runtime.kafka import (
    DEAD_LETTER_HEADERS,
    DEAD_LETTER_MAX_BYTES,
    Record,
    admin_client,
    check_codecs,
    unreachable,
)
from services.runtime.settings import Settings
from services.runtime.sources import source_of

SQL = load_queries(__file__)

#: The header of a redriven record: the dead letter that it is a copy of, as topic/partition/offset.
REDRIVE_HEADER = "stepstream-redrive-of"
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
    #: What the record was that did not fit; None where it is here byte for byte.
    cut: Cut | None = None

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
    headers = list(record.headers)
    cut = read_cut(headers[-len(CUT_HEADERS) :])
    if cut is not None:
        del headers[-len(CUT_HEADERS) :]
    own, failures = _split(headers)
    if not failures:
        letter = Source(record.topic, record.partition, record.offset)
        failures = [Failure(letter, record.timestamp, "unknown", "it does not say why it was refused")]
    return Letter(record, failures, own, cut=cut)


def _split(headers: Sequence[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], list[Failure]]:
    """The record's own headers, and its failures in order."""
    own: list[tuple[str, bytes]] = []
    failures: list[Failure] = []
    at, size = 0, len(DEAD_LETTER_HEADERS)
    while at < len(headers):
        names = tuple(name for name, _ in headers[at : at + size])
        if names == DEAD_LETTER_HEADERS:
            values = [(value or b"").decode(errors="replace") for _, value in headers[at : at + size]]
            with contextlib.suppress(ValueError):
                topic, partition, offset, timestamp, error_class, error = values
                source = source_at(topic, int(partition), int(offset))
                failures.append(Failure(source, int(timestamp), error_class, error))
            at += size
        else:
            if headers[at][0] != REDRIVE_HEADER:
                own.append(headers[at])
            at += 1
    return own, failures


def source_at(topic: str, partition: int, offset: int) -> Source:
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
) -> AsyncGenerator[Record]:
    """A topic's records as far as it goes now; with `begin`, of those partitions from these offsets.

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


@dataclass
class Staying:
    """How many letters cannot be sent to the topic again."""

    #: Of another topic, or whole batches.
    strange: int = 0
    #: Those that hold a part of their event alone, and one of them.
    cut: int = 0
    example: Source | None = None

    @property
    def count(self) -> int:
        """All of them."""
        return self.strange + self.cut

    def leave(self, topic: str, letters: Iterable[Letter]) -> list[Letter]:
        """Counts those that stay; returns the others."""
        able = []
        for letter in letters:
            if letter.source.topic != topic or letter.last.error_class == UNREADABLE_BATCH:
                self.strange += 1
            elif letter.cut is not None:
                self.cut += 1
                self.example = self.example or letter.source
            else:
                able.append(letter)
        return able


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


def encoded_cut(letter: Letter) -> dict[str, Any]:
    """What was cut and what the record was, where it is not here byte for byte."""
    return {} if letter.cut is None else {"cut": asdict(letter.cut)}


def encoded(name: str, value: bytes | None) -> dict[str, Any]:
    """Bytes for JSON: as text under the name where they are UTF-8, else as base64 under `NAME_base64`."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


async def forget_handled(db: Connection, topic: str) -> None:
    """Forgets what was done with dead letters of a topic, whose places will be those of other records."""
    await db.execute(SQL["letters_forget_handled"], topic)

"""Completions, starts and erasures against the events that Kafka still holds; and what was read against that.

The topic is read from its beginning, or from a time or an offset on, up to where the recorder was when this
began. The recorder writes its position with the rows, so every event before that has left a trace: a row of
its own, or of an earlier event; a dead letter; a wait for a lock; a correction that covers it; or it is of
somebody who was erased. This holds at every later moment, too, so no snapshot has to last.
What shows no trace is looked at again before it is called a difference.
"""

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas import (
    OPERATOR_SOURCES,
    AnyEvent,
    EventError,
    StepCompleted,
    StepCorrected,
    UserErased,
    WalkthroughStarted,
)
from services.completion_recorder.dead_letters import parse, read_partitions
from services.completion_recorder.judge import Accepted, check_references, read_one
from services.completion_recorder.references import find_known
from services.consumers.agreement import agreements
from services.consumers.batches import Unreadable, unreadable_of
from services.consumers.lag import AGGREGATOR, RECORDER, partitions_of, reader
from services.consumers.positions import Digest, Position, checksum
from services.consumers.stored_positions import read_positions, read_skipped
from services.consumers.topic import TopicLog, describe_log
from services.runtime.database import Connection, connected, load_queries
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.kafka import Record, admin_client, check_codecs, unreachable
from services.runtime.settings import Settings

SQL = load_queries(__file__)

#: So many events are read, and held against the tables, at once.
PORTION = 20_000
#: The most differences, and rows without an event, that are listed.
LISTED = 1_000
#: A portion takes as long as its rows take to be found, in seconds.
_NO_LIMIT = 24 * 3600.0
#: Dead letters follow the commit: so long, in seconds, until what is doubted is looked at once more.
_CHECK_AGAIN = 1.0
#: So long without a record, in seconds, and Kafka is said to be away.
_SILENCE = 60.0
#: How long to look whether nothing but markers of transactions is left, in seconds.
_MARKERS_SECONDS = 5.0
_WORK_MEM = "128MB"

Progress: TypeAlias = Callable[[int, int], None]
_Row: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class TopicStart:
    """Where to begin: at a time or an offset; neither is the first event that there is."""

    time_ms: int | None = None
    offset: int | None = None

    @property
    def is_beginning(self) -> bool:
        """Whether all is read."""
        return self.time_ms is None and self.offset is None


Agreement: TypeAlias = Literal["same", "differs", "not comparable"]


@dataclass(frozen=True, slots=True)
class Part:
    """What is read of a partition: from `start` up to `until`, of what Kafka holds from `begin` to `end`.

    `recorded` is the stored digest where all that it covers is read, and None elsewhere.
    """

    partition: int
    begin: int
    start: int
    until: int
    end: int
    recorded: Digest | None = None
    note: str = ""
    #: Whether nothing but markers of transactions comes after `until`.
    ends_with_markers: bool = False

    @property
    def not_judged(self) -> int:
        """Offsets that the recorder has yet to pass."""
        return 0 if self.ends_with_markers else self.end - max(self.until, self.begin)


def plan_part(
    partition: int, begin: int, end: int, wanted: int | None, stored: Position | None, log: TopicLog
) -> Part:
    """What of a partition is read, given where the recorder is; `wanted` is None where nothing is so new."""
    until, note = 0 if stored is None else stored.next_offset, ""
    if stored is not None and not _is_of(stored, log):
        until, note = begin, "the recorder's position is of another log: the topic was made anew, or moved"
        stored = None
    elif until > end:
        note = (
            f"the recorder has read up to offset {until:,}, and the log ends at {end:,}: its end was cut off"
        )
        until, stored = end, None
    until = max(until, begin)
    start = until if wanted is None else min(max(wanted, begin), until)
    recorded = None
    if stored is not None and until == stored.next_offset and start <= stored.digest.from_offset:
        recorded = stored.digest
    return Part(partition, begin, start, until, end, recorded, note)


def _is_of(position: Position, log: TopicLog) -> bool:
    ids = ((position.cluster_id, log.cluster_id), (position.topic_id, log.topic_id))
    return all(not mine or not seen or mine == seen for mine, seen in ids)


def compare_digests(recorded: Digest | None, read: Digest) -> Agreement:
    """Whether the recorder has read what the topic holds."""
    if recorded is None:
        return "not comparable"
    return "same" if recorded == read else "differs"


class Portion(NamedTuple):
    """A portion of the topic as rows; `events` are the readable ones by their number in the portion."""

    records: Sequence[Record]
    events: Mapping[int, AnyEvent]
    completions: list[_Row]
    starts: list[_Row]
    corrections: list[_Row]
    erasures: dict[str, int]
    unreadable: Counter[str]


def sift(records: Sequence[Record], now_ms: int, trusted: Container[str] = OPERATOR_SOURCES) -> Portion:
    """Reads each record once, as the recorder does, and makes rows of the events."""
    events: dict[int, AnyEvent] = {}
    completions: list[_Row] = []
    starts: list[_Row] = []
    corrections: list[_Row] = []
    erasures: dict[str, int] = {}
    unreadable: Counter[str] = Counter()
    for number, record in enumerate(records):
        try:
            event = read_one(record, now_ms, trusted)
        except EventError as error:
            unreadable[error.rejection.value] += 1
            continue
        events[number] = event
        if isinstance(event, StepCompleted):
            completions.append(_completion(number, event))
        elif isinstance(event, WalkthroughStarted):
            starts.append(_start(number, event))
        elif isinstance(event, StepCorrected):
            corrections.append((number, *(getattr(event, name) for name in _CORRECTIONS[1:])))
        else:
            erasures[event.mcp_server_user_id] = number
    return Portion(records, events, completions, starts, corrections, erasures, unreadable)


def _completion(number: int, event: StepCompleted) -> _Row:
    return (
        number,
        "wtsc_" + event.event_id,
        event.mcp_server_user_id,
        event.walkthrough_id,
        event.step_id,
        event.mcp_server_id,
        event.mcp_server_session_id,
        event.completed_at,
        event.metadata,
    )


def _start(number: int, event: WalkthroughStarted) -> _Row:
    return (
        number,
        "wtst_" + event.event_id,
        event.mcp_server_user_id,
        event.walkthrough_id,
        event.mcp_server_id,
        event.mcp_server_session_id,
        event.started_at,
        event.metadata,
    )


class Doubt(NamedTuple):
    """An event that the tables do not show, for now; the columns of `doubted`."""

    kind: str
    partition: int
    offset: int
    checksum: int
    id: str
    mcp_server_user_id: str
    walkthrough_id: str | None
    step_id: str | None
    mcp_server_id: str | None
    mcp_server_session_id: str | None
    happened_at: int
    metadata: str | None
    cause: str
    row_id: str | None
    row_at: int | None

    @classmethod
    def of(
        cls, record: Record, event: AnyEvent, cause: str, row_id: str | None = None, row_at: int | None = None
    ) -> "Doubt":
        """The doubt about an event, and the row that is there in its place."""
        kind, prefix = _KINDS[type(event)]
        told = {name: getattr(event, name, None) for name in _OF_EVENT}
        return cls(
            kind=kind,
            partition=record.partition,
            offset=record.offset,
            checksum=checksum(record),
            id=prefix + event.event_id,
            mcp_server_user_id=event.mcp_server_user_id,
            happened_at=event.happened_at,
            cause=cause,
            row_id=row_id,
            row_at=row_at,
            **told,
        )


_KINDS: Mapping[type[AnyEvent], tuple[str, str]] = {
    StepCompleted: ("completion", "wtsc_"),
    WalkthroughStarted: ("start", "wtst_"),
    UserErased: ("erasure", ""),
    StepCorrected: ("correction", "wtsc_"),
}
_OF_EVENT = ("walkthrough_id", "step_id", "mcp_server_id", "mcp_server_session_id", "metadata")


@dataclass
class Counts:
    """What was read, and what explains the events that have no row."""

    events: int = 0
    completions: int = 0
    starts: int = 0
    erasures: int = 0
    corrections: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    #: What it refers to is missing today, or does not belong together: it was refused, or removed with it.
    without_references: Counter[str] = field(default_factory=Counter)
    of_erased: int = 0
    #: A correction says that they do not count.
    covered: int = 0
    dead_letters: int = 0
    waiting: int = 0
    skipped: int = 0
    #: Right when they were looked at again.
    changed: int = 0

    def add(self, portion: Portion) -> None:
        """With this portion."""
        self.events += len(portion.records)
        self.completions += len(portion.completions)
        self.starts += len(portion.starts)
        self.corrections += len(portion.corrections)
        self.erasures += sum(isinstance(e, UserErased) for e in portion.events.values())
        self.unreadable += portion.unreadable


@dataclass(frozen=True, slots=True)
class TopicComparison:
    """What was read, and what differs.

    `differing` counts all; the lists hold the first thousand. `rows_without_event` is None where not all of
    the topic was read.
    """

    topic: str
    parts: Sequence[Part]
    agreement: Mapping[int, Agreement]
    aggregator: Mapping[int, bool | None]
    counts: Counts
    by_cause: Mapping[str, int]
    differences: Sequence[Mapping[str, Any]]
    rows_without_event: int | None
    rows: Sequence[Mapping[str, Any]]
    #: What nobody can read, and no operator has left behind.
    left_out: Sequence[Unreadable] = ()

    @property
    def unlike(self) -> list[int]:
        """Partitions of which the recorder has read something else than the topic holds."""
        return sorted(p for p, agreement in self.agreement.items() if agreement == "differs")

    @property
    def differing(self) -> int:
        """Events that differ, partitions, and batches that cannot be read."""
        apart = sum(agrees is False for agrees in self.aggregator.values())
        return sum(self.by_cause.values()) + len(self.unlike) + apart + len(self.left_out)

    @property
    def has_all(self) -> bool:
        """Whether Kafka still has each partition's first event."""
        return all(p.begin == 0 for p in self.parts)


async def verify_against_topic(
    settings: Settings,
    start: TopicStart,
    partitions: Sequence[int] | None = None,
    progress: Progress = lambda *_: None,
    *,
    portion: int = PORTION,
) -> TopicComparison:
    """Reads the topic and holds the tables against it.

    Args:
        settings: where Kafka and the database are.
        start: where to begin.
        partitions: only these; None is all.
        progress: told how many offsets of how many are done.
        portion: how many events are held against the tables at once.

    Raises:
        UsageError: there is no such partition.
        StepstreamError: Kafka or the database cannot be reached.
    """
    check_codecs()
    async with connected(settings, command_timeout=_NO_LIMIT) as db:
        await db.execute(SQL["against_create"])
        try:
            async with reader(
                settings, max_partition_fetch_bytes=16 * 1024 * 1024, fetch_max_bytes=64 * 1024 * 1024
            ) as consumer:
                return await _Comparison(settings, db, consumer, progress, portion).run(start, partitions)
        except KafkaError as error:
            raise unreachable(settings, error) from error


class _Comparison:
    def __init__(
        self,
        settings: Settings,
        db: Connection,
        consumer: AIOKafkaConsumer,
        progress: Progress,
        portion: int,
    ) -> None:
        self._settings = settings
        self._db = db
        self._consumer = consumer
        self._progress = progress
        self._portion = portion
        self._counts = Counts()

    async def run(self, start: TopicStart, partitions: Sequence[int] | None) -> TopicComparison:
        stored, aggregator = await both_positions(self._db, self._settings.topic)
        parts = await self._plan(start, partitions, stored)
        agreement = await self._hold_all(parts)
        parts = await self._without_markers(parts)
        await self._db.execute(SQL["against_as_a_whole"])
        await self._settle()
        await self._db.execute(SQL["against_skipped"], self._settings.topic)
        unseen = start.is_beginning and partitions is None
        if unseen:
            await self._find_unseen(parts)
        return TopicComparison(
            self._settings.topic,
            parts,
            agreement,
            aggregator,
            self._counts,
            {r["cause"]: r["events"] for r in await self._db.fetch(SQL["against_causes"])},
            [dict(r) for r in await self._db.fetch(SQL["against_list"], LISTED)],
            await self._db.fetchval("select count(*) from unseen_rows") if unseen else None,
            [dict(r) for r in await self._db.fetch(SQL["against_unseen_list"], LISTED)],
            await self._left_out(parts),
        )

    async def _left_out(self, parts: Sequence[Part]) -> list[Unreadable]:
        """What of these parts cannot be read; without what an operator has left behind."""
        ends = {p.partition: p.until for p in parts}
        skipped = await read_skipped(self._db, self._settings.topic, list(ends))
        found = {u for u in unreadable_of(self._consumer) if u.offset < ends[u.tp.partition]}
        return sorted(
            (
                u
                for u in found
                if not any(p == u.tp.partition and first <= u.offset < until for p, first, until in skipped)
            ),
            key=lambda u: (u.tp.partition, u.offset),
        )

    async def _plan(
        self, start: TopicStart, partitions: Sequence[int] | None, stored: Mapping[int, Position]
    ) -> list[Part]:
        async with admin_client(self._settings) as admin:
            there = await partitions_of(admin, self._settings.topic)
        tps = [tp for tp in there if partitions is None or tp.partition in partitions]
        if absent := set(partitions or ()) - {tp.partition for tp in there}:
            raise UsageError(
                f"{self._settings.topic} has partitions 0 to {len(there) - 1}, and no "
                f"{', '.join(map(str, sorted(absent)))}"
            )
        log = await describe_log(self._consumer._client, self._settings.topic)  # noqa: SLF001
        wanted: dict[TopicPartition, int | None] = dict.fromkeys(tps, start.offset or 0)
        if start.time_ms is not None:
            found = await self._consumer.offsets_for_times(dict.fromkeys(tps, start.time_ms))
            wanted = {tp: None if at is None else at.offset for tp, at in found.items()}
        begins = await self._consumer.beginning_offsets(tps)
        ends = await self._consumer.end_offsets(tps)
        return [
            plan_part(tp.partition, begins[tp], ends[tp], wanted[tp], stored.get(tp.partition), log)
            for tp in tps
        ]

    # --- reading ----------------------------------------------------------------------------------------

    async def _portions(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncIterator[list[Record]]:
        """The records of these ranges, portion by portion."""
        tps = {TopicPartition(self._settings.topic, p): r for p, r in ranges.items() if r[0] < r[1]}
        at = {tp: first for tp, (first, _) in tps.items()}
        total, batch = sum(until - first for first, until in tps.values()), list[Record]()
        self._consumer.assign(list(tps))
        for tp, (first, _) in tps.items():
            self._consumer.seek(tp, first)
        left, heard = set(tps), time.monotonic()
        while left:
            got = await self._consumer.getmany(timeout_ms=200, max_records=self._portion)
            for tp, records in got.items():
                until = tps[tp][1]
                batch += records if records[-1].offset < until else [r for r in records if r.offset < until]
            for tp in list(left):
                position = await self._consumer.position(tp)
                if position > at[tp]:
                    at[tp], heard = min(position, tps[tp][1]), time.monotonic()
                if position >= tps[tp][1]:
                    left.discard(tp)
                    self._consumer.pause(tp)
            if time.monotonic() - heard > _SILENCE:
                raise StepstreamError(
                    f"Kafka has sent nothing for {_SILENCE:g} s: is a partition without leader?"
                )
            if len(batch) >= self._portion or (batch and not left):
                yield batch
                batch = []
                self._progress(sum(at[tp] - tps[tp][0] for tp in tps), total)

    async def _without_markers(self, parts: Sequence[Part]) -> list[Part]:
        """Looks whether an event comes after what was read, where there is something."""
        left = {TopicPartition(self._settings.topic, p.partition): p for p in parts if p.not_judged}
        self._consumer.assign(list(left))
        for tp, p in left.items():
            self._consumer.seek(tp, p.until)
        passed, deadline = set[int](), time.monotonic() + _MARKERS_SECONDS
        while left and time.monotonic() < deadline:
            for tp in await self._consumer.getmany(timeout_ms=100):
                left.pop(tp, None)
            for tp, p in list(left.items()):
                if await self._consumer.position(tp) >= p.end:
                    passed.add(p.partition)
                    del left[tp]
        return [replace(p, ends_with_markers=p.partition in passed) for p in parts]

    async def _hold_all(self, parts: Sequence[Part]) -> dict[int, Agreement]:
        """Holds each portion against the tables, while the next one is read."""
        await self._db.execute(SQL["against_by_keys"])
        read = {p.partition: Digest(p.recorded.from_offset) for p in parts if p.recorded is not None}
        comparing: asyncio.Task[None] | None = None
        try:
            with _own_collections() as collect:
                async for records in self._portions({p.partition: (p.start, p.until) for p in parts}):
                    read = add_to_digests(read, records)
                    portion = sift(records, int(time.time() * 1000), self._settings.trusted())
                    if comparing is not None:
                        await comparing
                    comparing = asyncio.create_task(self._hold(portion))
                    collect()
            if comparing is not None:
                await comparing
        finally:
            if comparing is not None and not comparing.done():
                comparing.cancel()
                await asyncio.gather(comparing, return_exceptions=True)
        tps = [TopicPartition(self._settings.topic, p.partition) for p in parts]
        # What has expired meanwhile was perhaps not read.
        begins = await self._consumer.beginning_offsets(tps)
        agreement = {}
        for tp, p in zip(tps, parts, strict=True):
            recorded = p.recorded if p.recorded and begins[tp] <= p.recorded.from_offset else None
            nothing = Digest(p.until)
            agreement[p.partition] = compare_digests(recorded, read.get(p.partition, nothing))
        return agreement

    async def _hold(self, portion: Portion) -> None:
        self._counts.add(portion)
        doubts: list[Doubt] = []
        async with self._db.transaction():
            for table, columns, rows in (
                ("completions", _COMPLETIONS, portion.completions),
                ("starts", _STARTS, portion.starts),
                ("corrections", _CORRECTIONS, portion.corrections),
            ):
                if rows:
                    heard = f"heard_{table}"
                    await self._db.copy_records_to_table(heard, records=rows, columns=columns)
                    found = await self._db.fetch(SQL[f"against_{table}"])
                    self._counts.covered += sum(row["cause"] == "covered" for row in found)
                    doubts += [
                        Doubt.of(portion.records[n], portion.events[n], cause, row_id, row_at)
                        for n, cause, row_id, row_at in found
                        if cause != "covered"
                    ]
        if doubts:
            doubts = await self._explain(portion, doubts)
        if portion.erasures:
            found = await self._db.fetch(SQL["against_erasures"], list(portion.erasures))
            for user, cause in found:
                number = portion.erasures[user]
                doubts.append(Doubt.of(portion.records[number], portion.events[number], cause))
        if doubts:
            await self._db.copy_records_to_table("doubted", records=doubts, columns=Doubt._fields)

    async def _explain(self, portion: Portion, doubts: Sequence[Doubt]) -> list[Doubt]:
        """Those that neither an erasure nor a missing reference explains."""
        by_place = {(d.partition, d.offset): d for d in doubts}
        items = [
            Accepted(portion.events[n], record)
            for n, record in enumerate(portion.records)
            if (record.partition, record.offset) in by_place
        ]
        known, erased = await find_known(self._db, items)
        living = [i for i in items if i.event.mcp_server_user_id not in erased]
        self._counts.of_erased += len(items) - len(living)
        good, refused = check_references(living, known)
        self._counts.without_references.update(r.rejection.value for r in refused)
        return [by_place[i.record.partition, i.record.offset] for i in good]

    # --- what is left -----------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Removes what is right now, what waits, and what has a dead letter; looks twice."""
        for is_last in (False, True):
            if not await self._doubted():
                return
            for reason, events in await self._db.fetch(SQL["against_look_again"], self._settings.topic):
                setattr(self._counts, reason, getattr(self._counts, reason) + events)
            if await self._doubted():
                await self._forgive_letters()
            if not is_last and await self._doubted():
                await asyncio.sleep(_CHECK_AGAIN)

    async def _doubted(self) -> bool:
        return bool(await self._db.fetchval("select exists (select from doubted)"))

    async def _forgive_letters(self) -> None:
        letters: list[tuple[int, int, int]] = []
        async for record in read_partitions(self._settings, self._settings.dead_letter_topic):
            crc = checksum(record)
            letters += [
                (failure.source.partition, failure.source.offset, crc)
                for failure in parse(record).failures
                if failure.source.topic == self._settings.topic
            ]
            if len(letters) >= self._portion:
                await self._forgive(letters)
                letters = []
        await self._forgive(letters)

    async def _forgive(self, letters: Iterable[tuple[int, int, int]]) -> None:
        async with self._db.transaction():
            columns = ("partition", "offset", "checksum")
            await self._db.copy_records_to_table("heard_letters", records=letters, columns=columns)
            self._counts.dead_letters += await self._db.fetchval(SQL["against_letters"])

    # --- rows without an event --------------------------------------------------------------------------

    async def _find_unseen(self, parts: Sequence[Part]) -> None:
        """Finds rows of no event that was read, nor of one that the recorder has passed since."""
        async with self._db.transaction(isolation="repeatable_read"):
            await self._db.execute(f"set local work_mem = '{_WORK_MEM}'")
            await self._db.execute(SQL["against_unseen"])
            if not await self._db.fetchval("select exists (select from unseen_rows)"):
                return
            stored = await read_positions(self._db, RECORDER, self._settings.topic)
        tps = {p.partition: TopicPartition(self._settings.topic, p.partition) for p in parts}
        ends = await self._consumer.end_offsets(list(tps.values()))
        since = {
            p.partition: (p.until, min(stored[p.partition].next_offset, ends[tps[p.partition]]))
            for p in parts
            if p.partition in stored
        }
        async for records in self._portions(since):
            portion = sift(records, int(time.time() * 1000), self._settings.trusted())
            ids = [row[1] for row in (*portion.completions, *portion.starts)]
            ids += [f"wtsc_{row[1]}" for row in portion.corrections]
            await self._db.execute(SQL["against_seen_later"], ids)


_COMPLETIONS = (
    "number",
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "step_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "completed_at",
    "metadata",
)
_CORRECTIONS = (
    "number",
    "event_id",
    "mcp_server_user_id",
    "step_id",
    "corrected_at",
    "covers_until",
    "completed_at",
)
_STARTS = (
    "number",
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "started_at",
    "metadata",
)


@contextlib.contextmanager
def _own_collections() -> Iterator[Callable[[], object]]:
    """Collects garbage once a portion: Python's own idea of when takes as long as all the rest.

    Events and rows are in no cycles.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield lambda: gc.collect(1)
    finally:
        if was_on:
            gc.enable()


def add_to_digests(digests: Mapping[int, Digest], records: Iterable[Record]) -> dict[int, Digest]:
    """With these records, each in that of its partition from its first offset on."""
    parts: dict[int, list[Record]] = {}
    for record in records:
        digest = digests.get(record.partition)
        if digest is not None and record.offset >= digest.from_offset:
            parts.setdefault(record.partition, []).append(record)
    return {**digests, **{p: digests[p].after(fingerprints) for p, fingerprints in parts.items()}}


# --- recorder and aggregator -----------------------------------------------------------------------------


async def both_positions(db: Connection, topic: str) -> tuple[dict[int, Position], dict[int, bool | None]]:
    """Where the recorder is, and whether the aggregator has read the same, by partition; from one snapshot.

    None where that cannot be said: one is ahead, or their digests begin elsewhere.
    """
    async with db.transaction(isolation="repeatable_read", readonly=True):
        recorder = await read_positions(db, RECORDER, topic)
        aggregator = await read_positions(db, AGGREGATOR, topic)
    return recorder, agreements(recorder, aggregator)

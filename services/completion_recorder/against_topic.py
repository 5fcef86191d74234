"""The recorder's rows and erasures against the events that Kafka still holds; and what was read against that.

The topic is read from its beginning, or from a time or an offset on, up to where the recorder was when this
began. The recorder writes its position with the rows, so every event before that has left a trace: a row of
its own, of an earlier event, or of showings around it; a dead letter; a wait for a lock; a correction that
covers it; or it is of somebody who was erased. This holds at every later moment, too, so no snapshot has to
last. What shows no trace is looked at again before it is called a difference.
"""

import asyncio
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka.errors import KafkaError

from schemas import UserErased
from services.completion_recorder.dead_letters import parse, read_partitions
from services.completion_recorder.event_rows import SHAPES
from services.completion_recorder.judge import Accepted, Table, check_references
from services.completion_recorder.portions import CORRECTIONS, Doubt, Portion, sift
from services.completion_recorder.references import find_known
from services.completion_recorder.topic_parts import (
    Agreement,
    Part,
    TopicStart,
    add_to_digests,
    compare_digests,
)
from services.completion_recorder.topic_reader import Progress, TopicReader
from services.completion_recorder.unseen_rows import find_unseen
from services.consumers.agreement import agreements
from services.consumers.gone import read_skipped
from services.consumers.lag import AGGREGATOR, RECORDER
from services.consumers.positions import Digest, Position, checksum
from services.consumers.reader import reader
from services.consumers.reading import Unreadable
from services.consumers.stored_positions import read_positions
from services.runtime.database import Connection, connected, load_queries
from services.runtime.kafka import check_codecs, unreachable
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


@dataclass
class Counts:
    """What was read, and what explains the events that have no row."""

    events: int = 0
    completions: int = 0
    starts: int = 0
    skips: int = 0
    showings: int = 0
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
        self.completions += len(portion.rows[Table.COMPLETIONS])
        self.starts += len(portion.rows[Table.STARTS])
        self.skips += len(portion.rows[Table.SKIPS])
        self.showings += len(portion.rows[Table.SHOWINGS])
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
                topic = TopicReader(settings, consumer, progress, portion)
                return await _Comparison(settings, db, topic, portion).run(start, partitions)
        except KafkaError as error:
            raise unreachable(settings, error) from error


class _Comparison:
    def __init__(self, settings: Settings, db: Connection, reader: TopicReader, portion: int) -> None:
        self._settings = settings
        self._db = db
        self._reader = reader
        self._portion = portion
        self._counts = Counts()

    async def run(self, start: TopicStart, partitions: Sequence[int] | None) -> TopicComparison:
        stored, aggregator = await both_positions(self._db, self._settings.topic)
        parts = await self._reader.plan(start, partitions, stored)
        agreement = await self._hold_all(parts)
        parts = await self._reader.without_markers(parts)
        await self._db.execute(SQL["against_as_a_whole"])
        await self._settle()
        await self._db.execute(SQL["against_skipped"], self._settings.topic)
        unseen, rows = None, list[dict[str, Any]]()
        if start.is_beginning and partitions is None:
            unseen, rows = await find_unseen(self._settings, self._db, self._reader, parts, LISTED)
        return TopicComparison(
            self._settings.topic,
            parts,
            agreement,
            aggregator,
            self._counts,
            {r["cause"]: r["events"] for r in await self._db.fetch(SQL["against_causes"])},
            [dict(r) for r in await self._db.fetch(SQL["against_list"], LISTED)],
            unseen,
            rows,
            await self._left_out(parts),
        )

    async def _left_out(self, parts: Sequence[Part]) -> list[Unreadable]:
        """What of these parts cannot be read; without what an operator has left behind."""
        skipped = await read_skipped(self._db, self._settings.topic, [p.partition for p in parts])
        return [
            u
            for u in self._reader.unreadable(parts)
            if not any(p == u.tp.partition and first <= u.offset < until for p, first, until in skipped)
        ]

    async def _hold_all(self, parts: Sequence[Part]) -> dict[int, Agreement]:
        """Holds each portion against the tables, while the next one is read."""
        await self._db.execute(SQL["against_by_keys"])
        read = {p.partition: Digest(p.recorded.from_offset) for p in parts if p.recorded is not None}
        comparing: asyncio.Task[None] | None = None
        try:
            with _own_collections() as collect:
                async for records in self._reader.portions({p.partition: (p.start, p.until) for p in parts}):
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
        # What has expired meanwhile was perhaps not read.
        begins = await self._reader.begins([p.partition for p in parts])
        agreement = {}
        for p in parts:
            recorded = p.recorded if p.recorded and begins[p.partition] <= p.recorded.from_offset else None
            nothing = Digest(p.until)
            agreement[p.partition] = compare_digests(recorded, read.get(p.partition, nothing))
        return agreement

    async def _hold(self, portion: Portion) -> None:
        self._counts.add(portion)
        doubts: list[Doubt] = []
        async with self._db.transaction():
            for name, columns, rows in (
                *((SHAPES[t].name, ("number", *SHAPES[t].columns), rows) for t, rows in portion.rows.items()),
                ("corrections", CORRECTIONS, portion.corrections),
            ):
                if rows:
                    await self._db.copy_records_to_table(f"heard_{name}", records=rows, columns=columns)
                    found = await self._db.fetch(SQL[f"against_{name}"])
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
        return bool(await self._db.fetchval(SQL["against_any_doubted"]))

    async def _forgive_letters(self) -> None:
        letters: list[tuple[int, int, int]] = []
        async for record in read_partitions(self._settings, self._settings.dead_letter_topic):
            letter = parse(record)
            crc = letter.cut.checksum if letter.cut else checksum(record)
            letters += [
                (failure.source.partition, failure.source.offset, crc)
                for failure in letter.failures
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


# --- recorder and aggregator -----------------------------------------------------------------------------


async def both_positions(db: Connection, topic: str) -> tuple[dict[int, Position], dict[int, bool | None]]:
    """Where the recorder is, and whether the aggregator has read the same, by partition; from one snapshot.

    None where that cannot be said: one is ahead, or their digests begin elsewhere.
    """
    async with db.transaction(isolation="repeatable_read", readonly=True):
        recorder = await read_positions(db, RECORDER, topic)
        aggregator = await read_positions(db, AGGREGATOR, topic)
    return recorder, agreements(recorder, aggregator)

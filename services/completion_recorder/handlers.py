"""What becomes of a batch: each load of it is read, judged and written, then its dead letters are sent."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence

from schemas import UserErased
from services.completion_recorder.guard import Recent
from services.completion_recorder.judge import Accepted, Refused, read
from services.completion_recorder.load_counts import Load, LoadContext, LoadCounts
from services.completion_recorder.sending import DeadLetterSender
from services.completion_recorder.shares import at_once, share_out
from services.completion_recorder.source_stats import find_sources, note_sources
from services.completion_recorder.source_tally import SourceTally, Unwritten
from services.completion_recorder.transaction import Recorded, record
from services.consumers.handling import Batches
from services.consumers.lag import RECORDER
from services.consumers.stored_positions import TOLD, Advance
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.kafka import Record, next_offsets
from services.runtime.listening import Notifier
from services.runtime.producer import Producer
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.sources import OTHERS
from services.runtime.telemetry import EVENTS, NEWEST, PHASE_SECONDS, READ_AGAIN, SOURCE_DEAD_LETTERS

log = logging.getLogger("stepstream.recorder")

#: Events judged without looking up: about 2 ms.
_SLICE = 500
#: How long counts by source may wait to be written, in seconds.
_COUNTS_SECONDS = 2.0
_MOST_LABELS = 100


class Recorder:
    """Handles one batch at a time; what is committed to Kafka can be lost no more."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        producer: Producer,
        pause: Callable[[float], Awaitable[None]],
        partitions: Callable[[], int] = lambda: 0,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._pause = pause
        self._partitions = partitions
        self.letters = DeadLetterSender(settings, producer, pause)
        self._notifier = Notifier(pool, TOLD)
        self._tally = SourceTally()
        self._tallied_at = -math.inf
        self._labels: set[str] = {OTHERS}
        self._trusted = settings.trusted()
        self._registering = settings.registering()
        self._recent = Recent()
        self._recorded_partitions: set[int] = set()
        self._newest = 0
        #: Whether the last load could not be written at once: the next will hardly be, either.
        self._by_parts = False
        # There from the start, so that the first increase is seen as one.
        for outcome in ("accepted", "refused", "of-erased", "waiting", "covered"):
            EVENTS.labels(RECORDER, outcome)

    @property
    def pool(self) -> Pool:
        """Where events are recorded."""
        return self._pool

    async def handle(self, records: Sequence[Record], batches: Batches) -> None:
        """Writes the good events, sends the bad ones to the dead letters, and commits.

        One transaction per `batch_max_records`, several at once where the batch is larger; while PostgreSQL
        is busy with one, the next is read.
        """
        crash_point("recorder.polled")
        shares = share_out(records, self._settings.batch_max_records, self._settings.recorder_connections)
        await at_once(self._handle_share(loads, batches) for loads in shares)

    async def _handle_share(self, loads: Sequence[Sequence[Record]], batches: Batches) -> None:
        """Handles loads one after another; no other share has partitions of theirs."""
        judged = await self._read(loads[0])
        for load, following in zip(loads, [*loads[1:], ()], strict=True):
            crash_point("recorder.validated")
            advance = batches.advance_over(load)
            ahead, _ = await asyncio.gather(self._read(following), self._write(load, *judged, advance))
            judged = ahead
            await batches.commit(load, advance)

    def _take_counts(self, *, at_once: bool = False) -> Unwritten | None:
        """What is to be written now; None where that is not due."""
        if not at_once and time.monotonic() - self._tallied_at < _COUNTS_SECONDS:
            return None
        self._tallied_at = time.monotonic()
        return self._tally.take()

    async def write_counts(self) -> None:
        """Writes counts by source where no load comes with which they would be written.

        Raises:
            asyncpg.PostgresError, OSError: the database is away, or somebody else has locked the rows.
        """
        taken = self._take_counts()
        if taken:
            try:
                await note_sources(self._pool, self._settings.topic, taken)
            except BaseException:
                self._tally.give_back(taken)
                raise

    def _label(self, source: str) -> str:
        """The source as a label of metrics: of the first hundred that need one."""
        if source not in self._labels and len(self._labels) < _MOST_LABELS:
            self._labels.add(source)
        return source if source in self._labels else OTHERS

    async def know_sources(self) -> None:
        """Reads which sources are told apart already.

        Raises:
            asyncpg.PostgresError, OSError: the database is away.
        """
        self._tally.remember_names(await find_sources(self._pool, self._settings.topic))

    async def _read(self, records: Sequence[Record]) -> tuple[list[Accepted], list[Refused]]:
        """Judges in slices, so that answers of PostgreSQL are not kept waiting."""
        now_ms = int(time.time() * 1000)
        accepted: list[Accepted] = []
        refused: list[Refused] = []
        if not records:
            return accepted, refused
        with PHASE_SECONDS.labels(RECORDER, "read").time():
            for i in range(0, len(records), _SLICE):
                good, bad = read(records[i : i + _SLICE], now_ms, self._trusted)
                accepted += good
                refused += bad
                await asyncio.sleep(0)
        return accepted, refused

    async def _write(
        self,
        records: Sequence[Record],
        accepted: list[Accepted],
        refused: list[Refused],
        advance: Advance | None,
    ) -> None:
        """Commits a load, then sends its dead letters.

        In this order a crash in between only sends dead letters twice: the offsets have not moved yet.
        """
        load = Load(
            self._settings.topic, next_offsets(records), accepted, refused, advance, self._registering
        )
        # What somebody who is erased may have been a source of is written now: `erase` looks there next.
        erases = UserErased in {type(item.event) for item in accepted}
        context = self._context(self._take_counts(at_once=erases))
        try:
            with PHASE_SECONDS.labels(RECORDER, "transaction").time():
                async for attempt in retrying(RECORDER, self._pause, pool=self._pool):
                    with attempt:
                        recorded = await record(self._pool, load, context, by_parts=self._by_parts)
        except BaseException:
            if context.taken is not None:
                self._tally.give_back(context.taken)
            raise
        if recorded.counted is not None:
            self._note(context, recorded.counted, accepted, is_noted=recorded.is_noted)
        self._notifier.soon()
        self._by_parts = recorded.waiting > 0
        self._recorded_partitions |= {partition.partition for partition in load.offsets}
        await self.letters.send(recorded.refused)
        crash_point("recorder.dead-letters-sent")
        self._tell(len(records), recorded)
        self._newest = max(self._newest, *(item.event.happened_at for item in accepted), 0)
        if self._newest:
            NEWEST.labels(RECORDER).set(self._newest / 1000)

    def _context(self, taken: Unwritten | None) -> LoadContext:
        return LoadContext(
            self._recent,
            frozenset(self._recorded_partitions),
            self._tally.names,
            self._partitions(),
            taken,
            self._tally.has_recorded,
            self._settings.wrong_database_guard,
        )

    def _note(
        self, context: LoadContext, counted: LoadCounts, accepted: Sequence[Accepted], *, is_noted: bool
    ) -> None:
        """Keeps what is known now, and what of it is not written yet."""
        # Another share may have been noted since this one began.
        same = self._recent is context.recent
        self._recent = counted.recent if same else self._recent.after(*counted.judged)
        self._tally.remember_names(counted.new_names)
        if context.taken is None:
            self._tally.give_back(Unwritten(dict(counted.counts)))
        if not is_noted:
            self._tally.give_back(counted.to_write)
        self._tally.remember_recorded(counted.counts)
        self._tally.remember_source_servers(a for a in accepted if _record_id(a) not in counted.of_erased)
        for source, counts in counted.counts.items():
            if counts.refused:
                SOURCE_DEAD_LETTERS.labels(self._label(source)).inc(counts.refused)
        READ_AGAIN.inc(counted.read_again)

    def _tell(self, events: int, recorded: Recorded) -> None:
        """Counts what became of the load; what is refused is counted where it is sent."""
        others = len(recorded.refused) + recorded.of_erased + recorded.waiting + recorded.covered
        EVENTS.labels(RECORDER, "accepted").inc(events - others)
        EVENTS.labels(RECORDER, "of-erased").inc(recorded.of_erased)
        EVENTS.labels(RECORDER, "waiting").inc(recorded.waiting)
        EVENTS.labels(RECORDER, "covered").inc(recorded.covered)
        if recorded.waiting:
            log.info("%d events wait for rows that somebody else has locked", recorded.waiting)


def _record_id(item: Accepted) -> tuple[int, int]:
    """Partition and offset of its record."""
    return item.record.partition, item.record.offset

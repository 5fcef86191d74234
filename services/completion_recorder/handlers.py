"""What becomes of a batch: read, judge and write in one transaction, then the dead letters."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from schemas import Rejection, UserErased
from services.completion_recorder import store
from services.completion_recorder.guard import Recent
from services.completion_recorder.judge import Accepted, Refused, read
from services.completion_recorder.store import Batch, Before, Noted
from services.completion_recorder.tally import Counts, Tally, Unwritten
from services.consumers.handling import Batches, Interrupted
from services.consumers.stored_positions import Advance
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.database_errors import may_pass
from services.runtime.errors import StepstreamError
from services.runtime.faults import Beside
from services.runtime.kafka import (
    DEAD_LETTER_MAX_BYTES,
    Record,
    dead_letter_headers,
    kafka_may_return,
    next_offsets,
)
from services.runtime.producer import NULL, Producer, send_all, send_each
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.sources import OTHERS
from services.runtime.telemetry import (
    DEAD_LETTERS,
    EVENTS,
    EVENTS_WAITING,
    EVENTS_WAITING_AGE,
    NEWEST,
    PHASE_SECONDS,
    READ_AGAIN,
    SOURCE_DEAD_LETTERS,
)

log = logging.getLogger("stepstream.recorder")

#: What a dead letter has beside its event: where it came from, and why.
_BESIDE_BYTES = 1024
SERVICE = "completion-recorder"
#: Events judged without looking up: about 2 ms.
_SLICE = 500
#: How often it looks whether locks have gone that events wait for, and at how many events in a transaction.
_CHECK_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
_CHECK_EVENTS = 1_000
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
        self._producer = producer
        self._pause = pause
        self._tally = Tally(partitions)
        self._tallied_at = -math.inf
        self._labels: set[str] = {OTHERS}
        self._trusted = settings.trusted()
        self._recent = Recent()
        self._seen: set[int] = set()
        self._newest = 0
        #: Whether the last load could not be written at once: the next will hardly be, either.
        self._by_parts = False
        self._sending_dead_letters = asyncio.Lock()
        # There from the start, so that the first increase is seen as one.
        for rejection in Rejection:
            DEAD_LETTERS.labels(rejection.value)
        for outcome in ("accepted", "refused", "of-erased", "waiting", "covered"):
            EVENTS.labels(SERVICE, outcome)

    @property
    def pool(self) -> Pool:
        """Where events are recorded."""
        return self._pool

    async def handle(self, records: Sequence[Record], batches: Batches) -> None:
        """Writes the good events, sends the bad ones to the dead letters, and commits.

        One transaction per `batch_max_records`; while PostgreSQL is busy with one, the next is read.
        """
        crash_point("recorder.polled")
        size = self._settings.batch_max_records
        loads = [records[i : i + size] for i in range(0, len(records), size)]
        judged = await self._read(loads[0])
        for load, following in zip(loads, [*loads[1:], ()], strict=True):
            crash_point("recorder.validated")
            advance = batches.over(load)
            ahead, _ = await asyncio.gather(self._read(following), self._write(load, *judged, advance))
            judged = ahead
            await batches.commit(load, advance)
            crash_point("recorder.offsets-committed")

    def _take_counts(self, *, at_once: bool = False) -> Unwritten | None:
        """What is to be written now; None where that is not due."""
        if not at_once and time.monotonic() - self._tallied_at < _COUNTS_SECONDS:
            return None
        self._tallied_at = time.monotonic()
        return self._tally.take()

    async def _write_counts(self) -> None:
        """Writes counts by source where no load comes with which they would be written."""
        taken = self._take_counts()
        if taken is not None and (taken.counts or taken.places or taken.refused):
            try:
                await store.note_sources(self._pool, self._settings.topic, taken)
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
        self._tally.know(await store.find_sources(self._pool, self._settings.topic))

    async def _read(self, records: Sequence[Record]) -> tuple[list[Accepted], list[Refused]]:
        """Judges in slices, so that answers of PostgreSQL are not kept waiting."""
        now_ms = int(time.time() * 1000)
        accepted: list[Accepted] = []
        refused: list[Refused] = []
        if not records:
            return accepted, refused
        with PHASE_SECONDS.labels(SERVICE, "read").time():
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
        offsets = next_offsets(records)
        # What somebody who is erased may have been a source of is written now: `erase` looks there next.
        erases = any(isinstance(item.event, UserErased) for item in accepted)
        taken = self._take_counts(at_once=erases)
        watch = _Watch(self._recent, self._seen, self._settings, self._tally, taken, records)
        try:
            with PHASE_SECONDS.labels(SERVICE, "transaction").time():
                async for attempt in retrying(SERVICE, self._pause, pool=self._pool):
                    with attempt:
                        batch = Batch(self._settings.topic, offsets, accepted, refused, advance)
                        judged = await store.record(self._pool, batch, watch, by_parts=self._by_parts)
        except BaseException:
            if taken is not None:
                self._tally.give_back(taken)
            raise
        self._recent = watch.recent
        left = Unwritten()
        if taken is None:
            left.add(Unwritten(watch.counts))
        if not judged.is_noted and watch.noted is not None:
            left.add(watch.noted.sources or Unwritten())
            left.add(Unwritten(refused=list(watch.noted.refused)))
        self._tally.give_back(left)
        self._tally.note_recorded(watch.counts)
        self._tally.note_places(a for a in accepted if _place(a) not in watch.of_erased)
        for source, counts in watch.counts.items():
            if counts.refused:
                SOURCE_DEAD_LETTERS.labels(self._label(source)).inc(counts.refused)
        self._by_parts = judged.waiting > 0
        self._seen |= {partition.partition for partition in offsets}
        await self._send_dead_letters(judged.refused)
        crash_point("recorder.dead-letters-sent")
        others = len(judged.refused) + judged.of_erased + judged.waiting + judged.covered
        EVENTS.labels(SERVICE, "accepted").inc(len(records) - others)
        EVENTS.labels(SERVICE, "of-erased").inc(judged.of_erased)
        EVENTS.labels(SERVICE, "waiting").inc(judged.waiting)
        EVENTS.labels(SERVICE, "covered").inc(judged.covered)
        if judged.waiting:
            log.info("%d events wait for rows that somebody else has locked", judged.waiting)
        READ_AGAIN.inc(watch.read_again)
        self._newest = max(self._newest, *(item.event.happened_at for item in accepted), 0)
        if self._newest:
            NEWEST.labels(SERVICE).set(self._newest / 1000)

    # --- events that wait for a lock ------------------------------------------------------------------

    async def keep_resuming(self) -> None:
        """Records what waited for locks that have gone, again and again; runs beside the batches."""
        faults = Beside(SERVICE, "cannot look at events that wait for a lock")
        while True:
            began = time.monotonic()
            try:
                await self._write_counts()
                await self.resume()
                events, oldest = await store.count_waiting(self._pool)
                EVENTS_WAITING.set(events)
                EVENTS_WAITING_AGE.set(oldest)
                faults.go_on()
            except Interrupted:
                pass  # partitions move, or the service ends: what waits stays
            except Exception as error:  # noqa: BLE001 - the batches go on without it
                if may_pass(error) or kafka_may_return(error):
                    log.warning("events that wait for a lock: trying again: %s", type(error).__name__)
                else:
                    faults.fail(error)
            # However many locks there are, most of the time is for the batches.
            took = time.monotonic() - began
            await asyncio.sleep(min(_CHECK_SECONDS + 4 * took, _LONGEST_SECONDS))

    async def resume(self) -> int:
        """Looks once whether locks have gone; returns how many events wait no more.

        Raises:
            StepstreamError: for what is refused now and does not become a dead letter; it goes on waiting.
        """
        done = 0
        problem: Exception | None = None
        async for resumed in store.resuming(self._pool, _CHECK_EVENTS, self._trusted):
            EVENTS.labels(SERVICE, "accepted").inc(resumed.done)
            done += resumed.done
            if resumed.refused:
                count, failure = await self._send_dead_letters_of_waiting(resumed.refused)
                done += count
                problem = problem or failure
        if done:
            log.info("%d events that waited for a lock are judged", done)
        if problem is not None:
            raise problem
        return done

    async def _send_dead_letters_of_waiting(
        self, refused: Mapping[int, Refused]
    ) -> tuple[int, Exception | None]:
        """Makes them dead letters, and removes them then: a crash in between only sends them twice.

        While it does no other recorder does. Returns how many are, and why the first that is not is not.

        Raises:
            KafkaError: Kafka is away; what it took before is removed.
        """
        failure: Exception | None = None
        async with store.claim_refused(self._pool, refused) as told:
            fitting = [number for number in told if _fits(refused[number].record)]
            for number in told.keys() - fitting:
                failure = StepstreamError(self._no_letter(refused[number].record, waits=True))
            letters = [_letter(refused[number]) for number in fitting]
            with PHASE_SECONDS.labels(SERVICE, "dead-letters").time():
                outcomes = await self._send_each(letters)
            for number, outcome in zip(fitting, outcomes, strict=True):
                told[number] = outcome is None
                if outcome is not None:
                    failure = self._explained(outcome, [refused[number]])
            crash_point("waiting.dead-letters-sent")
        sent = [refused[number] for number, is_sent in told.items() if is_sent]
        self._log_dead_letters(sent)
        if failure is not None and kafka_may_return(failure):
            raise failure
        return len(sent), failure

    async def _send_each(self, letters: Sequence[dict[str, Any]]) -> list[Exception | None]:
        async with self._sending_dead_letters:
            outcomes = await send_each(
                await self._producer.start(), self._settings.dead_letter_topic, letters
            )
            if any(outcomes):
                await self._producer.stop()
            return outcomes

    # --- dead letters ---------------------------------------------------------------------------------

    async def _send_dead_letters(self, refused: Sequence[Refused]) -> None:
        if not refused:
            return
        letters: dict[int, list[dict[str, Any]]] = {}
        for one in refused:
            letters.setdefault(one.record.partition, []).append(_letter(one))
        with PHASE_SECONDS.labels(SERVICE, "dead-letters").time():
            async for attempt in retrying(SERVICE, self._start_anew, kafka_may_return):
                with attempt:
                    async with self._sending_dead_letters:
                        await self._send(letters, refused)
        self._log_dead_letters(refused)

    def _log_dead_letters(self, refused: Sequence[Refused]) -> None:
        if not refused:
            return
        classes = Counter(r.rejection.value for r in refused)
        for name, count in classes.items():
            DEAD_LETTERS.labels(name).inc(count)
        EVENTS.labels(SERVICE, "refused").inc(len(refused))
        log.warning(
            "%d events went to %s",
            len(refused),
            self._settings.dead_letter_topic,
            extra={"fields": {"classes": classes}},
        )

    async def _send(self, letters: Mapping[int, list[dict[str, Any]]], refused: Sequence[Refused]) -> None:
        try:
            await send_all(await self._producer.start(), self._settings.dead_letter_topic, letters)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise self._explained(error, refused) from None

    def _explained(self, error: Exception, refused: Sequence[Refused]) -> Exception:
        """Why one of these does not become a dead letter, for people, where it is for its size."""
        if not isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
            return error
        largest = max((r.record for r in refused), key=_size)
        if not _fits(largest):
            return StepstreamError(self._no_letter(largest))
        topic = self._settings.dead_letter_topic
        return StepstreamError(
            f"{topic} does not take a dead letter for its size ({error}). Set its max.message.bytes to "
            f"what {self._settings.topic} has and 64 KiB more, {DEAD_LETTER_MAX_BYTES} or less"
        )

    def _no_letter(self, record: Record, *, waits: bool = False) -> str:
        leave_behind = (
            f"delete its row of `waiting_events`: topic {record.topic}, partition {record.partition}, offset "
            f"{record.offset}"
            if waits
            else f"with every {SERVICE} stopped: `stepstream skip --group {SERVICE} --partition "
            f"{record.partition} --to-offset {record.offset + 1} --execute`"
        )
        return (
            f"the event at {record.partition}:{record.offset} of {record.topic} is bad, and has "
            f"{_size(record):,} bytes when it is not compressed: too many for a dead letter, which has at "
            f"most {DEAD_LETTER_MAX_BYTES:,}. No setting changes that. To leave it behind, {leave_behind}"
        )

    async def _start_anew(self, seconds: float) -> None:
        await self._producer.stop()
        await self._pause(seconds)


def _place(item: Accepted) -> tuple[int, int]:
    return item.record.partition, item.record.offset


def _letter(refused: Refused) -> dict[str, Any]:
    record = refused.record
    return {
        "key": record.key,
        "value": NULL if record.value is None else record.value,
        "headers": dead_letter_headers(record, refused.rejection, refused.message),
    }


def _fits(record: Record) -> bool:
    return _size(record) + _BESIDE_BYTES <= DEAD_LETTER_MAX_BYTES


def _size(record: Record) -> int:
    return len(record.key or b"") + len(record.value or b"") + sum(len(n) + len(v) for n, v in record.headers)


class _Watch:
    """Counts what is in a load for the first time, inside its transaction."""

    def __init__(
        self,
        recent: Recent,
        seen: set[int],
        settings: Settings,
        tally: Tally,
        taken: Unwritten | None,
        records: Sequence[Record],
    ) -> None:
        self.recent = recent
        self.read_again = 0
        self.counts: dict[str, Counts] = {}
        self.of_erased: Collection[tuple[int, int]] = ()
        self.noted: Noted | None = None
        self._taken = taken
        self._before = recent
        self._seen = seen
        self._settings = settings
        self._tally = tally
        self._records = records

    def __call__(
        self,
        refused: Sequence[Refused],
        before: Mapping[int, Before],
        of_erased: Collection[tuple[int, int]],
    ) -> Noted:
        """What to write of this load."""
        self.of_erased = of_erased
        new = [r for r in self._records if r.offset >= before[r.partition].next_offset]
        new_refused = [r for r in refused if r.record.offset >= before[r.record.partition].next_offset]
        self.read_again = len(self._records) - len(new)
        self.counts = self._tally.of(new, new_refused, of_erased)
        self.recent = self._resumed(before).after(len(new), len(new_refused))
        sources = None
        if self._taken is not None:
            sources = Unwritten()
            sources.add(Unwritten(self._taken.counts, self._taken.places))
            sources.add(Unwritten(self.counts))
        guard = self._settings.wrong_database_guard
        if not guard:
            self.recent = Recent()
        waited = self._taken.refused if self._taken is not None else []
        self.noted = Noted(
            self.recent,
            sources,
            [*waited, *self._tally.kinds(new_refused)],
            self._tally.has_recorded,
            self._if_wrong(new_refused) if guard and new_refused and self.recent.is_suspect else "",
        )
        return self.noted

    def _resumed(self, before: Mapping[int, Before]) -> Recent:
        recent = self._before
        for partition in before.keys() - self._seen:
            recent = recent.resumed(before[partition].recent)
        return recent

    def _if_wrong(self, refused: Sequence[Refused]) -> str:
        """What was wrong and where, without content, and what an operator can do."""
        events, bad = self.recent.total
        classes = Counter(r.rejection.value for r in refused)
        sources = Counter(self._tally.name(r.record) for r in refused)
        first = min((r.record.partition, r.record.offset, r.message) for r in refused)
        return (
            f"{bad:,} of the last {events:,} events were refused, and this database holds nothing that was "
            f"recorded of {self._settings.topic}: is it the one that belongs to this topic? In this batch: "
            f"{_told(classes)}; from {_told(sources)}; the first on partition {first[0]} at offset "
            f"{first[1]}: {first[2]}. Nothing of the batch was written, and the offsets stay where they are. "
            "Correct STEPSTREAM_DATABASE_URL or STEPSTREAM_TOPIC and start again; if both are right, "
            "STEPSTREAM_WRONG_DATABASE_GUARD=false sends what is bad to the dead letters"
        )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(5))

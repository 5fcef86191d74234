"""What becomes of a batch: wait until the recorder has judged it, recount its journeys; and the marks."""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Never

from schemas import EventError, UserErased, decode
from services.consumers.handling import Batches
from services.consumers.stored_positions import TOLD, Advance
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.errors import ConfigurationError
from services.runtime.kafka import Record
from services.runtime.listening import listening
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.telemetry import (
    EVENTS,
    JOURNEYS,
    JOURNEYS_WAITING,
    JOURNEYS_WAITING_AGE,
    MARKS,
    NEWEST,
    PHASE_SECONDS,
    WAITING,
)
from services.sankey_aggregator import counting
from services.sankey_aggregator.counting import JourneyKey, Recounted

log = logging.getLogger("stepstream.aggregator")
SERVICE = "sankey-aggregator"

#: Whether an event is too far ahead is the recorder's clock to say, not this one's.
_ANY_TIME = 2**63
#: Between two looks at how far the recorder is, in seconds: short at first, then patient.
_CHECK_AGAIN = (0.005, 0.01, 0.02, 0.05, 0.1)
#: So long it waits to be told that the recorder came on, and fetching goes on; then it is patient.
_SOON = 1.0
#: How often it looks all the same while it can be told: what tells may be lost.
_TOLD_AGAIN = 0.1
#: Between two looks for marks when there were none, in seconds.
MARKS_INTERVAL = 0.25
#: Seconds of waiting for the recorder after which a line is logged.
_WAIT_IS_LONG = 10.0
#: And after which it is asked whether what waits is still what comes next.
_WAIT_IS_ODD = 2.0
#: Seconds without anything judged after which the rest of a batch is left, so that other partitions go on.
_STANDS_STILL = 10.0
#: The same where the recorder goes on with partitions that are not in the batch: those wait for this one.
_STANDS_ALONE = 1.0
#: How often it looks whether locks have gone that journeys wait for; a lock is not tried again in between.
_CHECK_SECONDS = 1.0
_LONGEST_SECONDS = 60.0


class Aggregator:
    """Follows the completions: told by events, and by the marks of changes that no event tells of."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        pause: Callable[[float], Awaitable[None]],
        wait: Callable[[asyncio.Event, float], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self.pool = pool
        self._pause = pause
        self._wait = wait
        #: Set when the recorder says that it came on.
        self._told = asyncio.Event()
        self._is_listening = False
        self._newest = 0
        #: The walkthroughs whose counts somebody else has locked: what is locked, and when that was found.
        self._locked: dict[str, tuple[str, float]] = {}
        #: How many journeys wait for a lock, and when it looks again whether that has gone.
        self._waiting = 0
        self._check_at = -math.inf
        #: Partitions that are left until the recorder goes on with them.
        self._left: set[int] = set()

    async def handle(self, records: Sequence[Record], batches: Batches) -> None:
        """Counts what the recorder has judged, as it gets there, until the whole batch is passed."""
        crash_point("aggregator.polled")
        rest = list(records)
        looks = 0
        began = asked = stands_since = time.monotonic()
        elsewhere: Mapping[int, int] | None = None
        while rest:
            self._told.clear()
            horizon = await self._recorded()
            passed = [r for r in rest if r.offset < horizon.get(r.partition, 0)]
            if passed:
                rest = [r for r in rest if r.offset >= horizon.get(r.partition, 0)]
                advance = batches.advance_over(passed)
                await self._recount(passed, advance)
                crash_point("aggregator.database-committed")
                await batches.commit(passed, advance)
                looks = 0
                self._left -= {r.partition for r in passed}
                self._show_waiting()
                began = asked = stands_since = time.monotonic()
                elsewhere = None
            else:
                WAITING.set(1)
                others = {p: offset for p, offset in horizon.items() if all(r.partition != p for r in rest)}
                elsewhere = others if elsewhere is None else elsewhere
                patience = _STANDS_STILL if others == elsewhere else _STANDS_ALONE
                if time.monotonic() - stands_since > patience and self._leave(rest, batches):
                    break
                if looks and time.monotonic() - began > _WAIT_IS_LONG:
                    log.warning("waiting for the completion-recorder to judge %d events", len(rest))
                    began = time.monotonic()
                if time.monotonic() - asked > _WAIT_IS_ODD:
                    # The recorder may be in another log or database by now: then it never comes here.
                    await batches.recheck(rest)
                    asked = time.monotonic()
                await self._until_told(looks, time.monotonic() - stands_since)
                looks += 1
        self._show_waiting()

    async def _until_told(self, looks: int, seconds: float) -> None:
        """Waits until it is worth looking again how far the recorder is."""
        again = _CHECK_AGAIN[min(looks, len(_CHECK_AGAIN) - 1)]
        if self._wait is None or seconds > _SOON:
            await self._pause(again)
        else:
            await self._wait(self._told, _TOLD_AGAIN if self._is_listening else again)

    async def listen(self) -> Never:
        """Hears what the recorder says, until it is cancelled."""
        settings = {"application_name": "stepstream sankey-aggregator"}
        while True:
            with contextlib.suppress(*DATABASE_ERRORS, ConfigurationError):
                async with listening(self._settings, TOLD, self._told.set, settings) as lost:
                    self._is_listening = True
                    await lost.wait()
            self._is_listening = False
            await asyncio.sleep(_CHECK_SECONDS)

    def _leave(self, rest: Sequence[Record], batches: Batches) -> bool:
        """Leaves what the recorder does not judge, so that the other partitions go on."""
        for partition in sorted({r.partition for r in rest}):
            first = next(r.offset for r in rest if r.partition == partition)
            is_judged = functools.partial(self._is_judged, partition, first)
            if not batches.leave(partition, "the completion-recorder does not judge its events", is_judged):
                return False
            self._left.add(partition)
        return True

    async def _is_judged(self, partition: int, offset: int) -> bool:
        horizon = await counting.recorded(self.pool, self._settings.topic)
        if is_judged := horizon.get(partition, 0) > offset:
            self._left.discard(partition)
            self._show_waiting()
        return is_judged

    def _show_waiting(self) -> None:
        WAITING.set(bool(self._left))

    async def drain_marks(self) -> int:
        """Recounts the journeys of one load of marks; returns the number of marks."""
        limit, locked = self._settings.batch_max_records, self._known_locked()
        async for attempt in retrying(SERVICE, self._pause, pool=self.pool):
            with attempt:
                drained = await counting.recount_from_marks(self.pool, limit, locked=locked)
        MARKS.inc(drained.marks)
        self._note(drained.recounted, locked or {})
        return drained.marks

    # --- journeys that wait for a lock ------------------------------------------------------------------

    async def resume(self) -> None:
        """Recounts what waited for locks that have gone, where it is time to look for that."""
        began = time.monotonic()
        if began < self._check_at:
            return
        done = 0
        async for attempt in retrying(SERVICE, self._pause, pool=self.pool):
            with attempt:
                async for resumed in counting.recount_from_waiting(
                    self.pool, self._settings.batch_max_records
                ):
                    done += resumed.done
                    JOURNEYS.labels("yes").inc(resumed.recounted.changed)
                    for lock in resumed.free:
                        self._locked.pop(lock.split(" ", 1)[1], None)
                self._waiting, oldest = await counting.count_waiting(self.pool)
        if done:
            MARKS.inc(done)
            log.info("%d journeys that waited for a lock are counted", done)
        JOURNEYS_WAITING.set(self._waiting)
        JOURNEYS_WAITING_AGE.set(oldest)
        # However many locks there are, most of the time is for the batches.
        now = time.monotonic()
        self._check_at = now + min(_CHECK_SECONDS + 4 * (now - began), _LONGEST_SECONDS)

    def _known_locked(self) -> dict[str, str] | None:
        """The walkthroughs that are not tried just now; None where nothing waits for a lock."""
        if not self._waiting:
            return None
        now = time.monotonic()
        return {w: lock for w, (lock, at) in self._locked.items() if now - at < _CHECK_SECONDS}

    def _note(self, recounted: Recounted, known: Mapping[str, str]) -> None:
        """Counts journeys by what became of them, and remembers what is locked, and was not `known` to be."""
        JOURNEYS.labels("yes").inc(recounted.changed)
        if not recounted.waiting:
            return
        now = time.monotonic()
        anew = {w: (lock, now) for w, lock in recounted.locked_walkthroughs.items() if w not in known}
        self._locked |= anew
        if not self._waiting:
            log.warning(
                "%d journeys wait for what somebody else has locked (%s, ...), and others go on: `stepstream "
                "status` says who",
                len(recounted.waiting),
                next(iter(recounted.waiting.values())),
            )
        self._waiting += len(recounted.waiting)

    # --- a part of a batch ------------------------------------------------------------------------------

    async def _recount(self, records: Sequence[Record], advance: Advance | None) -> None:
        with PHASE_SECONDS.labels(SERVICE, "read").time():
            journeys, newest = self._journeys(records)
        locked = self._known_locked()
        with PHASE_SECONDS.labels(SERVICE, "transaction").time():
            async for attempt in retrying(SERVICE, self._pause, pool=self.pool):
                with attempt:
                    recounted = await counting.recount_from_events(
                        self.pool, journeys, advance, locked=locked
                    )
        self._newest = max(self._newest, newest)
        if self._newest:
            NEWEST.labels(SERVICE).set(self._newest / 1000)
        self._note(recounted, locked or {})
        JOURNEYS.labels("no").inc(len(journeys) - recounted.changed - len(recounted.waiting))

    async def _recorded(self) -> dict[int, int]:
        async for attempt in retrying(SERVICE, self._pause, pool=self.pool):
            with attempt:
                horizon = await counting.recorded(self.pool, self._settings.topic)
        return dict(horizon)

    def _journeys(self, records: Sequence[Record]) -> tuple[set[JourneyKey], int]:
        """The journeys that events name, and the newest event's time.

        What cannot be read the recorder refuses too.
        """
        journeys: set[JourneyKey] = set()
        newest = 0
        unreadable = 0
        for record in records:
            try:
                event = decode(record.value, _ANY_TIME)
            except EventError:
                unreadable += 1
                continue
            if not isinstance(event, UserErased):  # what goes with a person leaves marks
                journeys.add((event.mcp_server_user_id, event.walkthrough_id))
                newest = max(newest, event.happened_at)
        EVENTS.labels(SERVICE, "followed").inc(len(records) - unreadable)
        EVENTS.labels(SERVICE, "passed-over").inc(unreadable)
        return journeys, newest

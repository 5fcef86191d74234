"""What becomes of a batch: wait until the recorder has judged it, then follow its journeys; and the marks."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from schemas import EventError, UserErased, decode
from services.runtime.crashpoints import passing
from services.runtime.database import Pool, retrying
from services.runtime.kafka import Record
from services.runtime.settings import Settings
from services.runtime.shell import Batches
from services.runtime.stored_positions import Advance
from services.runtime.telemetry import EVENTS, JOURNEYS, MARKS, NEWEST, PHASE_SECONDS, WAITING
from services.sankey_aggregator import store
from services.sankey_aggregator.store import JourneyKey

log = logging.getLogger("stepstream.aggregator")
SERVICE = "sankey-aggregator"

#: Whether an event is too far ahead is the recorder's clock to say, not this one's.
_ANY_TIME = 2**63
#: Between two looks at how far the recorder is, in seconds: short at first, then patient.
_LOOK_AGAIN = (0.005, 0.01, 0.02, 0.05, 0.1)
#: Between two looks for marks when there were none, in seconds.
MARKS_INTERVAL = 0.25
#: Seconds of waiting for the recorder after which a line is logged.
_WAIT_IS_LONG = 10.0
#: And after which it is asked whether what waits is still what comes next.
_WAIT_IS_ODD = 2.0


class Aggregator:
    """Follows the completions: told by events, and by the marks of changes that no event tells of."""

    def __init__(self, settings: Settings, pool: Pool, pause: Callable[[float], Awaitable[None]]) -> None:
        self._settings = settings
        self._pool = pool
        self._pause = pause
        self._newest = 0

    async def handle(self, records: Sequence[Record], batches: Batches) -> None:
        """Counts what the recorder has judged, as it gets there, until the whole batch is passed."""
        passing("aggregator.polled")
        rest = list(records)
        looks = 0
        began = asked = time.monotonic()
        while rest:
            horizon = await self._recorded({r.partition for r in rest})
            passed = [r for r in rest if r.offset < horizon.get(r.partition, 0)]
            if passed:
                rest = [r for r in rest if r.offset >= horizon.get(r.partition, 0)]
                advance = batches.over(passed)
                await self._follow(passed, advance)
                passing("aggregator.database-committed")
                await batches.commit(passed, advance)
                passing("aggregator.offsets-committed")
                looks = 0
                WAITING.set(0)
                began = asked = time.monotonic()
            else:
                WAITING.set(1)
                if looks and time.monotonic() - began > _WAIT_IS_LONG:
                    log.warning("waiting for the completion-recorder to judge %d events", len(rest))
                    began = time.monotonic()
                if time.monotonic() - asked > _WAIT_IS_ODD:
                    # The recorder may be in another log or database by now: then it never comes here.
                    await batches.look_again(rest)
                    asked = time.monotonic()
                await self._pause(_LOOK_AGAIN[min(looks, len(_LOOK_AGAIN) - 1)])
                looks += 1
        WAITING.set(0)

    async def drain_marks(self) -> int:
        """Follows the journeys of one load of marks; returns the number of marks."""
        async for attempt in retrying(SERVICE, self._pause, pool=self._pool):
            with attempt:
                marks, changed = await store.drain_marks(self._pool, self._settings.batch_max_records)
        MARKS.inc(marks)
        JOURNEYS.labels("yes").inc(changed)
        return marks

    async def _follow(self, records: Sequence[Record], advance: Advance | None) -> None:
        with PHASE_SECONDS.labels(SERVICE, "read").time():
            journeys, newest = self._journeys(records)
        with PHASE_SECONDS.labels(SERVICE, "transaction").time():
            async for attempt in retrying(SERVICE, self._pause, pool=self._pool):
                with attempt:
                    changed = await store.follow(self._pool, journeys, advance)
        self._newest = max(self._newest, newest)
        if self._newest:
            NEWEST.labels(SERVICE).set(self._newest / 1000)
        JOURNEYS.labels("yes").inc(changed)
        JOURNEYS.labels("no").inc(len(journeys) - changed)

    async def _recorded(self, partitions: set[int]) -> dict[int, int]:
        async for attempt in retrying(SERVICE, self._pause, pool=self._pool):
            with attempt:
                horizon = await store.recorded(self._pool, self._settings.topic, partitions)
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

"""Events that wait for a lock, beside the batches: recorded once it goes, or dead letters then."""

import asyncio
import logging
import time
from collections.abc import Mapping

from services.completion_recorder.handlers import Recorder
from services.completion_recorder.judge import Refused
from services.completion_recorder.sending import DeadLetterSender
from services.completion_recorder.waiting import claim_refused, count_waiting, resuming
from services.consumers.handling import Interrupted
from services.consumers.lag import RECORDER
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.database_errors import may_pass
from services.runtime.faults import Beside
from services.runtime.kafka import kafka_may_return
from services.runtime.settings import Settings
from services.runtime.telemetry import EVENTS, EVENTS_WAITING, EVENTS_WAITING_AGE

log = logging.getLogger("stepstream.recorder")

#: How often it looks whether locks have gone that events wait for, and at how many events in a transaction.
_CHECK_SECONDS = 1.0
_LONGEST_SECONDS = 60.0
_CHECK_EVENTS = 1_000


async def keep_resuming(resumer: "Resumer", recorder: Recorder) -> None:
    """Looks again and again, and writes the counts of a recorder to which no load comes."""
    faults = Beside(RECORDER, "cannot look at events that wait for a lock")
    while True:
        began = time.monotonic()
        try:
            await recorder.write_counts()
            await resumer.resume()
            await resumer.measure()
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


class Resumer:
    """Looks whether locks have gone that events wait for."""

    def __init__(self, settings: Settings, pool: Pool, letters: DeadLetterSender) -> None:
        self._pool = pool
        self._letters = letters
        self._trusted = settings.trusted()
        self._registering = settings.registering()

    async def resume(self) -> int:
        """Looks once; returns how many events wait no more.

        Raises:
            StepstreamError: for what is refused now and does not become a dead letter; it goes on waiting.
        """
        done = 0
        problem: Exception | None = None
        async for resumed in resuming(self._pool, _CHECK_EVENTS, self._trusted, self._registering):
            EVENTS.labels(RECORDER, "accepted").inc(resumed.done)
            done += resumed.done
            if resumed.refused:
                count, failure = await self._send(resumed.refused)
                done += count
                problem = problem or failure
        if done:
            log.info("%d events that waited for a lock are judged", done)
        if problem is not None:
            raise problem
        return done

    async def measure(self) -> None:
        """Tells metrics how many events wait, and how long the oldest does."""
        events, oldest = await count_waiting(self._pool)
        EVENTS_WAITING.set(events)
        EVENTS_WAITING_AGE.set(oldest)

    async def _send(self, refused: Mapping[int, Refused]) -> tuple[int, Exception | None]:
        """Makes them dead letters, and removes them then: a crash in between only sends them twice.

        While it does no other recorder does. Returns how many are, and why one that is not is not.

        Raises:
            KafkaError: Kafka is away; what it took before is removed.
        """
        async with claim_refused(self._pool, refused) as is_sent:
            outcomes = await self._letters.send_each({number: refused[number] for number in is_sent})
            is_sent.update({number: error is None for number, error in outcomes.items()})
            crash_point("waiting.dead-letters-sent")
        failures = [error for error in outcomes.values() if error is not None]
        for failure in failures:
            if kafka_may_return(failure):
                raise failure
        return sum(is_sent.values()), failures[-1] if failures else None

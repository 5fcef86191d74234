"""Dead letters on their way: the recorder's producer, and what it says of what does not become one."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from schemas import Rejection
from services.completion_recorder.cutting import letter_of
from services.completion_recorder.judge import Refused
from services.consumers.lag import RECORDER
from services.runtime.errors import StepstreamError
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, kafka_may_return
from services.runtime.producer import Producer, send_all, send_each
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.telemetry import DEAD_LETTERS, EVENTS, PHASE_SECONDS
from services.runtime.text import plural

log = logging.getLogger("stepstream.recorder")


class DeadLetterSender:
    """Makes refused records dead letters, byte for byte; what is larger than one may be is cut."""

    def __init__(
        self, settings: Settings, producer: Producer, pause: Callable[[float], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._pause = pause
        self._sending = asyncio.Lock()
        # There from the start, so that the first increase is seen as one.
        for rejection in Rejection:
            DEAD_LETTERS.labels(rejection.value)

    async def send(self, refused: Sequence[Refused]) -> None:
        """Sends all of them, in the order of each partition; waits while Kafka is away.

        Raises:
            StepstreamError: the topic does not take as much as a dead letter may have.
        """
        if not refused:
            return
        letters: dict[int, list[dict[str, Any]]] = {}
        for one in refused:
            letters.setdefault(one.record.partition, []).append(_letter(one))
        with PHASE_SECONDS.labels(RECORDER, "dead-letters").time():
            async for attempt in retrying(RECORDER, self._start_anew, kafka_may_return):
                with attempt:
                    async with self._sending:
                        await self._send(letters)
        self._count(refused)

    async def send_each(self, refused: Mapping[int, Refused]) -> dict[int, Exception | None]:
        """Sends those that can be sent; says by number why one was not, and None where it was."""
        if not refused:
            return {}
        with PHASE_SECONDS.labels(RECORDER, "dead-letters").time():
            async with self._sending:
                sent = await send_each(
                    await self._producer.start(),
                    self._settings.dead_letter_topic,
                    [_letter(one) for one in refused.values()],
                )
                if any(sent):
                    await self._producer.stop()
        outcomes = {
            number: None if error is None else self._explained(error)
            for number, error in zip(refused, sent, strict=True)
        }
        self._count([refused[number] for number, error in outcomes.items() if error is None])
        return outcomes

    def _count(self, refused: Sequence[Refused]) -> None:
        if not refused:
            return
        classes = Counter(r.rejection.value for r in refused)
        for name, count in classes.items():
            DEAD_LETTERS.labels(name).inc(count)
        EVENTS.labels(RECORDER, "refused").inc(len(refused))
        log.warning(
            "%s went to %s",
            plural(len(refused), "event"),
            self._settings.dead_letter_topic,
            extra={"fields": {"classes": classes}},
        )

    async def _send(self, letters: Mapping[int, list[dict[str, Any]]]) -> None:
        try:
            await send_all(await self._producer.start(), self._settings.dead_letter_topic, letters)
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> Exception:
        """Why one of these does not become a dead letter, for people, where it is for its size."""
        if not isinstance(error, MessageSizeTooLargeError | RecordListTooLargeError):
            return error
        return StepstreamError(
            f"{self._settings.dead_letter_topic} does not take a dead letter for its size ({error}). Set its "
            f"max.message.bytes to {DEAD_LETTER_MAX_BYTES}"
        )

    async def _start_anew(self, seconds: float) -> None:
        await self._producer.stop()
        await self._pause(seconds)


def _letter(refused: Refused) -> dict[str, Any]:
    return letter_of(refused.record, refused.rejection, refused.message)

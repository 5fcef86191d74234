"""Dead letters on their way: the recorder's producer, and what it says of what does not become one."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from schemas import Rejection
from services.completion_recorder.judge import Refused
from services.consumers.lag import RECORDER
from services.runtime.errors import StepstreamError
from services.runtime.kafka import (
    DEAD_LETTER_MAX_BYTES,
    Record,
    dead_letter_headers,
    kafka_may_return,
)
from services.runtime.producer import NULL, Producer, send_all, send_each
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.telemetry import DEAD_LETTERS, EVENTS, PHASE_SECONDS
from services.runtime.text import plural

log = logging.getLogger("stepstream.recorder")

#: What a dead letter has beside its event: where it came from, and why.
_BESIDE_BYTES = 1024


class DeadLetterSender:
    """Makes refused records dead letters, byte for byte."""

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
            StepstreamError: one is too large.
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
                        await self._send(letters, refused)
        self._count(refused)

    async def send_each(self, refused: Mapping[int, Refused]) -> dict[int, Exception | None]:
        """Sends those that can be sent; says by number why one was not, and None where it was."""
        outcomes: dict[int, Exception | None] = {
            number: StepstreamError(self._no_letter(one.record, waits=True))
            for number, one in refused.items()
            if not _fits(one.record)
        }
        fitting = [number for number in refused if number not in outcomes]
        if not fitting:
            return outcomes
        with PHASE_SECONDS.labels(RECORDER, "dead-letters").time():
            async with self._sending:
                sent = await send_each(
                    await self._producer.start(),
                    self._settings.dead_letter_topic,
                    [_letter(refused[number]) for number in fitting],
                )
                if any(sent):
                    await self._producer.stop()
        for number, error in zip(fitting, sent, strict=True):
            outcomes[number] = None if error is None else self._explained(error, [refused[number]])
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
            else f"with every {RECORDER} stopped: `stepstream skip --group {RECORDER} --partition "
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

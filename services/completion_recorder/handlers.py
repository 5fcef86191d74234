"""What becomes of a batch: read, judge and write in one transaction, then the dead letters."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from aiokafka import AIOKafkaProducer

from services.completion_recorder import store
from services.completion_recorder.judge import Accepted, Refused, read
from services.runtime.database import Pool, retrying
from services.runtime.kafka import Record, dead_letter_headers, next_offsets, send_all
from services.runtime.settings import Settings
from services.runtime.telemetry import DEAD_LETTERS, EVENTS

log = logging.getLogger("stepstream.recorder")
SERVICE = "completion-recorder"
#: Events judged without looking up: about 2 ms.
_SLICE = 500


class Recorder:
    """Handles one batch at a time; when `handle` returns, nothing of the batch can be lost any more."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        producer: AIOKafkaProducer,
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._producer = producer
        self._pause = pause

    async def handle(self, records: Sequence[Record]) -> None:
        """Writes the good events and sends the bad ones to the dead letters.

        One transaction per `batch_max_records`; while PostgreSQL is busy with one, the next is read.
        """
        size = self._settings.batch_max_records
        loads = [records[i : i + size] for i in range(0, len(records), size)]
        judged = await _read(loads[0])
        for load, following in zip(loads, [*loads[1:], ()], strict=True):
            ahead, _ = await asyncio.gather(_read(following), self._write(load, *judged))
            judged = ahead

    async def _write(
        self, records: Sequence[Record], accepted: list[Accepted], refused: list[Refused]
    ) -> None:
        """Commits a load, then buries its dead.

        In this order a crash in between only sends dead letters twice: the offsets have not moved yet.
        """
        offsets = next_offsets(records)
        async for attempt in retrying(SERVICE, self._pause):
            with attempt:
                refused_by_database = await store.record(self._pool, self._settings.topic, offsets, accepted)
        refused = refused + refused_by_database
        await self._bury(refused)
        EVENTS.labels(SERVICE, "accepted").inc(len(records) - len(refused))

    async def _bury(self, refused: Sequence[Refused]) -> None:
        if not refused:
            return
        letters = [
            {
                "key": r.record.key,
                "value": r.record.value,
                "headers": dead_letter_headers(r.record, r.rejection, r.message),
            }
            for r in refused
        ]
        await send_all(self._producer, self._settings.dead_letter_topic, letters)
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


async def _read(records: Sequence[Record]) -> tuple[list[Accepted], list[Refused]]:
    """Judges in slices, so that answers of PostgreSQL are not kept waiting."""
    now_ms = int(time.time() * 1000)
    accepted: list[Accepted] = []
    refused: list[Refused] = []
    for i in range(0, len(records), _SLICE):
        good, bad = read(records[i : i + _SLICE], now_ms)
        accepted += good
        refused += bad
        await asyncio.sleep(0)
    return accepted, refused

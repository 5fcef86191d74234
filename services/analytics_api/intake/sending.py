"""From a batch to Kafka: many batches together, each told which of its events Kafka has not acknowledged.

There is a producer once something comes in: the API starts, and reads, without Kafka. While Kafka is away
nobody waits for it: it is tried beside, until the leaders of all partitions answer.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from services.analytics_api.freshness import SERVICE
from services.analytics_api.intake.verdicts import ProducerEvent
from services.consumers.topic import describe_log, high_watermarks
from services.runtime.errors import ConfigurationError
from services.runtime.process import Handler, Process, Stopped
from services.runtime.producer import Producer
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.sources import SOURCE_HEADER
from services.runtime.telemetry import INTAKE_AWAY

log = logging.getLogger("stepstream.intake")

#: So many events are sent at once: more of them would keep others waiting.
_MOST_AT_ONCE: Final = 2_000
#: A batch for a partition, in bytes: less than a broker takes where nobody has set how much that is.
_BATCH_BYTES: Final = 512 * 1024
#: Where Kafka is away again so soon after it was back, in seconds, it answers and takes nothing: it is left
#: alone for longer each time, up to so long.
_SOON_SECONDS: Final = 60.0
_REST_SECONDS: Final = 5.0
_PASSING: Final = (KafkaError, ConfigurationError, OSError, TimeoutError)
_partitioner: Final = DefaultPartitioner()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way to Kafka, with the headers that our producers send."""

    key: bytes
    value: bytes
    type: str
    headers: list[tuple[str, bytes]]

    @classmethod
    def of(cls, event: ProducerEvent, value: bytes, source: str) -> "Outgoing":
        """An event, which is `value` as JSON, of a source: CloudEvents 1.0 in binary mode."""
        at = datetime.fromtimestamp(event.happened_at / 1000, UTC).isoformat(timespec="milliseconds")
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", event.event_id.encode()),
            ("ce_type", event.type.encode()),
            (SOURCE_HEADER, source.encode()),
            ("ce_time", at.encode()),
            ("content-type", b"application/json"),
        ]
        return cls(event.mcp_server_user_id.encode(), value, event.type, headers)

    def headers_as_json(self) -> str:
        """As the outbox has them."""
        return json.dumps({name: value.decode() for name, value in self.headers})


@dataclass(slots=True)
class _Batch:
    """Events that wait together: the answer is those that were not acknowledged."""

    events: Sequence[Outgoing]
    answer: "asyncio.Future[list[Outgoing]]"

    def end(self, left: Iterable[Outgoing]) -> None:
        """Tells whoever waits, if somebody still does."""
        if not self.answer.done():
            self.answer.set_result(list(left))


class Sender:
    """Sends batches of events; one of it has the producer of the process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = Producer(
            settings, settings.topic, {"request_timeout_ms": 15_000, "max_batch_size": _BATCH_BYTES}
        )
        self._seconds = settings.api_acknowledge_seconds
        self._waiting: deque[_Batch] = deque()
        self._wake = asyncio.Event()
        self._is_ending = False
        self._back_at = -math.inf
        self._rest = 0.0
        #: Whether Kafka did not answer the last time.
        self.is_away = False
        INTAKE_AWAY.set(0)

    def _set_away(self, is_away: bool) -> None:
        self.is_away = is_away
        INTAKE_AWAY.set(is_away)

    @contextlib.asynccontextmanager
    async def running(self, process: Process[Handler]) -> AsyncIterator[None]:
        """Sends while the block lasts."""
        async with process.beside(lambda: self._run(process)):
            try:
                yield
            finally:
                self._is_ending = True
                self._wake.set()
        await self._producer.stop()

    async def send(self, events: Sequence[Outgoing]) -> list[Outgoing]:
        """Sends events and waits for Kafka, in bounded time; returns those that it has not acknowledged.

        Some of these may have arrived all the same. Who is cancelled meanwhile leaves nothing behind, though
        what waits is sent.
        """
        if self.is_away or self._is_ending:
            return list(events)
        batch = _Batch(events, asyncio.get_running_loop().create_future())
        self._waiting.append(batch)
        self._wake.set()
        return await batch.answer

    async def _run(self, process: Process[Handler]) -> None:
        try:
            while not self._is_ending:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await self._send_some()
                if self.is_away:
                    await self._wait_until_back(process)
        except Stopped:
            pass
        finally:
            self._is_ending = True
            self._give_up()

    def _give_up(self) -> None:
        """Tells all who wait that nothing of theirs was acknowledged."""
        while self._waiting:
            batch = self._waiting.popleft()
            batch.end(batch.events)

    async def _send_some(self) -> None:
        """Sends the batches that wait, up to so many events; after a failure nobody waits any more."""
        batches = [self._waiting.popleft()]
        size = len(batches[0].events)
        while self._waiting and size + len(self._waiting[0].events) <= _MOST_AT_ONCE:
            size += len(self._waiting[0].events)
            batches.append(self._waiting.popleft())
        load = _Load(batches)
        try:
            async with asyncio.timeout(self._seconds):
                await load.send(await self._producer.start(), self._settings.topic)
        except _PASSING as error:
            self._set_away(True)
            name = type(error).__name__
            log.warning("Kafka is away, events go to the outbox meanwhile: %s: %s", name, error)
        finally:
            left = load.left()
            for batch in batches:
                batch.end(left[id(batch)])
        if self.is_away:
            self._give_up()

    async def _wait_until_back(self, process: Process[Handler]) -> None:
        """Tries until every partition has a leader that answers.

        Raises:
            Stopped: the process ends.
        """

        async def pause(seconds: float) -> None:
            await self._producer.stop()
            await process.sleep(seconds)

        await self._producer.stop()
        is_soon = time.monotonic() - self._back_at < _SOON_SECONDS + self._rest
        self._rest = min(_SOON_SECONDS, max(_REST_SECONDS, 2 * self._rest)) if is_soon else 0.0
        await process.sleep(self._rest)
        async for attempt in retrying(SERVICE, pause, lambda error: isinstance(error, _PASSING)):
            with attempt:
                async with asyncio.timeout(self._seconds):
                    client = (await self._producer.start()).client
                    topic = self._settings.topic
                    await high_watermarks(client, topic, await describe_log(client, topic))
        self._back_at = time.monotonic()
        self._set_away(False)
        log.info("Kafka is back: events go there again")


class _Load:
    """Batches that are sent together, and what is acknowledged of them."""

    def __init__(self, batches: Sequence[_Batch]) -> None:
        self._batches = batches
        #: What is under way, each with its events and their batches.
        self._sent: list[tuple[asyncio.Future[Any], list[tuple[_Batch, Outgoing]]]] = []

    async def send(self, producer: AIOKafkaProducer, topic: str) -> None:
        """Sends all, and waits until all are acknowledged.

        Raises:
            KafkaError: some are not.
        """
        partitions = sorted(await producer.partitions_for(topic))
        by_partition: dict[int, list[tuple[_Batch, Outgoing]]] = {}
        for batch in self._batches:
            for event in batch.events:
                partition = _partitioner(event.key, partitions, partitions)
                by_partition.setdefault(partition, []).append((batch, event))
        for partition, items in by_partition.items():
            await self._send_to(producer, topic, partition, items)
        for future, _ in self._sent:
            await future

    async def _send_to(
        self, producer: AIOKafkaProducer, topic: str, partition: int, items: list[tuple[_Batch, Outgoing]]
    ) -> None:
        builder = producer.create_batch()
        inside: list[tuple[_Batch, Outgoing]] = []
        for item in items:
            is_added = _is_added(builder, item[1])
            if not is_added and inside:  # it is full
                await self._send_batch(producer, topic, partition, builder, inside)
                builder, inside = producer.create_batch(), []
                is_added = _is_added(builder, item[1])
            if is_added:  # what no batch takes is not sent
                inside.append(item)
        if inside:
            await self._send_batch(producer, topic, partition, builder, inside)

    async def _send_batch(
        self,
        producer: AIOKafkaProducer,
        topic: str,
        partition: int,
        builder: Any,
        inside: list[tuple[_Batch, Outgoing]],
    ) -> None:
        future = await producer.send_batch(builder, topic, partition=partition)
        future.add_done_callback(_is_acknowledged)  # also where nobody waits for it any more
        self._sent.append((future, inside))

    def left(self) -> dict[int, list[Outgoing]]:
        """What is not acknowledged, by the `id` of its batch."""
        acknowledged: set[int] = set()
        for future, inside in self._sent:
            if future.done() and _is_acknowledged(future):
                acknowledged.update(id(event) for _, event in inside)
        return {id(b): [event for event in b.events if id(event) not in acknowledged] for b in self._batches}


def _is_added(builder: Any, event: Outgoing) -> bool:
    added = builder.append(timestamp=None, key=event.key, value=event.value, headers=event.headers)
    return added is not None


def _is_acknowledged(future: "asyncio.Future[Any]") -> bool:
    return not future.cancelled() and future.exception() is None

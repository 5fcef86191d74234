"""Sending events from a file: validated, keyed, acknowledged, and no line lost for another's fault."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas import EventError, Rejection, StepCorrected, UserErased, decode
from services.runtime.kafka import admin_client, describe_topics, unreachable
from services.runtime.producer import producer
from services.runtime.settings import Settings

#: Events on their way at once: enough to fill batches, few enough to bound memory.
_IN_FLIGHT = 20_000


@dataclass
class ProduceResult:
    """What became of a file's lines."""

    sent: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    not_acknowledged: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


@asynccontextmanager
async def bulk_producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer of large batches, once it is known that there is a topic.

    Raises:
        StepstreamError: Kafka cannot be reached, or has no such topic.
    """
    await _check_topic(settings)
    async with producer(settings, linger_ms=10, max_batch_size=256 * 1024) as sender:
        yield await sender.start()


async def _check_topic(settings: Settings) -> None:
    async with admin_client(settings) as admin:
        try:
            await describe_topics(admin, settings.topic)
        except KafkaError as error:
            raise unreachable(settings, error) from error


async def send_values(
    producer: AIOKafkaProducer, topic: str, values: Iterable[tuple[int, bytes]], outcome: ProduceResult
) -> None:
    """Sends each (line number, value) that is an event of the contract, and waits for the acknowledgements.

    Bounded in memory: no more than some thousands are on their way at once.
    """
    room = asyncio.Semaphore(_IN_FLIGHT)
    last_in_flight: set[asyncio.Future[object]] = set()

    def acknowledged(number: int, future: "asyncio.Future[object]") -> None:
        room.release()
        last_in_flight.discard(future)
        error = future.exception()
        if error is None:
            outcome.sent += 1
        else:
            outcome.not_acknowledged.append((number, f"Kafka refused it: {error}"))

    for number, value in values:
        try:
            event = decode(value, int(time.time() * 1000))
        except EventError as error:
            outcome.bad.append((number, f"{error.rejection}: {error}"))
            continue
        if isinstance(event, UserErased | StepCorrected):
            command = "erase" if isinstance(event, UserErased) else "completions"
            reason = f"{Rejection.NOT_ALLOWED}: `{event.type}` is sent by `stepstream {command}` alone"
            outcome.bad.append((number, reason))
            continue
        await room.acquire()
        try:
            future = await producer.send(topic, value, key=event.mcp_server_user_id.encode())
        except KafkaError as error:
            room.release()
            outcome.not_acknowledged.append((number, f"Kafka refused it: {error}"))
            continue
        last_in_flight.add(future)
        future.add_done_callback(lambda done, n=number: acknowledged(n, done))
    while last_in_flight:
        await asyncio.wait(set(last_in_flight))
        await asyncio.sleep(0)

"""How soon an event is there: until it can be consumed, is seen as a row, and is counted."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.drain import STEPS
from benchmarks.suite.results import BenchError, Measurement, quantiles_ms
from benchmarks.suite.stack import AGGREGATOR, RECORDER, TABLE, Bench, World
from benchmarks.suite.workloads import Workload, distinct
from schemas import encode
from services.runtime.kafka import connection
from services.runtime.producer import producer

EACH_SECONDS = 0.005
_USER = "mcp_server_user_id"
#: How often a query looks for what is not there yet.
LOOK_SECONDS = 0.002
FLOOR = "produce to consume"


class Waiting:
    """Who was sent when, and how long it took until each was seen."""

    def __init__(self) -> None:
        self.sent: dict[str, float] = {}
        self.took: list[float] = []

    def seen(self, user: str) -> None:
        if (at := self.sent.pop(user, None)) is not None:
            self.took.append(time.monotonic() - at)


async def freshness(bench: Bench, number: int) -> list[Measurement]:
    """The same events twice: to a bare consumer, and to the services."""
    seconds = 2 if bench.options.quick else 20
    count = int(seconds / EACH_SECONDS)
    workload = distinct(count * STEPS, number)
    async with bench.world(workload) as world:
        bare = await _to_consumer(world, workload)
    async with bench.world(workload) as world:
        running = await world.start_ready(RECORDER, AGGREGATOR)
        await _through(world, workload, 0, 0.5)  # what is made at the first event is there
        meters = {one.name: world.meter(one) for one in running}
        row, counted = await _through(world, workload, 1, seconds)
        # What PostgreSQL and Kafka use is told nowhere: most of it is looking.
        uses = {name: _own(meter.values(count)) for name, meter in meters.items()}
        world.stop(*running)
        await world.must_be_exact()
    found = [
        (FLOOR, bare, {}),
        ("to the row", row, uses[RECORDER]),
        ("to the count", counted, uses[AGGREGATOR]),
    ]
    return [
        Measurement(
            "freshness",
            f"one each {EACH_SECONDS * 1000:g} ms",
            line,
            quantiles_ms(took) | values,
            None if line == FLOOR else FLOOR,
            "p50_ms",
        )
        for line, took, values in found
    ]


def _own(values: dict[str, float]) -> dict[str, float]:
    return {name: values[name] for name in ("service_us", "memory_mib")}


def _steps(workload: Workload, step: int, seconds: float) -> list[dict[str, object]]:
    """One step of as many people as have time."""
    of_step = [event for event in workload.events if int(event["step_id"][-1]) == step]
    return of_step[: int(seconds / EACH_SECONDS)]


async def _send(world: World, events: list[dict[str, object]], *waiting: Waiting) -> None:
    async with producer(world.settings, linger_ms=0) as sending:
        sender = await sending.start()
        began = time.monotonic()
        for number, event in enumerate(events):
            user = str(event["mcp_server_user_id"])
            for one in waiting:
                one.sent[user] = time.monotonic()
            await sender.send(world.settings.topic, encode(event), key=user.encode())
            await asyncio.sleep(max(0.0, began + (number + 1) * EACH_SECONDS - time.monotonic()))


async def _to_consumer(world: World, workload: Workload) -> list[float]:
    waiting = Waiting()
    consumer = AIOKafkaConsumer(**connection(world.settings), auto_offset_reset="latest")
    await consumer.start()
    try:
        partitions = [TopicPartition(world.settings.topic, p) for p in range(world.settings.topic_partitions)]
        consumer.assign(partitions)
        await consumer.seek_to_end(*partitions)

        async def consume() -> None:
            async for record in consumer:
                waiting.seen(record.key.decode())

        async with _beside(consume):
            await _send(world, _steps(workload, 0, 0.5), waiting)
            await _all_seen(waiting)
            waiting.took.clear()
            seconds = len(workload.events) / STEPS * EACH_SECONDS
            await _send(world, _steps(workload, 1, seconds), waiting)
            await _all_seen(waiting)
    finally:
        await consumer.stop()
    return waiting.took


async def _through(
    world: World, workload: Workload, step: int, seconds: float
) -> tuple[list[float], list[float]]:
    events = _steps(workload, step, seconds)
    row, counted = Waiting(), Waiting()
    name = str(events[0]["step_id"])[-7:]
    of_row = f"select {_USER} from {TABLE} where {_USER} = any($1) and right(step_id, 7) = '{name}'"
    of_count = (
        f"select {_USER} from sankey_journeys where {_USER} = any($1)"
        f" and exists (select from unnest(step_ids) as s where right(s, 7) = '{name}')"
    )
    queries = ((row, of_row), (counted, of_count))
    sessions = [await asyncpg.connect(world.settings.dsn) for _ in queries]

    def watch(waiting: Waiting, query: str, session: asyncpg.Connection) -> Callable[[], Awaitable[None]]:
        async def look() -> None:
            while True:
                for found in await session.fetch(query, list(waiting.sent)):
                    waiting.seen(found[0])
                await asyncio.sleep(LOOK_SECONDS)

        return look

    (first, second), (one, other) = queries, sessions
    async with _beside(watch(*first, one)), _beside(watch(*second, other)):
        await _send(world, events, row, counted)
        await _all_seen(row, counted)
    for session in sessions:
        await session.close()
    return row.took, counted.took


@asynccontextmanager
async def _beside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()):
            raise error


async def _all_seen(*waiting: Waiting) -> None:
    try:
        async with asyncio.timeout(120):
            while any(one.sent for one in waiting):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    except TimeoutError:
        left = [len(one.sent) for one in waiting]
        raise BenchError(f"events that were sent are not seen: {left}") from None

"""How soon an event is there: until it can be consumed, is seen as a row, and is counted."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.drain import STEPS
from benchmarks.suite.results import BenchError, Measurement, quantiles_ms
from benchmarks.suite.stack import AGGREGATOR, RECORDER, TABLE, Bench, World
from benchmarks.suite.workloads import Workload, distinct
from schemas import encode
from services.runtime.kafka import connection
from services.runtime.producer import producer


@dataclass(frozen=True, slots=True)
class Pace:
    """How events come: so many at once, so many seconds apart; of each the first is watched."""

    case: str
    each: float
    at_once: int = 1

    def ticks(self, seconds: float) -> int:
        return int(seconds / self.each)


PACES = (Pace("one each 25 ms", 0.025), Pace("one each 5 ms", 0.005), Pace("10,000 a second", 0.005, 50))
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
    """The same events twice, at each pace: to a bare consumer, and to the services."""
    if bench.options.quick:
        return await _at(bench, number, PACES[1], 2)
    found = []
    for pace in PACES:
        found += await _at(bench, number, pace, 5 if pace.at_once > 1 else 15)
    return found


async def _at(bench: Bench, number: int, pace: Pace, seconds: float) -> list[Measurement]:
    count = pace.ticks(seconds) * pace.at_once
    workload = distinct(count * STEPS, number)
    async with bench.world(workload) as world:
        bare = await _to_consumer(world, workload, pace, seconds)
    async with bench.world(workload) as world:
        running = await world.start_ready(RECORDER, AGGREGATOR)
        await _through(world, workload, 0, pace, 0.5)  # what is made at the first event is there
        meters = {one.name: world.meter(one) for one in running}
        row, counted = await _through(world, workload, 1, pace, seconds)
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
            pace.case,
            line,
            quantiles_ms(took) | values,
            None if line == FLOOR else FLOOR,
            "p50_ms",
        )
        for line, took, values in found
    ]


def _own(values: dict[str, float]) -> dict[str, float]:
    return {name: values[name] for name in ("service_us", "memory_mib")}


def _steps(workload: Workload, step: int, pace: Pace, seconds: float) -> list[list[dict[str, object]]]:
    """One step of as many people as have time, by when they are sent."""
    of_step = [event for event in workload.events if int(event["step_id"][-1]) == step]
    ticks = [of_step[i : i + pace.at_once] for i in range(0, len(of_step), pace.at_once)]
    return ticks[: pace.ticks(seconds)]


async def _send(world: World, pace: Pace, ticks: list[list[dict[str, object]]], *waiting: Waiting) -> None:
    async with producer(world.settings, linger_ms=0) as sending:
        sender = await sending.start()
        began = time.monotonic()
        for number, events in enumerate(ticks):
            watched = str(events[0]["mcp_server_user_id"])
            for one in waiting:
                one.sent[watched] = time.monotonic()
            for event in events:
                key = str(event["mcp_server_user_id"]).encode()
                await sender.send(world.settings.topic, encode(event), key=key)
            await asyncio.sleep(max(0.0, began + (number + 1) * pace.each - time.monotonic()))


async def _to_consumer(world: World, workload: Workload, pace: Pace, seconds: float) -> list[float]:
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
            await _send(world, pace, _steps(workload, 0, pace, 0.5), waiting)
            await _all_seen(waiting)
            waiting.took.clear()
            await _send(world, pace, _steps(workload, 1, pace, seconds), waiting)
            await _all_seen(waiting)
    finally:
        await consumer.stop()
    return waiting.took


async def _through(
    world: World, workload: Workload, step: int, pace: Pace, seconds: float
) -> tuple[list[float], list[float]]:
    ticks = _steps(workload, step, pace, seconds)
    row, counted = Waiting(), Waiting()
    name = str(ticks[0][0]["step_id"])[-7:]
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
        await _send(world, pace, ticks, row, counted)
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

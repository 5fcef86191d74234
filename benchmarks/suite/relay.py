"""The relay: what waits in the outbox, on its way to Kafka."""

import asyncio
import json
import time
from collections import defaultdict
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.suite.results import BenchError, Measurement
from benchmarks.suite.stack import RELAY, Bench, World
from benchmarks.suite.workloads import Workload, distinct
from services.outbox_relay.sender import Message, waves
from services.runtime.kafka import connection
from services.runtime.producer import producer

SENT = "select case when exists (select from outbox) then 0 else 1 end"
BARE = "bare producer, one message of a key at a time"


async def relay(bench: Bench, number: int) -> list[Measurement]:
    """The relay, beside a producer that sends the same messages in the same order, from memory."""
    workload = distinct(bench.options.events, number)
    count = len(workload.events)
    found: dict[str, dict[str, float]] = {}
    order = (BARE, RELAY) if number % 2 else (RELAY, BARE)
    for line in order:
        async with bench.world(workload) as world:
            found[line] = await (_bare(world, workload) if line == BARE else _relay(world, workload))
            await _must_be_in_order(world, workload)
    return [
        Measurement("relay", f"{count // 1000 * 1000:,} messages", BARE, found[BARE]),
        Measurement("relay", f"{count // 1000 * 1000:,} messages", "relay", found[RELAY], BARE),
    ]


async def _bare(world: World, workload: Workload) -> dict[str, float]:
    messages = [
        Message(number, event["mcp_server_user_id"], _text(event), "{}")
        for number, event in enumerate(workload.events)
    ]
    load = world.settings.relay_batch_records
    async with producer(world.settings, linger_ms=2) as sending:
        sender = await sending.start()
        await sender.partitions_for(world.settings.topic)
        began, meter = time.monotonic(), world.meter()
        for first in range(0, len(messages), load):
            for wave in waves(messages[first : first + load]):
                futures = [
                    await sender.send(world.settings.topic, m.value.encode(), key=m.key.encode())
                    for m in wave
                ]
                await asyncio.gather(*futures)
        seconds = time.monotonic() - began
    return {"rate": len(messages) / seconds} | meter.values(len(messages))


async def _relay(world: World, workload: Workload) -> dict[str, float]:
    rows = [(event["mcp_server_user_id"], _text(event)) for event in workload.events]
    await world.db.copy_records_to_table("outbox", records=rows, columns=("key", "value"))
    await world.db.execute("vacuum analyze outbox")
    await world.settle()
    running = world.start(RELAY)
    # It sends as soon as it can: its first event, not its readiness, is the beginning.
    count = "select count(*) from outbox"
    await world.until(lambda: _fewer(world, count, len(rows)), "the relay has sent something")
    left = await world.db.fetchval(count)
    began, meter = time.monotonic(), world.meter(running)
    await world.reached(SENT, 1)
    seconds = time.monotonic() - began
    values = {"rate": left / seconds} | meter.values(left)
    await running.ready()
    world.stop(running)
    return values


async def _fewer(world: World, query: str, than: int) -> bool:
    return bool(await world.db.fetchval(query) < than)


def _text(event: dict[str, Any]) -> str:
    return json.dumps(event, separators=(",", ":"))


async def _must_be_in_order(world: World, workload: Workload) -> None:
    """Every message is in the topic, once, and those of each key in their order."""
    partitions = [TopicPartition(world.settings.topic, p) for p in range(world.settings.topic_partitions)]
    wanted, found = defaultdict(list), defaultdict(list)
    for event in workload.events:
        wanted[event["mcp_server_user_id"]].append(event["event_id"])
    consumer = AIOKafkaConsumer(**connection(world.settings))
    await consumer.start()
    try:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        left = sum(ends.values())
        while left > 0:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                left -= len(records)
                for record in records:
                    found[record.key.decode()].append(json.loads(record.value)["event_id"])
    finally:
        await consumer.stop()
    if wanted != found:
        raise BenchError("the topic does not hold each message once and in order")

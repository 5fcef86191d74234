"""What the recorder is measured beside: COPY, and what a user could run instead of it."""

import asyncio
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from benchmarks.suite.results import BenchError
from benchmarks.suite.stack import AS_RECORDER, PATIENCE, TABLE, Running, World
from benchmarks.suite.workloads import COLUMNS, Workload, expected, row_of


@dataclass(frozen=True)
class Peer:
    """A program of `benchmarks/peers`; a slow one gets only a share of the events."""

    line: str
    module: str
    share: float = 1.0
    arguments: tuple[str, ...] = ()


FASTSTREAM = (
    Peer("FastStream, batch, unnest", "faststream_unnest"),
    Peer("FastStream, batch, executemany", "faststream_executemany"),
    Peer("FastStream, one a call", "faststream_single", 0.05),
)
CONNECT = (
    Peer("Kafka Connect, 1 task", "connect", 0.5, ("--tasks", "1")),
    Peer("Kafka Connect, 2 tasks", "connect", 0.5, ("--tasks", "2")),
)


async def run_peer(world: World, peer: Peer, workload: Workload) -> dict[str, float]:
    """Writes the events of the topic into the table."""
    await world.produce(workload.events)
    await world.settle()
    command = [sys.executable, "-m", f"benchmarks.peers.{peer.module}", *peer.arguments]
    running = world.launch(peer.module, [*command, "--records", str(len(workload.events))])
    began = await _said(running, "assigned")
    meter = world.meter(running)
    seconds = await _said(running, "done") - began
    values = {"rate": len(workload.events) / seconds} | meter.values(len(workload.events))
    wrong = await world.wrong(workload.events)
    world.stop(running)
    return values | {"wrong": wrong}


async def _said(running: Running, what: str) -> float:
    """When a peer said this first."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                for line in running.log.read_text(errors="replace").splitlines():
                    word, _, rest = line.partition(" ")
                    if word == what:
                        return float(rest)
                running.check()
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise BenchError(f"{running.name} did not say {what!r} in {PATIENCE} s") from None


async def copy(world: World, workload: Workload, at_once: int) -> dict[str, float]:
    """Plain COPY of the workload's distinct rows into the empty table, all keys and indexes in place."""
    rows = [row_of(event) for event in expected(workload.events).values()]
    parts = await _in_binary(world.db, rows, at_once)
    await world.settle()
    sessions = [
        await asyncpg.connect(world.settings.dsn, server_settings=AS_RECORDER) for _ in range(at_once)
    ]
    began, meter = time.monotonic(), world.meter()
    await asyncio.gather(
        *(
            session.copy_to_table(TABLE, source=part, columns=COLUMNS, format="binary")
            for session, part in zip(sessions, parts, strict=True)
        )
    )
    seconds = time.monotonic() - began
    values = {"rate": len(rows) / seconds} | meter.values(len(rows))
    for session in sessions:
        await session.close()
    if await world.db.fetchval(f"select count(*) from {TABLE}") != len(rows):
        raise BenchError("COPY did not write all rows")
    return values


async def _in_binary(
    db: asyncpg.Connection, rows: Sequence[tuple[object, ...]], parts: int
) -> list[io.BytesIO]:
    """The rows as PostgreSQL's own binary format, those of a person in one part."""
    names = ", ".join(COLUMNS)
    await db.execute(f"create temporary table prepared as select {names} from {TABLE} limit 0")
    await db.copy_records_to_table("prepared", records=rows, columns=COLUMNS)
    found = []
    for number in range(parts):
        part = io.BytesIO()
        await db.copy_from_query(
            f"select {names} from prepared where abs(hashtext({COLUMNS[1]})) % {parts} = {number}",
            output=part,
            format="binary",
        )
        part.seek(0)
        found.append(part)
    await db.execute("drop table prepared")
    return found

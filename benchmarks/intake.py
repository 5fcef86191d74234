"""How many events a second one process of analytics-api takes by HTTP, and how long a request takes.

    python -m benchmarks.intake [--seconds 10] [--connections 6] [--batch 100] [--rate 200] [--consumers]

On the embedded stack, the services as processes of their own, and no consumer beside, but with `--consumers`.
The events are completions of registered people, whom they name by `distinct_id`, as their sessions by
`session_id`, each with an id of its own. Requests are made before the clock runs; the client is a process of
its own with bare connections.

Printed: events a second in batches, from connections that each send one after another, as JSON, NDJSON and
gzip, and the processor's time that an event takes of the service and of all of PostgreSQL; then p50 and p99
in ms of requests with one event that come at a fixed rate, and at a tenth of it beside the batches of another
organization; and how many of them were answered with 429.
"""

import argparse
import asyncio
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from benchmarks.suite.usage import cpu_seconds
from services.analytics_api.keys import Grant, create
from services.analytics_api.registering import own_session_id
from services.devstack import down, up
from services.devstack.processes import free_port
from services.runtime.environment import load_settings

STEPS, WALKTHROUGHS = 12, 10
PREFIX = "bench-intake-"
ORGANIZATIONS = ("org", "small")
NOW = int(time.time() * 1000)


@dataclass(frozen=True)
class Load:
    """What a client sends: ready requests on so many connections, or at a rate."""

    port: int
    key: str
    organization: str
    people: int
    batch: int
    form: str = "json"


async def prepare(url: str, people: int) -> dict[str, str]:
    """Two organizations with a server, walkthroughs, people and sessions each; a key that writes of each."""
    db = await asyncpg.connect(url)
    keys = {}
    for name in ORGANIZATIONS:
        await db.execute("insert into organization (id, name, created_at) values ($1, $1, now())", name)
        await db.execute(
            "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
            " values ($1 || '_srv', $1, $1, $1, $1 || '-srv')",
            name,
        )
        await db.execute(
            "insert into walkthroughs (id, organization_id, title, status)"
            " select $1 || '_wt_' || n, $1, 'w' || n, 'published' from generate_series(0, $2 - 1) as n",
            name,
            WALKTHROUGHS,
        )
        await db.execute(
            "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
            " select $1 || '_wts_' || n || '_' || s, $1 || '_wt_' || n, 's' || s, '{\"version\": \"v1\"}', s"
            " from generate_series(0, $2 - 1) as n, generate_series(0, $3 - 1) as s",
            name,
            WALKTHROUGHS,
            STEPS,
        )
        await db.execute(
            "insert into mcp_server_user (id)"
            " select $1 || '_mcpu_' || n from generate_series(0, $2 - 1) as n",
            name,
            people,
        )
        await db.execute(
            "insert into registered_people (organization_id, distinct_id, mcp_server_user_id)"
            " select $1, 'u-' || n, $1 || '_mcpu_' || n from generate_series(0, $2 - 1) as n",
            name,
            people,
        )
        await db.executemany(
            "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date,"
            " mcp_server_user_id) values ($1, $2, current_date, $3)",
            [(own_session_id(name, f"s-{n}"), f"{name}-srv", f"{name}_mcpu_{n}") for n in range(people)],
        )
        keys[name] = (await create(db, name, "bench", None, Grant(may_read=True, may_write=True))).text
    await db.execute("analyze")
    await db.close()
    return keys


def event(load: Load) -> dict[str, object]:
    """A completion of somebody's."""
    person, walkthrough = random.randrange(load.people), random.randrange(WALKTHROUGHS)
    return {
        "type": "step-completed",
        "event_id": str(uuid.uuid4()),
        "distinct_id": f"u-{person}",
        "session_id": f"s-{person}",
        "walkthrough_id": f"{load.organization}_wt_{walkthrough}",
        "step_id": f"{load.organization}_wts_{walkthrough}_{random.randrange(STEPS)}",
        "mcp_server_id": f"{load.organization}_srv",
        "completed_at": NOW - random.randrange(86_400_000),
        "metadata": {"attempt": 1, "via": "checkout"},
    }


def request(load: Load) -> bytes:
    """A whole request with a batch."""
    events = [event(load) for _ in range(load.batch)]
    kind, coding = "application/json", ""
    if load.form == "json":
        body = json.dumps(events).encode()
    else:
        body = b"\n".join(json.dumps(one).encode() for one in events)
        kind = "application/x-ndjson"
    if load.form == "gzip":
        body, coding = gzip.compress(body, 6), "content-encoding: gzip\r\n"
    head = (
        f"POST /v1/events HTTP/1.1\r\nhost: 127.0.0.1:{load.port}\r\nauthorization: Bearer {load.key}\r\n"
        f"content-type: {kind}\r\n{coding}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """A bare connection, on which one request follows the other."""

    async def open(self, port: int) -> "Connection":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def send(self, whole: bytes) -> int:
        """Sends a request, and waits for its answer: its status; where it is 200, all is accepted."""
        self._writer.write(whole)
        status = await self._reader.readline()
        length = 0
        while (line := await self._reader.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = await self._reader.readexactly(length)
        code = int(status.split()[1])
        assert code in {200, 429}, (status, answer[:500])
        return code

    def close(self) -> None:
        self._writer.close()


def flood(load: Load, connections: int, seconds: float) -> tuple[int, float]:
    """Batches from so many connections, one after another on each: how many events, and in how long."""
    ready = [[request(load) for _ in range(int(seconds * 12))] for _ in range(connections)]

    async def run() -> tuple[int, float]:
        until = time.perf_counter() + seconds

        async def one(requests: Sequence[bytes]) -> int:
            connection, sent = await Connection().open(load.port), 0
            for whole in requests:
                assert await connection.send(whole) == 200
                sent += load.batch
                if time.perf_counter() >= until:
                    break
            connection.close()
            return sent

        began = time.perf_counter()
        sent = sum(await asyncio.gather(*(one(requests) for requests in ready)))
        return sent, time.perf_counter() - began

    return asyncio.run(run())


def pace(load: Load, rate: float, seconds: float) -> list[float]:
    """Requests that begin at a fixed rate, whether those before are answered or not: seconds of each."""
    ready = [request(load) for _ in range(int(rate * seconds))]

    async def run() -> list[float]:
        free: list[Connection] = []
        times: list[float] = []
        began = time.perf_counter()

        async def one(number: int, whole: bytes) -> None:
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            connection = free.pop() if free else await Connection().open(load.port)
            if await connection.send(whole) == 200:
                times.append(time.perf_counter() - due)
            free.append(connection)

        await asyncio.gather(*(one(number, whole) for number, whole in enumerate(ready)))
        return times

    return asyncio.run(run())


def postgres() -> list[int]:
    """The processes of PostgreSQL that this benchmark started, which start all others."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if PREFIX in (command := _command(pid)) and "/postgres" in command]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def tell(name: str, times: Sequence[float], wanted: float) -> None:
    cuts = statistics.quantiles(times, n=100)
    print(
        f"{name}: p50 {cuts[49] * 1000:.1f} ms, p99 {cuts[98] * 1000:.1f} ms, {len(times):,} requests, "
        f"{int(wanted) - len(times):,} more were answered with 429"
    )


def measure(options: argparse.Namespace, port: int, keys: dict[str, str], pid: int) -> None:
    load = Load(port, keys["org"], "org", options.people, options.batch)
    single = Load(port, keys["small"], "small", options.people, 1)
    with ProcessPoolExecutor(2) as clients:
        clients.submit(flood, load, options.connections, 1.0).result()  # plans, and code, are warm
        for form in ("json", "ndjson", "gzip"):
            given = Load(port, keys["org"], "org", options.people, options.batch, form)
            before, before_them = cpu_seconds(pid), cpu_seconds(*postgres())
            sent, seconds = clients.submit(flood, given, options.connections, options.seconds).result()
            cpu = (cpu_seconds(pid) - before) / sent
            cpu_them = (cpu_seconds(*postgres()) - before_them) / sent
            print(
                f"{form}: {sent / seconds:,.0f} events/s in batches of {options.batch} from "
                f"{options.connections} connections; processor: {cpu * 1e6:.0f} µs an event of the service, "
                f"{cpu_them * 1e6:.0f} µs of PostgreSQL"
            )
        name = f"{options.rate:g} requests/s of one event"
        wanted = options.rate * options.seconds
        before = cpu_seconds(pid)
        tell(name, clients.submit(pace, single, options.rate, options.seconds).result(), wanted)
        print(f"processor: {(cpu_seconds(pid) - before) / wanted * 1e3:.2f} ms a request of the service")
        crowd = clients.submit(flood, load, options.connections, options.seconds + 2)
        time.sleep(1)
        slow = options.rate / 10
        beside = clients.submit(pace, single, slow, options.seconds).result()
        tell(f"{slow:g} a second, beside the batches of another one", beside, slow * options.seconds)
        sent, seconds = crowd.result()
        print(f"those meanwhile: {sent / seconds:,.0f} events/s")


def main() -> None:
    """Starts the servers, measures, and ends them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intake")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=6)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--consumers", action="store_true", help="with recorder and aggregator beside")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    services: list[subprocess.Popen[bytes]] = []
    try:
        addresses = up(folder)
        environment = {**os.environ, **addresses.environment(), "STEPSTREAM_API_WRITE_RATE": ""}
        command = [sys.executable, "-m", "services.operator_cli"]
        subprocess.run([*command, "migrate"], env=environment, check=True, capture_output=True)
        os.environ.update(addresses.environment())
        keys = asyncio.run(prepare(load_settings().dsn, options.people))
        port = free_port()
        names = [
            "analytics-api",
            *(["completion-recorder", "sankey-aggregator"] if options.consumers else []),
        ]
        for name in names:
            at = port if name == "analytics-api" else free_port()
            with (folder / f"{name}.log").open("wb") as log:
                services.append(
                    subprocess.Popen(
                        [*command, "run", name, "--port", str(at)], env=environment, stdout=log, stderr=log
                    )
                )
        _wait_for(port)
        measure(options, port, keys, services[0].pid)
    finally:
        for service in services:
            service.terminate()
            service.wait()
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int) -> None:
    import urllib.request

    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


if __name__ == "__main__":
    main()

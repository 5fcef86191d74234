"""How long `get_next_step` takes with many people at once, how many round trips it costs, and the floor.

python -m benchmarks.mcp [--people 50] [--steps 40] [--beside 600] [--seconds 10]

The service runs as a process of its own on the embedded stack. The load comes from a bare HTTP client, since
the SDK's takes more time than the server does; the floor is the same number of people who each run a small
transaction by themselves: `begin`, one update by key, `commit`. With `--beside` it is measured instead how
long the calls of one person take beside so many busy ones of another organization; that person's client is a
process of its own, or it would wait for the load rather than for the service.
"""

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg

from services.devstack import down, up
from services.devstack.processes import free_port
from services.runtime.migrate import migrate

PROTOCOL = "2026-07-28"


class Person:
    """A bare client of the newest protocol on one connection."""

    def __init__(self, port: int, name: str, slug: str = "bench") -> None:
        self._port = port
        self._path = f"/mcp/{slug}/{name}"

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        meta = {
            "io.modelcontextprotocol/protocolVersion": PROTOCOL,
            "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        body = json.dumps(
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": tool, "arguments": arguments, "_meta": meta},
            }
        ).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n"
            "content-type: application/json\r\n"
            f"accept: application/json, text/event-stream\r\nmcp-protocol-version: {PROTOCOL}\r\n"
            f"mcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        status = await self._reader.readline()
        length = 0
        while (line := await self._reader.readline()) not in {b"\r\n", b""}:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answer = json.loads(await self._reader.readexactly(length))
        assert b" 200 " in status, (status, answer)
        result: dict[str, Any] = answer["result"]["structuredContent"]
        return result


async def prepare(url: str, steps: int) -> None:
    """Two organizations with a server and a walkthrough each: `bench` and `other`."""
    db = await asyncpg.connect(url)
    await migrate(db)
    content = json.dumps({"version": "v1", "contentForUser": "x" * 1_000, "operationsForAgent": "y" * 500})
    for name in ("bench", "other"):
        await db.execute("insert into organization (id, name, created_at) values ($1, $1, now())", name)
        await db.execute(
            "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
            " values ($1, $1, $1, $1, $1)",
            name,
        )
        await db.execute(
            "insert into walkthroughs (id, organization_id, title, status) values ($1, $1, 'w', 'published')",
            name,
        )
        await db.execute(
            "insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ($1, $1, $1)",
            name,
        )
        await db.executemany(
            "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
            " values ($1 || $2, $1, $2, $3, $4)",
            [(name, f"s{i}", content, i) for i in range(steps)],
        )
    await db.close()


def tell(name: str, times: list[float], rate: float) -> None:
    cuts = statistics.quantiles(times, n=100)
    print(f"{name:<34} p50 {cuts[49]:7.1f} ms   p99 {cuts[98]:7.1f} ms   {rate:7.0f} a second")


async def run_people(port: int, people: int, steps: int) -> tuple[list[float], float]:
    times: list[float] = []
    crowd = [Person(port, f"p{people}-{i}") for i in range(people)]

    async def walk(person: Person) -> None:
        await person.connect()
        answer = await person.call("start_walkthrough")
        await ready.wait()
        while answer["step"]:
            began = time.perf_counter()
            answer = await person.call("get_next_step", current_step_id=answer["step"]["id"])
            times.append((time.perf_counter() - began) * 1000)

    ready = asyncio.Event()
    tasks = [asyncio.create_task(walk(person)) for person in crowd]
    await asyncio.sleep(2)
    began = time.perf_counter()
    ready.set()
    await asyncio.gather(*tasks)
    return times, people * steps / (time.perf_counter() - began)


async def walk_for(person: Person, seconds: float) -> list[float]:
    """Calls one after another for so long, from the first step again after the last; milliseconds of each."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    await person.connect()
    step = (await person.call("start_walkthrough"))["step"]
    while time.perf_counter() < until:
        began = time.perf_counter()
        if step is None:
            answer = await person.call("start_walkthrough", restart=True)
        else:
            answer = await person.call("get_next_step", current_step_id=step["id"])
        times.append((time.perf_counter() - began) * 1000)
        step = answer["step"]
    return times


def walk_alone(port: int, slug: str, name: str, seconds: float) -> list[float]:
    """One person's calls, in a process of their own."""
    return asyncio.run(walk_for(Person(port, name, slug), seconds))


async def run_beside(port: int, people: int, seconds: float) -> None:
    """One person of `other` alone, then beside people of `bench`; and how much those get done with it."""

    async def crowd(name: str) -> list[float]:
        walks = (walk_for(Person(port, f"{name}{i}"), seconds + 2) for i in range(people))
        return list(itertools.chain.from_iterable(await asyncio.gather(*walks)))

    def tell_one(name: str, times: list[float]) -> None:
        median, most = statistics.median(times), max(times)
        print(f"{name:<34} p50 {median:7.1f} ms   most {most:6.1f} ms   {len(times):5} calls", flush=True)

    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1) as pool:
        tell_one(
            "one of the other, alone", await loop.run_in_executor(pool, walk_alone, port, "other", "a", 3)
        )
        together = await crowd("x")
        tell(f"{people} busy ones, alone", together, len(together) / (seconds + 2))
        busy = asyncio.create_task(crowd("y"))
        await asyncio.sleep(2)
        times = await loop.run_in_executor(pool, walk_alone, port, "other", "b", seconds)
        together = await busy
        tell(f"{people} busy ones, beside the other", together, len(together) / (seconds + 2))
        tell_one(f"one of the other, beside {people}", times)


async def run_floor(url: str, people: int, steps: int) -> tuple[list[float], float]:
    times: list[float] = []
    pool = await asyncpg.create_pool(url, min_size=10, max_size=10)
    await pool.execute("create table floor (id int primary key, n int not null)")
    await pool.executemany("insert into floor values ($1, 0)", [(i,) for i in range(people)])

    async def walk(who: int) -> None:
        for _ in range(steps):
            began = time.perf_counter()
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("update floor set n = n + 1 where id = $1", who)
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(walk(who) for who in range(people)))
    await pool.close()
    return times, people * steps / (time.perf_counter() - began)


async def work(url: str, port: int, people: int, steps: int) -> None:
    tell("floor: a transaction of one update", *await run_floor(url, people, steps))
    for crowd in (1, people):
        tell(f"get_next_step, {crowd} at once", *await run_people(port, crowd, steps))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mcp")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--beside", type=int, metavar="PEOPLE")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-mcp-"))
    try:
        addresses = up(folder)
        asyncio.run(prepare(addresses.database_url, args.steps))
        port = free_port()
        environment = addresses.environment() | {
            "STEPSTREAM_PUBLIC_URL": f"http://127.0.0.1:{port}",
            "STEPSTREAM_MCP_PERSON_RATE": "",
            "STEPSTREAM_MCP_ADDRESS_RATE": "",
            "PATH": "/usr/bin:/bin",
        }
        log = (folder / "mcp.log").open("wb")
        service = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "services.operator_cli",
                "run",
                "walkthrough-mcp",
                "--port",
                str(port),
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            while b" starts" not in (folder / "mcp.log").read_bytes():
                assert service.poll() is None, (folder / "mcp.log").read_text()
                time.sleep(0.1)
            if args.beside:
                asyncio.run(run_beside(port, args.beside, args.seconds))
            else:
                asyncio.run(work(addresses.database_url, port, args.people, args.steps))
        finally:
            service.terminate()
            service.wait(30)
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

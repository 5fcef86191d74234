"""How long `get_next_step` takes with many people at once, how many round trips it costs, and the floor.

python -m benchmarks.mcp [--people 50] [--steps 40]

The service runs as a process of its own on the embedded stack. The load comes from a bare HTTP client, since
the SDK's takes more time than the server does; the floor is the same number of people who each run a small
transaction by themselves: `begin`, one update by key, `commit`.
"""

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from services.devstack import down, up
from services.devstack.processes import free_port
from services.runtime.migrate import migrate

PROTOCOL = "2026-07-28"


class Person:
    """A bare client of the newest protocol on one connection."""

    def __init__(self, port: int, name: str) -> None:
        self._port = port
        self._path = f"/mcp/bench/{name}"

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
    db = await asyncpg.connect(url)
    await migrate(db)
    await db.execute("insert into organization (id, name, created_at) values ('o', 'o', now())")
    await db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('bench', 'o', 'bench', 'bench', 'bench')"
    )
    await db.execute(
        "insert into walkthroughs (id, organization_id, title, status) values ('wt', 'o', 'w', 'published')"
    )
    await db.execute(
        "insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ('m', 'bench', 'wt')"
    )
    content = json.dumps({"version": "v1", "contentForUser": "x" * 1_000, "operationsForAgent": "y" * 500})
    await db.executemany(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " values ($1, 'wt', $1, $2, $3)",
        [(f"s{i}", content, i) for i in range(steps)],
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
            asyncio.run(work(addresses.database_url, port, args.people, args.steps))
        finally:
            service.terminate()
            service.wait(30)
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

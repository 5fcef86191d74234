"""How long `get_next_step` takes with many people at once, how many round trips it costs, and the floor.

python -m benchmarks.mcp [--people 50] [--steps 40] [--beside 600 [--seconds 10] | --against FOLDER]

The service runs as a process of its own on the embedded stack. The load comes from a bare HTTP client, since
the SDK's takes more time than the server does; the floor is the same number of people who each run a small
transaction by themselves: `begin`, one update by key, `commit`. With `--beside` it is measured instead how
long the calls of one person take beside so many busy ones of another organization; that person's client is a
process of its own, or it would wait for the load rather than for the service. With `--against` the code of
another checkout serves in turns with this one, `--rounds` times with 1, 20 and 50 people, on one database:
medians, their ratio, and the processor's time that a call takes of the service and of PostgreSQL. The
migrations are this checkout's.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.suite.usage import cpu_seconds, postmaster
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


#: People who have been there before: PostgreSQL plans for tables that are not empty.
_BEFORE = """
with person as (
  insert into mcp_server_user (id, distinct_id, first_seen_at)
  select 'before' || n, 'before' || n, 1 from generate_series(1, $1::int) as n
  returning id
), session as (
  insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date, mcp_server_user_id)
  select id, 'bench', current_date, id from person
  returning mcp_server_session_id as id
), live as (
  insert into mcp_live_sessions (mcp_server_user_id, mcp_server_id, mcp_server_session_id, last_activity_at)
  select id, 'bench', id, 1 from person
), progress as (
  insert into walkthrough_progress (id, mcp_server_user_id, walkthrough_id, last_activity_at)
  select id, id, 'bench', 1 from person
)
insert into walkthrough_step_completions (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at
)
select session.id || step.id, session.id, 'bench', step.id, 'bench', session.id, 1
from session cross join (select id from walkthrough_steps where walkthrough_id = 'bench' limit 10) as step
"""


async def prepare(url: str, steps: int, people: int = 2_000) -> None:
    """Two organizations with a server and a walkthrough each, `bench` and `other`, and people of before."""
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
    await db.execute(_BEFORE, people)
    await db.execute("vacuum analyze")
    await db.close()


def tell(name: str, times: list[float], rate: float) -> None:
    cuts = statistics.quantiles(times, n=100)
    print(f"{name:<34} p50 {cuts[49]:7.1f} ms   p99 {cuts[98]:7.1f} ms   {rate:7.0f} a second")


async def run_people(port: int, people: int, steps: int, name: str = "p") -> tuple[list[float], float]:
    times: list[float] = []
    crowd = [Person(port, f"{name}{people}-{i}") for i in range(people)]

    async def walk(person: Person) -> None:
        await person.connect()
        answer = await person.call("start_walkthrough")
        await ready.wait()
        while answer["step"]:
            began = time.perf_counter()
            answer = await person.call("get_next_step", current_step_id=answer["step"]["id"])
            times.append((time.perf_counter() - began) * 1000)

    ready = asyncio.Barrier(people + 1)
    tasks = [asyncio.create_task(walk(person)) for person in crowd]
    await ready.wait()
    began = time.perf_counter()
    await asyncio.gather(*tasks)
    return times, people * steps / (time.perf_counter() - began)


async def run_against(
    url: str, services: dict[str, tuple[int, int]], crowds: Sequence[int], steps: int, rounds: int
) -> None:
    """Both services in turns; each is a port and a process."""
    db = await asyncpg.connect(url)
    postgres = await postmaster(db)
    await db.close()
    found: dict[tuple[int, str], list[tuple[float, ...]]] = {}
    for number, crowd in itertools.product(range(rounds), crowds):
        order = list(services.items())
        for name, (port, pid) in order if number % 2 else reversed(order):
            before = cpu_seconds(pid), cpu_seconds(postgres)
            times, rate = await run_people(port, crowd, steps, f"{name}{number}-")
            spent = cpu_seconds(pid) - before[0], cpu_seconds(postgres) - before[1]
            cuts = statistics.quantiles(times, n=100)
            calls = crowd * (steps + 1)  # each began with a start
            row = rate, cuts[49], cuts[98], *(1000 * seconds / calls for seconds in spent)
            found.setdefault((crowd, name), []).append(row)
    print(f"medians of {rounds} rounds   a second   p50 ms   p99 ms   CPU ms a call: service, PostgreSQL")
    for (crowd, name), rows in sorted(found.items()):
        rate, p50, p99, service, database = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{crowd:3} people, {name:<8} {rate:14.0f} {p50:8.1f} {p99:8.1f} {service:12.2f} {database:12.2f}"
        )
    for crowd in crowds:
        new, old = (found[crowd, name] for name in services)
        ratios = [a[0] / b[0] for a, b in zip(new, old, strict=True)]
        print(
            f"{crowd:3} people: {statistics.median(ratios):.2f} times the rate, by round",
            *map("{:.2f}".format, ratios),
        )


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


@contextlib.contextmanager
def served(log: Path, port: int, environment: dict[str, str], code: Path) -> Iterator[int]:
    """The service of a checkout while the block lasts; yields its process."""
    command = ["-m", "services.operator_cli", "run", "walkthrough-mcp", "--port", str(port)]
    with log.open("wb") as out:
        service = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=out, stderr=out, cwd=code
        )
    try:
        while b" starts" not in log.read_bytes():
            assert service.poll() is None, log.read_text()
            time.sleep(0.1)
        yield service.pid
    finally:
        service.terminate()
        service.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mcp")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--beside", type=int, metavar="PEOPLE")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--against", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
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
            **{f"STEPSTREAM_MCP_NEW_PEOPLE_{of}RATE": "" for of in ("", "ADDRESS_", "SERVER_")},
            "PATH": "/usr/bin:/bin",
        }
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(served(folder / "mcp.log", port, environment, Path.cwd()))
            if args.beside:
                asyncio.run(run_beside(port, args.beside, args.seconds))
            elif args.against:
                other = free_port()
                theirs = stack.enter_context(served(folder / "old.log", other, environment, args.against))
                services = {"this": (port, ours), "other": (other, theirs)}
                crowds = (1, 20, 50)
                asyncio.run(run_against(addresses.database_url, services, crowds, args.steps, args.rounds))
            else:
                asyncio.run(work(addresses.database_url, port, args.people, args.steps))
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

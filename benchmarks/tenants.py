"""How long a small question of one organization takes beside another one that wants everything.

    python -m benchmarks.tenants [--completions 1000000] [--rounds 3] [--seconds 6]

Two organizations: one with a walkthrough of many people, one with 300. Small questions of the second (Sankey,
steps, the people of a link, the overview; each about other days, so that nothing is kept) are asked one after
another for some seconds alone, then beside each kind of greed, in turns, in one run on one process:

- heavy: twelve questions at once that read many journeys, always others, without a pause;
- streams: 500 live streams wanted with one key, asked for again every 5 s where refused;
- wrong keys: 300 a second, each another one, from the same address;
- busy: twelve small questions at once, without a pause;
- all of the first three together.

Printed: p50 and p99 in ms, the latter beside what it is alone, what the greedy got, and look-ups of its keys.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import httpx2

from benchmarks.history import make
from services.analytics_api.keys import create
from services.devstack import down, up
from services.devstack.processes import free_port
from services.runtime.environment import load_settings

SMALL_ORGANIZATION = """
set session_replication_role = replica;
insert into organization (id, name, created_at) values ('small', 'small', now());
insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)
values ('srv_s', 'small', 'srv_s', 'x', 'srv-s');
insert into walkthroughs (id, organization_id, title, status) values ('wt_s', 'small', 'wt_s', 'published');
insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)
select 'wts_s_' || s, 'wt_s', 'step ' || s, '{"version": "v1"}', s from generate_series(0, 7) as s;
insert into mcp_server_user (id) select 'small_' || n from generate_series(1, 300) as n;
insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date, mcp_server_user_id)
select 'small_' || n, 'srv-s', date '2026-01-01', 'small_' || n from generate_series(1, 300) as n;
insert into walkthrough_step_completions
select
  'wtsc_' || md5('small' || n || ' ' || s)::uuid, 'small_' || n, 'wt_s', 'wts_s_' || s, 'srv_s',
  'small_' || n, 1767225600000 + n::bigint * 25920000 + s * 60000 + (hashint4(n * 31 + s) & 65535), null
from generate_series(0, 7) as s, generate_series(1, 300) as n
where s <= n % 9;
"""
KINDS = ("heavy", "streams", "wrong keys", "busy", "all")
#: How many are wanted, at once or in a second.
HEAVY, STREAMS, WRONG, BUSY = 12, 500, 300, 12


def days() -> str:
    """Some days of the 90."""
    first, last, active = random.randrange(1, 29), random.randrange(1, 29), random.randrange(1, 300)
    return f"from=2026-01-{first:02}&to=2026-03-{last:02}&active_days={active}"


def heavy_question() -> str:
    path = random.choice(("sankey?start_at=wts_0_2&", "steps?", "?", "trends?", "funnel?"))
    return f"walkthroughs/wt_0{'' if path == '?' else '/'}{path}{days()}"


def small_questions() -> list[str]:
    return [
        f"walkthroughs/wt_s/sankey?{days()}",
        f"walkthroughs/wt_s/steps?{days()}",
        f"walkthroughs/wt_s/journeys?position=1&step=wts_s_1&{days()}",
        f"organization?{days()}",
    ]


async def ask_plainly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, authorization: str
) -> int:
    """The status of an answer, by a client that takes next to no time; a stream is left unread."""
    writer.write(f"GET /v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "content-length: " in head:
        await reader.readexactly(int(head.split("content-length: ")[1].split()[0]))
    return int(head.split()[1])


class Greedy:
    """Wants everything, in a process of its own; says what it got."""

    def __init__(self, port: int, key: str) -> None:
        self.got: Counter[str] = Counter()
        self.headers = {"Authorization": f"Bearer {key}"}
        self.port = port
        self.http = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1/", timeout=120)
        self.is_over = asyncio.Event()

    async def repeat(self, name: str, ask: Callable[[], str]) -> None:
        while not self.is_over.is_set():
            response = await self.http.get(ask(), headers=self.headers)
            self.got[f"{name} {response.status_code}"] += 1

    async def stream(self) -> None:
        while not self.is_over.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            status = await ask_plainly(
                reader, writer, "walkthroughs/wt_0/live", self.headers["Authorization"]
            )
            self.got[f"stream {status}"] += 1
            if status == 200:
                await self.is_over.wait()
            writer.close()
            await self.pause(5)

    async def guess(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while not self.is_over.is_set():
            began = time.perf_counter()
            wrong = f"Bearer sst_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
            self.got[f"wrong {await ask_plainly(reader, writer, 'organization', wrong)}"] += 1
            await self.pause(10 / WRONG - (time.perf_counter() - began))

    async def pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.is_over.wait(), max(0.0, seconds))

    async def want(self, kind: str) -> None:
        """Wants it until a line comes, and ends what is under way."""
        wants: list[Awaitable[None]] = []
        if kind in ("heavy", "all"):
            wants += [self.repeat("heavy", heavy_question) for _ in range(HEAVY)]
        if kind in ("streams", "all"):
            wants += [self.stream() for _ in range(STREAMS)]
        if kind in ("wrong keys", "all"):
            wants += [self.guess() for _ in range(10)]
        if kind == "busy":
            wants += [self.repeat("small", lambda: f"walkthroughs/wt_0/sankey?{days()}") for _ in range(BUSY)]
        wanted = asyncio.gather(*wants)
        await asyncio.to_thread(sys.stdin.readline)
        self.is_over.set()
        await wanted
        await self.http.aclose()
        print(json.dumps(self.got))


class Small:
    """Asks small questions, one after another."""

    def __init__(self, port: int, key: str) -> None:
        self.health = f"http://127.0.0.1:{port}/health/ready"
        self.http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/v1/", headers={"Authorization": f"Bearer {key}"}, timeout=120
        )

    async def ask(self, seconds: float) -> list[float]:
        took: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for path in small_questions():
                began = time.perf_counter()
                response = await self.http.get(path)
                took.append((time.perf_counter() - began) * 1000)
                assert response.status_code == 200, response.text
                await asyncio.sleep(0.005)
        return took

    async def is_ready(self) -> None:
        for _ in range(300):
            with contextlib.suppress(httpx2.HTTPError):
                if (await self.http.get(self.health)).status_code == 200:
                    return
            await asyncio.sleep(0.1)
        raise SystemExit("it does not get ready")


def percentile(took: list[float], share: float) -> float:
    return sorted(took)[min(len(took) - 1, int(len(took) * share))]


LOOK_UPS = """
select coalesce(seq_scan + idx_scan, 0) from pg_stat_user_tables
where relname = 'api_keys'
"""


async def measure(url: str, port: int, rounds: int, seconds: float, kinds: list[str]) -> None:
    db = await asyncpg.connect(url, command_timeout=3600)
    small = Small(port, (await create(db, "small", "benchmark", None)).text)
    greedy = (await create(db, "org", "benchmark", None)).text
    await small.is_ready()
    await small.ask(3)
    took: dict[str, list[float]] = {kind: [] for kind in ("alone", *kinds)}
    got: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            took["alone"] += await small.ask(seconds / 2)
            before = await db.fetchval(LOOK_UPS)
            process = subprocess.Popen(  # noqa: ASYNC220 - it takes a moment, and nobody waits
                [sys.executable, "-m", "benchmarks.tenants", "--greedy", kind, str(port), greedy],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            await asyncio.sleep(2)  # it begins
            answered = await small.ask(seconds)
            took[kind] += answered
            out, _ = await asyncio.to_thread(process.communicate, "\n")
            got[kind].update(json.loads(out))
            await asyncio.sleep(1.5)  # the statistics come
            got[kind]["look-ups of keys"] += await db.fetchval(LOOK_UPS) - before - len(answered)
    await db.close()
    alone = percentile(took["alone"], 0.99)
    print(f"{'':<12}{'questions':>10}{'p50':>8}{'p99':>8}{'most':>8}{'p99 / alone':>13}   got")
    for kind, of in took.items():
        line = (
            f"{kind:<12}{len(of):>10}{percentile(of, 0.5):>8.1f}{percentile(of, 0.99):>8.1f}{max(of):>8.1f}"
        )
        told = ", ".join(f"{name}: {n:,}" for name, n in sorted(got.get(kind, Counter()).items()))
        print(f"{line}{percentile(of, 0.99) / alone:>13.1f}   {told}")


async def fill(url: str, completions: int) -> None:
    await make(url, completions, walkthroughs=1)
    db = await asyncpg.connect(url, command_timeout=3600)
    await db.execute(SMALL_ORGANIZATION)
    await db.close()


async def settle(url: str) -> None:
    db = await asyncpg.connect(url, command_timeout=3600)
    await db.execute("vacuum analyze")
    await db.close()


def main() -> None:
    if sys.argv[1:2] == ["--greedy"]:
        kind, port, key = sys.argv[2:]

        async def want() -> None:
            await Greedy(int(port), key).want(kind)

        asyncio.run(want())
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants")
    parser.add_argument("--completions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tenants-"))
    try:
        addresses = up(folder)
        os.environ |= addresses.environment()
        load_settings()
        environment = {**os.environ, "STEPSTREAM_API_KEY_RATE": "", "STEPSTREAM_API_ORGANIZATION_RATE": ""}
        run = [sys.executable, "-m", "services.operator_cli"]
        subprocess.run([*run, "migrate"], env=environment, check=True, capture_output=True)
        asyncio.run(fill(addresses.database_url, chosen.completions))
        subprocess.run([*run, "rebuild", "--execute"], env=environment, check=True, capture_output=True)
        asyncio.run(settle(addresses.database_url))
        port = free_port()
        service = subprocess.Popen([*run, "run", "analytics-api", "--port", str(port)], env=environment)
        try:
            asyncio.run(
                measure(addresses.database_url, port, chosen.rounds, chosen.seconds, list(chosen.kinds))
            )
        finally:
            service.terminate()
            service.wait(30)
    finally:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

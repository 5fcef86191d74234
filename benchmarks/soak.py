"""A long run of everything under traffic: `make soak`, or `python -m benchmarks.soak --minutes 2`.

Real servers and services, producers, an outbox and agents. What is looked at is growth: lag, the outbox and
the memory of each service over time. At the end the tables must equal what the topic says by a plain fold,
and `stepstream verify` must agree. Leaves one picture of lag and memory, and prints one line. Exits 1 when
anything differs. What breaks things at random is `make nemesis`.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from aiokafka.errors import KafkaError

from schemas import EventError, StepCompleted, decode, encode
from services.consumers.lag import lags
from services.devstack.postgres import start_postgres
from services.devstack.processes import Process, free_port
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.errors import StepstreamError
from services.runtime.producer import producer
from tests.support.agents import agent
from tests.support.cluster import Cluster
from tests.support.world import (
    AGGREGATOR,
    MCP,
    RECORDER,
    RELAY,
    Service,
    World,
    completed,
    eventually,
    make_template,
    started,
)

FLEET = {RECORDER: 2, AGGREGATOR: 2, RELAY: 2, MCP: 1}
SERVER = "srv_1"


@dataclass
class Sample:
    """One moment of the run."""

    at: float
    lag: dict[str, int | None]
    outbox: int | None
    memory: dict[str, float]


@dataclass
class Soak:
    """The servers, the processes, and what was seen of them."""

    chance: random.Random
    cluster: Cluster
    folder: Path
    database_port: int
    began: float = field(default_factory=time.monotonic)
    postgres: Process | None = None
    world: World | None = None
    fleet: dict[tuple[str, int], Service] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    calm: asyncio.Event = field(default_factory=asyncio.Event)
    counts: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    sent: set[bytes] = field(default_factory=set)
    mcp_port: int = field(default_factory=free_port)

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    @property
    def base(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.database_port}/postgres"

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Runs a statement, again and again while the database is away."""
        assert self.world is not None
        while True:
            try:
                db = await asyncpg.connect(self.world.settings.dsn, timeout=5, command_timeout=20)
                try:
                    return list(await db.fetch(statement, *arguments))
                finally:
                    db.terminate()
            except DATABASE_ERRORS:
                await asyncio.sleep(0.3)

    # --- processes --------------------------------------------------------------------------------------

    def start_database(self) -> None:
        self.postgres = start_postgres(self.folder / "postgres", self.database_port)

    def start_service(self, name: str, number: int) -> None:
        assert self.world is not None
        more: dict[str, Any] = {"session_timeout_seconds": 6, "database_timeout_seconds": 10}
        port = 0
        if name == MCP:
            port = self.mcp_port
            more |= {"public_url": f"http://127.0.0.1:{port}", "mcp_address_rate": "", "mcp_person_rate": ""}
            more |= {f"mcp_new_people_{of}rate": "" for of in ("", "address_", "server_")}
        elif name in {RECORDER, AGGREGATOR}:
            more["poll_max_records"] = self.chance.choice([50, 500, 5_000])
        self.fleet[name, number] = self.world.start(name, port, **more)

    async def supervise(self) -> None:
        """Nothing ends by itself."""
        while not self.stopping.is_set():
            for (name, _), service in self.fleet.items():
                if (code := service.process.poll()) is not None:
                    self.problems.append(f"{name} ended with {code}: {service.log.read_text()[-600:]}")
                    return
            await asyncio.sleep(0.3)

    async def add_people(self, count: int) -> None:
        names = [f"p{self.counts['people made'] + n}" for n in range(count)]
        self.counts["people made"] += count
        await self.sql("insert into mcp_server_user (id) select unnest($1::text[])", names)
        await self.sql(
            "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date,"
            " mcp_server_user_id) select 's_' || n, $2, current_date, n from unnest($1::text[]) n",
            names,
            SERVER,
        )
        self.people += names

    # --- traffic ------------------------------------------------------------------------------------------

    def events(self, count: int) -> list[dict[str, Any]]:
        """Steps and starts of people, in any order of time."""
        made = []
        for _ in range(count):
            person, at = self.chance.choice(self.people), self.chance.randrange(10**12)
            if self.chance.random() < 0.1:
                made.append(started(person, at))
            else:
                made.append(completed(person, self.chance.choice(self.steps), at))
        return made

    async def produce(self) -> None:
        """A producer of others: sends some twice, and three in a thousand that are no events."""
        assert self.world is not None
        settings = self.world.settings
        async with producer(settings, settings.topic, request_timeout_ms=10_000, linger_ms=5) as sending:
            while not self.calm.is_set():
                values = [(e["mcp_server_user_id"].encode(), encode(e)) for e in self.events(60)]
                values += self.chance.sample(values, 6)
                if self.chance.random() < 0.2:
                    values.append((b"k", f"no event {self.chance.random()}".encode()))
                try:
                    sender = await sending.start()
                    futures = [await sender.send(settings.topic, value, key=key) for key, value in values]
                    for (_, value), result in zip(
                        values, await asyncio.gather(*futures, return_exceptions=True), strict=True
                    ):
                        if isinstance(
                            result, BaseException
                        ):  # also that it was cancelled, when its batch expired
                            raise KafkaError(str(result))
                        self.sent.add(value)
                except (KafkaError, OSError, TimeoutError):
                    await sending.stop()
                    await asyncio.sleep(0.5)
                await asyncio.sleep(0.15)

    async def fill_outbox(self) -> None:
        """What the platform writes in its own transactions."""
        while not self.calm.is_set():
            rows = [(e["mcp_server_user_id"], json.dumps(e)) for e in self.events(15)]
            await self.sql(
                "insert into outbox (key, value) select * from unnest($1::text[], $2::text[])",
                [key for key, _ in rows],
                [value for _, value in rows],
            )
            self.sent |= {value.encode() for _, value in rows}
            await asyncio.sleep(0.3)

    async def lead(self, number: int) -> None:
        """A person with an agent: step by step to the end, then somebody new."""
        while not self.calm.is_set():
            self.counts["agents"] += 1
            who = f"agent-{number}-{self.counts['agents']}-{'x' * 12}"
            url = f"http://127.0.0.1:{self.mcp_port}/mcp/{SERVER}/{who}"
            for _ in range(40):
                if self.calm.is_set():
                    return
                try:
                    async with asyncio.timeout(20), agent(url) as someone:
                        await someone.raw("start_walkthrough")
                        for _ in range(5):
                            await someone.raw("get_next_step")
                            await asyncio.sleep(0.2)
                        break
                except Exception:  # noqa: BLE001 - the service was killed, or the database is away
                    await asyncio.sleep(0.5)

    # --- what is seen -------------------------------------------------------------------------------------

    async def watch(self) -> None:
        while not self.stopping.is_set():
            self.samples.append(await self.sample())
            await asyncio.sleep(1)

    async def sample(self) -> Sample:
        assert self.world is not None
        lag: dict[str, int | None] = {RECORDER: None, AGGREGATOR: None}
        outbox = None
        with contextlib.suppress(StepstreamError, KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(2):
                lag = {found.group: found.events for found in await lags(self.world.settings)}
        with contextlib.suppress(*DATABASE_ERRORS):
            db = await asyncpg.connect(self.world.settings.dsn, timeout=1, command_timeout=1)
            outbox = await db.fetchval("select count(*) from outbox")
            db.terminate()
        memory: dict[str, float] = {}
        for (name, _), service in self.fleet.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                used = psutil.Process(service.process.pid).memory_info().rss / 2**20
                memory[name] = max(memory.get(name, 0), used)
        return Sample(self.now, lag, outbox, memory)


async def run(minutes: float, seed: int, picture: Path) -> int:
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(random.Random(seed), Cluster(1), folder, free_port())
    try:
        soak.start_database()
        await soak.cluster.start_all()

        async def answers() -> bool:
            try:
                await (await asyncpg.connect(soak.base)).close()
            except DATABASE_ERRORS:
                return False
            return True

        await eventually(answers, "PostgreSQL answers")
        template = await asyncio.to_thread(make_template, soak.base)
        world = soak.world = await World.make(soak.cluster.addresses, soak.base, template)
        world.forks = False  # processes as they are in production, whose memory is looked at
        print(f"soak: {minutes:g} minutes, seed {seed}, logs in {world.folder}", file=sys.stderr)
        code = await soak_through(soak, world, minutes)
        draw(soak, picture)
        print(f"soak: picture {picture}", file=sys.stderr)
        return code
    finally:
        for service in soak.fleet.values():
            if service.process.poll() is None:
                service.kill()
        soak.cluster.stop()
        if soak.postgres is not None:
            soak.postgres.stop(10)
        if not soak.problems:
            shutil.rmtree(folder, ignore_errors=True)


async def soak_through(soak: Soak, world: World, minutes: float) -> int:
    await world.offer()
    soak.steps = list("abcde")
    await soak.add_people(300)
    for name, size in FLEET.items():
        for number in range(size):
            soak.start_service(name, number)
    supervised = asyncio.create_task(soak.supervise())
    watched = asyncio.create_task(soak.watch())
    work = [soak.produce(), soak.fill_outbox(), *(soak.lead(n) for n in range(3))]
    traffic = [asyncio.create_task(w) for w in work]
    end = time.monotonic() + minutes * 60
    while time.monotonic() < end and not soak.problems:
        for task in (*traffic, supervised, watched):
            if task.done():
                task.result()
        await asyncio.sleep(0.5)
    soak.calm.set()
    await asyncio.gather(*traffic)
    calm_at = soak.now
    await drained(soak, world)
    drained_after = soak.now - calm_at
    await verdict(soak, world)
    soak.stopping.set()
    await asyncio.gather(supervised, watched)
    for service in soak.fleet.values():
        if service.process.poll() is None and service.terminate() != 0:
            soak.problems.append(f"{service.name} ended with {service.process.returncode} at SIGTERM")
    tell(soak, drained_after)
    return 1 if soak.problems else 0


async def drained(soak: Soak, world: World) -> None:
    async def done() -> bool:
        try:
            rest = await soak.sql(
                "select (select count(*) from outbox) + (select count(*) from sankey_dirty) as n"
            )
            return rest[0]["n"] == 0 and all(lag.events == 0 for lag in await lags(world.settings))
        except (StepstreamError, KafkaError, OSError):
            return False

    try:
        await eventually(done, "drained", 180, every=0.3)
    except AssertionError as error:
        soak.problems.append(str(error))


async def verdict(soak: Soak, world: World) -> None:
    """The tables against a plain fold of what the topic holds, and against `stepstream verify`."""
    world.db = await asyncpg.connect(world.settings.dsn)
    records = await world.events()
    values = {record.value for record in records}
    lost = len(soak.sent - values)
    if lost:
        soak.problems.append(f"{lost} acknowledged events are not in the topic")
    known = {
        name: {row[0] for row in await world.db.fetch(f"select {column} from {table}")}
        for name, table, column in (
            ("users", "mcp_server_user", "id"),
            ("sessions", "mcp_server_session", "mcp_server_session_id"),
            ("steps", "walkthrough_steps", "id"),
        )
    }
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for record in records:
        try:
            event = decode(record.value, 2**62)
        except EventError:
            continue
        exists = (
            event.mcp_server_user_id in known["users"] and event.mcp_server_session_id in known["sessions"]
        )
        if isinstance(event, StepCompleted) and exists and event.step_id in known["steps"]:
            key = event.mcp_server_user_id, event.step_id
            best[key] = min(best.get(key, (2**63, "")), (event.completed_at, event.event_id))
    found = await world.completions()
    if found != best:
        differing = len(set(found.items()) ^ set(best.items()))
        soak.problems.append(f"{differing} completions differ from the fold of the topic")
    if await world.transitions() != await world.walked():
        soak.problems.append("transitions differ from a walk over the completions")
    checked = await asyncio.to_thread(world.command, "verify")
    if checked.returncode != 0:
        soak.problems.append(f"verify exits {checked.returncode}: {checked.stderr[-400:]}")
    soak.counts["events in the topic"] = len(records)
    soak.counts["completions"] = len(found)
    soak.counts["dead letters"] = len(await world.dead_letters())


def tell(soak: Soak, drained_after: float) -> None:
    """One line for the run, and one for each problem."""
    most = {name: max(s.memory.get(name, 0) for s in soak.samples) for name in FLEET}
    memory = ", ".join(f"{name} {used:.0f} MB" for name, used in most.items())
    for problem in soak.problems:
        print(f"PROBLEM: {problem}")
    print(
        f"{'NOT EXACT' if soak.problems else 'exact'}: {soak.counts['events in the topic']} events, "
        f"{soak.counts['completions']} completions, {soak.counts['dead letters']} dead letters, "
        f"drained {drained_after:.0f} s after the last; most memory: {memory}"
    )


def draw(soak: Soak, picture: Path) -> None:
    """Lag and memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(14, 8), sharex=True, layout="constrained")
    at = [s.at for s in soak.samples]

    def line(axis: Any, values: Sequence[float | None], label: str) -> None:
        axis.plot(at, [float("nan") if v is None else v for v in values], label=label, linewidth=1.3)

    for group in (RECORDER, AGGREGATOR):
        line(above, [s.lag[group] for s in soak.samples], f"lag of {group}")
    line(above, [s.outbox for s in soak.samples], "outbox")
    for name in FLEET:
        line(below, [s.memory.get(name) for s in soak.samples], name)
    above.set_ylabel("events")
    above.set_yscale("symlog", linthresh=10)
    above.set_ylim(bottom=0)
    below.set_ylabel("memory of the largest instance, MB")
    below.set_ylim(bottom=0)
    below.set_xlabel("seconds")
    above.set_title(
        "NOT EXACT" if soak.problems else "Exact at the end: every cell equals the fold of the topic"
    )
    for axis in (above, below):
        axis.legend(loc="upper left", fontsize=8, ncols=3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    parser.add_argument("--picture", type=Path, default=Path("soak.png"))
    args = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if not 0 < args.minutes <= 120:
        parser.error("--minutes is more than 0 and at most 120")
    sys.exit(asyncio.run(run(args.minutes, args.seed, args.picture)))


if __name__ == "__main__":
    main()

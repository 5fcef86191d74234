"""The embedded stack of a run: databases, topics, and the services as processes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import psutil

from benchmarks.suite.results import BenchError
from benchmarks.suite.usage import Meter, postmaster
from benchmarks.suite.workloads import COLUMNS, Rows, Workload, wrong_share
from schemas import encode
from services.devstack import Addresses
from services.devstack.processes import free_port
from services.runtime.kafka import admin_client, ensure_topics
from services.runtime.migrate import migrate
from services.runtime.producer import producer
from services.runtime.settings import Settings
from services.sankey_aggregator.verify import verify

RECORDER, AGGREGATOR, RELAY = "completion-recorder", "sankey-aggregator", "outbox-relay"
RECORDED = "select coalesce(sum(next_offset), 0)::bigint from recorded_offsets"
#: Nothing is counted as long as a journey is marked to be counted again.
COUNTED = (
    "select case when exists (select from sankey_dirty) then 0 else"
    " coalesce(sum(next_offset), 0)::bigint end from counted_offsets"
)
TABLE = "walkthrough_step_completions"
#: Nothing that is measured takes so long; what does has failed without ending.
PATIENCE = 900
_CHECK_SECONDS = 0.01
#: As the recorder's sessions: without it, triggers mark journeys for what is written.
AS_RECORDER = {"stepstream.recorder": "on"}


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    events: int
    quick: bool = False
    #: Whether Kafka Connect is among the peers.
    connect: bool = False


@dataclass
class Running:
    """A service, or another program, as a process that writes its log to a file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    port: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raises BenchError where it has ended."""
        if (code := self.process.poll()) is not None:
            raise BenchError(f"{self.name} ended with {code}:\n{self._end_of_log()}")

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def ask_to_end(self) -> None:
        """SIGTERM."""
        self.check()
        self.thaw()
        self.process.terminate()

    def ended(self) -> None:
        """Waits for the end. A service that does not end by SIGTERM, or not with 0, has failed."""
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} does not end at SIGTERM:\n{self._end_of_log()}") from None
        if code:
            raise BenchError(f"{self.name} ended with {code} at SIGTERM:\n{self._end_of_log()}")

    def end(self) -> None:
        """Ends it whatever it does, and what it has started."""
        if self.process.poll() is None:
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.kill()
            self.process.wait()

    async def ready(self) -> None:
        """Waits until it says that it is ready."""
        async with httpx2.AsyncClient(verify=False) as client, asyncio.timeout(PATIENCE):
            while True:
                self.check()
                with contextlib.suppress(httpx2.HTTPError):
                    answer = await client.get(f"http://127.0.0.1:{self.port}/health/ready", timeout=2)
                    if answer.status_code == 200:
                        return
                await asyncio.sleep(0.01)

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]


@dataclass
class Bench:
    """What all sections share."""

    options: Options
    folder: Path
    kafka: str
    base_url: str
    #: The processes of the servers.
    servers: dict[str, int]
    _templates: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def on(cls, addresses: Addresses, folder: Path, options: Options) -> "Bench":
        db = await asyncpg.connect(addresses.database_url)
        state = json.loads((folder / "stack.json").read_text())
        servers = {"postgres": await postmaster(db), "kafka": state["kafka"]["process"]["pid"]}
        await db.close()
        (folder / "logs").mkdir(exist_ok=True)
        return cls(options, folder, addresses.kafka_bootstrap_servers, addresses.database_url, servers)

    def url(self, database: str) -> str:
        return self.base_url.rsplit("/", 1)[0] + "/" + database

    async def _template(self, workload: Workload) -> str:
        """A migrated database with what the workload refers to, which others are copied from."""
        if workload.key not in self._templates:
            name = f"template_{uuid.uuid4().hex[:8]}"
            await self._admin(f"create database {name}")
            db = await asyncpg.connect(self.url(name), server_settings=AS_RECORDER)
            await migrate(db)
            await workload.references(db)
            await db.close()
            self._templates[workload.key] = name
        return self._templates[workload.key]

    async def _admin(self, statement: str) -> None:
        db = await asyncpg.connect(self.base_url)
        await db.execute(statement)
        await db.close()

    @contextlib.asynccontextmanager
    async def world(self, workload: Workload, partitions: int = 6, **more: Any) -> AsyncIterator["World"]:
        """A database and a topic of their own; `more` are settings."""
        name = f"bench_{uuid.uuid4().hex[:8]}"
        template = await self._template(workload)
        await self._admin(f"create database {name} template {template}")
        settings = Settings(
            kafka_bootstrap_servers=self.kafka,  # type: ignore[arg-type]
            database_url=self.url(name),  # type: ignore[arg-type]
            topic=name,
            topic_partitions=partitions,
            group_prefix=f"{name}.",
            log_level="WARNING",
            **more,
        )
        await ensure_topics(settings)
        db = await asyncpg.connect(settings.dsn, server_settings=AS_RECORDER)
        world = World(self, settings, db)
        try:
            yield world
        finally:
            for process in world.processes:
                process.end()
            await db.close()
            async with admin_client(settings) as admin:
                await admin.delete_topics([settings.topic, settings.dead_letter_topic])
            await self._admin(f"drop database {name} with (force)")


@dataclass
class World:
    """A database and a topic, and what runs on them."""

    bench: Bench
    settings: Settings
    db: asyncpg.Connection
    processes: list[Running] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """The settings for processes."""
        given = self.settings.model_dump(exclude_unset=True)
        given |= {"database_url": self.settings.dsn, "kafka_bootstrap_servers": self.bench.kafka}
        return dict(os.environ) | {f"STEPSTREAM_{name.upper()}": str(value) for name, value in given.items()}

    def launch(self, name: str, command: Sequence[str], port: int = 0) -> Running:
        log = self.bench.folder / "logs" / f"{name}-{uuid.uuid4().hex[:6]}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=self.environment(), stdout=out, stderr=subprocess.STDOUT)
        running = Running(name, process, log, port)
        self.processes.append(running)
        return running

    def start(self, service: str) -> Running:
        port = free_port()
        stepstream = str(Path(sys.executable).with_name("stepstream"))
        return self.launch(service, [stepstream, "run", service, "--port", str(port)], port)

    async def start_ready(self, *services: str) -> list[Running]:
        """Starts them at once; each has partitions, and none is about to get those of another."""
        running = [self.start(service) for service in services]
        for _ in running[:2]:
            for one in running:
                await one.ready()
        return running

    def meter(self, *running: Running) -> Meter:
        return Meter([one.pid for one in running], self.bench.servers)

    async def reached(self, query: str, goal: int) -> None:
        """Waits until a query says at least so much, as long as everything runs."""
        await self.until(lambda: self._at_least(query, goal), query)

    async def _at_least(self, query: str, goal: int) -> bool:
        return bool(await self.db.fetchval(query) >= goal)

    async def until(self, done: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not await done():
                    for one in self.processes:
                        one.check()
                    await asyncio.sleep(_CHECK_SECONDS)
        except TimeoutError:
            raise BenchError(f"not after {PATIENCE} s: {what}") from None

    def stop(self, *running: Running) -> None:
        """All at once: who is stopped keeps no other waiting that leaves the same group."""
        for one in running:
            one.ask_to_end()
        for one in running:
            one.ended()
            self.processes.remove(one)

    async def produce(self, events: Iterable[dict[str, Any]], topic: str | None = None) -> None:
        topic = topic or self.settings.topic
        async with producer(self.settings, linger_ms=20, max_batch_size=512 * 1024) as sending:
            sender = await sending.start()
            waiting = []
            for event in events:
                key = event["mcp_server_user_id"].encode()
                waiting.append(await sender.send(topic, encode(event), key=key))
                if len(waiting) == 20_000:
                    await asyncio.gather(*waiting)
                    waiting.clear()
            await asyncio.gather(*waiting)

    async def settle(self) -> None:
        """What was written so far costs nothing of what is measured next."""
        await self.db.execute(f"vacuum analyze {TABLE}")
        await self.db.execute("checkpoint")

    async def rows(self) -> Rows:
        found = await self.db.fetch(f"select {COLUMNS[1]}, step_id, completed_at, id from {TABLE}")
        return {(user, step): (at, of) for user, step, at, of in found}

    async def wrong(self, events: Iterable[dict[str, Any]]) -> float:
        """The share of wrong rows."""
        return wrong_share(events, await self.rows())

    async def must_be_right(self, workload: Workload) -> None:
        """Raises BenchError where a row of the recorder is not of the earliest event."""
        if share := await self.wrong(workload.events):
            raise BenchError(f"of {workload.name} {share:.2%} of the recorder's rows are wrong")

    async def must_be_exact(self) -> None:
        """As `stepstream verify` sees it."""
        outcome = await verify(self.settings)
        if outcome.differing or outcome.why:
            raise BenchError(f"{outcome.differing} cells or journeys differ: {'; '.join(outcome.why)}")

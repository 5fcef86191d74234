"""What a round breaks: servers, proxies, services as processes, and whoever starts again what ends."""

import asyncio
import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from pydantic import SecretStr

from services.analytics_api.keys import create as make_key
from services.devstack.processes import free_port
from services.runtime.database_errors import DATABASE_ERRORS
from tests.nemesis.servers import ProxiedCluster, Server, SmallDisk, Template, remove
from tests.nemesis.tools import slow_fsync
from tests.support.proxy import Proxy
from tests.support.world import (
    _OF_DATABASE,
    AGGREGATOR,
    API,
    MCP,
    RECORDER,
    RELAY,
    Api,
    Service,
    World,
    create_database,
    eventually,
)

SERVICES = (RECORDER, AGGREGATOR, RELAY, API)
CONSUMERS = (RECORDER, AGGREGATOR)
#: All that run in a round; faults of the network are drawn of `SERVICES`.
EVERYBODY = (*SERVICES, MCP)
#: What a fault may ask of the deployment.
STANDBY, THREE_BROKERS, SMALL_DATABASE, SMALL_KAFKA, SLOW_FSYNC = (
    "a standby",
    "three brokers",
    "a small disk for PostgreSQL",
    "a small disk for Kafka",
    "an fsync that can be slow",
)

WALKTHROUGHS = {f"wt_{x}": [f"{x}{n}" for n in range(1, 6)] for x in "abc"}
SERVERS = ("srv_1", "srv_2")
#: What agents are led through: a walkthrough, its steps, and the server that offers it.
LED, LED_STEPS, LED_BY = "wt_led", [f"led{n:02}" for n in range(20)], "srv_led"
PEOPLE = {f"u{n:03}": SERVERS[n % 2] for n in range(600)}

#: So that a connection on which nothing comes back is given up within a round.
_PATIENCE = {
    "database_timeout_seconds": 6,
    "commit_timeout_seconds": 5,
    "relay_send_timeout_seconds": 8,
    "drain_timeout_seconds": 8,
    "metadata_max_age_seconds": 2,
    "log_level": "INFO",
}


@dataclass
class Bench:
    """What rounds share: a template of the database, and a broker that no fault has ruined."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="nemesis-")))
    cluster: ProxiedCluster | None = None
    _template: Template | None = None

    async def template(self) -> Template:
        if self._template is None:
            self._template = Template(self.folder / "template")
            await self._template.make()
        return self._template

    async def one_broker(self) -> ProxiedCluster:
        if self.cluster is None:
            self.cluster = ProxiedCluster(1)
            await self.cluster.open()
        return self.cluster

    async def renew(self) -> None:
        """Gives up the broker, of which nobody knows in which state it is."""
        if self.cluster is not None:
            await self.cluster.close()
        self.cluster = None

    async def close(self) -> None:
        await self.renew()
        await asyncio.to_thread(remove, self.folder)


class Timeline:
    """What happened when; printed as it happens where somebody looks."""

    def __init__(self, *, aloud: bool = False) -> None:
        self.began = time.monotonic()
        self.lines: list[str] = []
        self._aloud = aloud

    def note(self, what: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {what}"
        self.lines.append(line)
        if self._aloud:
            print(f"  {line}", file=sys.stderr, flush=True)


class Deployment:
    """One database, one Kafka and one instance of each service, each behind proxies of its own."""

    def __init__(
        self, cluster: ProxiedCluster, primary: Server, folder: Path, timeline: Timeline, *, shared: bool
    ) -> None:
        self.cluster = cluster
        self.primary = primary
        self.standby: Server | None = None
        self.folder = folder
        self.timeline = timeline
        self.world: World
        self.api: Api
        self.disks: dict[str, SmallDisk] = {}
        self.fsync_file = folder / "fsync-milliseconds"
        #: One before the database for each service, and one for the standby.
        self.database_proxies: dict[str, Proxy] = {}
        self.replication: Proxy | None = None
        self.extra: list[Service] = []
        self._fleet: dict[str, Service] = {}
        self._held: set[str] = set()
        self._expected: set[int] = set()
        self._clocks: dict[str, Mapping[str, str]] = {}
        self._api_port = free_port()
        self.mcp_port = free_port()
        self._shared = shared
        self._servers = [primary]
        self._supervisor: asyncio.Task[None] | None = None
        #: Services that ended although nobody ended them: (name, code, the end of the log).
        self.exits: list[tuple[str, int, str]] = []

    # --- open and close -------------------------------------------------------------------------------

    @classmethod
    async def open(cls, bench: Bench, needs: Iterable[str], folder: Path, timeline: Timeline) -> "Deployment":
        """All of it, running and ready, with the rows that events refer to."""
        needs, disks = set(needs), {}
        template = await bench.template()
        own = needs & {THREE_BROKERS, SMALL_KAFKA}
        if own:
            cluster = ProxiedCluster(3 if THREE_BROKERS in needs else 1)
            if SMALL_KAFKA in needs:
                disks[SMALL_KAFKA] = SmallDisk(cluster.folder, 120)
            await cluster.open()
        else:
            cluster = await bench.one_broker()
        if SMALL_DATABASE in needs:
            disks[SMALL_DATABASE] = SmallDisk(folder / "primary", 260)
        primary = await asyncio.to_thread(template.server, folder / "primary")
        made = cls(cluster, primary, folder, timeline, shared=not own)
        made.disks = disks
        try:
            await made._start(template.database, needs)
        except BaseException:
            await made.close()
            raise
        return made

    async def _start(self, template: str, needs: set[str]) -> None:
        if SLOW_FSYNC in needs:
            self.primary.preload = {
                "LD_PRELOAD": str(slow_fsync()),
                "SLOW_FSYNC_FILE": str(self.fsync_file),
            }
        self.primary.start()
        await self.primary.answers()
        world = self.world = await World.make(self.cluster.addresses, self.primary.url(), template)
        remove(world.folder)
        world.folder = self.folder
        for walkthrough, steps in WALKTHROUGHS.items():
            for server in SERVERS:
                await world.offer(walkthrough, steps, server)
        await world.offer(LED, LED_STEPS, LED_BY)
        for server in SERVERS:
            await world.people([user for user, its in PEOPLE.items() if its == server], server)
        key = (await make_key(world.db, "org", "nemesis", None)).text
        if STANDBY in needs:
            await self._make_standby()
        for name in EVERYBODY:
            self.database_proxies[name] = Proxy("127.0.0.1", self.primary.port)
            await self.database_proxies[name].listen()
            self.start_service(name)
        for service in list(self._fleet.values()):
            await service.ready()
        self.api = Api(world, f"http://127.0.0.1:{self._api_port}")
        self.api.key = key
        self._supervisor = asyncio.create_task(self._supervise())

    async def _make_standby(self) -> None:
        self.replication = Proxy("127.0.0.1", self.primary.port)
        await self.replication.listen()
        folder = self.folder / "standby"
        standby = self.standby = await asyncio.to_thread(self.primary.copy, folder, self.replication.port)
        self._servers.append(standby)
        standby.start()
        await standby.answers()

        async def streams() -> bool:
            return bool(await self.world.db.fetchval("select count(*) from pg_stat_replication") == 1)

        await eventually(streams, "the standby follows", 30)

    async def close(self) -> None:
        """Ends everything; logs stay in the folder."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        for service in [*self._fleet.values(), *self.extra]:
            if service.process.poll() is None:
                service.process.send_signal(signal.SIGCONT)
                service.kill()
        if hasattr(self, "api"):
            await self.api.http.aclose()
        if hasattr(self, "world"):
            self.world.db.terminate()
        for proxy in [*self.database_proxies.values(), *([self.replication] if self.replication else [])]:
            await proxy.close()
        await self._close_servers()

    async def _close_servers(self) -> None:
        folders = [server.folder for server in self._servers]
        for server in self._servers:
            await asyncio.to_thread(server.kill)
            self._keep_log(server.folder / "postgres.log", f"postgres-{server.folder.name}.log")
        if not self._shared:
            for broker in self.cluster.brokers:
                self._keep_log(broker.folder / "kafka.log", f"kafka-{broker.number}.log")
            await self.cluster.close()
            folders.append(self.cluster.folder)
        for disk in self.disks.values():
            disk.close()
        for folder in folders:
            await asyncio.to_thread(remove, folder)

    def _keep_log(self, log: Path, name: str) -> None:
        if log.exists():
            shutil.copy(log, self.folder / name)

    # --- services -------------------------------------------------------------------------------------

    def settings_of(self, name: str, database: str | None = None) -> dict[str, Any]:
        """What leads a service through its proxies, to the database or to another one of the same server."""
        port = self.database_proxies[name].port
        database = database or self.database
        return _PATIENCE | {
            "kafka_bootstrap_servers": self.cluster.through(name),
            "database_url": f"postgresql://postgres@127.0.0.1:{port}/{database}",
        }

    @property
    def database(self) -> str:
        return self.world.settings.dsn.rsplit("/", 1)[1]

    def start_service(self, name: str) -> None:
        """Starts, or starts again, a service; with another clock, where it is to have one."""
        port = {API: self._api_port, MCP: self.mcp_port}.get(name, 0)
        settings = self.settings_of(name)
        if name == MCP:
            settings["public_url"] = f"http://127.0.0.1:{port}"
        clock = self._clocks.get(name)
        if clock is None:
            self._fleet[name] = self.world.start(name, port, **settings)
            return
        log = self.folder / f"{name}-{len(self.world.services)}.log"
        command = [sys.executable, "-m", "services.operator_cli", "run", name, "--port", str(port)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env={**self.world.environment(name, **settings), **clock}, stdout=out, stderr=out
            )
        self._fleet[name] = Service(name, process, log)
        self.world.services.append(self._fleet[name])

    def start_another(self, name: str, database: str | None = None) -> Service:
        """One more instance, which nobody starts again."""
        service = self.world.start(name, 0, **self.settings_of(name, database))
        self.extra.append(service)
        return service

    def send(self, name: str, number: int) -> None:
        service = self._fleet[name]
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self._expected.add(service.process.pid)
        service.process.send_signal(number)

    async def end(self, *names: str, how: int = signal.SIGTERM) -> None:
        """Ends services, which stay down until they are released."""
        self._held |= set(names)
        for name in names:
            self.send(name, how)
        for name in names:
            process = self._fleet[name].process
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait, 20)

    def release(self, *names: str) -> None:
        """Starts what was ended."""
        for name in names:
            self.start_service(name)
        self._held -= set(names)

    def set_clock(self, name: str, environment: Mapping[str, str] | None) -> None:
        """The environment with which a service is started from now on."""
        if environment is None:
            self._clocks.pop(name, None)
        else:
            self._clocks[name] = environment

    async def _supervise(self) -> None:
        """Starts again whatever ends, as an orchestrator does."""
        while True:
            for name, service in list(self._fleet.items()):
                code = service.process.poll()
                if code is None or name in self._held:
                    continue
                if service.process.pid not in self._expected:
                    said = service.log.read_text(errors="replace").strip()
                    self.exits.append((name, code, said[-600:]))
                    last = re.sub(r"\s+", " ", said.rsplit("\n", 1)[-1])[:160]
                    self.timeline.note(f"{name} ended by itself with {code}: {last}")
                self.start_service(name)
            if self.primary.is_wanted and self.primary.process and self.primary.process.find() is None:
                self.timeline.note("PostgreSQL ended by itself, and is started again")
                await asyncio.to_thread(self.primary.start)
            for broker in self.cluster.brokers:
                if (
                    self.cluster.is_wanted.get(broker.number)
                    and broker.process
                    and broker.process.find() is None
                ):
                    self.timeline.note(f"broker {broker.number} ended by itself, and is started again")
                    await asyncio.to_thread(self.cluster.start, broker)
            await asyncio.sleep(0.5)

    # --- the database ---------------------------------------------------------------------------------

    async def sql(self, statement: str, *arguments: Any, seconds: float = 30) -> Sequence[asyncpg.Record]:
        """Runs a statement on the primary of the moment, again and again while it is away."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                db = await asyncpg.connect(self.world.settings.dsn, timeout=5, command_timeout=15)
                try:
                    return await db.fetch(statement, *arguments)
                finally:
                    db.terminate()
            except DATABASE_ERRORS:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.3)

    async def use(self, server: Server, database: str) -> None:
        """Leads everybody to a database from now on; connections that there are break."""
        self.primary = server
        url = SecretStr(server.url(database))
        self.world.settings = self.world.settings.model_copy(update={"database_url": url})
        self.world.base = server.url()
        for proxy in self.database_proxies.values():
            proxy.aim(server.port)
            proxy.cut()
        with contextlib.suppress(*DATABASE_ERRORS):
            self.world.db.terminate()
        self.world.db = await asyncpg.connect(self.world.settings.dsn)

    async def reconnect(self) -> None:
        """Our own connection, after the server was away."""
        await self.use(self.primary, self.database)

    async def copy_database(self, name: str, dumped: Path) -> None:
        """Another database of the same server from a dump, with what the roles may do in it."""
        url = await create_database(self.primary.url(), name)
        await asyncio.to_thread(self.primary.restore, dumped, name)
        db = await asyncpg.connect(url)
        await db.execute(_OF_DATABASE)
        await db.close()

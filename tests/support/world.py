"""What integration tests share: reference rows, events, real processes, and waiting on conditions."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import httpx2
import uvicorn
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from pydantic import SecretStr
from typer.testing import CliRunner

from schemas import OPERATOR_SOURCES
from schemas.events import MIN_TIME_MS
from services.analytics_api.app import AnalyticsProcess
from services.analytics_api.keys import create as make_key
from services.completion_recorder import connections as recorder_connections
from services.consumers.lag import GROUPS, read_groups_with
from services.consumers.reader import reader
from services.consumers.topic import describe_log, high_watermarks
from services.devstack.processes import free_port
from services.operator_cli.app import app as command_line
from services.runtime.bounds import trusted_proxies
from services.runtime.connections import Connections, Limits
from services.runtime.database import Connection, Pool, open_pool
from services.runtime.errors import StepstreamError
from services.runtime.kafka import Record, admin_client, ensure_topics
from services.runtime.migrate import migrate
from services.runtime.process import server_config
from services.runtime.producer import NULL, producer
from services.runtime.settings import Settings
from services.sankey_aggregator import counting
from services.walkthrough_mcp.app import McpProcess
from tests.support.truth import differences
from tests.support.zygote import Forked, build_commands_once, zygote

build_commands_once()

RECORDER, AGGREGATOR = GROUPS
RELAY, MCP, API = "outbox-relay", "walkthrough-mcp", "analytics-api"
#: Who uses the command line; `migrate` is for the owner of the tables.
OPERATOR = "operator"
PATIENCE = 90.0

#: The role that each has in the database, as `ops/roles.sql` makes them.
ROLES = {
    RECORDER: "stepstream_recorder",
    AGGREGATOR: "stepstream_aggregator",
    RELAY: "stepstream_relay",
    MCP: "stepstream_mcp",
    API: "stepstream_api",
    OPERATOR: "stepstream_operator",
}
ROLES_SQL = (Path(__file__).parents[2] / "ops" / "roles.sql").read_text()
#: What the file says of a database, and not of tables: a copy of a template has to be told again.
_OF_DATABASE = ROLES_SQL.partition("\n-- --- tables ---")[0]
ROLE_PASSWORD = "of a role"


async def eventually(
    condition: Callable[[], Awaitable[Any]], what: str, seconds: float = PATIENCE, every: float = 0.05
) -> Any:
    """Waits until the condition is true, and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        await asyncio.sleep(every)


def _url(base: str, database: str) -> str:
    return base.rsplit("/", 1)[0] + "/" + database


def as_role(url: str, service: str, owner: str) -> str:
    """The URL with the role of a service, where it has the owner of the tables; any other stays."""
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    if service not in ROLES or user != urlsplit(owner).netloc.rpartition("@")[0]:
        return url
    return urlunsplit(parts._replace(netloc=f"{ROLES[service]}:{quote(ROLE_PASSWORD)}@{hosts}"))


async def _make_roles(admin: "asyncpg.Connection[asyncpg.Record]") -> None:
    """The roles of `ops/roles.sql`, which sign in with a password here."""
    for role in ROLES.values():
        may = await admin.fetchval("select rolcanlogin from pg_roles where rolname = $1", role)
        if not may:
            change = "create" if may is None else "alter"
            await admin.execute(f"{change} role {role} login password '{ROLE_PASSWORD}'")


def make_template(base: str) -> str:
    """Makes a migrated database to copy."""
    name = f"template_{uuid.uuid4().hex[:8]}"

    async def make() -> None:
        await create_database(base, name)
        admin, connection = await asyncpg.connect(base), await asyncpg.connect(_url(base, name))
        await admin.execute("select pg_advisory_lock(1)")  # roles are the server's: one worker at a time
        await _make_roles(admin)
        await migrate(connection)
        await connection.execute(ROLES_SQL)
        await connection.close()
        await admin.close()

    asyncio.run(make())
    return name


async def create_database(base: str, name: str, template: str = "template0") -> str:
    admin = await asyncpg.connect(base)
    await admin.execute(f"create database {name} template {template} strategy file_copy")
    await admin.close()
    return _url(base, name)


async def drop_database(base: str, name: str) -> None:
    admin = await asyncpg.connect(base)
    await admin.execute(f"drop database if exists {name} with (force)")
    await admin.close()


def _content(step: str) -> str:
    return json.dumps(
        {
            "version": "v1",
            "introductionForAgent": f"introduction of {step}",
            "contextForAgent": f"context of {step}",
            "contentForUser": f"content of {step}",
            "operationsForAgent": f"operations of {step}",
        }
    )


@dataclass
class Service:
    """A service running as a real process."""

    name: str
    process: subprocess.Popen[bytes] | Forked
    log: Path

    @property
    def port(self) -> int:
        """Where its health and metrics are; it says so when it starts. 0 before."""
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log.read_text())
        return int(found[1]) if found else 0

    async def ready(self) -> "Service":
        """Waits until it says that it is ready."""

        def look() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                url = f"http://127.0.0.1:{self.port}/health/ready"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    return bool(answer.status == 200)
            except (OSError, ValueError):
                return False

        await eventually(lambda: asyncio.to_thread(look), f"{self.name} is ready")
        return self

    def kill(self) -> None:
        """SIGKILL, now."""
        self.process.kill()
        self.process.wait()

    def wait_until_it_hears_sigterm(self) -> None:
        """Before that, the interpreter is still starting, and the signal's default ends it."""
        status = Path(f"/proc/{self.process.pid}/status")
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and status.exists() and time.monotonic() < deadline:
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE)
            if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                return
            time.sleep(0.005)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.wait_until_it_hears_sigterm()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class _Inside(Service):
    """A service that this process serves itself: it has an address, and no log and no signals of its own."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self._port = port

    @property
    def port(self) -> int:
        return self._port


class Api:
    """A client of analytics-api with a key; `get` takes a path below /v1."""

    def __init__(self, world: "World", url: str) -> None:
        self.world = world
        self.url = url
        self.key = ""
        self.http = httpx2.AsyncClient(base_url=url, timeout=PATIENCE)

    async def ask(
        self, path: str, *, key: str | None = None, headers: dict[str, str] | None = None, **query: Any
    ) -> httpx2.Response:
        """The response to a question."""
        given = {"Authorization": f"Bearer {self.key if key is None else key}"} | (headers or {})
        params = {name.rstrip("_"): value for name, value in query.items() if value is not None}
        return await self.http.get(f"/v1/{path}", headers=given, params=params)

    async def get(self, path: str, **query: Any) -> Any:
        """What is answered."""
        response = await self.ask(path, **query)
        assert response.status_code == 200, response.text
        return response.json()


class _QuietServer(uvicorn.Server):
    """Leaves this process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def metric(service: Service, name: str) -> float:
    """The sum of a metric's samples."""

    def read() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=PATIENCE) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name
        )

    return await asyncio.to_thread(read)


#: Whether no event waits for a lock, but for one that a test holds; the services are quicker.
_NONE_WAITS = """
select
  not exists (select from waiting_events)
  or exists (select from pg_prepared_xacts where database = current_database())
  or exists (
    select from pg_stat_activity
    where datname = current_database() and state = 'idle in transaction'
      and xact_start < clock_timestamp() - interval '1 s'
  )
"""


#: Topics, by address and number of partitions, that a test has left as they were made: half of all tests send no
#: event, and to make topics and remove them takes a broker longer than much of what is tested.
_UNTOUCHED: defaultdict[tuple[str, int], list[str]] = defaultdict(list)


async def _are_empty(admin: AIOKafkaAdminClient, settings: Settings) -> bool:
    """Whether neither topic ever held anything."""
    for topic in (settings.topic, settings.dead_letter_topic):
        ends = await high_watermarks(admin._client, topic, await describe_log(admin._client, topic))
        if len(ends) != settings.topic_partitions or any(ends.values()):
            return False
    return True


@dataclass
class World:
    """A database and topics of a test's own. Who changes how the topics are set says so in `is_topic_changed`."""

    base: str
    settings: Settings
    db: "asyncpg.Connection[asyncpg.Record]"
    folder: Path
    services: list[Service] = field(default_factory=list)
    pools: list[Pool] = field(default_factory=list)
    serving: list[tuple[uvicorn.Server, asyncio.Task[None]]] = field(default_factory=list)
    clients: list[httpx2.AsyncClient] = field(default_factory=list)
    forks: bool = True
    is_topic_changed: bool = False

    @classmethod
    async def make(
        cls,
        kafka: str,
        base: str,
        template: str,
        topic: str | None = None,
        group_prefix: str | None = None,
        partitions: int = 3,
    ) -> "World":
        name = f"t_{uuid.uuid4().hex[:12]}"
        url = await create_database(base, name, template)
        untouched = [] if topic else _UNTOUCHED[kafka, partitions]  # by address, as `_leave_topics` has it
        is_new = not untouched
        settings = Settings(
            kafka_bootstrap_servers=kafka,
            database_url=url,
            topic=topic or (name if is_new else untouched.pop()),
            topic_partitions=partitions,
            group_prefix=f"{name}." if group_prefix is None else group_prefix,
            session_timeout_seconds=6,
        )
        if is_new:
            await ensure_topics(settings)
        db = await asyncpg.connect(url)
        if template != "template0":
            await db.execute(_OF_DATABASE)
        return cls(
            base, settings, db, Path(tempfile.mkdtemp(prefix="world-")), is_topic_changed=topic is not None
        )

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()
        for server, task in self.serving:
            server.should_exit = True
            await task
        for service in self.services:
            if service.process.poll() is None:
                service.kill()
        for pool in self.pools:
            pool.terminate()
        await self.db.close()
        await drop_database(self.base, self.settings.dsn.rsplit("/", 1)[1])
        await self._leave_topics()
        if keep := os.environ.get("STEPSTREAM_TEST_LOGS"):
            shutil.copytree(self.folder, Path(keep) / self.folder.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _leave_topics(self) -> None:
        """Leaves the topics to the next test, where they are as they were made; else removes them."""
        settings = self.settings
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
        await admin.start()
        try:
            if not self.is_topic_changed:
                with contextlib.suppress(KafkaError):
                    if await _are_empty(admin, settings):
                        key = ",".join(settings.kafka_bootstrap_servers), settings.topic_partitions
                        _UNTOUCHED[key].append(settings.topic)
                        return
            await admin.delete_topics([settings.topic, settings.dead_letter_topic])
        finally:
            await admin.close()

    # --- reference rows -------------------------------------------------------------------------------

    async def offer(
        self, walkthrough: str = "wt_a", steps: Sequence[str] = "abcde", server: str = "srv_1"
    ) -> None:
        """A server that offers a walkthrough with these steps; repeated calls add what is missing."""
        await self.db.execute(
            "insert into organization (id, name, created_at) values ('org', 'org', now()) on conflict do nothing"
        )
        await self.db.execute(
            "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
            " values ($1, 'org', $1, $1, $1) on conflict do nothing",
            server,
        )
        await self.db.execute(
            "insert into walkthroughs (id, organization_id, title, status)"
            " values ($1, 'org', $1, 'published') on conflict do nothing",
            walkthrough,
        )
        await self.db.executemany(
            "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
            " values ($1, $2, 'title of ' || $1, $4, $3) on conflict do nothing",
            [(step, walkthrough, i, _content(step)) for i, step in enumerate(steps)],
        )
        await self.db.execute(
            "insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id)"
            " values ($1 || $2, $1, $2) on conflict do nothing",
            server,
            walkthrough,
        )

    async def people(self, names: Iterable[str], server: str = "srv_1", session: str = "s_") -> None:
        """Users, each with a session on the server: `s_`, or what is given, and their name."""
        names = list(names)
        await self.db.executemany(
            "insert into mcp_server_user (id) values ($1) on conflict do nothing", [(n,) for n in names]
        )
        await self.db.executemany(
            "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date,"
            " mcp_server_user_id) values ($3 || $1, $2, current_date, $1) on conflict do nothing",
            [(n, server, session) for n in names],
        )

    async def insert(self, *events: dict[str, Any]) -> None:
        """Writes completions past the recorder."""
        await self.db.executemany(
            "insert into walkthrough_step_completions values ($1, $2, $3, $4, $5, $6, $7, null)",
            [
                (
                    "wtsc_" + e["event_id"],
                    e["mcp_server_user_id"],
                    e["walkthrough_id"],
                    e["step_id"],
                    e["mcp_server_id"],
                    e["mcp_server_session_id"],
                    e["completed_at"],
                )
                for e in events
            ],
        )

    async def drain_marks(self) -> None:
        """Does what the aggregator does with marks."""
        pool = await self.aggregator_pool()
        while (await counting.recount_from_marks(pool, 20_000))[0]:
            pass

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Another connection to the database."""
        connection = await asyncpg.connect(self.settings.dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def ended(self, connection: Connection) -> None:
        """Waits until PostgreSQL has ended a connection, which does nothing meanwhile: as of a frozen process."""
        pid = connection.get_server_pid()

        async def gone() -> bool:
            alive = await self.db.fetchval("select count(*) from pg_stat_activity where pid = $1", pid)
            return bool(alive == 0)

        await eventually(gone, "its connection is ended", 20)

    # --- traffic --------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def producing(self, **options: Any) -> AsyncIterator[AIOKafkaProducer]:
        """A producer while the block lasts; `options` are aiokafka's."""
        async with producer(self.settings, **options) as made:
            yield await made.start()

    async def produce(self, messages: Iterable["Message | dict[str, Any]"], **options: Any) -> None:
        """Sends events, or raw messages, and waits for their acknowledgement."""
        async with self.producing(linger_ms=5, **options) as sender:
            futures = [
                await sender.send(
                    self.settings.topic, NULL if m.value is None else m.value, key=m.key, headers=m.headers
                )
                for m in (x if isinstance(x, Message) else Message.of(x) for x in messages)
            ]
            await asyncio.gather(*futures)

    async def put_in_outbox(self, messages: Iterable[tuple[str, str]]) -> None:
        """Writes (key, value) rows in order, in one transaction."""
        await self.db.executemany("insert into outbox (key, value) values ($1, $2)", list(messages))

    async def relayed(self, seconds: float = PATIENCE) -> None:
        """Waits until the outbox is empty."""

        async def empty() -> bool:
            return await self.db.fetchval("select count(*) from outbox") == 0

        await eventually(empty, "the outbox is empty", seconds)

    async def dead_letters(self) -> list[Record]:
        """All records of the dead-letter topic."""
        return await self._read(self.settings.dead_letter_topic)

    async def events(self) -> list[Record]:
        """All records of the topic of events, in order within each partition."""
        return await self._read(self.settings.topic)

    async def _read(self, topic: str) -> list[Record]:
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=self.settings.kafka_bootstrap_servers,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        ends = await consumer.end_offsets(list(consumer.assignment()))
        begins = await consumer.beginning_offsets(list(consumer.assignment()))
        records: list[Record] = []
        while len(records) < sum(ends.values()) - sum(begins.values()):
            for part in (await consumer.getmany(timeout_ms=200)).values():
                records += part
        await consumer.stop()
        return records

    # --- the services ---------------------------------------------------------------------------------

    def settings_of(self, service: str, **more: Any) -> Settings:
        """The settings, with the role that a service, or an operator, has in the database."""
        given = {**self.settings.model_dump(), **more}
        for name in ("database_url", "api_database_url"):
            url = given[name].get_secret_value() if isinstance(given[name], SecretStr) else given[name]
            given[name] = as_role(url, service, self.base)
        return Settings(**given)

    async def recorder_pool(self) -> Pool:
        return await self._pool(RECORDER, recorder_connections.prepare, recorder_connections.SERVER_SETTINGS)

    async def aggregator_pool(self) -> Pool:
        return await self._pool(AGGREGATOR, counting.prepare, counting.SERVER_SETTINGS)

    async def _pool(self, service: str, prepare: Any, server_settings: Any) -> Pool:
        pool = await open_pool(self.settings_of(service), prepare, server_settings)
        self.pools.append(pool)
        return pool

    def environment(self, service: str = OPERATOR, **more: Any) -> dict[str, str]:
        """The environment that leads a process to this world, with the role that it has in the database."""
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": ",".join(self.settings.kafka_bootstrap_servers),
            "DATABASE_URL": self.settings.dsn,
            "TOPIC": self.settings.topic,
            "GROUP_PREFIX": self.settings.group_prefix,
            "TOPIC_PARTITIONS": self.settings.topic_partitions,
            "SESSION_TIMEOUT_SECONDS": 6,
        } | {name.upper(): value for name, value in more.items()}
        for name in ("DATABASE_URL", "API_DATABASE_URL"):
            if name in settings:
                settings[name] = as_role(settings[name], service, self.base)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")}
        return clean | {f"STEPSTREAM_{name}": str(value) for name, value in settings.items()}

    def command(
        self, *args: str, stdin: bytes | None = None, anew: bool = False, **more: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `stepstream` to its end, as a process: forked, or `anew`, as `start` does."""
        if self.forks and not anew:
            return self._forked(args, stdin or b"", self.environment(_whose(args), **more))
        done = subprocess.run(
            [sys.executable, "-m", "services.operator_cli", *args],
            env=self.environment(_whose(args), **more),
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def _forked(
        self, args: Sequence[str], given: bytes, environment: dict[str, str]
    ) -> "subprocess.CompletedProcess[str]":
        folder = Path(tempfile.mkdtemp(prefix="command-", dir=self.folder))
        stdin, stdout, stderr = (folder / name for name in ("stdin", "stdout", "stderr"))
        stdin.write_bytes(given)
        process = zygote().start(args, environment, stdout, stderr, stdin)
        try:
            code = process.wait(120)
        finally:
            process.kill()
        return subprocess.CompletedProcess(args, code, stdout.read_text(), stderr.read_text())

    async def invoke(self, *args: str, **more: Any) -> "subprocess.CompletedProcess[str]":
        """As `command`, inside this process, which costs a tenth."""
        return await asyncio.to_thread(invoke, self.environment(_whose(args), **more), *args)

    def start(self, name: str, port: int = 0, *, anew: bool = False, **more: Any) -> Service:
        """Starts a service as a process: forked from one that has its imports, or `anew`, from its first line."""
        log = self.folder / f"{name}-{len(self.services)}.log"
        arguments = ["run", name, "--port", str(port)]
        process: subprocess.Popen[bytes] | Forked
        if self.forks and not anew:
            log.touch()
            process = zygote().start(arguments, self.environment(name, **more), log, log)
        else:
            with log.open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "services.operator_cli", *arguments],
                    env=self.environment(name, **more),
                    stdout=out,
                    stderr=out,
                )
        service = Service(name, process, log)
        self.services.append(service)
        return service

    async def start_mcp(self, *, process: bool = False, **more: Any) -> Service:
        """Serves walkthrough-mcp at a port of its own: as a process, or in this one, which starts sooner."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        if process:
            return await self.start(MCP, port, public_url=url, **more).ready()
        settings = self.settings_of(MCP, **{"public_url": url, **more})
        return await self.serve(MCP, McpProcess(MCP, settings).application(), port)

    async def start_api(self, *, process: bool = False, organization: str = "org", **more: Any) -> "Api":
        """Serves analytics-api, in this process or as its own, with a key of the organization."""
        port = free_port()
        if process:
            await self.start(API, port, **more).ready()
        else:
            settings = self.settings_of(API, **more)
            await self.serve(API, AnalyticsProcess(API, settings).application(), port)
        api = Api(self, f"http://127.0.0.1:{port}")
        self.clients.append(api.http)
        api.key = await self.make_key(organization)
        return api

    async def make_key(self, organization: str) -> str:
        """A key of an organization."""
        return (await make_key(self.db, organization, "test", None)).text

    async def serve(self, name: str, app: Any, port: int) -> Service:
        """Serves a service's application in this process."""
        limits = Limits.of(self.settings)
        config = server_config(app, Connections(name, limits, trusted_proxies()), lifespan="on")
        config.port, config.timeout_graceful_shutdown = port, 1
        server = _QuietServer(config)
        self.serving.append((server, asyncio.create_task(server.serve())))

        async def started() -> bool:
            assert not self.serving[-1][1].done(), "it did not start"
            return server.started

        await eventually(started, f"{name} is ready", every=0.01)
        return _Inside(name, port)

    def start_both(self, **more: Any) -> list[Service]:
        return [self.start(RECORDER, **more), self.start(AGGREGATOR, **more)]

    async def drained(self, seconds: float = PATIENCE) -> None:
        """Waits until both groups have committed everything and no mark is left.

        No event waits for a lock either, unless a test holds one: on a busy machine some wait for a moment.
        """

        async def done() -> bool:
            for service in self.services:
                code = service.process.poll()
                assert code in {None, 0, -signal.SIGKILL}, (
                    f"{service.name}: {code}\n{service.log.read_text()}"
                )
            return (
                all(group.lag == 0 for group in await read_groups_with(admin, consumer, self.settings))
                and await self.db.fetchval("select count(*) from sankey_dirty") == 0
                and await self.db.fetchval(_NONE_WAITS)
            )

        async with admin_client(self.settings) as admin, reader(self.settings) as consumer:
            await eventually(done, "drained", seconds, every=0.25)

    async def recorded(self) -> int:
        """How many events the recorder has passed."""
        return int(await self.db.fetchval("select coalesce(sum(next_offset), 0) from recorded_offsets"))

    async def set_offsets(self, *groups: str, to: int | None = None) -> None:
        """Sets the groups' offsets; without one to where partitions begin. They must have no members."""
        for group in groups or GROUPS:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.settings.kafka_bootstrap_servers,
                group_id=self.settings.group(group),
                enable_auto_commit=False,
            )
            await consumer.start()
            partitions = [TopicPartition(self.settings.topic, p) for p in range(3)]
            consumer.assign(partitions)
            begins = await consumer.beginning_offsets(partitions)
            await consumer.commit(begins if to is None else dict.fromkeys(partitions, to))
            await consumer.stop()

    # --- what the tables say --------------------------------------------------------------------------

    async def completions(self) -> dict[tuple[str, str], tuple[int, str]]:
        """(user, step) to (time, event id)."""
        rows = await self.db.fetch("select * from walkthrough_step_completions")
        return {
            (r["mcp_server_user_id"], r["step_id"]): (r["completed_at"], r["id"].removeprefix("wtsc_"))
            for r in rows
        }

    async def transitions(self) -> Counter[tuple[int, str | None, str]]:
        """(position, from, to) to journeys, over all cohorts."""
        rows = await self.db.fetch("select * from sankey_transitions")
        counts: Counter[tuple[int, str | None, str]] = Counter()
        for r in rows:
            counts[r["position"], r["from_step_id"], r["to_step_id"]] += r["journeys"]
        return Counter({k: n for k, n in counts.items() if n})

    async def endings(self) -> Counter[tuple[int, str | None]]:
        """(steps done, step) to journeys, over all cohorts."""
        counts: Counter[tuple[int, str | None]] = Counter()
        for r in await self.db.fetch("select * from sankey_endings"):
            counts[r["steps_done"], r["step_id"]] += r["journeys"]
        return Counter({k: n for k, n in counts.items() if n})

    async def walked(self) -> Counter[tuple[int, str | None, str]]:
        """What the transitions must be, by a plain walk over the completions as they are."""
        rows = await self.db.fetch(
            'select * from walkthrough_step_completions order by completed_at, id collate "C"'
        )
        journeys: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            journeys.setdefault((row["mcp_server_user_id"], row["walkthrough_id"]), []).append(row["step_id"])
        counts: Counter[tuple[int, str | None, str]] = Counter()
        for steps in journeys.values():
            for i, step in enumerate(steps):
                counts[i, steps[i - 1] if i else None, step] += 1
        return counts

    async def assert_exact(self) -> None:
        """Every cell and journey is what the rows of events say."""
        async with self.db.transaction(isolation="repeatable_read", readonly=True):
            for name, rows in (await differences(self.db)).items():
                assert rows == [], (name, rows[:5])


def _whose(arguments: Sequence[str]) -> str:
    """Whose rights a command needs: a service's own, the owner's, or an operator's."""
    if arguments and arguments[0] == "run":
        return arguments[1] if len(arguments) > 1 else OPERATOR
    return "owner" if arguments and arguments[0] == "migrate" else OPERATOR


def invoke(environment: dict[str, str], *args: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command of `stepstream` in this process, in a thread that has no event loop."""
    others = {name: None for name in os.environ if name.startswith("STEPSTREAM_")}
    result = CliRunner().invoke(command_line, args, env={**others, **environment, "COLUMNS": "120"})
    error, code, errors = result.exception, result.exit_code, result.stderr
    if isinstance(error, StepstreamError):
        code, errors = error.exit_code, f"{errors}error: {error}\n"
    elif error is not None and not isinstance(error, SystemExit):
        raise error
    return subprocess.CompletedProcess(args, code, result.stdout, errors)


@dataclass(frozen=True)
class Message:
    """A record as a producer hands it over."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, event: dict[str, Any]) -> "Message":
        """As our own producers send it: what decides about a person says that it is an operator's."""
        decides = event.get("type") in ("user-erased", "step-corrected")
        headers = [("ce_source", OPERATOR_SOURCES[0].encode())] if decides else []
        return cls(event["mcp_server_user_id"].encode(), json.dumps(event).encode(), headers)


_numbers: Iterator[int] = iter(range(1, 10**9))


def moment(at: int) -> int:
    """A time in milliseconds since the epoch; a small one is counted from the first that the contract takes."""
    return at + MIN_TIME_MS if 0 <= at < MIN_TIME_MS else at


def completed(user: str, step: str, at: int, **other: Any) -> dict[str, Any]:
    """An event, `at` as `moment` has it; each call has its own event id unless one is given."""
    return {
        "type": "step-completed",
        "event_id": str(uuid.UUID(int=next(_numbers), version=4)),
        "mcp_server_user_id": user,
        "walkthrough_id": "wt_a",
        "step_id": step,
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": f"s_{user}",
        "completed_at": moment(at),
    } | other


def corrected(
    user: str, step: str, at: int, until: int, to: int | None = None, **other: Any
) -> dict[str, Any]:
    """A correction decided `at`, which covers what is `until` then; `to` is when the step was completed."""
    event = completed(user, step, 0) | {
        "type": "step-corrected",
        "corrected_at": moment(at),
        "covers_until": moment(until),
        "completed_at": None if to is None else moment(to),
    }
    return {name: value for name, value in (event | other).items() if value is not None}


def started(user: str, at: int, **other: Any) -> dict[str, Any]:
    """A start; each call has its own event id unless one is given."""
    return {
        "type": "walkthrough-started",
        "event_id": str(uuid.UUID(int=next(_numbers), version=4)),
        "mcp_server_user_id": user,
        "walkthrough_id": "wt_a",
        "mcp_server_id": "srv_1",
        "mcp_server_session_id": f"s_{user}",
        "started_at": moment(at),
    } | other


def skipped(user: str, step: str, at: int, **other: Any) -> dict[str, Any]:
    """A skip; each call has its own event id unless one is given."""
    return _of_step("step-skipped", user, step) | {"skipped_at": moment(at)} | other


def shown(user: str, step: str, at: int, **other: Any) -> dict[str, Any]:
    """A showing; each call has its own event id unless one is given."""
    return _of_step("step-shown", user, step) | {"shown_at": moment(at)} | other


def _of_step(kind: str, user: str, step: str) -> dict[str, Any]:
    event = completed(user, step, 0) | {"type": kind}
    del event["completed_at"]
    return event


async def members(world: World, service: str) -> set[str]:
    """Who is in the group of a service."""
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        (answer,) = await admin.describe_consumer_groups([world.settings.group(service)])
        (group,) = answer.groups
        return {member[0] for member in group[5]}
    finally:
        await admin.close()

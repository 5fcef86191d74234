"""The rows of the outbox: taken under the lock of their shard, removed when Kafka has them."""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from services.outbox_relay.sender import Acknowledged, Message, Refused
from services.runtime.database import Connection, Pool, bounded, load_queries
from services.runtime.positions import Witnessed

SQL = load_queries(__file__)
#: What wakes the relay: the trigger of the outbox sends it.
CHANNEL = "stepstream_outbox"


def server_settings(send_timeout_seconds: float) -> dict[str, str]:
    """Settings of the relay's connections: a relay that hangs, or is cut off, loses its shards to others."""
    return {
        "application_name": "stepstream outbox-relay",
        # A load takes at most a second and two answers of Kafka.
        **bounded(send_timeout_seconds * 3 + 2),
    }


@dataclass
class Load:
    """The next messages in order, and what became of them; the caller fills in the outcome."""

    messages: Sequence[Message]
    sent: list[int] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    #: What was acknowledged in each partition.
    acknowledged: dict[int, Acknowledged] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def take(pool: Pool, topic: str, limit: int) -> AsyncIterator[Load]:
    """Takes the next load; what was sent or refused by the end of the block leaves the outbox."""
    async with pool.acquire() as connection, connection.transaction():
        shards = [row["shard"] for row in await connection.fetch(SQL["take_shards"])]
        if not shards:
            yield Load(())
            return
        rows = await connection.fetch(SQL["next_rows"], shards, max(1, limit // len(shards)))
        load = Load([_message(row) for row in rows])
        yield load
        await _finish(connection, load.sent, load.refused)
        if load.acknowledged:
            await note_sent(connection, topic, load.acknowledged)


async def note_sent(connection: Connection, topic: str, acknowledged: Mapping[int, Acknowledged]) -> None:
    """Notes what was acknowledged, by partition, for the recorder to find out whether a log was cut."""
    rows = [
        (p, *of.last, of.first_offset, of.follows_on, of.interrupted)
        for p, of in sorted(acknowledged.items())
    ]
    await connection.execute(SQL["note_sent"], topic, *map(list, zip(*rows, strict=True)))


async def witness(connection: Connection, topic: str, witnessed: Collection[Witnessed]) -> None:
    """Tells this database what was known to be in Kafka before it took the place of another."""
    if witnessed:
        rows = [(w.topic_id, w.partition, w.leader_epoch, *w.record) for w in witnessed]
        await connection.execute(SQL["witness"], topic, *map(list, zip(*rows, strict=True)))


async def _finish(connection: Connection, sent: Collection[int], refused: Collection[Refused]) -> None:
    if sent:
        await connection.execute(SQL["remove_sent"], list(sent))
    if refused:
        await connection.execute(
            SQL["set_aside"], [r.message.id for r in refused], [r.reason for r in refused]
        )


def _message(row: asyncpg.Record) -> Message:
    return Message(row["id"], row["key"], row["value"], row["headers"])


@dataclass(frozen=True, slots=True)
class Depth:
    """What waits in the outbox."""

    waiting: int
    age_seconds: float
    set_aside: int


async def depth(pool: Pool) -> Depth:
    """How much waits, how long the oldest has, and how much was set aside."""
    row = await pool.fetchrow(SQL["depth"])
    assert row is not None  # noqa: S101 - one row, always
    return Depth(**dict(row))

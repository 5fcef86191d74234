"""The rows of the outbox: taken under the lock of their shard, removed when Kafka has them."""

import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from services.consumers.positions import Witnessed
from services.outbox_relay.sender import Acknowledged, Message, Refused
from services.runtime.database import Connection, Pool, bounded, fetch_one, load_queries

SQL = load_queries(__file__)
#: What wakes the relay: the trigger of the outbox sends it.
CHANNEL = "stepstream_outbox"
#: How long to wait for a row of `sent_events` that somebody else has locked.
_PATIENCE = "20ms"


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
    #: What was acknowledged in each partition; after the block, what of that could not be noted.
    acknowledged: dict[int, Acknowledged] = field(default_factory=dict)


@contextlib.asynccontextmanager
async def take(pool: Pool, topic: str, limit: int) -> AsyncIterator[Load]:
    """Takes the next load; what was sent or refused by the end of the block leaves the outbox.

    What was acknowledged is noted, but for partitions whose row somebody else has locked: that is left in
    `acknowledged`, for the next load.
    """
    async with pool.acquire() as connection, connection.transaction():
        shards = [row["shard"] for row in await connection.fetch(SQL["take_shards"])]
        each = max(1, limit // max(1, len(shards)))
        rows = await connection.fetch(SQL["next_rows"], shards, each) if shards else ()
        load = Load([_message(row) for row in rows])
        yield load
        await _finish(connection, load.sent, load.refused)
        if load.acknowledged:
            load.acknowledged = await _note_what_is_free(connection, topic, load.acknowledged)


async def _note_what_is_free(
    connection: Connection, topic: str, acknowledged: Mapping[int, Acknowledged]
) -> dict[int, Acknowledged]:
    """Notes them at once, or else one by one; returns those that somebody else's lock is in the way of."""
    parts = [acknowledged, *({partition: of} for partition, of in acknowledged.items())]
    locked: dict[int, Acknowledged] = {}
    for part in parts if len(acknowledged) > 1 else parts[:1]:
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = '{_PATIENCE}'")
                await note_sent(connection, topic, part)
        except asyncpg.LockNotAvailableError:
            locked |= part
        else:
            if part is acknowledged:
                return {}
            locked.pop(next(iter(part)), None)
    return locked


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
    row = await fetch_one(pool, SQL["depth"])
    return Depth(**dict(row))

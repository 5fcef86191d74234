"""The last events that Kafka has acknowledged to relays: evidence of where a log was cut."""

from collections.abc import Collection

from services.consumers.positions import Fingerprint, Witnessed
from services.runtime.database import Connection, load_queries

SQL = load_queries(__file__)


async def read_sent(connection: Connection, topic: str) -> dict[int, Fingerprint]:
    """The last event of each partition that Kafka has acknowledged to a relay."""
    rows = await connection.fetch(SQL["read_sent"], topic)
    return {
        r["partition"]: Fingerprint(r["last_offset"], r["last_timestamp"], r["last_checksum"]) for r in rows
    }


async def read_contested(connection: Connection, topic: str) -> set[int]:
    """The partitions that may have been cut, by what was acknowledged to relays."""
    return {r["partition"] for r in await connection.fetch(SQL["contested_sent"], topic)}


async def trust_sent(connection: Connection, topic: str, partitions: Collection[int]) -> None:
    """Those of these partitions were looked for: later ones may take their place again."""
    await connection.execute(SQL["trust_sent"], topic, list(partitions))


async def forget_sent(connection: Connection, topic: str, partitions: Collection[int]) -> None:
    """Forgets those of these partitions: their log is another one now."""
    await connection.execute(SQL["forget_sent"], topic, list(partitions))


async def read_witnessed(connection: Connection, topic: str, partitions: Collection[int]) -> list[Witnessed]:
    """What relays knew to be in these partitions before this database took the place of another."""
    return [
        Witnessed(
            r["topic_id"],
            r["partition"],
            r["leader_epoch"],
            Fingerprint(r["last_offset"], r["last_timestamp"], r["last_checksum"]),
        )
        for r in await connection.fetch(SQL["read_witnessed"], topic, list(partitions))
    ]


async def settle_witnessed(connection: Connection, topic: str, one: Witnessed, *, is_there: bool) -> None:
    """Removes one that was looked for; if it is there, it is kept as the last that was sent."""
    if is_there:
        await connection.execute(SQL["keep_witnessed"], topic, one.partition, *one.record)
    place = (one.topic_id, one.partition, one.leader_epoch, one.record.offset)
    await connection.execute(SQL["forget_witnessed"], topic, *place)

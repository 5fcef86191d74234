"""Positions in PostgreSQL: read, moved on with what they cover, and set."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import asyncpg
from aiokafka import TopicPartition

from services.consumers.positions import Digest, Fingerprint, Position
from services.runtime.database import Connection, load_queries
from services.runtime.kafka import Record

SQL = load_queries(__file__)

#: The table of positions of each service. The statements are written for the first.
TABLES = {"completion-recorder": "recorded_offsets", "sankey-aggregator": "counted_offsets"}

#: Where the recorder says that its positions move on: the aggregator waits for that.
TOLD = "stepstream_recorded"

_63_BITS = 2**63
_64_BITS = 2**64


class MovedError(Exception):
    """The stored position is not where a batch begins: the database, or somebody else, went elsewhere."""


class PositionLockedError(Exception):
    """Somebody else has locked the stored position of some partitions: these wait, and the others need not.

    Args:
        partitions: which, and for each the row and who has it, for people.
    """

    def __init__(self, partitions: Mapping[int, str]) -> None:
        super().__init__("; ".join(partitions.values()))
        self.partitions = partitions


def _statement(name: str, service: str) -> str:
    return SQL[name].replace("recorded_offsets", TABLES[service])


async def read_positions(
    connection: Connection, service: str, topic: str, partitions: Collection[int] | None = None
) -> dict[int, Position]:
    """Where a service is, by partition: these, or all that it knows."""
    only = None if partitions is None else list(partitions)
    return {
        r["partition"]: Position(
            r["reads_from"],
            r["next_offset"],
            r["marks_until"],
            r["cluster_id"],
            r["topic_id"],
            r["leader_epoch"],
            None
            if r["last_offset"] is None
            else Fingerprint(r["last_offset"], r["last_timestamp"], r["last_checksum"]),
            Digest(r["digest_from"], r["digest_events"], r["digest"] % _64_BITS),
        )
        for r in await connection.fetch(_statement("read_positions", service), topic, only)
    }


async def lock_positions(
    connection: Connection, service: str, topic: str, partitions: Collection[int]
) -> None:
    """Locks the rows until the end of the transaction, those that there are."""
    await connection.fetch(_statement("lock_positions", service), topic, list(partitions))


async def lock_free_positions(
    connection: Connection, service: str, topic: str, partitions: Collection[int]
) -> dict[int, str]:
    """As `lock_positions`, and waits for nobody: returns the rows that are somebody else's, and whose."""
    rows = await connection.fetch(_statement("lock_free_positions", service), topic, list(partitions))
    return {r["partition"]: _describe_holder(service, r) for r in rows}


def _describe_holder(service: str, row: asyncpg.Record) -> str:
    who = "somebody"
    if row["pid"] is not None:
        who = f"process {row['pid']} ({row['role']}, {row['application'] or 'no name'})"
    elif row["prepared"] is not None:
        who = f"the prepared transaction '{row['prepared']}'"
    return f"the row of partition {row['partition']} in {TABLES[service]} is locked by {who}"


async def set_positions(
    connection: Connection, service: str, topic: str, positions: Mapping[int, Position]
) -> None:
    """Writes where a service reads on, whatever was stored."""
    rows = [
        (
            partition,
            p.reads_from,
            p.next_offset,
            p.marks_until,
            p.cluster_id,
            p.topic_id,
            p.leader_epoch,
            *_last_and_digest(p),
        )
        for partition, p in positions.items()
    ]
    await connection.execute(_statement("set_positions", service), topic, *columns(rows))


def _last_and_digest(position: Position) -> tuple[int | None, ...]:
    last, digest = position.last, position.digest
    total = digest.total if digest.total < _63_BITS else digest.total - _64_BITS
    return (*(last or (None, None, None)), digest.from_offset, digest.events, total)


def columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Rows as columns, for a statement that takes an array of each."""
    return [list(column) for column in zip(*rows, strict=True)]


class Advance:
    """How a batch moves positions on; to be written in the transaction of what it covers.

    Args:
        service: whose positions.
        topic: of the partitions.
        moves: from where to where, by partition.
    """

    def __init__(self, service: str, topic: str, moves: Mapping[int, tuple[Position, Position]]) -> None:
        self._service = service
        self._topic = topic
        self.moves = moves

    @classmethod
    def over(
        cls, service: str, topic: str, positions: Mapping[int, Position], records: Iterable[Record]
    ) -> "Advance":
        """From these positions to behind these records, which are in the order of their offsets."""
        parts: dict[int, list[Record]] = {}
        for record in records:
            parts.setdefault(record.partition, []).append(record)
        moves = {p: (positions[p], positions[p].after(part)) for p, part in sorted(parts.items())}
        return cls(service, topic, moves)

    @property
    def offsets(self) -> dict[TopicPartition, int]:
        """Where the partitions go on."""
        return {TopicPartition(self._topic, p): new.reads_from for p, (_, new) in self.moves.items()}

    async def write(self, connection: Connection, *also: str) -> list[asyncpg.Record]:
        """Moves the stored positions on; returns the partitions, and these columns of their rows.

        Raises:
            PositionLockedError: somebody else has locked one of them.
            MovedError: one of them is not where this begins.
        """
        rows = [
            (
                partition,
                old.reads_from,
                old.next_offset,
                old.topic_id,
                new.reads_from,
                new.next_offset,
                *_last_and_digest(new),
            )
            for partition, (old, new) in self.moves.items()
        ]
        statement = ", ".join((_statement("advance_positions", self._service).rstrip(";\n "), *also))
        written = await connection.fetch(statement, self._topic, *columns(rows))
        if len(written) < len(rows):
            absent = sorted(self.moves.keys() - {r["partition"] for r in written})
            if locked := await lock_free_positions(connection, self._service, self._topic, absent):
                raise PositionLockedError(locked)
            raise MovedError(f"partitions {', '.join(map(str, absent))}")
        return written

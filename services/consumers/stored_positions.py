"""Positions in PostgreSQL: read, moved on with what they cover, and set; and which database that is."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import asyncpg
from aiokafka import TopicPartition

from services.consumers.positions import Digest, Fingerprint, Gone, Position, Witnessed
from services.runtime.database import Connection, load_queries
from services.runtime.kafka import Record

SQL = load_queries(__file__)

#: The table of positions of each service. The statements are written for the first.
TABLES = {"completion-recorder": "recorded_offsets", "sankey-aggregator": "counted_offsets"}

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
    await connection.execute(_statement("set_positions", service), topic, *_columns(rows))


def _last_and_digest(position: Position) -> tuple[int | None, ...]:
    last, digest = position.last, position.digest
    total = digest.total if digest.total < _63_BITS else digest.total - _64_BITS
    return (*(last or (None, None, None)), digest.from_offset, digest.events, total)


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


async def name_gone(connection: Connection, topic: str, gone: Mapping[int, Sequence[Gone]]) -> None:
    """Names offsets that are gone, by partition; they stay in `status` until somebody acknowledges them."""
    rows = [(partition, *g) for partition, ranges in gone.items() for g in ranges]
    if rows:
        await connection.execute(SQL["name_gone"], topic, *_columns(rows))


async def read_skipped(
    connection: Connection, topic: str, partitions: Collection[int]
) -> set[tuple[int, int, int]]:
    """What operators have left behind: partition, first offset, and the one behind the last."""
    rows = await connection.fetch(SQL["read_skipped"], topic, list(partitions))
    return {(r["partition"], r["from_offset"], r["until_offset"]) for r in rows}


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

    async def write(self, connection: Connection) -> None:
        """Moves the stored positions on.

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
        statement = _statement("advance_positions", self._service)
        written = await connection.fetch(statement, self._topic, *_columns(rows))
        if len(written) < len(rows):
            absent = sorted(self.moves.keys() - {r["partition"] for r in written})
            if locked := await lock_free_positions(connection, self._service, self._topic, absent):
                raise PositionLockedError(locked)
            raise MovedError(f"partitions {', '.join(map(str, absent))}")


# --- which database --------------------------------------------------------------------------------------

Relation: TypeAlias = Literal["same", "newer", "older", "other", "unknown"]
_WORDS = re.compile(r"database=(\d+)/(\d+) timeline=(\d+)")
_LAST = re.compile(r"last=(\d+)/(\d+)/(\d+)")


class DatabaseIdentity(NamedTuple):
    """A database: its server's system identifier, its number there, and the server's timeline."""

    system: int
    oid: int
    timeline: int

    def __str__(self) -> str:
        return f"database={self.system}/{self.oid} timeline={self.timeline}"


@dataclass(frozen=True, slots=True)
class Ours:
    """Which database is ours, where that is known, as against what others say."""

    identity: DatabaseIdentity | None

    @property
    def words(self) -> str:
        """What goes with each committed offset."""
        return "" if self.identity is None else str(self.identity)

    def words_of(self, position: Position) -> str:
        """The same with the last record before the offset: a database that comes from a backup forgot it."""
        last = "" if position.last is None else "last={}/{}/{}".format(*position.last)
        return f"{self.words} {last}".strip()

    def relation_to(self, words: str) -> Relation:
        """What the database behind a committed offset is to ours: the same, or on a newer timeline, or ..."""
        found = _WORDS.search(words)
        if found is None or self.identity is None:
            return "unknown"
        theirs = DatabaseIdentity(*map(int, found.groups()))
        if theirs[:2] != self.identity[:2]:
            return "other"
        if theirs.timeline == self.identity.timeline:
            return "same"
        return "newer" if theirs.timeline > self.identity.timeline else "older"


def identity_in(words: str) -> str:
    """The part of what goes with a committed offset that says whose it is."""
    found = _WORDS.search(words)
    return found[0] if found else words


def last_in(words: str) -> Fingerprint | None:
    """The last record before a committed offset, where it is said."""
    found = _LAST.search(words)
    return None if found is None else Fingerprint(*map(int, found.groups()))


async def read_identity(connection: Connection) -> Ours:
    """Which database a connection leads to; unknown where the server does not tell."""
    try:
        row = await connection.fetchrow(SQL["identity"])
    except asyncpg.InsufficientPrivilegeError:
        return Ours(None)
    assert row is not None  # noqa: S101 - one row, always
    if row["timeline"] is None:
        raise asyncpg.ReadOnlySQLTransactionError("this server is a standby")
    return Ours(DatabaseIdentity(row["system"], row["oid"], row["timeline"]))

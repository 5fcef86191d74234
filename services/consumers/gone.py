"""Offsets whose events are gone from Kafka, or were left behind: named, until an operator has seen them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from services.consumers.positions import Gone
from services.consumers.stored_positions import columns
from services.runtime.database import Connection, connected, load_queries
from services.runtime.errors import UsageError
from services.runtime.settings import Settings

SQL = load_queries(__file__)

#: What each cause means, for people.
CAUSES = {
    "expired": "retention removed them before they were read",
    "cut": "Kafka lost the end of the log; what had been read of it is in the tables",
    "topic-made-anew": "the topic was deleted and made anew; what came after is not known",
    "moved": "the services moved to another cluster; what came after in the old one is not known",
    "skipped": "an operator left them behind",
}


@dataclass(frozen=True, slots=True)
class NamedGone:
    """A range of offsets; `until_offset` is exclusive, and None where it is not known. Times in ms."""

    id: int
    noticed_at: int
    topic: str
    partition: int
    cause: str
    from_offset: int
    until_offset: int | None
    before_at: int | None
    after_at: int | None
    judged_until: int | None
    acknowledged_at: int | None

    @property
    def offsets(self) -> str:
        """The range, for people."""
        if self.until_offset is None:
            return f"{self.from_offset:,} and later"
        return f"{self.from_offset:,} to {self.until_offset - 1:,}"

    @property
    def judged(self) -> str:
        """Which of them are in the tables, for people."""
        return "" if self.judged_until is None else f"to {self.judged_until - 1:,}"


async def name_gone(connection: Connection, topic: str, gone: Mapping[int, Sequence[Gone]]) -> None:
    """Names offsets that are gone, by partition; they stay in `status` until somebody acknowledges them."""
    rows = [(partition, *g) for partition, ranges in gone.items() for g in ranges]
    if rows:
        await connection.execute(SQL["name_gone"], topic, *columns(rows))


async def read_skipped(
    connection: Connection, topic: str, partitions: Collection[int]
) -> set[tuple[int, int, int]]:
    """What operators have left behind: partition, first offset, and the one behind the last."""
    rows = await connection.fetch(SQL["read_skipped"], topic, list(partitions))
    return {(r["partition"], r["from_offset"], r["until_offset"]) for r in rows}


async def find(db: Connection, *, acknowledged_too: bool = False) -> list[NamedGone]:
    """What is gone, the oldest first; without what somebody has acknowledged."""
    return [_gone(row) for row in await db.fetch(SQL["list_gone"], acknowledged_too)]


def _gone(row: asyncpg.Record) -> NamedGone:
    return NamedGone(**dict(row))


async def listed(settings: Settings, *, acknowledged_too: bool) -> list[NamedGone]:
    """What `gone list` shows."""
    async with connected(settings) as db:
        return await find(db, acknowledged_too=acknowledged_too)


async def acknowledge(settings: Settings, ids: Sequence[int], *, everything: bool) -> int:
    """Takes them out of `status`; returns how many.

    Raises:
        UsageError: there is none of that number.
    """
    async with connected(settings) as db, db.transaction():
        there = {gone.id for gone in await find(db)}
        if absent := set(ids) - there:
            raise UsageError(
                f"there is nothing to acknowledge with the number {', '.join(map(str, sorted(absent)))}"
            )
        chosen = sorted(there if everything else set(ids))
        await db.execute(SQL["acknowledge_gone"], chosen)
    return len(chosen)

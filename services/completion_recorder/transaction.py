"""The recorder's transaction: how far it comes, the rows, what waits, and what is counted."""

from collections.abc import Collection, Sequence, Set
from typing import NamedTuple

from services.completion_recorder.advance import advance_offsets, advance_positions
from services.completion_recorder.guard import WrongDatabaseError
from services.completion_recorder.judge import Accepted, Refused, people_of, user_of
from services.completion_recorder.load import Load, LoadCounts, count_load
from services.completion_recorder.notes import is_ours, note
from services.completion_recorder.waiting import set_aside
from services.completion_recorder.write import IN_THE_WAY, write_at_once, write_by_parts
from services.consumers.stored_positions import Advance
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.kafka import Offsets


class Batch(NamedTuple):
    """Records of a topic as they were read: readable events, other records, and where partitions go on.

    Without `advance` they are written as they are, wherever the position is; it moves only forward.
    """

    topic: str
    offsets: Offsets
    accepted: Sequence[Accepted]
    unreadable: Sequence[Refused] = ()
    advance: Advance | None = None


class Judged(NamedTuple):
    """What became of a batch, beside the events that are committed."""

    refused: Sequence[Refused]
    #: How many of its records are of people who were erased: nothing is kept of them.
    of_erased: int
    #: How many wait until somebody else's lock goes.
    waiting: int
    #: How many completions do not count because a correction covers them.
    covered: int
    #: What was counted of the load; None where that was not asked for.
    counted: LoadCounts | None = None
    #: Whether counts by source are written; if not, somebody has locked their rows: the caller keeps them.
    is_noted: bool = True


async def record(pool: Pool, batch: Batch, load: Load | None = None, *, by_parts: bool = False) -> Judged:
    """Writes a batch and how far it goes, in one transaction.

    Args:
        pool: of `connections`.
        batch: what was read.
        load: the same records, to be counted; None does not count them.
        by_parts: do not try first to write it at once: the last batch could not be.

    Returns:
        What became of the records that are not rows now, and what was counted; all others are committed.

    Raises:
        WrongDatabaseError: nearly nothing can be recorded, and nothing was; nothing is written.
        MovedError: the position is not where `advance` begins.
        PositionLockedError: somebody else has locked it.
        asyncpg.PostgresError, OSError: the database is away; nothing is written.
    """
    if not by_parts:
        try:
            return await _record(pool, batch, load, by_parts=False)
        except IN_THE_WAY:
            pass
    return await _record(pool, batch, load, by_parts=True)


async def _record(pool: Pool, batch: Batch, load: Load | None, *, by_parts: bool) -> Judged:
    """One try: positions, rows, what waits, the guard, and who sent what, in this order.

    The rows are `write`'s: it erases people first, then checks references, corrects and upserts.
    """
    counted, is_noted = None, True
    async with pool.acquire() as connection, connection.transaction():
        if batch.advance is None:
            before = await advance_offsets(connection, batch.topic, batch.offsets)
        else:
            before = await advance_positions(connection, batch.topic, batch.advance)
        passed = {partition: known.next_offset for partition, known in before.items()}
        write = write_by_parts if by_parts else write_at_once
        outcome = await write(connection, batch.accepted, batch.unreadable, passed)
        await set_aside(connection, outcome.waiting)
        of_erased = _of_erased(batch, outcome.erased)
        if load is not None:
            counted = count_load(load, batch.topic, before, outcome.refused, of_erased)
            if counted.if_wrong and not await is_ours(
                connection, batch.topic, counted.to_write.refused, has_recorded=load.has_recorded
            ):
                raise WrongDatabaseError(counted.if_wrong)
            is_noted = await note(connection, batch.topic, before, counted)
        crash_point("recorder.in-transaction")
    crash_point("recorder.database-committed")
    return Judged(outcome.refused, len(of_erased), len(outcome.waiting), outcome.covered, counted, is_noted)


def _of_erased(batch: Batch, erased: Set[str]) -> Collection[tuple[int, int]]:
    """Partition and offset of the records that are of these people."""
    if not erased:
        return set()
    theirs = [item.record for item in batch.accepted if user_of(item.event) in erased]
    theirs += [r.record for r in batch.unreadable if not erased.isdisjoint(people_of(r.record))]
    return {(record.partition, record.offset) for record in theirs}

"""The recorder's transaction: how far it comes, the rows, what waits, and what is counted."""

from collections.abc import Collection, Sequence, Set
from dataclasses import replace
from typing import NamedTuple

from services.completion_recorder.advance import advance_offsets, advance_positions
from services.completion_recorder.guard import WrongDatabaseError, belongs_to_topic
from services.completion_recorder.judge import Refused, people_of, user_of
from services.completion_recorder.load_counts import Load, LoadContext, LoadCounts, count_load
from services.completion_recorder.not_written import NotWritten
from services.completion_recorder.source_stats import note
from services.completion_recorder.waiting import set_aside
from services.completion_recorder.write import IN_THE_WAY, write_at_once, write_by_parts
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.kafka import Record


class Recorded(NamedTuple):
    """What became of a committed load, beside the events that are rows now."""

    refused: Sequence[Refused]
    #: How many of the load's records are of people who were erased: nothing is kept of them.
    of_erased: int
    #: How many wait until somebody else's lock goes.
    waiting: int
    #: How many completions do not count because a correction covers them.
    covered: int
    #: What was counted of it; None where that was not asked for.
    counted: LoadCounts | None = None
    #: Whether counts by source are written; if not, somebody has locked their rows: the caller keeps them.
    is_noted: bool = True


async def record(
    pool: Pool, load: Load, context: LoadContext | None = None, *, by_parts: bool = False
) -> Recorded:
    """Writes a load and how far it goes, in one transaction.

    Args:
        pool: of `connections`.
        load: what was read.
        context: what was known before it, to count it; None does not count it.
        by_parts: do not try first to write it at once: the last load could not be.

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
            return await _record(pool, load, context, by_parts=False)
        except IN_THE_WAY:
            pass
    return await _record(pool, load, context, by_parts=True)


async def _record(pool: Pool, load: Load, context: LoadContext | None, *, by_parts: bool) -> Recorded:
    """One try: positions, rows, what waits, the guard, and who sent what, in this order.

    The rows are `write`'s: it erases people first, then checks references, corrects and upserts.
    """
    counted, is_noted = None, True
    async with pool.acquire() as connection, connection.transaction():
        if load.advance is None:
            before = await advance_offsets(connection, load.topic, load.offsets)
        else:
            before = await advance_positions(connection, load.advance)
        replayed_before = {partition: known.replayed_before for partition, known in before.items()}
        write = write_by_parts if by_parts else write_at_once
        not_written = await write(
            connection, load.accepted, load.unreadable, replayed_before, load.registering
        )
        of_erased = _of_erased(load, not_written.erased)
        not_written = _without(not_written, of_erased)
        await set_aside(connection, not_written.waiting)
        if context is not None:
            counted = count_load(load, context, before, not_written.refused, of_erased)
            if counted.wrong_database_message and not await belongs_to_topic(
                connection, load.topic, counted.to_write.refused, has_recorded=context.has_recorded
            ):
                raise WrongDatabaseError(counted.wrong_database_message)
            is_noted = await note(connection, load.topic, before, counted)
        crash_point("recorder.in-transaction")
    crash_point("recorder.database-committed")
    return Recorded(
        not_written.refused, len(of_erased), len(not_written.waiting), not_written.covered, counted, is_noted
    )


def _without(not_written: NotWritten, of_erased: Collection[tuple[int, int]]) -> NotWritten:
    """Of people who were erased while the load was judged nothing is refused, or waits, either."""
    if not of_erased:
        return not_written
    return replace(
        not_written,
        refused=[one for one in not_written.refused if _place(one.record) not in of_erased],
        waiting=[one for one in not_written.waiting if _place(one.item.record) not in of_erased],
    )


def _place(record: Record) -> tuple[int, int]:
    return record.partition, record.offset


def _of_erased(load: Load, erased: Set[str]) -> Collection[tuple[int, int]]:
    """Partition and offset of the records that are of these people."""
    if not erased:
        return set()
    theirs = [item.record for item in load.accepted if user_of(item.event) in erased]
    theirs += [r.record for r in load.unreadable if not erased.isdisjoint(people_of(r.record))]
    return {_place(record) for record in theirs}

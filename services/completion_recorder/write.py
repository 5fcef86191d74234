"""Events as rows, inside a transaction: all at once; or part by part, where that fails.

Where PostgreSQL refuses a row, or somebody else has locked one, events are written part by part: what
PostgreSQL refuses is a bad event; what waits for a lock is set aside, and the rest goes on.
"""

import random
from collections.abc import Mapping, Sequence, Set

import asyncpg

from services.completion_recorder.correction_rows import (
    correct,
    correct_by_parts,
    corrections,
    lock_corrected,
)
from services.completion_recorder.erasure import erase, erase_by_parts
from services.completion_recorder.judge import DECIDING, Accepted, Refused, merge
from services.completion_recorder.locks import PATIENCE, wait_at_most
from services.completion_recorder.not_written import NotWritten
from services.completion_recorder.references import check, check_by_parts
from services.completion_recorder.reused_ids import doubled_ids, without_reused_ids
from services.completion_recorder.upsert import (
    REFUSED_BY_DATABASE,
    apart_from_locked,
    copy_and_upsert,
    upsert_by_halves,
)
from services.runtime.database import Connection

#: Errors by which writing all at once fails, and part by part does not.
IN_THE_WAY = (asyncpg.LockNotAvailableError, *REFUSED_BY_DATABASE)


async def write_at_once(
    connection: Connection,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused],
    replayed_before: Mapping[int, int],
    registering: Set[str] = frozenset(),
) -> NotWritten:
    """Writes all in one go.

    Args:
        connection: in a transaction.
        accepted: what was read.
        unreadable: the other records.
        replayed_before: the offset of each partition before which all is replayed.
        registering: the sources whose events have people and sessions made that are missing.

    Raises:
        asyncpg.PostgresError: one of `IN_THE_WAY`, for a row.
    """
    deciding = [item for item in accepted if type(item.event) in DECIDING]
    await erase(connection, deciding)
    await lock_corrected(connection, deciding)
    good, not_written, may_name_later = await check(connection, accepted, unreadable, registering)
    if deciding:
        await correct(connection, corrections(good))
    merged = merge(good)
    doubled = doubled_ids(merged)
    # What a correction takes a row from is a later one since that was looked up.
    if doubled or may_name_later or deciding:
        merged, refused = await without_reused_ids(connection, merged, doubled)
        not_written += NotWritten(refused)
    return not_written + NotWritten(covered=await copy_and_upsert(connection, merged, replayed_before))


async def write_by_parts(
    connection: Connection,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused],
    replayed_before: Mapping[int, int],
    registering: Set[str] = frozenset(),
) -> NotWritten:
    """Writes what can be written now; the rest waits, or is refused; arguments as `write_at_once`."""
    await wait_at_most(connection, PATIENCE)
    of_erasures = await erase_by_parts(connection, accepted)
    good, not_written = await check_by_parts(connection, accepted, unreadable, registering)
    not_written += of_erasures + await correct_by_parts(connection, corrections(good))
    merged, waiting = await apart_from_locked(connection, merge(good))
    merged, refused = await without_reused_ids(connection, merged, doubled_ids(merged))
    # In another order each time: who is beside many that wait is not beside them the next time.
    random.shuffle(merged)
    return (
        not_written
        + NotWritten(refused, waiting)
        + await upsert_by_halves(connection, merged, replayed_before)
    )

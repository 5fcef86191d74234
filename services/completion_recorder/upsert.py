"""Completions and starts as rows: of each user and step, or walkthrough, the first event counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import asyncpg

from schemas import Rejection, StepCompleted, StepCorrected, UserErased
from services.completion_recorder.judge import Accepted, Refused, RowKey, row_of
from services.completion_recorder.locks import IMPATIENCE, wait_at_most
from services.completion_recorder.not_written import NotWritten, Waiting
from services.runtime.database import Connection, load_queries

SQL = load_queries(__file__)

#: Errors by which PostgreSQL refuses a row for what it holds. A foreign key can only be one that the
#: platform added: those that we know were checked, and what they refer to is locked.
REFUSED_BY_DATABASE = (
    asyncpg.ForeignKeyViolationError,
    asyncpg.UniqueViolationError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ExclusionViolationError,
    asyncpg.DataError,
)
#: So often a part is halved to find what waits in it, after the first time with less patience; then its rest
#: waits, too.
_HALVES = 150

Rows: TypeAlias = list[tuple[object, ...]]

_INCOMING: Sequence[str] = (
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "step_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "completed_at",
    "metadata",
    "is_replayed",
)
_INCOMING_STARTS: Sequence[str] = (
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "started_at",
    "metadata",
    "is_replayed",
)


async def copy_and_upsert(
    connection: Connection, merged: Sequence[Accepted], replayed_before: Mapping[int, int]
) -> int:
    """Writes events; returns how many completions do not count because a correction covers them.

    Args:
        connection: of `connections`, in a transaction.
        merged: no two of them are the same event.
        replayed_before: the offset of each partition before which all is replayed.
    """
    completions, starts = rows(merged, replayed_before)
    covered = 0
    if completions:
        is_replay = any(row[-1] for row in completions)
        await connection.copy_records_to_table("incoming", records=completions, columns=_INCOMING)
        covered = await _delete(connection, "drop_covered")
        await _upsert_completions(connection, len(completions) - covered, is_replay=is_replay)
    if starts:
        is_replay = any(row[-1] for row in starts)
        await connection.copy_records_to_table("incoming_starts", records=starts, columns=_INCOMING_STARTS)
        await _upsert_starts(connection, len(starts), is_replay=is_replay)
    return covered


async def upsert_candidates(connection: Connection, candidates: int) -> None:
    """Upserts so many completions, which are in `incoming` already, as replayed ones; and empties it."""
    await _upsert_completions(connection, candidates, is_replay=True)
    await connection.execute(SQL["clear_incoming"])


async def _upsert_completions(connection: Connection, left: int, *, is_replay: bool) -> None:
    if is_replay:
        # Most of a replay is there: that is known sooner than it is upserted in vain.
        left -= await _delete(connection, "drop_recorded")
    if not left:
        return
    changed = await connection.fetchval(SQL["upsert_completions"])
    if changed < left:
        await connection.execute(SQL["keep_later"])
    if changed and is_replay:
        await connection.execute(SQL["mark_changed"])


async def _upsert_starts(connection: Connection, left: int, *, is_replay: bool) -> None:
    if is_replay:
        left -= await _delete(connection, "drop_recorded_starts")
    if not left:
        return
    await connection.execute(SQL["upsert_starts"])
    if is_replay:
        await connection.execute(SQL["mark_changed_starts"])


async def _delete(connection: Connection, statement: str) -> int:
    """Removes some of what has landed; returns how many."""
    return int((await connection.execute(SQL[statement])).split()[-1])


def rows(merged: Iterable[Accepted], replayed_before: Mapping[int, int]) -> tuple[Rows, Rows]:
    """The events as rows of `incoming` and of `incoming_starts`.

    The last column says whether it is replayed: an offset that the recorder had passed before.
    """
    completions: Rows = []
    starts: Rows = []
    for event, record in merged:
        if isinstance(event, UserErased | StepCorrected):
            continue
        is_replayed = record.offset < replayed_before[record.partition]
        if isinstance(event, StepCompleted):
            completions.append(
                (
                    "wtsc_" + event.event_id,
                    event.mcp_server_user_id,
                    event.walkthrough_id,
                    event.step_id,
                    event.mcp_server_id,
                    event.mcp_server_session_id,
                    event.completed_at,
                    event.metadata,
                    is_replayed,
                )
            )
        else:
            starts.append(
                (
                    "wtst_" + event.event_id,
                    event.mcp_server_user_id,
                    event.walkthrough_id,
                    event.mcp_server_id,
                    event.mcp_server_session_id,
                    event.started_at,
                    event.metadata,
                    is_replayed,
                )
            )
    return completions, starts


async def apart_from_locked(
    connection: Connection, merged: Sequence[Accepted]
) -> tuple[list[Accepted], list[Waiting]]:
    """Locks the rows that the upsert may change; events whose row somebody else has locked wait."""
    keys = [row_of(item.event) for item in merged]
    locked: set[RowKey] = set()
    for is_completion, lock, find in (
        (True, "lock_completions", "find_completions"),
        (False, "lock_starts", "find_starts"),
    ):
        users = [key.user for key in keys if key.is_completion == is_completion]
        of_what = [key.of_what for key in keys if key.is_completion == is_completion]
        if users:
            ours = {tuple(row) for row in await connection.fetch(SQL[lock], users, of_what)}
            there = {tuple(row) for row in await connection.fetch(SQL[find], users, of_what)}
            locked |= {RowKey(is_completion, *key) for key in there - ours}
    pairs = list(zip(merged, keys, strict=True))
    waiting = [Waiting(item, str(key)) for item, key in pairs if key in locked]
    return [item for item, key in pairs if key not in locked], waiting


async def upsert_by_halves(
    connection: Connection, merged: Sequence[Accepted], replayed_before: Mapping[int, int]
) -> NotWritten:
    """Writes what can be written; finds the rows that PostgreSQL refuses for what they hold.

    What waits for a lock all the same (of a row that is being inserted, or that is not ours) is looked for,
    too, so often; then what is left waits.
    """
    not_written = NotWritten()
    probes = _HALVES
    parts = [merged] if merged else []
    while parts:
        part = parts.pop()
        try:
            not_written += NotWritten(covered=await _upsert_part(connection, part, replayed_before))
            continue
        except REFUSED_BY_DATABASE as error:
            if len(part) == 1:
                not_written += NotWritten([refused_by_database(part[0], error)])
                continue
        except asyncpg.LockNotAvailableError:
            if probes == _HALVES:
                await wait_at_most(connection, IMPATIENCE)
            probes -= 1
            if len(part) == 1 or probes < 0:
                not_written += NotWritten(waiting=[Waiting(item, str(row_of(item.event))) for item in part])
                continue
        half = len(part) // 2
        parts += [part[half:], part[:half]]
    return not_written


async def _upsert_part(
    connection: Connection, part: Sequence[Accepted], replayed_before: Mapping[int, int]
) -> int:
    """As `copy_and_upsert`, and undone where it fails."""
    async with connection.transaction():
        await connection.execute(SQL["clear_incoming"])
        await connection.execute(SQL["clear_incoming_starts"])
        return await copy_and_upsert(connection, part, replayed_before)


def refused_by_database(item: Accepted, error: asyncpg.PostgresError) -> Refused:
    """An event whose row PostgreSQL refuses."""
    constraint = getattr(error, "constraint_name", None)
    message = f"PostgreSQL refuses it: {type(error).__name__} {constraint or ''}".rstrip()
    return Refused(item.record, Rejection.REFUSED_BY_DATABASE, message)

"""The recorder's transaction: offsets, the check of references, and the upsert."""

from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from schemas import Rejection
from services.completion_recorder.judge import (
    INCOMING_COLUMNS,
    INCOMING_STARTS_COLUMNS,
    Accepted,
    References,
    Refused,
    check_references,
    merge,
    rows,
)
from services.runtime.database import Connection, Pool, load_queries
from services.runtime.kafka import Offsets

SQL = load_queries(__file__)


def _and_mark(upsert: str, mark: str, key: str) -> str:
    """An upsert that leaves marks where it changes journeys on old ground."""
    return (
        f"with changed as ({SQL[upsert].rstrip().removesuffix(';')}"
        f" returning mcp_server_user_id, walkthrough_id, {key}) {SQL[mark]}"
    )


_UPSERT_AND_MARK = _and_mark("upsert", "mark_changed", "step_id")
_UPSERT_STARTS_AND_MARK = _and_mark("upsert_starts", "mark_changed_starts", "id")

#: Settings of the recorder's connections. It says who it is, so that its own changes leave no marks; it
#: gives up a lock before PostgreSQL looks for deadlocks, so that it is never somebody else who is
#: cancelled; and the rows of a batch stay in memory.
SERVER_SETTINGS = {
    "application_name": "stepstream completion-recorder",
    "stepstream.recorder": "on",
    "lock_timeout": "500ms",
    "work_mem": "64MB",
}

#: Errors by which PostgreSQL refuses a row for what it holds. A foreign key can only be one that the
#: platform added: those that we know were checked, and what they refer to is locked.
_REFUSED_BY_DATABASE = (
    asyncpg.ForeignKeyViolationError,
    asyncpg.UniqueViolationError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ExclusionViolationError,
    asyncpg.DataError,
)


async def prepare(connection: Connection) -> None:
    """Makes the temporary tables of a new connection."""
    await connection.execute(SQL["create_incoming"])


async def record(pool: Pool, topic: str, offsets: Offsets, accepted: Sequence[Accepted]) -> list[Refused]:
    """Writes a batch and how far it goes, in one transaction.

    Args:
        pool: connections made with `SERVER_SETTINGS` and `prepare`.
        topic: the topic of the batch.
        offsets: where each partition goes on after the batch.
        accepted: the readable events of the batch.

    Returns:
        The events that the database refuses, with the reason; the others are committed.
    """
    try:
        return await _record(pool, topic, offsets, accepted, _copy_and_upsert)
    except _REFUSED_BY_DATABASE:
        return await _record(pool, topic, offsets, accepted, _upsert_by_halves)


async def _record(
    pool: Pool,
    topic: str,
    offsets: Offsets,
    accepted: Sequence[Accepted],
    upsert: Callable[[Connection, Sequence[Accepted], dict[int, int]], Awaitable[list[Refused]]],
) -> list[Refused]:
    async with pool.acquire() as connection, connection.transaction():
        before = await _advance_offsets(connection, topic, offsets)
        good, refused = await _check(connection, accepted)
        if merged := merge(good):
            refused += await upsert(connection, merged, before)
        return refused


async def _advance_offsets(connection: Connection, topic: str, offsets: Offsets) -> dict[int, int]:
    rows = await connection.fetch(
        SQL["advance_offsets"], topic, [p.partition for p in offsets], list(offsets.values())
    )
    return {r["partition"]: r["next_offset_before"] for r in rows}


async def _check(
    connection: Connection, accepted: Sequence[Accepted]
) -> tuple[list[Accepted], list[Refused]]:
    if not accepted:
        return [], []
    wanted = References.of(accepted)
    steps = list(wanted.steps)
    arguments = (
        list(wanted.users),
        list(wanted.sessions),
        list(wanted.servers),
        list(wanted.walkthroughs),
        [step for step, _ in steps],
    )
    counts = await connection.fetchrow(SQL["count_references"], *arguments, [w for _, w in steps])
    assert counts is not None  # noqa: S101 - one row, always
    expected = (wanted.users, wanted.sessions, wanted.servers, wanted.walkthroughs, wanted.steps)
    if tuple(counts.values()) == tuple(len(part) for part in expected):
        return list(accepted), []
    found = await connection.fetchrow(SQL["find_references"], *arguments)
    assert found is not None  # noqa: S101 - one row, always
    known = References(
        set(found["users"]),
        set(found["sessions"]),
        set(found["servers"]),
        set(found["walkthroughs"]),
        set(zip(found["step_ids"], found["step_walkthroughs"], strict=True)),
    )
    return check_references(accepted, known)


async def _copy_and_upsert(
    connection: Connection, merged: Sequence[Accepted], before: dict[int, int]
) -> list[Refused]:
    completions, starts = rows(merged, before)
    if completions:
        await connection.copy_records_to_table("incoming", records=completions, columns=INCOMING_COLUMNS)
        on_old_ground = any(row[-1] for row in completions)
        await connection.execute(_UPSERT_AND_MARK if on_old_ground else SQL["upsert"])
    if starts:
        await connection.copy_records_to_table(
            "incoming_starts", records=starts, columns=INCOMING_STARTS_COLUMNS
        )
        on_old_ground = any(row[-1] for row in starts)
        await connection.execute(_UPSERT_STARTS_AND_MARK if on_old_ground else SQL["upsert_starts"])
    return []


async def _upsert_by_halves(
    connection: Connection, merged: Sequence[Accepted], before: dict[int, int]
) -> list[Refused]:
    """Finds the rows that PostgreSQL refuses for what they hold; all others are upserted."""
    try:
        async with connection.transaction():
            await connection.execute(SQL["clear_incoming"])
            await connection.execute(SQL["clear_incoming_starts"])
            return await _copy_and_upsert(connection, merged, before)
    except _REFUSED_BY_DATABASE as error:
        if len(merged) == 1:
            constraint = getattr(error, "constraint_name", None)
            message = f"PostgreSQL refuses it: {type(error).__name__} {constraint or ''}".rstrip()
            return [Refused(merged[0].record, Rejection.REFUSED_BY_DATABASE, message)]
        half = len(merged) // 2
        return [
            *await _upsert_by_halves(connection, merged[:half], before),
            *await _upsert_by_halves(connection, merged[half:], before),
        ]

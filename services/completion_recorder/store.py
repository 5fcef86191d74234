"""The recorder's transaction: offsets, the check of references, and the upsert."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import asyncpg

from schemas import AnyEvent, Rejection, UserErased
from services.completion_recorder.flood import Chunk, Recent
from services.completion_recorder.judge import (
    INCOMING_COLUMNS,
    INCOMING_STARTS_COLUMNS,
    Accepted,
    References,
    Refused,
    check_references,
    key_of,
    merge,
    of_others,
    rows,
)
from services.runtime.crashpoints import passing
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


class Before(NamedTuple):
    """What was known of a partition before the batch."""

    next_offset: int
    recent: Chunk
    in_a_row: int


class Judged(NamedTuple):
    """What became of a batch, beside the events that are committed."""

    refused: list[Refused]
    #: How many of its records are of people who were erased: nothing is kept of them.
    of_erased: int


#: Looks at what is refused and what was known before; returns what is recent now.
Watch: TypeAlias = Callable[[Sequence[Refused], Mapping[int, Before]], Recent]


async def record(
    pool: Pool,
    topic: str,
    offsets: Offsets,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused] = (),
    watch: Watch | None = None,
) -> Judged:
    """Writes a batch and how far it goes, in one transaction.

    Args:
        pool: connections made with `SERVER_SETTINGS` and `prepare`.
        topic: the topic of the batch.
        offsets: where each partition goes on after the batch.
        accepted: the readable events of the batch.
        unreadable: its other records.
        watch: called before the commit; what it raises rolls everything back.

    Returns:
        The records that are refused, unreadable ones first, with the reason; the others are committed.
    """
    batch = _Batch(topic, offsets, accepted, unreadable, watch)
    try:
        return await _record(pool, batch, _copy_and_upsert)
    except _REFUSED_BY_DATABASE:
        return await _record(pool, batch, _upsert_by_halves)


class _Batch(NamedTuple):
    topic: str
    offsets: Offsets
    accepted: Sequence[Accepted]
    unreadable: Sequence[Refused]
    watch: Watch | None


async def _record(
    pool: Pool,
    batch: _Batch,
    upsert: Callable[[Connection, Sequence[Accepted], dict[int, int]], Awaitable[list[Refused]]],
) -> Judged:
    async with pool.acquire() as connection, connection.transaction():
        before = await _advance_offsets(connection, batch.topic, batch.offsets)
        await _erase(connection, [e for e, _ in batch.accepted if isinstance(e, UserErased)])
        good, refused, erased = await _check(connection, batch.accepted, batch.unreadable)
        if merged := merge(good):
            passed = {partition: known.next_offset for partition, known in before.items()}
            refused += await upsert(connection, merged, passed)
        if batch.watch is not None:
            recent = batch.watch(refused, before)
            await _note_recent(connection, batch.topic, before, recent)
        passing("recorder.in-transaction")
    passing("recorder.database-committed")
    of_erased = 0
    if erased:
        of_erased = sum(_who(a.event) in erased for a in batch.accepted) + sum(
            key_of(r.record) in erased for r in batch.unreadable
        )
    return Judged(refused, of_erased)


def _who(event: AnyEvent) -> str:
    return "" if isinstance(event, UserErased) else event.mcp_server_user_id


async def _erase(connection: Connection, erasures: Sequence[UserErased]) -> None:
    """Removes people and all that is kept of them; the cascade leaves marks for the aggregator."""
    if not erasures:
        return
    users = [e.mcp_server_user_id for e in erasures]
    await connection.execute(
        SQL["note_erased"], users, [e.erased_at for e in erasures], [e.event_id for e in erasures]
    )
    for statement in ("delete_users", "delete_from_outbox", "delete_set_aside"):
        await connection.execute(SQL[statement], users)


async def _advance_offsets(connection: Connection, topic: str, offsets: Offsets) -> dict[int, Before]:
    rows = await connection.fetch(
        SQL["advance_offsets"], topic, [p.partition for p in offsets], list(offsets.values())
    )
    return {
        r["partition"]: Before(
            r["next_offset"],
            Chunk(r["recent_events"], r["recent_missing"], r["recent_broken"]),
            r["broken_in_a_row"],
        )
        for r in rows
    }


async def _note_recent(
    connection: Connection, topic: str, before: Mapping[int, Before], recent: Recent
) -> None:
    """Writes what is recent, where there is something bad to tell, or was."""
    total = recent.total
    was = any(known.recent.missing or known.recent.broken or known.in_a_row for known in before.values())
    if was or total.missing or total.broken or recent.in_a_row:
        rows_ = [recent.in_a_row.get(partition, 0) for partition in before]
        await connection.execute(SQL["note_recent"], topic, *total, list(before), rows_)


async def _check(
    connection: Connection, accepted: Sequence[Accepted], unreadable: Sequence[Refused]
) -> tuple[list[Accepted], list[Refused], set[str]]:
    """The events that can be written, the records that are refused, and who of them was erased."""
    erased: set[str] = set()
    if unreadable:
        keys = list({key_of(r.record) for r in unreadable})
        erased = set(await connection.fetchval(SQL["find_erased"], keys))
    refused = of_others(unreadable, erased) if erased else list(unreadable)
    wanted = References.of(accepted)
    if not wanted.users:
        return list(accepted), refused, erased
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
    expected = (wanted.users, wanted.sessions, wanted.servers, wanted.walkthroughs, wanted.steps, ())
    if tuple(counts.values()) == tuple(len(part) for part in expected):
        return list(accepted), refused, erased
    found = await connection.fetchrow(SQL["find_references"], *arguments)
    assert found is not None  # noqa: S101 - one row, always
    erased |= set(found["erased"])
    known = References(
        set(found["users"]),
        set(found["sessions"]),
        set(found["servers"]),
        set(found["walkthroughs"]),
        set(zip(found["step_ids"], found["step_walkthroughs"], strict=True)),
    )
    good, by_reference = check_references([a for a in accepted if _who(a.event) not in erased], known)
    return good, refused + by_reference, erased


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

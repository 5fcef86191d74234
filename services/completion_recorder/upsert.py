"""Events as rows: of a user and step, or walkthrough, the first counts, of showings the last as well."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import asyncpg

from schemas import AnyEvent, Rejection
from services.completion_recorder.event_rows import SHAPES, TABLE_OF, Row, Shape
from services.completion_recorder.judge import Accepted, Refused, RowKey, Table, row_of
from services.completion_recorder.locks import IMPATIENCE, wait_at_most
from services.completion_recorder.not_written import NotWritten, Waiting
from services.consumers.stored_positions import columns
from services.runtime.database import Connection, load_queries
from services.runtime.landing import in_place, with_given

SQL = load_queries(__file__)

#: So many rows of a table are given to its statement; more land in a temporary table.
_FEW: Final = 500
_TYPES: Final = dict.fromkeys(("completed_at", "started_at", "skipped_at", "shown_at"), "bigint") | {
    "metadata": "jsonb",
    "is_replayed": "boolean",
}

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

Rows: TypeAlias = list[Row]


def _incoming(table: Table) -> str:
    return "incoming" if table is Table.COMPLETIONS else f"incoming_{SHAPES[table].name}"


def _upsert_of_few(table: Table) -> str:
    """The upsert of a table, of rows that it is given."""
    shape = SHAPES[table]
    types = {name: _TYPES.get(name, "text") for name in (*shape.columns, "is_replayed")}
    upsert = SQL[f"upsert_{shape.name}"]
    if table is Table.COMPLETIONS:
        return with_given(in_place(upsert, _incoming(table), SQL["not_covered"]), "given", types)
    return with_given(upsert, _incoming(table), types)


#: By their tables.
_UPSERT_OF_FEW: Final = {table: _upsert_of_few(table) for table in SHAPES}


async def copy_and_upsert(
    connection: Connection, merged: Sequence[Accepted], replayed_before: Mapping[int, int]
) -> int:
    """Writes events; returns how many completions do not count because a correction covers them.

    Args:
        connection: of `connections`, in a transaction.
        merged: no two of them are the same event.
        replayed_before: the offset of each partition before which all is replayed.
    """
    landing = rows(merged, replayed_before)
    covered = 0
    for table in Table:  # in this order always, so that two recorders cannot deadlock
        if table not in landing:
            continue
        shape, given = SHAPES[table], landing[table]
        is_replay = any(row[-1] for row in given)
        if not is_replay and len(given) <= _FEW and await _upsert_few(connection, table, given):
            continue
        await connection.copy_records_to_table(
            _incoming(table), records=given, columns=(*shape.columns, "is_replayed")
        )
        if table is Table.COMPLETIONS:
            covered = await _delete(connection, "drop_covered")
            await _upsert_completions(connection, len(given) - covered, is_replay=is_replay)
        else:
            await _upsert_others(connection, shape.name, len(given), is_replay=is_replay)
    return covered


async def _upsert_few(connection: Connection, table: Table, given: Rows) -> bool:
    """Upserts new rows; whether that is all: each completion is its row now."""
    changed = await connection.fetchval(_UPSERT_OF_FEW[table], *columns(given))
    return table is not Table.COMPLETIONS or changed == len(given)


async def upsert_candidates(connection: Connection, candidates: int) -> None:
    """Upserts so many completions, which are in `incoming` already, as replayed ones; and empties it."""
    await _upsert_completions(connection, candidates, is_replay=True, are_events=False)
    await connection.execute(SQL["clear_incoming"])


async def _upsert_completions(
    connection: Connection, left: int, *, is_replay: bool, are_events: bool = True
) -> None:
    if is_replay:
        # Most of a replay is there: that is known sooner than it is upserted in vain.
        left -= await _delete(connection, "drop_recorded")
    if not left:
        return
    changed = await connection.fetchval(SQL["upsert_completions"])
    if changed < left:
        if are_events and await connection.fetchval(SQL["names_another_row"]):
            raise asyncpg.UniqueViolationError("a completion that does not count has the id of another row")
        await connection.execute(SQL["keep_later"])
    if changed and is_replay:
        await connection.execute(SQL["mark_changed"])


async def _upsert_others(connection: Connection, name: str, left: int, *, is_replay: bool) -> None:
    """Upserts so many starts, skips or showings: no correction is about them."""
    if is_replay:
        left -= await _delete(connection, f"drop_recorded_{name}")
    if not left:
        return
    await connection.execute(SQL[f"upsert_{name}"])
    if is_replay:
        await connection.execute(SQL[f"mark_changed_{name}"])


async def _delete(connection: Connection, statement: str) -> int:
    """Removes some of what has landed; returns how many."""
    return int((await connection.execute(SQL[statement])).split()[-1])


def rows(merged: Iterable[Accepted], replayed_before: Mapping[int, int]) -> dict[Table, Rows]:
    """The events as rows of the tables where a load lands, for each table of which there are any.

    The last column says whether it is replayed: an offset that the recorder had passed before.
    """
    of_type: dict[type[AnyEvent], list[Accepted]] = {}
    for item in merged:
        of_type.setdefault(type(item.event), []).append(item)
    return {
        TABLE_OF[kind]: _rows_of(SHAPES[TABLE_OF[kind]], items, replayed_before)
        for kind, items in of_type.items()
        if kind in TABLE_OF
    }


def _rows_of(shape: Shape, items: Iterable[Accepted], replayed_before: Mapping[int, int]) -> Rows:
    prefix, values = shape.prefix, shape.values
    return [
        (prefix + event.event_id, *values(event), record.offset < replayed_before[record.partition])
        for event, record in items
    ]


async def apart_from_locked(
    connection: Connection, merged: Sequence[Accepted]
) -> tuple[list[Accepted], list[Waiting]]:
    """Locks the rows that the upsert may change; events whose row somebody else has locked wait."""
    keys = [row_of(item.event) for item in merged]
    locked: set[RowKey] = set()
    for table in Table:
        users = [key.user for key in keys if key.table == table]
        of_what = [key.of_what for key in keys if key.table == table]
        if users:
            name = SHAPES[table].name
            ours = {tuple(row) for row in await connection.fetch(SQL[f"lock_{name}"], users, of_what)}
            there = {tuple(row) for row in await connection.fetch(SQL[f"find_{name}"], users, of_what)}
            locked |= {RowKey(table, *key) for key in there - ours}
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
        return await copy_and_upsert(connection, part, replayed_before)


def refused_by_database(item: Accepted, error: asyncpg.PostgresError) -> Refused:
    """An event whose row PostgreSQL refuses."""
    constraint = getattr(error, "constraint_name", None)
    message = f"PostgreSQL refuses it: {type(error).__name__} {constraint or ''}".rstrip()
    return Refused(item.record, Rejection.REFUSED_BY_DATABASE, message)

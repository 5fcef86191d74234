"""The aggregator's transaction: lock journeys, read their rows, write what changed.

A load is counted at once. Where somebody else has locked a row, it is counted again part by part: what waits
for the lock is set aside with its mark, in the same transaction, and the rest goes on.
"""

import random
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

import asyncpg

from services.consumers.stored_positions import Advance, columns
from services.journeys import Delta, Journey, accumulate
from services.runtime.crashpoints import crash_point
from services.runtime.database import PLANNED_ANEW, Connection, Pool, fetch_one, load_queries, no_longer_than
from services.runtime.landing import with_given

SQL = load_queries(__file__)
#: A lock is given up before PostgreSQL looks for deadlocks.
SERVER_SETTINGS = {
    "application_name": "stepstream sankey-aggregator",
    "work_mem": "64MB",
    "lock_timeout": "800ms",
    **PLANNED_ANEW,
}

#: How many tries may fail while walkthroughs are halved to find those that wait. After so many a part that
#: fails is set aside locked_walkthroughs: it is tried again within seconds.
_HALVES = 150
#: How long each try after the first failed one waits for a lock.
_IMPATIENCE = "2ms"
#: The table in what PostgreSQL says about where it waited, in any language.
_TABLE = re.compile(r'"(sankey_\w+)"')
#: It reads both tables locked_walkthroughs.
_MARK_ALL_SECONDS = 3600.0

#: A user and a walkthrough.
JourneyKey: TypeAlias = tuple[str, str]

_JOURNEY_COLUMNS = (
    "mcp_server_user_id",
    "walkthrough_id",
    "mcp_server_id",
    "step_ids",
    "completed_at",
    "started_at",
    "first_shown_at",
    "skipped",
    "shown_at",
    "shown_step_id",
)
#: So many columns of `read_changed` say what was counted of a journey; as many say what its rows come to.
_OF_JOURNEY = len(_JOURNEY_COLUMNS) - 2
_TRANSITION_COLUMNS: Final = {
    "walkthrough_id": "text",
    "mcp_server_id": "text",
    "began_on": "date",
    "position": "integer",
    "from_step_id": "text",
    "to_step_id": "text",
    "skipped": "boolean",
    "journeys": "bigint",
    "elapsed_ms": "bigint",
    "timed_journeys": "bigint",
    "active_ms": "bigint",
    "active_journeys": "bigint",
}
_ENDING_COLUMNS: Final = {
    "walkthrough_id": "text",
    "mcp_server_id": "text",
    "began_on": "date",
    "steps_done": "integer",
    "step_id": "text",
    "last_active_on": "date",
    "steps_skipped": "integer",
    "shown_step_id": "text",
    "journeys": "bigint",
}
#: Of so many journeys rows are given to the statements; of more they land in temporary tables.
_FEW: Final = 100
#: What adds the deltas of a table, and deletes what came to nothing: of rows that are given.
_OF_FEW: Final = {
    name: with_given(SQL[name], f"{kind}_deltas", types)
    for kind, types in (("transition", _TRANSITION_COLUMNS), ("ending", _ENDING_COLUMNS))
    for name in (f"add_{kind}s", f"delete_empty_{kind}s")
}


async def prepare(connection: Connection) -> None:
    """Makes the temporary tables of a new connection."""
    await connection.execute(SQL["create_temporary_tables"])


async def recorded(pool: Pool, topic: str) -> Mapping[int, int]:
    """How far the recorder has judged each partition: the first offset that it has not."""
    rows = await pool.fetch(SQL["recorded"], topic)
    return {row["partition"]: row["next_offset"] for row in rows}


class Recounted(NamedTuple):
    """What became of journeys that were to be recounted."""

    #: How many had changed, and are counted.
    changed: int = 0
    #: Those that wait for a lock, and for which: table and key of what is locked.
    waiting: Mapping[JourneyKey, str] = MappingProxyType({})

    @property
    def locked_walkthroughs(self) -> dict[str, str]:
        """The walkthroughs of which no journey can be counted, and what is locked."""
        return {w: lock for (_, w), lock in self.waiting.items() if not lock.startswith("sankey_journeys ")}


async def recount_from_events(
    pool: Pool,
    journeys: Collection[JourneyKey],
    advance: Advance | None = None,
    *,
    locked: Mapping[str, str] | None = None,
) -> Recounted:
    """Brings the counts of these journeys up to their rows, but for those that wait for a lock.

    Args:
        pool: connections made with `SERVER_SETTINGS` and `prepare`.
        journeys: which.
        advance: how the position moves on.
        locked: given where something is locked: then it is not tried first to count all at once. Of these
            walkthroughs nothing is tried; the values are what they wait for.

    Raises:
        MovedError: the position is not where `advance` begins.
        PositionLockedError: somebody else has locked it.
    """
    if not journeys and advance is None:
        return Recounted()
    if locked is None:
        try:
            return await _recount_from_events(pool, journeys, advance, None)
        except asyncpg.LockNotAvailableError:
            locked = {}
    return await _recount_from_events(pool, journeys, advance, locked)


async def _recount_from_events(
    pool: Pool, journeys: Collection[JourneyKey], advance: Advance | None, locked: Mapping[str, str] | None
) -> Recounted:
    """One try of `recount_from_events`: position, counts and marks of what waits, in one transaction."""
    async with pool.acquire() as connection, connection.transaction():
        if advance is not None:
            await advance.write(connection)
        recounted = await _recount(connection, journeys, locked, marked=False)
        await _set_aside(connection, recounted.waiting)
        crash_point("aggregator.in-transaction")
        return recounted


class Drained(NamedTuple):
    """How many marks are gone, and what became of their journeys."""

    marks: int
    recounted: Recounted


async def recount_from_marks(pool: Pool, limit: int, *, locked: Mapping[str, str] | None = None) -> Drained:
    """As `recount_from_events`, the journeys of the oldest `limit` marks that wait for no lock."""
    if locked is None:
        try:
            return await _recount_from_marks(pool, limit, None)
        except asyncpg.LockNotAvailableError:
            locked = {}
    return await _recount_from_marks(pool, limit, locked)


async def _recount_from_marks(pool: Pool, limit: int, locked: Mapping[str, str] | None) -> Drained:
    async with pool.acquire() as connection, connection.transaction():
        marks = await connection.fetch(SQL["take_marks"], limit)
        journeys = {(m["mcp_server_user_id"], m["walkthrough_id"]) for m in marks}
        recounted = await _recount(connection, journeys, locked, marked=True)
        await _set_aside(connection, recounted.waiting)
        if marks:
            crash_point("aggregator.marks-in-transaction")
        return Drained(len(marks), recounted)


# --- journeys that wait for a lock -----------------------------------------------------------------------


class Resumed(NamedTuple):
    """What became of some marks that waited."""

    done: int
    recounted: Recounted
    #: The locks that these marks waited for, and wait for no more.
    free: set[str]
    #: The last of them in order, and the number of the last mark.
    last_lock: str
    last: int


async def recount_from_waiting(pool: Pool, limit: int) -> AsyncIterator[Resumed]:
    """As `recount_from_events`, journeys that waited for locks that have gone; looks at each lock once.

    The first mark of each lock tells whether it has gone; the others follow where it has. `limit` is how many
    marks to look at in a transaction, at most.
    """
    lock = ""
    while (resumed := await _recount_some_waiting(pool, "take_first_waiting", lock, limit)) is not None:
        yield resumed
        lock, free, number = resumed.last_lock, resumed.free, 0
        while free and (
            resumed := await _recount_some_waiting(pool, "take_waiting", list(free), number, limit)
        ):
            yield resumed
            free, number = free & resumed.free, resumed.last


async def _recount_some_waiting(pool: Pool, query: str, *which: object) -> Resumed | None:
    async with pool.acquire() as connection, connection.transaction():
        taken = await connection.fetch(SQL[query], *which)
        if not taken:
            return None
        keys = {mark["id"]: (mark["mcp_server_user_id"], mark["walkthrough_id"]) for mark in taken}
        recounted = await _recount(connection, set(keys.values()), {}, marked=True)
        waiting = {n: recounted.waiting[key] for n, key in keys.items() if key in recounted.waiting}
        await connection.execute(SQL["wait_for_another"], list(waiting), list(waiting.values()))
        done = [number for number in keys if number not in waiting]
        await connection.execute(SQL["forget_marks"], done)
        if done:
            crash_point("waiting.counts-in-transaction")
    free = {mark["waits_for"] for mark in taken if waiting.get(mark["id"]) != mark["waits_for"]}
    return Resumed(len(done), recounted, free, taken[-1]["waits_for"], taken[-1]["id"])


async def count_waiting(pool: Pool) -> tuple[int, float]:
    """How many journeys wait for a lock, and for how many seconds the first does."""
    row = await fetch_one(pool, SQL["count_waiting"])
    return row["journeys"], row["oldest_seconds"]


async def _set_aside(connection: Connection, waiting: Mapping[JourneyKey, str]) -> None:
    """Leaves a mark for each journey that waits, with table and key of the lock that it waits for."""
    if waiting:
        users, walkthroughs = zip(*waiting, strict=True)
        await connection.execute(SQL["set_aside"], users, walkthroughs, list(waiting.values()))


async def _recount(
    connection: Connection,
    journeys: Collection[JourneyKey],
    locked: Mapping[str, str] | None,
    *,
    marked: bool,
) -> Recounted:
    """Brings these journeys' counts up to their rows, in the caller's transaction.

    Without `locked`, all at once: a lock that somebody holds is an error. With it part by part: those
    walkthroughs wait untried, as does what else is found locked, and the rest is counted.
    """
    if not journeys:
        return Recounted()
    if locked is None:
        return Recounted(await recount_within(connection, journeys, marked=marked))
    await connection.execute(SQL["lock_tables"])
    walkthroughs = list({walkthrough for _, walkthrough in journeys} - locked.keys())
    locked_walkthroughs = dict(locked)
    for row in await connection.fetch(SQL["locked_freshness"], walkthroughs):
        locked_walkthroughs[row["walkthrough_id"]] = f"sankey_freshness {row['walkthrough_id']}"
    waiting = {key: locked_walkthroughs[key[1]] for key in journeys if key[1] in locked_walkthroughs}
    left = [key for key in journeys if key not in waiting]
    users, theirs = [user for user, _ in left], [walkthrough for _, walkthrough in left]
    for user, walkthrough in await connection.fetch(SQL["locked_journeys"], users, theirs):
        waiting[user, walkthrough] = f"sankey_journeys {user} {walkthrough}"
    parts: dict[str, list[JourneyKey]] = {}
    for key in left:
        if key not in waiting:
            parts.setdefault(key[1], []).append(key)
    # In another order each time: who is beside many that wait is not beside them the next time.
    shuffled = random.sample(list(parts.values()), len(parts))
    changed = await _recount_by_halves(connection, shuffled, waiting, [_HALVES], marked=marked)
    return Recounted(changed, waiting)


async def _recount_by_halves(
    connection: Connection,
    parts: Sequence[Sequence[JourneyKey]],
    waiting: dict[JourneyKey, str],
    probes: list[int],
    *,
    marked: bool,
) -> int:
    """Finds the walkthroughs whose counts somebody else has locked, or is inserting; others are counted.

    A part is the journeys of a walkthrough. Returns how many journeys had changed.
    """
    if not parts:
        return 0
    try:
        async with connection.transaction():
            await connection.execute(SQL["clear_temporary_tables"])
            journeys = [key for part in parts for key in part]
            return await recount_within(connection, journeys, marked=marked)
    except asyncpg.LockNotAvailableError as error:
        if probes[0] == _HALVES:
            await connection.execute(f"set local lock_timeout = '{_IMPATIENCE}'")
        probes[0] -= 1
        if len(parts) == 1 or probes[0] < 0:
            found = _TABLE.search(getattr(error, "context", None) or "")
            table = found[1] if found and found[1] != "sankey_journeys" else "sankey_counts"
            waiting |= {key: f"{table} {key[1]}" for part in parts for key in part}
            return 0
    half = len(parts) // 2
    return await _recount_by_halves(
        connection, parts[:half], waiting, probes, marked=marked
    ) + await _recount_by_halves(connection, parts[half:], waiting, probes, marked=marked)


# --- all of it -------------------------------------------------------------------------------------------


async def mark_all(connection: Connection) -> int:
    """Marks every journey of the tables of events, and of what was counted; returns how many."""
    await no_longer_than(connection, _MARK_ALL_SECONDS)
    return int(await connection.fetchval(SQL["mark_all"], timeout=_MARK_ALL_SECONDS))


async def follow_showings(pool: Pool) -> None:
    """Marks what an aggregator of before has passed over: journeys with skips or showings, once."""
    await pool.execute(SQL["follow_showings"], timeout=_MARK_ALL_SECONDS)


async def recount_within(
    connection: Connection, journeys: Collection[JourneyKey], *, marked: bool = False
) -> int:
    """Brings journeys' counts up to their rows, in the caller's transaction.

    Args:
        connection: one that is `prepare`d.
        journeys: which.
        marked: they come from marks. Then their walkthroughs count as changed even if no count differs: what
            was mended by hand may be what no count shows, a step's session say.

    Returns:
        How many differed from what was counted of them.

    Raises:
        asyncpg.LockNotAvailableError: somebody else has locked a journey or a count.
    """
    users = [user for user, _ in journeys]
    walkthroughs = [walkthrough for _, walkthrough in journeys]
    inserted = {
        (row["mcp_server_user_id"], row["walkthrough_id"])
        for row in await connection.fetch(SQL["lock_journeys"], users, walkthroughs)
    }
    changed = await connection.fetch(SQL["read_changed"], users, walkthroughs)
    delta, new_journeys, empty = _compare(changed)
    empty |= inserted - {(row["mcp_server_user_id"], row["walkthrough_id"]) for row in changed}
    await _write_journeys(connection, new_journeys, empty)
    await _add(connection, delta, few=len(changed) <= _FEW)
    await _note_changes(connection, changed, walkthroughs if marked else ())
    return len(changed)


async def _note_changes(
    connection: Connection, changed: Collection[asyncpg.Record], marked: Collection[str]
) -> None:
    """Gives the walkthroughs of changed journeys, and those of marks, a new version for readers.

    With it is kept when the newest thing that was counted happened, in milliseconds.
    """
    newest: dict[str, int] = dict.fromkeys(marked, 0)
    for row in changed:
        times, walkthrough = row["new_completed_at"], row["walkthrough_id"]
        at = times[-1] if times else row["new_started_at"] or row["new_first_shown_at"] or 0
        newest[walkthrough] = max(at, newest.get(walkthrough, 0))
    if newest:
        await connection.execute(SQL["note_changes"], list(newest), list(newest.values()))


def _compare(
    changed: Collection[asyncpg.Record],
) -> tuple[Delta, list[tuple[object, ...]], set[JourneyKey]]:
    """The delta of all changes, the journeys to write, and those without any rows, which are deleted."""
    delta = Delta()
    new_journeys: list[tuple[object, ...]] = []
    empty: set[JourneyKey] = set()
    for user, walkthrough, *values in changed:
        old, new = (
            Journey(walkthrough, *values[:_OF_JOURNEY]),
            Journey(walkthrough, *values[_OF_JOURNEY:]),
        )
        accumulate(delta, old, new)
        if new.began_at is not None:
            new_journeys.append((user, walkthrough, *values[_OF_JOURNEY:]))
        else:
            empty.add((user, walkthrough))
    return delta, new_journeys, empty


async def _write_journeys(
    connection: Connection, new_journeys: Collection[tuple[object, ...]], empty: Collection[JourneyKey]
) -> None:
    if 0 < len(new_journeys) <= _FEW:
        await connection.executemany(SQL["write_journey"], new_journeys)
    elif new_journeys:
        await connection.copy_records_to_table("new_journeys", records=new_journeys, columns=_JOURNEY_COLUMNS)
        await connection.execute(SQL["write_journeys"])
    if empty:
        await connection.execute(SQL["delete_journeys"], [u for u, _ in empty], [w for _, w in empty])


async def _add(connection: Connection, delta: Delta, *, few: bool) -> None:
    """Adds the deltas last, so that other instances wait for hot counters only briefly."""
    transitions = [(*key, *flow) for key, flow in delta.transitions.items()]
    endings = [(*key, journeys) for key, journeys in delta.endings.items()]
    for kind, rows, types in (
        ("transition", transitions, _TRANSITION_COLUMNS),
        ("ending", endings, _ENDING_COLUMNS),
    ):
        if rows and few:
            await _add_rows(connection, kind, _OF_FEW, columns(rows))
        elif rows:
            await connection.copy_records_to_table(f"{kind}_deltas", records=rows, columns=[*types])
            await _add_rows(connection, kind, SQL)


async def add_filled_deltas(connection: Connection) -> None:
    """Adds what the caller's transaction has put into `transition_deltas` and `ending_deltas`."""
    for kind in ("transition", "ending"):
        await _add_rows(connection, kind, SQL)


async def _add_rows(
    connection: Connection, kind: str, statements: Mapping[str, str], given: Sequence[Sequence[object]] = ()
) -> None:
    if await connection.fetchval(statements[f"add_{kind}s"], *given):
        await connection.execute(statements[f"delete_empty_{kind}s"], *given)

"""The aggregator's transaction: lock journeys, read their rows, write what changed."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import asyncpg

from services.journeys import Delta, Journey, accumulate
from services.runtime.crashpoints import passing
from services.runtime.database import PLANNED_ANEW, Connection, Pool, load_queries, no_longer_than
from services.runtime.stored_positions import Advance

SQL = load_queries(__file__)
SERVER_SETTINGS = {"application_name": "stepstream sankey-aggregator", "work_mem": "64MB"} | PLANNED_ANEW

#: It reads both tables whole.
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
)
_TRANSITION_COLUMNS = (
    "walkthrough_id",
    "mcp_server_id",
    "began_on",
    "position",
    "from_step_id",
    "to_step_id",
    "journeys",
    "elapsed_ms",
    "timed_journeys",
)
_ENDING_COLUMNS = (
    "walkthrough_id",
    "mcp_server_id",
    "began_on",
    "steps_done",
    "step_id",
    "last_active_on",
    "journeys",
)


async def prepare(connection: Connection) -> None:
    """Makes the temporary tables of a new connection."""
    await connection.execute(SQL["create_temporary_tables"])


async def recorded(pool: Pool, topic: str, partitions: Collection[int]) -> Mapping[int, int]:
    """How far the recorder has judged each partition: the first offset that it has not."""
    rows = await pool.fetch(SQL["recorded"], topic, list(partitions))
    return {row["partition"]: row["next_offset"] for row in rows}


async def follow(pool: Pool, journeys: Collection[JourneyKey], advance: Advance | None = None) -> int:
    """Brings the counts of these journeys up to their rows; returns how many had changed.

    Raises:
        MovedError: the position is not where `advance` begins.
    """
    if not journeys and advance is None:
        return 0
    async with pool.acquire() as connection, connection.transaction():
        if advance is not None:
            await advance.write(connection)
        changed = await follow_within(connection, journeys) if journeys else 0
        passing("aggregator.in-transaction")
        return changed


async def drain_marks(pool: Pool, limit: int) -> tuple[int, int]:
    """Follows the journeys of the oldest marks; returns how many marks, and how many journeys changed."""
    async with pool.acquire() as connection, connection.transaction():
        marks = await connection.fetch(SQL["take_marks"], limit)
        journeys = {(m["mcp_server_user_id"], m["walkthrough_id"]) for m in marks}
        changed = await follow_within(connection, journeys, marked=True) if journeys else 0
        if marks:
            passing("aggregator.marks-in-transaction")
        return len(marks), changed


async def mark_all(connection: Connection) -> int:
    """Marks every journey of completions, of starts and of what was counted; returns how many."""
    await no_longer_than(connection, _MARK_ALL_SECONDS)
    return int(await connection.fetchval(SQL["mark_all"], timeout=_MARK_ALL_SECONDS))


async def follow_within(
    connection: Connection, journeys: Collection[JourneyKey], *, marked: bool = False
) -> int:
    """As `follow`, in a transaction that is the caller's, on a connection that is prepared.

    Rows that are `marked` were changed, maybe in what no count shows: the session of a step, say.
    """
    users = [user for user, _ in journeys]
    walkthroughs = [walkthrough for _, walkthrough in journeys]
    unseen = {
        (row["mcp_server_user_id"], row["walkthrough_id"])
        for row in await connection.fetch(SQL["lock_journeys"], users, walkthroughs)
    }
    changed = await connection.fetch(SQL["read_changed"], users, walkthroughs)
    delta, counted, gone = _compare(changed)
    gone |= unseen - {(row["mcp_server_user_id"], row["walkthrough_id"]) for row in changed}
    await _write_journeys(connection, counted, gone)
    await _add(connection, delta)
    await _note_changes(connection, changed, walkthroughs if marked else ())
    return len(changed)


async def _note_changes(
    connection: Connection, changed: Collection[asyncpg.Record], others: Collection[str]
) -> None:
    """That these walkthroughs changed, and others, and how new the newest of what was counted is."""
    newest: dict[str, int] = dict.fromkeys(others, 0)
    for row in changed:
        times, walkthrough = row["new_completed_at"], row["walkthrough_id"]
        at = times[-1] if times else row["new_started_at"] or 0
        newest[walkthrough] = max(at, newest.get(walkthrough, 0))
    if newest:
        await connection.execute(SQL["note_changes"], list(newest), list(newest.values()))


def _compare(
    changed: Collection[asyncpg.Record],
) -> tuple[Delta, list[tuple[object, ...]], set[JourneyKey]]:
    """The delta of all changes, the journeys to write, and those that are no more."""
    delta = Delta()
    counted: list[tuple[object, ...]] = []
    gone: set[JourneyKey] = set()
    for user, walkthrough, *values in changed:
        old, new = Journey(walkthrough, *values[:4]), Journey(walkthrough, *values[4:])
        accumulate(delta, old, new)
        if new.began_at is not None:
            counted.append((user, walkthrough, *values[4:]))
        else:
            gone.add((user, walkthrough))
    return delta, counted, gone


async def _write_journeys(
    connection: Connection, counted: Collection[tuple[object, ...]], gone: Collection[JourneyKey]
) -> None:
    if counted:
        await connection.copy_records_to_table("counted", records=counted, columns=_JOURNEY_COLUMNS)
        await connection.execute(SQL["write_journeys"])
    if gone:
        await connection.execute(SQL["delete_journeys"], [u for u, _ in gone], [w for _, w in gone])


async def _add(connection: Connection, delta: Delta) -> None:
    """Adds the deltas last, so that other instances wait for hot counters only briefly."""
    if delta.transitions:
        rows = [(*key, *flow) for key, flow in delta.transitions.items()]
        await connection.copy_records_to_table("transition_deltas", records=rows, columns=_TRANSITION_COLUMNS)
        await _add_transitions(connection)
    if delta.endings:
        endings = [(*key, journeys) for key, journeys in delta.endings.items()]
        await connection.copy_records_to_table("ending_deltas", records=endings, columns=_ENDING_COLUMNS)
        await _add_endings(connection)


async def add_filled_deltas(connection: Connection) -> None:
    """Adds what the caller's transaction has put into `transition_deltas` and `ending_deltas`."""
    await _add_transitions(connection)
    await _add_endings(connection)


async def _add_transitions(connection: Connection) -> None:
    if await connection.fetchval(SQL["add_transitions"]):
        await connection.execute(SQL["delete_empty_transitions"])


async def _add_endings(connection: Connection) -> None:
    if await connection.fetchval(SQL["add_endings"]):
        await connection.execute(SQL["delete_empty_endings"])

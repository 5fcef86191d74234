"""The aggregator's transaction: lock journeys, read their rows, write what changed."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import asyncpg

from services.journeys import Delta, Journey, accumulate
from services.runtime.database import Connection, Pool, load_queries

SQL = load_queries(__file__)
SERVER_SETTINGS = {"application_name": "stepstream sankey-aggregator", "work_mem": "64MB"}

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


async def follow(pool: Pool, journeys: Collection[JourneyKey]) -> int:
    """Brings the counts of these journeys up to their rows; returns how many had changed."""
    if not journeys:
        return 0
    async with pool.acquire() as connection, connection.transaction():
        return await _follow(connection, journeys)


async def drain_marks(pool: Pool, limit: int) -> tuple[int, int]:
    """Follows the journeys of the oldest marks; returns how many marks, and how many journeys changed."""
    async with pool.acquire() as connection, connection.transaction():
        marks = await connection.fetch(SQL["take_marks"], limit)
        journeys = {(m["mcp_server_user_id"], m["walkthrough_id"]) for m in marks}
        return len(marks), await _follow(connection, journeys) if journeys else 0


async def _follow(connection: Connection, journeys: Collection[JourneyKey]) -> int:
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
    return len(changed)


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
        if await connection.fetchval(SQL["add_transitions"]):
            await connection.execute(SQL["delete_empty_transitions"])
    if delta.endings:
        endings = [(*key, journeys) for key, journeys in delta.endings.items()]
        await connection.copy_records_to_table("ending_deltas", records=endings, columns=_ENDING_COLUMNS)
        if await connection.fetchval(SQL["add_endings"]):
            await connection.execute(SQL["delete_empty_endings"])

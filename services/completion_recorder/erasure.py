"""People who are erased: noted for good, and removed with all that is kept of them."""

import random
from collections.abc import Collection, Iterable, Sequence, Set

import asyncpg

from schemas import UserErased
from services.completion_recorder.judge import Accepted
from services.completion_recorder.not_written import NotWritten, Waiting
from services.runtime.database import Connection, fetch_one, load_queries

SQL = load_queries(__file__)

#: So many erasures wait for a lock with patience; then the rest waits, too.
_PROBES = 20


async def find_erased(connection: Connection, people: Collection[str]) -> Set[str]:
    """Those of these people who were erased."""
    return set(await connection.fetchval(SQL["find_erased"], list(people))) if people else set()


async def erase(connection: Connection, accepted: Iterable[Accepted]) -> None:
    """Removes people and all that is kept of them; the cascade leaves marks for the aggregator.

    Raises:
        asyncpg.LockNotAvailableError: somebody else has locked a row.
    """
    erasures = [event for event, _ in accepted if isinstance(event, UserErased)]
    if erasures:
        await note_erased(connection, erasures)
        await _delete(connection, [erasure.mcp_server_user_id for erasure in erasures])


async def erase_by_parts(connection: Connection, accepted: Iterable[Accepted]) -> NotWritten:
    """From now on nothing of these people counts; whose rows somebody else has locked is removed later."""
    erasures = [(item, item.event) for item in accepted if isinstance(item.event, UserErased)]
    if not erasures:
        return NotWritten()
    await note_erased(connection, [event for _, event in erasures])
    users = [event.mcp_server_user_id for _, event in erasures]
    locked = await lock_people(connection, users)
    waits_for = {user: f"mcp_server_user {user}" for user in locked}
    waits_for |= await _delete_one_by_one(connection, [user for user in users if user not in locked])
    return NotWritten(
        waiting=[
            Waiting(item, waits_for[event.mcp_server_user_id])
            for item, event in erasures
            if event.mcp_server_user_id in waits_for
        ]
    )


async def lock_people(connection: Connection, users: Sequence[str]) -> set[str]:
    """Locks the rows of these people, as a deletion would; returns those that somebody else has locked."""
    ours = {row["id"] for row in await connection.fetch(SQL["lock_people"], users)}
    return {row["id"] for row in await connection.fetch(SQL["find_people"], users)} - ours


async def _delete_one_by_one(connection: Connection, users: Iterable[str]) -> dict[str, str]:
    """Returns who could not be removed, and what that waits for."""
    waits_for = {}
    # In another order each time: who is behind many that wait is not behind them the next time.
    left = list(dict.fromkeys(users))
    random.shuffle(left)
    probes = _PROBES
    while left and probes:
        user = left.pop()
        try:
            async with connection.transaction():
                await _delete(connection, [user])
        except asyncpg.LockNotAvailableError:
            waits_for[user] = f"what is kept of mcp_server_user {user}"
            probes -= 1
    return waits_for | {user: f"what is kept of mcp_server_user {user}, perhaps" for user in left}


async def note_erased(connection: Connection, erasures: Sequence[UserErased]) -> set[str]:
    """Notes who is erased from now on; returns those of whom this is the first erasure."""
    first = await connection.fetch(
        SQL["note_erased"],
        [e.mcp_server_user_id for e in erasures],
        [e.erased_at for e in erasures],
        [e.event_id for e in erasures],
    )
    return {row["mcp_server_user_id"] for row in first}


async def find_note(connection: Connection, user: str) -> tuple[int, str]:
    """Since when a person is erased, in milliseconds, and the id of the event that says so."""
    row = await fetch_one(connection, SQL["find_note"], user)
    return row["erased_at"], row["event_id"]


async def forget_waiting(connection: Connection, user: str) -> None:
    """Removes a person's events that wait for a lock."""
    await connection.execute(SQL["delete_waiting"], [user])


async def _delete(connection: Connection, users: Sequence[str]) -> None:
    # Their row first: while we hold it, nobody records an event of theirs that waits.
    for statement in ("delete_users", "delete_waiting", "delete_from_outbox", "delete_set_aside"):
        await connection.execute(SQL[statement], users)

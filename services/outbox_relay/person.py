"""A person's events in the outbox, for whoever erases them."""

import json
from dataclasses import dataclass

from services.runtime.database import Connection, fetch_one, load_queries

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Announcement:
    """The event that says that a person is erased, while it waits in the outbox."""

    id: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


async def count_events(db: Connection, person: str, id_pattern: str) -> dict[str, int]:
    """How many of a person's events are in the outbox, and were set aside.

    Args:
        db: a connection.
        person: their id.
        id_pattern: finds the id as a whole word; a regular expression of PostgreSQL.
    """
    return dict(await fetch_one(db, SQL["count_events"], person, id_pattern))


async def remove_events(db: Connection, person: str, id_pattern: str) -> None:
    """Removes a person's events, but not what says that they are erased; arguments as `count_events`."""
    await db.execute(SQL["remove_waiting"], person, id_pattern)
    await db.execute(SQL["remove_set_aside"], person, id_pattern)


async def announce(db: Connection, person: str, value: bytes, headers: dict[str, str]) -> None:
    """Puts the event that says that a person is erased into the outbox."""
    await db.execute(SQL["announce"], person, value.decode(), json.dumps(headers))


async def find_announcement(db: Connection, person: str) -> Announcement | None:
    """That event, while it waits; None where a relay has sent it."""
    row = await db.fetchrow(SQL["find_announcement"], person)
    if row is None:
        return None
    headers = [(name, text.encode()) for name, text in json.loads(row["headers"]).items()]
    return Announcement(row["id"], row["key"].encode(), row["value"].encode(), headers)


async def remove(db: Connection, announcement: Announcement) -> None:
    """Removes it, now that it is sent."""
    await db.execute(SQL["remove"], announcement.id)

"""People and sessions that an organization registers, by ids of its own.

Whoever runs one of these in a transaction registers people first, then sessions: then no two of them wait for
each other. All of it is safe to repeat.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

from schemas import Rejection
from services.runtime.database import Connection, Pool, load_queries
from services.runtime.errors import UsageError

SQL = dict(load_queries(__file__))
SQL["register_people"] = SQL["register_people"].replace(
    "with found", "with people as (\n" + SQL["find_people"].rstrip("; \n") + "\n),\nfound", 1
)
#: What a producer's own id has at most, of a person and of a session.
MOST_OWN_ID: Final = 200
#: So many tries of what somebody else registers at the same moment.
_MOST_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Registered:
    """Somebody's id here, and whether they are new."""

    user_id: str
    created: bool = False


@dataclass(frozen=True, slots=True)
class OwnSession:
    """A session to register: its id here, the slug of its server, and whose it is; None is nobody yet.

    `started_at` is in milliseconds.
    """

    id: str
    server_slug: str
    user_id: str | None
    started_at: int
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A session as it is kept, and whether it is new."""

    server_slug: str
    user_id: str | None
    created: bool = False


@dataclass(frozen=True, slots=True)
class Servers:
    """Servers of an organization that were asked for, by id and slug; and the only one that may be meant."""

    slugs: Mapping[str, str]
    by_name: Mapping[str, str]
    only: str | None

    def find(self, name: str | None) -> str | None:
        """The id of a server by its id or slug; without a name, of the only one that may be meant.

        None where there is no such server, or several may be meant.
        """
        return self.only if name is None else self.by_name.get(name)


def own_session_id(organization: str, session_id: str) -> str:
    """The id here of a session that an organization calls `session_id`: no other one has the same."""
    return "ses_" + hashlib.sha256(f"{organization}\0{session_id}".encode()).hexdigest()[:40]


def problem_of_own_id(text: str) -> str | None:
    """Why a text can be no id of an organization's own, of a person or a session."""
    if not 1 <= len(text) <= MOST_OWN_ID:
        return f"it has 1 to {MOST_OWN_ID} characters"
    if not text.isprintable():
        return "it holds printable characters alone: no control characters, and none that are not seen"
    return None


async def find_organization(db: "Connection | Pool", name: str) -> str:
    """The id of an organization, named by id or slug.

    Raises:
        UsageError: there is none.
    """
    found = await db.fetchval(SQL["find_organization"], name)
    if found is None:
        raise UsageError(
            f"there is no organization with the id or slug `{name}`; "
            "`stepstream organizations list` shows them"
        )
    return str(found)


async def find_people(
    db: "Connection | Pool", organization: str, distinct_ids: Iterable[str]
) -> dict[str, str]:
    """The ids here of those people whom an organization knows by these ids of its own."""
    rows = await db.fetch(SQL["find_people"], organization, sorted(set(distinct_ids)))
    found = {row["distinct_id"]: row["registered_id"] or row["known_id"] for row in rows}
    return {distinct_id: user for distinct_id, user in found.items() if user is not None}


async def known_users(db: "Connection | Pool", organization: str, user_ids: Iterable[str]) -> set[str]:
    """Those of these users whom an organization knows.

    It registered them, or they had a session at one of its servers. Of others it learns nothing: who is
    another organization's is as who does not exist.
    """
    return {row["id"] for row in await db.fetch(SQL["known_users"], organization, sorted(set(user_ids)))}


async def being_erased(db: Connection, organization: str, distinct_ids: Iterable[str]) -> set[str]:
    """Those of an organization's people who were erased, and are not gone yet: nobody registers them now."""
    rows = await db.fetch(SQL["being_erased"], organization, sorted(set(distinct_ids)))
    return {row["distinct_id"] for row in rows}


async def register_people(
    db: Connection, organization: str, distinct_ids: Iterable[str]
) -> dict[str, Registered]:
    """Registers people of an organization by ids of its own, in two round trips.

    Or in few, where somebody else registers the same ones at the same moment. In a transaction, who comes
    to a server under such an id for the first time is waited for, or waits: so both find one person. Who was
    erased is not known any more: the same id is a new person.

    Raises:
        asyncpg.PostgresError: somebody else has locked what this needs, or one of them is being erased.
    """
    found: dict[str, Registered] = {}
    left = sorted(set(distinct_ids))
    if left:
        await db.execute(SQL["lock_first_visits"], organization, left)
    for _ in range(_MOST_TRIES):
        if not left:
            return found
        rows = await db.fetch(SQL["register_people"], organization, left, [_new_user_id() for _ in left])
        found |= {row["distinct_id"]: Registered(row["user_id"], row["created"]) for row in rows}
        left = [one for one in left if one not in found]
    raise asyncpg.SerializationError("people are registered and deleted all the time")


def _new_user_id() -> str:
    return "mcpu_" + secrets.token_hex(10)


async def find_servers(
    db: "Connection | Pool", organization: str, names: Iterable[str], allowed: Collection[str] | None
) -> Servers:
    """The servers of an organization that have these ids or slugs, and the only one that may be meant.

    `allowed` are those of the key; None is each.
    """
    rows: list[asyncpg.Record] = await db.fetch(
        SQL["find_servers"],
        organization,
        sorted({*names, *(allowed or ())}),
        None if allowed is None else list(allowed),
    )
    named = [row for row in rows if row["is_named"]]
    all_ = [row["id"] for row in rows if not row["is_named"]]
    by_name = {row["slug"]: row["id"] for row in named} | {row["id"]: row["id"] for row in named}
    slugs = {row["id"]: row["slug"] for row in rows}
    return Servers(slugs, by_name, all_[0] if len(all_) == 1 else None)


async def register_sessions(db: Connection, sessions: Sequence[OwnSession]) -> dict[str, Kept]:
    """How each session is kept, by its id.

    It is made where it is not there, and given to its user where it is nobody's. Of several with one id the
    first says at which server it is, and the first of that server with a user whose it is.

    Raises:
        asyncpg.PostgresError: somebody else has locked what this needs, or a user or server is being deleted.
    """
    found: dict[str, Kept] = {}
    left = _one_each(sessions)
    for _ in range(_MOST_TRIES):
        if not left:
            return found
        columns = zip(*((s.id, s.server_slug, s.user_id, s.title, s.started_at) for s in left), strict=True)
        rows = await db.fetch(SQL["register_sessions"], *(list(column) for column in columns))
        found |= {row["id"]: Kept(row["slug"], row["user_id"], row["created"]) for row in rows}
        left = [session for session in left if session.id not in found]
    raise asyncpg.SerializationError("sessions are registered and deleted all the time")


def _one_each(sessions: Iterable[OwnSession]) -> list[OwnSession]:
    """One of each id, in their order."""
    chosen: dict[str, OwnSession] = {}
    for session in sessions:
        first = chosen.setdefault(session.id, session)
        if first.user_id is None and session.user_id is not None and session.server_slug == first.server_slug:
            chosen[session.id] = OwnSession(
                first.id, first.server_slug, session.user_id, first.started_at, first.title
            )
    return sorted(chosen.values(), key=lambda s: s.id.encode())


def problem_of_session(session: OwnSession, kept: Kept) -> Rejection | None:
    """Why a session is not what is kept under its id."""
    if session.server_slug != kept.server_slug:
        return Rejection.SESSION_OF_ANOTHER_SERVER
    if session.user_id is not None and session.user_id != kept.user_id:
        return Rejection.SESSION_OF_ANOTHER_USER
    return None

"""API keys: made, listed, revoked. The secret is shown once and kept as its hash alone."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from schemas import OPERATOR_SOURCES
from services.analytics_api.registering import find_organization
from services.runtime.api_keys import hash_of, new_key, parts_of, text_of
from services.runtime.database import Connection, load_queries
from services.runtime.errors import UsageError
from services.runtime.sources import MAX_SOURCE, NO_SOURCE, OTHERS

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Key:
    """A new key: `text` is what its holder keeps."""

    id: str
    text: str
    expires_at: datetime | None


#: What events a key may send: those of producers.
WRITE_TYPES: Final = ("step-completed", "walkthrough-started", "step-skipped", "step-shown")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key may do: read, set finish rules, write.

    Of `types` and `servers` (slugs or ids) that its events may name, none is each. `source` is the one under
    which they are counted; empty is one of the key's own. With `may_register`, people and sessions that its
    events name and nobody knows are registered.
    """

    may_read: bool = True
    may_edit: bool = False
    may_write: bool = False
    may_register: bool = False
    types: Sequence[str] = ()
    servers: Sequence[str] = ()
    source: str = ""

    def check(self, trusted_sources: Collection[str] = ()) -> None:
        """Looks whether it makes sense; whose events decide about people is no source of a key.

        Raises:
            UsageError: it does not.
        """
        given = [
            option
            for option, value in (
                ("--may-register", self.may_register),
                ("--type", self.types),
                ("--server", self.servers),
                ("--source", self.source),
            )
            if value
        ]
        if given and not self.may_write:
            raise UsageError(f"{given[0]} is of a key that writes: give --may-write, too")
        if not (self.may_read or self.may_write):
            raise UsageError("a key that may neither read nor write opens nothing")
        if self.may_edit and not self.may_read:
            raise UsageError("--may-edit is of a key that reads: give --may-read, too")
        for type_ in self.types:
            if type_ not in WRITE_TYPES:
                raise UsageError(f"--type: `{type_}` is none of {', '.join(WRITE_TYPES)}")
        if problem := _problem_of_source(self.source, trusted_sources):
            raise UsageError(f"--source: {problem}")


def _problem_of_source(source: str, trusted: Collection[str]) -> str | None:
    if len(source) > MAX_SOURCE or not source.isprintable():
        return f"a source has at most {MAX_SOURCE} characters, none of them a control character"
    if source in (NO_SOURCE, OTHERS, *OPERATOR_SOURCES, *trusted):
        return f"`{source}` is a source that is trusted, or stands for others: name the system that sends"
    return None


#: Reads, and nothing else.
READS: Final = Grant()


async def create(
    db: Connection,
    organization: str,
    name: str,
    seconds: float | None,
    grant: Grant = READS,
    *,
    trusted_sources: Collection[str] = (),
) -> Key:
    """Makes a key of an organization, valid for so many seconds, or until it is revoked.

    The organization is named by id or slug.

    Raises:
        UsageError: there is no such organization, or server of it; the time is not ahead; or what it may do
            makes no sense.
    """
    grant.check(trusted_sources)
    organization = await find_organization(db, organization)
    if seconds is not None and seconds <= 0:
        raise UsageError("--expires-in: a key has to be valid for some time")
    identifier, secret = new_key()
    expires_at = None if seconds is None else datetime.fromtimestamp(time.time() + seconds, UTC)
    servers = await _server_ids(db, organization, grant.servers)
    await db.execute(
        SQL["create_key"],
        identifier,
        organization,
        name,
        hash_of(secret),
        expires_at,
        grant.may_edit,
        grant.may_read,
        grant.may_write,
        grant.may_register,
        sorted(set(grant.types)) or None,
        servers or None,
        grant.source or None,
    )
    return Key(identifier, text_of(identifier, secret), expires_at)


async def _server_ids(db: Connection, organization: str, names: Sequence[str]) -> list[str]:
    """The ids of an organization's servers, which are named by id or slug.

    Raises:
        UsageError: it has no such server.
    """
    rows = await db.fetch(SQL["find_servers"], organization, list(names)) if names else []
    ids = {row["slug"]: row["id"] for row in rows} | {row["id"]: row["id"] for row in rows}
    if unknown := [name for name in names if name not in ids]:
        raise UsageError(
            f"--server: the organization {organization} has no server with the slug or id `{unknown[0]}`; "
            "`stepstream servers list` shows them"
        )
    return sorted({ids[name] for name in names})


def says(key: dict[str, Any]) -> str:
    """What a listed key may do, in words."""
    parts = [what for what in ("read", "edit", "write", "register") if key[f"may_{what}"]]
    for names in (key["write_types"], key["write_server_ids"]):
        parts += [f"only {' '.join(names)}"] if names else []
    return ", ".join(parts)


async def list_keys(db: Connection, organization: str | None) -> list[dict[str, Any]]:
    """The keys of one organization, which is named by id or slug, or of all, without secrets.

    Raises:
        UsageError: there is no such organization.
    """
    owner = None if organization is None else await find_organization(db, organization)
    return [dict(row) for row in await db.fetch(SQL["list_keys"], owner)]


async def find(db: Connection, identifier: str) -> dict[str, Any]:
    """A key by its id, or by the whole key.

    Raises:
        UsageError: there is none.
    """
    parts = parts_of(identifier)
    wanted = parts[0] if parts else identifier
    row = await db.fetchrow(SQL["find_key"], wanted)
    if row is None:
        raise UsageError(f"there is no key with the id `{wanted}`; `stepstream keys list` shows them")
    return dict(row)


async def revoke(db: Connection, identifier: str) -> None:
    """Makes a key invalid, from now on."""
    await db.execute(SQL["revoke_key"], identifier)

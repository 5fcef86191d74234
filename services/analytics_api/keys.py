"""API keys: made, listed, revoked. The secret is shown once and kept as its hash alone."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.runtime.api_keys import hash_of, new_key, parts_of, text_of
from services.runtime.database import Connection, load_queries
from services.runtime.errors import UsageError

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Key:
    """A new key: `text` is what its holder keeps."""

    id: str
    text: str
    expires_at: datetime | None


async def create(
    db: Connection, organization: str, name: str, seconds: float | None, *, may_edit: bool = False
) -> Key:
    """Makes a key of an organization, valid for so many seconds, or until it is revoked.

    With `may_edit` it sets finish rules, beside reading.

    Raises:
        UsageError: there is no such organization, or the time is not ahead.
    """
    if await db.fetchval(SQL["find_organization"], organization) is None:
        raise UsageError(f"there is no organization with the id `{organization}`")
    if seconds is not None and seconds <= 0:
        raise UsageError("--expires-in: a key has to be valid for some time")
    identifier, secret = new_key()
    expires_at = None if seconds is None else datetime.fromtimestamp(time.time() + seconds, UTC)
    await db.execute(SQL["create_key"], identifier, organization, name, hash_of(secret), expires_at, may_edit)
    return Key(identifier, text_of(identifier, secret), expires_at)


async def list_keys(db: Connection, organization: str | None) -> list[dict[str, Any]]:
    """The keys of one organization, or of all, without secrets."""
    return [dict(row) for row in await db.fetch(SQL["list_keys"], organization)]


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

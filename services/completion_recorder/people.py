"""Who a person is, by what an operator knows of them."""

from collections.abc import Sequence

import asyncpg

from services.runtime.database import Connection, load_queries
from services.runtime.errors import UsageError

SQL = load_queries(__file__)

_WAYS = "id, tracking id, the id under which an organization registered them, or e-mail address"


async def find_person(db: Connection, who: str, organization: str | None = None) -> str:
    """The id of somebody given by one of these ways; what nobody has is taken for an id.

    Args:
        db: a connection.
        who: id, tracking id, the id under which an organization registered them, or e-mail address.
        organization: whose person it is, by id or slug; None is anybody's.

    Raises:
        UsageError: it means several people, or nobody; or nobody of the organization.
    """
    if not who.strip():  # rows of a platform may have an empty address
        raise UsageError(f"name a person: by {_WAYS}")
    owner = None if organization is None else await _organization(db, organization)
    found = await db.fetch(SQL["find_people"], who, owner)
    if owner is not None:
        if not found:
            raise UsageError(f"the organization `{organization}` knows nobody by `{who}`")
        # Its own id means the same here as where it registers.
        found = [r for r in found if r["registered_by"]] or found
    elif any(r["id"] == who for r in found):
        return who
    if len(found) > 1:
        raise UsageError(_several(who, found))
    return str(found[0]["id"]) if found else who


async def _organization(db: Connection, name: str) -> str:
    found = await db.fetchval(SQL["find_organization"], name)
    if found is None:
        raise UsageError(
            f"there is no organization with the id or slug `{name}`; "
            "`stepstream organizations list` shows them"
        )
    return str(found)


def _several(who: str, found: Sequence[asyncpg.Record]) -> str:
    registered = [
        f" (registered by {', '.join(r['registered_by'])})" if r["registered_by"] else "" for r in found
    ]
    people = ", ".join(r["id"] + by for r, by in zip(found, registered, strict=True))
    or_whose = ", or say whose with --organization" if any(registered) else ""
    return f"`{who}` is {len(found)} people: {people}. Name one by id{or_whose}"

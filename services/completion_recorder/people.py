"""Who a person is, by what an operator knows of them."""

from services.runtime.database import Connection, load_queries
from services.runtime.errors import UsageError

SQL = load_queries(__file__)


async def find_person(db: Connection, who: str) -> str:
    """The id of somebody given by id, tracking id or e-mail address; what nobody has is taken for an id.

    Raises:
        UsageError: it means several people, or nobody.
    """
    if not who.strip():  # rows of a platform may have an empty address
        raise UsageError("name a person: by id, tracking id or e-mail address")
    found = [r["id"] for r in await db.fetch(SQL["find_people"], who)]
    if who in found:
        return who
    if len(found) > 1:
        raise UsageError(f"`{who}` is {len(found)} people: {', '.join(found)}. Name one by id")
    return found[0] if found else who

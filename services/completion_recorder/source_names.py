"""Sources that are a person: what they sent becomes what no source has sent, so that totals stay."""

from services.runtime.database import Connection, load_queries
from services.runtime.sources import NO_SOURCE, OTHERS

SQL = load_queries(__file__)

#: Sources that are nobody; the first gets what is left of one that was a person.
_NOBODY = [NO_SOURCE, OTHERS]


async def count_names(db: Connection, source_pattern: str, pattern: str) -> int:
    """How many rows name a person.

    Args:
        db: a connection.
        source_pattern: finds the person in a source; a regular expression of PostgreSQL.
        pattern: finds them in an example of what was refused.
    """
    return int(await db.fetchval(SQL["count_names"], source_pattern, _NOBODY, pattern))


async def forget_names(db: Connection, source_pattern: str, pattern: str) -> None:
    """Makes what is kept of these sources that of no source; in a transaction, arguments as `count_names`."""
    await db.execute(SQL["lock_names"])
    for statement in ("forget_in_refusals", "forget_in_sources", "forget_in_organizations"):
        await db.execute(SQL[statement], source_pattern, _NOBODY)
    await db.execute(SQL["forget_in_examples"], pattern)

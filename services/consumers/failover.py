"""A failover to another server, seen by whoever waits for the old one, which has fallen silent.

A machine that is gone closes no connection. A statement to it would wait for its whole timeout, and SIGTERM
for its whole drain, though the address leads to the new primary already.
"""

import asyncio
import logging
from typing import Any

from services.consumers.database_identity import DatabaseIdentity, read_identity
from services.runtime.database import Pool, connect
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.failover")

#: How long a connection is in use before anybody asks where the address leads, and between two questions.
_CHECK_SECONDS = 5.0


async def leave_silent_servers(settings: Settings, pool: Pool) -> None:
    """Ends connections in use once their address leads to another database; until it is cancelled.

    Whoever waits there gets an error that passes, and tries again with a new connection.
    """
    known: DatabaseIdentity | None = None
    before: dict[Any, Any] = {}
    while True:
        in_use = _in_use(pool)
        waits = any(before.get(holder) is use for holder, use in in_use.items())
        before = in_use
        if known is None or waits:
            identity = await _where_the_address_leads(settings) or known
            if known is not None and identity != known:
                in_use = _in_use(pool)  # some have come, and may be to the one before
                log.warning("the address leads to another database: %d connections end", len(in_use))
                await pool.expire_connections()
                for holder in in_use:
                    holder.terminate()
            known = identity
        await asyncio.sleep(_CHECK_SECONDS)


def _in_use(pool: Pool) -> dict[Any, Any]:
    """The connections that somebody has, and since which time that it was taken."""
    asyncpg_pool: Any = pool
    holders = asyncpg_pool._holders  # noqa: SLF001 - asyncpg shows them nowhere
    return {holder: holder._in_use for holder in holders if not holder.is_idle()}  # noqa: SLF001


async def _where_the_address_leads(settings: Settings) -> DatabaseIdentity | None:
    """The primary that answers a new connection; None where none does, or it does not say which it is."""
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            connection = await connect(settings, None, settings.dsn, timeout=_CHECK_SECONDS)
            try:
                return (await read_identity(connection)).identity
            finally:
                connection.terminate()
    except DATABASE_ERRORS:
        return None

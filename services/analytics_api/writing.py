"""Connections on which what comes in is written: always at the primary, wherever the figures are read."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import asyncpg

from services.analytics_api.fair import writers
from services.analytics_api.problems import ProblemError, in_short
from services.analytics_api.store import server_settings
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database import Connection, Pool, close_pool, keep_as_it_is, open_pool
from services.runtime.database_errors import DATABASE_ERRORS, is_away
from services.runtime.errors import StepstreamError
from services.runtime.refusals import Refusals
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.analytics")
Result = TypeVar("Result")

#: What another try puts right: a row that was referred to is gone meanwhile, or two waited for each other.
_AGAIN: Final = (
    asyncpg.ForeignKeyViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
_MOST_TRIES: Final = 5
_LOCKED: Final = (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError)
#: What a role that may only read, and a replica, say of a write.
READS_ALONE: Final = (
    asyncpg.FeatureNotSupportedError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ReadOnlySQLTransactionError,
)


class Writer:
    """Runs transactions that write; its pool is opened when the first of them comes."""

    def __init__(self, settings: Settings, refusals: Refusals) -> None:
        self._settings = settings.model_copy(update={"database_pool_size": writers(settings)})
        self._refusals = refusals
        self._pool: Pool | None = None
        self._opening = asyncio.Lock()
        self._away = Seldom(log, "nothing could be written, the database is away", OUTAGE_SECONDS)

    async def run(
        self, work: Callable[["Connection"], Awaitable[Result]], *, is_one_statement: bool = False
    ) -> Result:
        """What `work` returns, committed. It may be called several times: nothing of a try before is kept.

        Where it is one statement, that is a transaction by itself: one round trip, not three.

        Raises:
            ProblemError: the database is away, somebody has locked what this needs, or nothing may be
                written there; nothing was written, unless the answer to the commit was lost. What comes in
                is safe to send again.
        """
        for tries_left in reversed(range(_MOST_TRIES)):
            try:
                pool = await self._opened()
                async with pool.acquire() as connection:
                    if is_one_statement:
                        return await work(connection)
                    async with connection.transaction():
                        return await work(connection)
            except _AGAIN as error:
                if not tries_left:
                    raise _busy() from error
            except _LOCKED as error:
                raise _busy() from error
            except READS_ALONE as error:
                raise ProblemError(
                    501,
                    "Not implemented",
                    "nothing may be written here: STEPSTREAM_DATABASE_URL of analytics-api has to lead to "
                    "the primary, with the rights of ops/roles.sql",
                ) from error
            except DATABASE_ERRORS as error:
                if not is_away(error):
                    raise
                self._away.warn(in_short(error))
                raise _is_away() from error
        raise AssertionError("the last try returns or raises")

    async def _opened(self) -> Pool:
        async with self._opening:
            if self._pool is None:
                settings = self._settings
                try:
                    self._pool = await open_pool(
                        settings,
                        server_settings=server_settings(
                            settings.api_statement_seconds, settings.api_lock_seconds, reads_alone=False
                        ),
                        reset=keep_as_it_is,
                        command_timeout=settings.api_statement_seconds + 5,
                        refusals=self._refusals,
                    )
                except StepstreamError as error:
                    self._away.warn(str(error))
                    raise _is_away() from error
            return self._pool

    async def close(self) -> None:
        """Closes the pool, if there is one."""
        if self._pool is not None:
            await close_pool(self._pool)


@contextlib.asynccontextmanager
async def opened_writer(settings: Settings, refusals: Refusals) -> AsyncIterator[Writer]:
    """A writer while the block lasts."""
    writer = Writer(settings, refusals)
    try:
        yield writer
    finally:
        await writer.close()


def _busy() -> ProblemError:
    return ProblemError(
        503, "Locked", "somebody else has locked what this needs: send it again soon", {"Retry-After": "5"}
    )


def _is_away() -> ProblemError:
    return ProblemError(
        503,
        "Database away",
        "nothing can be written right now; send it again in a moment, which is safe",
        {"Retry-After": "2"},
    )

"""PostgreSQL: pool, named queries, and which errors mean that another try may succeed."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import aiosql
import asyncpg
from asyncpg.pool import PoolConnectionProxy
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from services.runtime.errors import StepstreamError
from services.runtime.settings import Settings
from services.runtime.telemetry import RETRIES

log = logging.getLogger("stepstream.database")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Setup: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]


def load_queries(beside: str) -> Mapping[str, str]:
    """The named statements of `queries.sql` beside a module, given by its `__file__`."""
    logging.getLogger("aiosql").setLevel(logging.ERROR)  # it guesses from names what a statement does
    queries = aiosql.from_path(Path(beside).with_name("queries.sql"), "asyncpg", mandatory_parameters=False)
    names = [name for name in queries.available_queries if not name.endswith("_cursor")]
    return {name: getattr(queries, name).sql for name in names}


async def open_pool(
    settings: Settings,
    setup: Setup | None = None,
    server_settings: Mapping[str, str] | None = None,
    reset: Setup | None = None,
    command_timeout: float = 120,
) -> Pool:
    """Opens a pool; `setup` runs once on each new connection (temporary tables, say).

    `reset` runs when a connection is given back, in place of a round trip that undoes what a session leaves.
    `command_timeout` is how long a statement may take, in seconds.

    Raises:
        StepstreamError: the database cannot be reached, or refuses the credentials.
    """
    try:
        pool: Pool = await asyncpg.create_pool(
            settings.database_url,
            min_size=1,
            max_size=settings.database_pool_size,
            init=setup,
            reset=reset,
            command_timeout=command_timeout,
            server_settings={
                "application_name": "stepstream",
                # Each statement after a lock must see what the lock's last holder committed.
                "default_transaction_isolation": "read committed",
                **(server_settings or {}),
            },
        )
    except (OSError, asyncpg.PostgresError) as error:
        raise StepstreamError(f"PostgreSQL at {_without_password(settings.database_url)}: {error}") from error
    return pool


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Connection]:
    """One connection, for commands.

    Raises:
        StepstreamError: as `open_pool`.
    """
    pool = await open_pool(settings.model_copy(update={"database_pool_size": 2}))
    try:
        async with pool.acquire() as connection:
            yield connection
    finally:
        await pool.close()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"


#: Errors that pass by themselves: the server is away, busy or failing over, or somebody else was first.
_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    # What asyncpg raises when the server ended the connection between two statements.
    asyncpg.InternalClientError,
    asyncpg.TooManyConnectionsError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)


def may_pass(error: BaseException) -> bool:
    """Whether trying again can succeed without anybody mending anything."""
    # asyncpg's own complaint about a value is an InterfaceError too, and does not pass.
    return isinstance(error, _PASSING) and not isinstance(error, ValueError)


def without_values(error: BaseException) -> BaseException:
    """The error without PostgreSQL's detail, which holds the values of the row: for logs."""
    if isinstance(error, asyncpg.PostgresError):
        error.detail = None
    return error


def retrying(
    service: str,
    pause: Callable[[float], Awaitable[None]],
    passes: Callable[[BaseException], bool] = may_pass,
) -> AsyncRetrying:
    """Tries again, with jittered back-off up to 5 s and without end, while the database is away.

    `pause` sleeps, and raises what ends the waiting; `passes` says which errors are waited out.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        name = type(error).__name__
        RETRIES.labels(service, name).inc()
        log.warning("%s: try %d failed, trying again: %s: %s", service, state.attempt_number, name, error)

    return AsyncRetrying(
        retry=retry_if_exception(passes),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        before_sleep=tell,
        sleep=pause,
        reraise=True,
    )

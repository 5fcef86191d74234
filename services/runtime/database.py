"""PostgreSQL: pools and connections, how long they may take, and named queries."""

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

import aiosql
import asyncpg
from asyncpg.pool import PoolConnectionProxy

from services.runtime.database_errors import DATABASE_ERRORS, explained, explaining, in_a_line
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.refusals import SIGN_IN, Refusals
from services.runtime.setting_values import tls_file_problems
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.database")

#: How long a connection may take to open.
_CONNECT_SECONDS = 20.0
_CLOSE_SECONDS = 5.0
#: How long the server may take to confirm that it gave up a statement.
_GIVE_UP_SECONDS = 3.0

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Setup: TypeAlias = Callable[[Any], Coroutine[Any, Any, None]]


def load_queries(beside: str) -> Mapping[str, str]:
    """The named statements of the SQL file beside a module, given by its `__file__`."""
    logging.getLogger("aiosql").setLevel(logging.ERROR)  # it guesses from names what a statement does
    queries = aiosql.from_path(Path(beside).with_suffix(".sql"), "asyncpg", mandatory_parameters=False)
    names = [name for name in queries.available_queries if not name.endswith("_cursor")]
    return {name: getattr(queries, name).sql for name in names}


async def fetch_one(connection: "Connection | Pool", query: str, *arguments: object) -> asyncpg.Record:
    """The row of a statement that always has one.

    Raises:
        LookupError: it has none, which is a fault of ours.
    """
    row = await connection.fetchrow(query, *arguments)
    if row is None:
        raise LookupError(f"a statement that always has a row has none: {query.strip()[:200]}")
    return row


async def keep_as_it_is(_: Connection) -> None:
    """Resets nothing when a connection goes back to its pool: no statement has left anything behind."""


def bounded(seconds: float) -> dict[str, str]:
    """Settings of connections whose transactions end: whoever hangs in one, or is cut off, lets its locks go.

    `transaction_timeout`, because a session that is stopped in the middle of the protocol is not idle.
    """
    return {
        "transaction_timeout": f"{int(seconds * 1000)}ms",
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }


def bounded_beyond_stuck(settings: Settings) -> dict[str, str]:
    """`bounded` for a consumer, longer than a batch may take: a live one finds out first that it is stuck."""
    return bounded(1.5 * settings.stuck_seconds)


async def no_longer_than(connection: Connection, seconds: float) -> None:
    """Gives the transaction that is open so long, whatever it had.

    PostgreSQL starts the clock where there is none, and leaves one that runs as it is: it is stopped first.
    """
    await connection.execute("set local transaction_timeout = 0")
    await connection.execute(f"set local transaction_timeout = '{int(seconds * 1000)}ms'")


#: Settings that did not come with the connection.
_SETTINGS_OF_OTHERS = """
select name from pg_settings
where name = any($1::text[]) and source <> 'client'
order by name
"""


async def open_pool(
    settings: Settings,
    setup: Setup | None = None,
    server_settings: Mapping[str, str] | None = None,
    reset: Setup | None = None,
    command_timeout: float | None = None,
    refusals: Refusals | None = None,
    *,
    keep_statements: bool = False,
) -> Pool:
    """Opens a pool; `setup` runs once on each new connection (temporary tables, say).

    `reset` runs when a connection is given back, in place of a round trip that undoes what a session leaves.
    `command_timeout` is how long a statement may go without an answer, in seconds; without it, the setting.
    `refusals` learns what PostgreSQL refuses. With `keep_statements` a connection prepares each statement
    once; else anew after five minutes, with a new plan.

    Raises:
        StepstreamError: the database cannot be reached, or refuses the credentials.
    """
    patience = min(_CONNECT_SECONDS, command_timeout or settings.database_timeout_seconds)
    try:
        pool: Pool = await asyncpg.create_pool(
            settings.dsn,
            connect=functools.partial(connect, settings, refusals),
            connection_class=_Connection,
            min_size=1,
            max_size=settings.database_pool_size,
            init=setup,
            reset=reset,
            command_timeout=command_timeout or settings.database_timeout_seconds,
            timeout=patience,
            max_cached_statement_lifetime=0 if keep_statements else 300,
            server_settings={
                "application_name": "stepstream",
                # Each statement after a lock must see what the lock's last holder committed.
                "default_transaction_isolation": "read committed",
                **(server_settings or {}),
            },
        )
    except DATABASE_ERRORS as error:
        where = _without_password(settings.dsn)
        raise StepstreamError(f"PostgreSQL at {where}: {_reason(error, patience)}") from error
    return pool


if TYPE_CHECKING:
    _Plain = asyncpg.Connection[asyncpg.Record]
else:  # no generic class when it runs
    _Plain = asyncpg.Connection


class _Connection(_Plain):
    """Does not wait long for a server that has fallen silent.

    A statement that is cancelled, or takes too long, has to be confirmed as given up before its connection
    can roll back or go back to the pool. asyncpg waits as long again as a statement may take, so that
    neither a failover nor SIGTERM ended in bounded time. Here the connection ends; PostgreSQL rolls back.
    """

    async def _cancel(self, *waiters: Any) -> None:
        async with asyncio.timeout(_GIVE_UP_SECONDS) as patience:
            await super()._cancel(*waiters)  # type: ignore[misc] # ends without an error when it is cancelled
        if patience.expired() and not self.is_closed():
            self.terminate()

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - asyncpg's
        with contextlib.suppress(TimeoutError):  # it has ended all the same
            await super().close(timeout=timeout or _GIVE_UP_SECONDS)


async def connect(
    settings: Settings, refusals: Refusals | None, *args: Any, **options: Any
) -> "asyncpg.Connection[asyncpg.Record]":
    """A new connection, with the password as it is now; the other arguments are those of asyncpg.

    Raises:
        OSError: the database is away, or the file of the password cannot be read.
        PostgresError: the database refuses.
        ConfigurationError: a pooler is in between.
    """
    try:
        password = settings.read_database_password()
    except OSError as error:
        if refusals is not None:
            refusals.refused(SIGN_IN, f"STEPSTREAM_DATABASE_PASSWORD_FILE cannot be read: {error}")
        raise
    try:
        made = await _open(*args, password=password, **options)
        await _refuse_poolers(made, options.get("server_settings") or {})
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        if refusals is not None:
            refusals.refused(SIGN_IN, str(explained(error)))
        raise
    if refusals is not None:
        refusals.worked(SIGN_IN)
        made.add_query_logger(functools.partial(_note, refusals))
    return made


async def _open(*args: Any, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """A new connection; what PostgreSQL says at the door is told as what it is there."""
    try:
        made: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(*args, **options)
    except asyncpg.InsufficientPrivilegeError as error:  # the right to connect to this database
        raise asyncpg.InvalidAuthorizationSpecificationError(str(error)) from error
    except asyncpg.ObjectNotInPrerequisiteStateError as error:  # the database is closed for a while
        raise asyncpg.CannotConnectNowError(str(error)) from error
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" not in str(error):
            raise
        raise _a_pooler(in_a_line(error)) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError, ssl.SSLError) as error:
        # The client does not say which file; it was good when the service began.
        problem = next(tls_file_problems(str(args[0])), None) if args else None
        if problem is None:
            raise
        raise OSError(error.errno, f"STEPSTREAM_DATABASE_URL: {problem}") from error
    return made


async def _refuse_poolers(made: "asyncpg.Connection[asyncpg.Record]", asked: Mapping[str, str]) -> None:
    """Ends a connection whose session is not its own: a pooler gives that to others between transactions.

    It shows by settings that did not come through. Without them a session that hangs keeps its locks;
    temporary tables and prepared statements would be another session's.
    """
    try:
        absent = await made.fetch(_SETTINGS_OF_OTHERS, [name for name in asked if "." not in name])
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as error:
        made.terminate()
        raise _a_pooler("prepared statements are lost") from error
    except BaseException:
        made.terminate()
        raise
    if absent:
        made.terminate()
        raise _a_pooler(f"these settings of the session are lost: {', '.join(r['name'] for r in absent)}")


def _a_pooler(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is a pooler between this and PostgreSQL ({why}). Services and commands need sessions of "
        "their own: lead STEPSTREAM_DATABASE_URL to PostgreSQL itself. Each service keeps a small pool"
    )


def _note(refusals: Refusals, statement: Any) -> None:
    """A statement has ended: was it refused?"""
    if statement.exception is None:
        refusals.worked(statement.query)
    elif isinstance(statement.exception, asyncpg.SyntaxOrAccessError | asyncpg.InvalidSchemaNameError):
        refusals.refused(statement.query, str(explained(statement.exception)))


def _reason(error: Exception, patience: float) -> str:
    """Why no connection was made; some errors have no text."""
    if isinstance(error, TimeoutError):
        return f"no answer within {patience:g} s: is that PostgreSQL?"
    explanation = error if isinstance(error, OSError) else explained(error)
    return str(explanation) or type(error).__name__


@contextlib.asynccontextmanager
async def opened_pool(
    settings: Settings,
    setup: Setup | None = None,
    server_settings: Mapping[str, str] | None = None,
    reset: Setup | None = None,
    command_timeout: float | None = None,
    refusals: Refusals | None = None,
    *,
    keep_statements: bool = False,
) -> AsyncIterator[Pool]:
    """A pool while the block lasts; the arguments are those of `open_pool`.

    Raises:
        StepstreamError: as `open_pool`.
    """
    pool = await open_pool(
        settings, setup, server_settings, reset, command_timeout, refusals, keep_statements=keep_statements
    )
    try:
        yield pool
    finally:
        await close_pool(pool)


async def close_pool(pool: Pool) -> None:
    """Closes a pool in bounded time: a server that does not answer would hold it for ever."""
    try:
        await asyncio.wait_for(pool.close(), _CLOSE_SECONDS)
    except DATABASE_ERRORS:
        pool.terminate()


@contextlib.asynccontextmanager
async def connected(
    settings: Settings,
    setup: Setup | None = None,
    server_settings: Mapping[str, str] | None = None,
    command_timeout: float | None = None,
) -> AsyncIterator[Connection]:
    """One connection, for commands; the arguments are those of `open_pool`.

    Raises:
        StepstreamError: as `open_pool`; or PostgreSQL refuses something while the block lasts.
    """
    small = settings.model_copy(update={"database_pool_size": 2})
    async with opened_pool(small, setup, server_settings, command_timeout=command_timeout) as pool:
        with explaining():
            async with pool.acquire() as connection:
                yield connection


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2] or "localhost"  # one, or several with commas
    return f"{hosts if ':' in hosts else hosts + ':5432'}{parts.path}"


def can_be_stored(text: str) -> bool:
    """Whether PostgreSQL takes a text: it has no NUL, and no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


#: Settings of connections whose statements each handle a batch. A plan that PostgreSQL keeps was made for the
#: tables as they were: made when these were new, it reads them whole for each row until they are analysed.
#: The recorder does without: its statements look rows up by keys whatever the plan, and take arrays of
#: thousands, with which to plan anew took a third of its speed.
PLANNED_ANEW: Final = {"plan_cache_mode": "force_custom_plan"}

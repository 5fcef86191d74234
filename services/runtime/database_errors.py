"""What PostgreSQL and its client raise: what passes by itself, and what to say to people."""

import contextlib
import re
import traceback
from collections.abc import Iterator

import asyncpg

from services.runtime.errors import StepstreamError

_OF_POSTGRESQL = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
#: What the use of a connection can raise. The last one is, among others, what asyncpg says when the server
#: ended the connection between two statements.
DATABASE_ERRORS = (OSError, TimeoutError, *_OF_POSTGRESQL)
#: What asyncpg says of an argument that it cannot encode, up to the argument.
_ARGUMENT = re.compile(r"(invalid input for query argument \$\d+).*", re.DOTALL)
#: What PostgreSQL quotes of data.
_QUOTED = re.compile(r'".*"', re.DOTALL)
#: Errors that pass by themselves, by the classes of SQLSTATE: the server is away, busy, full or failing over,
#: or somebody else was first.
_PASSING = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,  # 08
    # Passwords change, here a moment before there; `Refusals` knows when that has lasted too long.
    asyncpg.InvalidAuthorizationSpecificationError,  # 28
    asyncpg.ReadOnlySQLTransactionError,  # 25006
    asyncpg.IdleInTransactionSessionTimeoutError,  # 25P03
    asyncpg.TransactionTimeoutError,  # 25P04
    asyncpg.TransactionRollbackError,  # 40: deadlock, serialization failure
    asyncpg.InsufficientResourcesError,  # 53: connections, disk, memory
    asyncpg.LockNotAvailableError,  # 55P03
    asyncpg.OperatorInterventionError,  # 57: shutdown, starting up, cancelled
    asyncpg.PostgresIOError,  # 58030
    # Somebody has changed the type of a column; asyncpg forgets the statement, and prepares it anew.
    asyncpg.InvalidCachedStatementError,
)


def may_pass(error: BaseException) -> bool:
    """Whether trying again can succeed without anybody mending anything."""
    if isinstance(error, asyncpg.DatabaseDroppedError):
        return False
    # asyncpg's own complaint about a value is an InterfaceError too, and does not pass.
    return isinstance(error, _PASSING) and not isinstance(error, ValueError)


def is_away(error: BaseException) -> bool:
    """Whether an error says that the database is away, or busy, for now.

    An OSError may be a file's as well, and a TimeoutError anybody's: those of a connection to PostgreSQL come
    up through asyncpg.
    """
    frames = traceback.walk_tb(error.__traceback__)
    is_of_postgresql = isinstance(error, _OF_POSTGRESQL) or any(
        frame.f_globals.get("__name__", "").startswith("asyncpg.") for frame, _ in frames
    )
    return is_of_postgresql and may_pass(error)


def explained(error: Exception) -> Exception:
    """An error of PostgreSQL with what to do about it; any other as it is."""
    if isinstance(error, asyncpg.LockNotAvailableError):
        return StepstreamError(
            "PostgreSQL: somebody else has locked what this needs, and does not let go. Nothing was changed: "
            "try again later; `pg_stat_activity` shows whose transaction is open for long"
        )
    if isinstance(error, asyncpg.TransactionTimeoutError):
        return StepstreamError(
            "PostgreSQL: this took longer than a transaction of it may, and was undone: try again"
        )
    hints: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
        (
            asyncpg.InvalidAuthorizationSpecificationError,
            "Are user and password right, in STEPSTREAM_DATABASE_URL or STEPSTREAM_DATABASE_PASSWORD_FILE?",
        ),
        (
            asyncpg.InsufficientPrivilegeError,
            "Rights come from ops/roles.sql, which the owner runs after each `stepstream migrate`",
        ),
        (
            (asyncpg.InvalidCatalogNameError, asyncpg.DatabaseDroppedError),
            "Is the database's name in STEPSTREAM_DATABASE_URL right?",
        ),
        (
            asyncpg.SyntaxOrAccessError,
            "The schema is not what this version needs: run `stepstream migrate`, and undo changes by hand",
        ),
    )
    for kind, hint in hints:
        if isinstance(error, kind):
            return StepstreamError(f"PostgreSQL: {in_a_line(error)}. {hint}")
    if may_pass(error) and isinstance(error, DATABASE_ERRORS) and not isinstance(error, OSError):
        return StepstreamError(f"PostgreSQL is away: {type(error).__name__}: {in_a_line(error)}")
    return error


@contextlib.contextmanager
def explaining() -> Iterator[None]:
    """Makes errors of PostgreSQL, which a person would see as a traceback, errors for people.

    Raises:
        StepstreamError: what PostgreSQL, or its client, says, with what to do about it.
    """
    try:
        yield
    except _OF_POSTGRESQL as error:
        explanation = explained(error)
        if _ARGUMENT.search(str(error)):
            explanation = StepstreamError(
                "PostgreSQL takes no text with a NUL or with bytes that are no UTF-8, and no number that is "
                "too large: is what was given right?"
            )
        elif not isinstance(explanation, StepstreamError):
            explanation = StepstreamError(f"PostgreSQL: {type(error).__name__}: {in_a_line(error)}")
        raise explanation from error
    except (ConnectionResetError, ConnectionRefusedError) as error:
        raise StepstreamError(f"PostgreSQL is away: {error}") from error
    except TimeoutError as error:
        raise StepstreamError("PostgreSQL, or Kafka, does not answer in time") from error


def without_values(error: BaseException) -> BaseException:
    """The error, and those that led to it, without the values of rows and of a query's arguments: for logs.

    PostgreSQL's detail holds those of the row, its message about data that it cannot read quotes them, and
    asyncpg's complaint about an argument holds the argument. What a function says by itself (`raise`) stays.
    """
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
        if isinstance(one, asyncpg.PostgresError):
            one.detail = None
        if isinstance(one, asyncpg.PostgresError | asyncpg.InterfaceError) and one.args:
            one.args = (_without_data(one, str(one.args[0])), *one.args[1:])
    return error


def in_a_line(error: BaseException) -> str:
    """What an error says, without values, on one line: PostgreSQL's hint is on another."""
    return " ".join(str(without_values(error)).split())


def _without_data(error: Exception, message: str) -> str:
    if isinstance(error, asyncpg.DataError):  # 22
        message = _QUOTED.sub('"…"', message)
    return _ARGUMENT.sub(r"\1", message)

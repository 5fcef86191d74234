"""One operator at a time for what two must not do at once; the other is told who is at work."""

import contextlib
import getpass
import socket
from collections.abc import AsyncIterator
from enum import IntEnum

from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from services.runtime.database import Connection, connected, load_queries
from services.runtime.errors import RefusedError
from services.runtime.settings import Settings
from services.runtime.text import format_time

SQL = load_queries(__file__)


class Act(IntEnum):
    """What is done alone, by the key of its advisory lock."""

    HANDLE_LETTERS = 7_226_377_002
    REBUILD = 7_226_377_003
    MOVE_POSITIONS = 7_226_377_004

    @property
    def description(self) -> str:
        """The act, as of somebody who is at it."""
        return {
            Act.HANDLE_LETTERS: "handles the dead letters",
            Act.REBUILD: "rebuilds the counts",
            Act.MOVE_POSITIONS: "moves positions of the services",
        }[self]

    @property
    def patience(self) -> float:
        """How long to wait for the lock, in seconds.

        Who was killed a moment ago holds it until PostgreSQL notices, and a redrive is run again after that.
        """
        return 2.0 if self is Act.HANDLE_LETTERS else 0.0


async def be_alone(db: Connection, act: Act, patience: float | None = None) -> None:
    """Keeps others from the same act on this database, until the connection ends.

    `patience` is how long to wait for whoever is at it, in seconds; without it, that of the act.

    Raises:
        RefusedError: somebody else is at it; the message says who, from where and since when.
    """
    # Whoever is refused reads it there.
    await db.execute(SQL["say_who"], f"stepstream-cli {_me()}")

    async def lock() -> bool:
        return bool(await db.fetchval(SQL["lock_act"], act.value))

    try:
        await AsyncRetrying(
            retry=retry_if_result(lambda locked: not locked),
            stop=stop_after_delay(act.patience if patience is None else patience),
            wait=wait_fixed(0.1),
        )(lock)
    except RetryError:
        raise RefusedError(
            f"{await _describe_holder(db, act)}. Wait until that is done, and run this again"
        ) from None


@contextlib.asynccontextmanager
async def alone(settings: Settings, act: Act) -> AsyncIterator[None]:
    """A block in which nobody else is at the same act, for what opens connections of its own.

    Raises:
        RefusedError: somebody else is at it.
        StepstreamError: the database cannot be reached.
    """
    async with connected(settings) as db:
        await be_alone(db, act)
        yield


def _me() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


async def _describe_holder(db: Connection, act: Act) -> str:
    row = await db.fetchrow(SQL["holder_of_act"], act.value)
    if row is None:
        return f"somebody else just {act.description} of this database"
    who = (row["application_name"] or "").removeprefix("stepstream-cli ") or "somebody"
    since = f" since {format_time(row['since'].timestamp() * 1000)}" if row["since"] else ""
    source = f" from {row['address']}" if row["address"] else ""
    return f"{who} {act.description} of this database{since} (as {row['role']}{source}, session {row['pid']})"

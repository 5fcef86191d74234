"""Being told by PostgreSQL: NOTIFY wakes who would else look again and again.

Whoever may connect can notify: a notification says that it is worth looking, and nothing else. And one may be
lost: whoever listens looks now and then by itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from services.runtime.database import Pool, connect
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.settings import Settings

_CONNECT_SECONDS = 10


class Notifier:
    """Notifies a channel beside the work, one statement at a time, however often it is asked.

    Not in the transaction that there is to tell of: of the whole server, transactions that have notified
    commit one after the other, and who waits for that longer than for a lock is rolled back.
    """

    def __init__(self, pool: Pool, channel: str) -> None:
        self._pool = pool
        self._channel = channel
        self._is_due = False
        self._task: asyncio.Task[None] | None = None

    def soon(self) -> None:
        """Notifies after what is committed by now."""
        self._is_due = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._notify())

    async def _notify(self) -> None:
        with contextlib.suppress(*DATABASE_ERRORS):
            while self._is_due:
                self._is_due = False
                await self._pool.execute("select pg_notify($1, '')", self._channel)


@contextlib.asynccontextmanager
async def listening(
    settings: Settings, channel: str, heard: Callable[[], None], server_settings: Mapping[str, str]
) -> AsyncIterator[asyncio.Event]:
    """Calls `heard` for each notification of a channel, and once at the beginning: something was before.

    Yields an event that is set when the connection is lost.

    Raises:
        OSError: the database is away.
        PostgresError: it refuses.
    """
    connection = await connect(
        settings, None, settings.dsn, server_settings=dict(server_settings), timeout=_CONNECT_SECONDS
    )
    lost = asyncio.Event()
    try:
        connection.add_termination_listener(lambda _: lost.set())
        await connection.add_listener(channel, lambda *_: heard())
        heard()
        yield lost
    finally:
        connection.terminate()

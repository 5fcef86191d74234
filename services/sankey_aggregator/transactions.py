"""How long the oldest transaction has been open: it keeps its locks, and old rows from vacuum."""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Final, Never

from services.runtime.database import Pool, load_queries
from services.runtime.database_errors import DATABASE_ERRORS
from services.runtime.telemetry import TRANSACTION_AGE

SQL = load_queries(__file__)
_LOOK_SECONDS: Final = 5.0


class Open:
    """The transactions that are open, and since when each was seen.

    It does no I/O, and the time is passed in, in seconds.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def oldest(self, seen: Iterable[tuple[str, float | None]], now: float) -> float:
        """For how many seconds the oldest has been open: 0 where none is.

        Args:
            seen: each by its name, and for how many seconds it has been open, where PostgreSQL tells.
            now: when they were seen.
        """
        self._since = {
            name: now - seconds if seconds is not None else self._since.get(name, now)
            for name, seconds in seen
        }
        return now - min(self._since.values(), default=now)


async def watch(pool: Pool) -> Never:
    """Keeps the gauge of the oldest transaction, until it is cancelled."""
    transactions = Open()
    while True:
        with contextlib.suppress(*DATABASE_ERRORS):
            rows = await pool.fetch(SQL["open_transactions"])
            seen = [(row["name"], row["seconds"]) for row in rows]
            TRANSACTION_AGE.set(transactions.oldest(seen, time.monotonic()))
        await asyncio.sleep(_LOOK_SECONDS)

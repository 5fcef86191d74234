"""The demo's own questions to PostgreSQL: asked again while it is away, since a standby may take over."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from services.runtime.database import Connection, Pool, opened_pool
from services.runtime.database_errors import explaining, may_pass
from services.runtime.settings import Settings

_Answer = TypeVar("_Answer")

#: How long it may be away, in seconds.
_PATIENCE_SECONDS = 120


class PatientDatabase:
    """A pool, and questions that wait until somebody answers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def ask(self, question: Callable[[Connection], Awaitable[_Answer]]) -> _Answer:
        """Asks until it is answered; what a question changes may be changed twice.

        Raises:
            StepstreamError: PostgreSQL is away for too long, or refuses.
        """
        tries = AsyncRetrying(
            retry=retry_if_exception(may_pass),
            stop=stop_after_delay(_PATIENCE_SECONDS),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            reraise=True,
        )
        with explaining():
            async for attempt in tries:
                with attempt:
                    async with self._pool.acquire() as connection:
                        answer = await question(connection)
        return answer


@contextlib.asynccontextmanager
async def patient_database(settings: Settings) -> AsyncIterator[PatientDatabase]:
    """Opens the pool.

    Raises:
        StepstreamError: PostgreSQL cannot be reached.
    """
    async with opened_pool(settings.model_copy(update={"database_pool_size": 2})) as pool:
        yield PatientDatabase(pool)

"""Trying again while the database, or Kafka, is away."""

import logging
from collections.abc import Awaitable, Callable

import asyncpg
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from services.runtime.database import Pool
from services.runtime.database_errors import is_away, may_pass
from services.runtime.telemetry import RETRIES

_DATABASE = logging.getLogger("stepstream.database")
_KAFKA = logging.getLogger("stepstream.kafka")


def retrying(
    service: str,
    pause: Callable[[float], Awaitable[None]],
    passes: Callable[[BaseException], bool] = may_pass,
    pool: "Pool | None" = None,
) -> AsyncRetrying:
    """Tries again, with jittered back-off up to 5 s and without end, while the database, or Kafka, is away.

    `pause` sleeps, and raises what ends the waiting; `passes` says which errors are waited out; `pool` loses
    its connections after an error that comes from where they lead.
    """

    async def log_retry(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if pool is not None and isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            # These connections are to what is a standby now; new ones find the primary.
            await pool.expire_connections()
        name = type(error).__name__
        RETRIES.labels(service, name).inc()
        log = _DATABASE if error is not None and is_away(error) else _KAFKA
        log.warning("%s: try %d failed, trying again: %s: %s", service, state.attempt_number, name, error)

    return AsyncRetrying(
        retry=retry_if_exception(passes),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        before_sleep=log_retry,
        sleep=pause,
        reraise=True,
    )

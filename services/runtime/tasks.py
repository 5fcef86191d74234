"""Work beside a block of code."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

_END_SECONDS = 1.0


@contextlib.asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work`, which has no end of its own, while the block lasts.

    A server that does not answer would keep it from ending: it is waited for in bounded time.
    """
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=_END_SECONDS)
        if task.done() and not task.cancelled():
            task.result()

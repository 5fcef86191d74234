"""Wiring of the sankey-aggregator."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from services.runtime.database import Pool, bounded_beyond_stuck, close_pool, open_pool
from services.runtime.kafka import Record
from services.runtime.migrate import check_migrated
from services.runtime.settings import Settings
from services.runtime.shell import Commit, ConsumerShell
from services.sankey_aggregator import store
from services.sankey_aggregator.handlers import MARKS_INTERVAL, SERVICE, Aggregator


def build(settings: Settings) -> ConsumerShell:
    """The service, ready to run."""
    aggregator: Aggregator | None = None

    @contextlib.asynccontextmanager
    async def resources() -> AsyncIterator[Pool]:
        nonlocal aggregator
        server_settings = store.SERVER_SETTINGS | bounded_beyond_stuck(settings)
        pool = await open_pool(settings, store.prepare, server_settings, refusals=shell.refusals)
        try:
            await check_migrated(pool)  # the shell asks too, but marks are looked for before
            aggregator = Aggregator(settings, pool, shell.pause)
            async with shell.background(drain_marks):
                yield pool
        finally:
            await close_pool(pool)

    async def handle(records: Sequence[Record], commit: Commit) -> None:
        assert aggregator is not None  # noqa: S101 - the lifespan made it before the first batch
        await aggregator.handle(records, commit)

    async def expired() -> None:
        """Events that are gone name no journeys any more: all are looked at."""
        assert aggregator is not None  # noqa: S101 - the lifespan made it before the first look
        await aggregator.mark_all()

    async def drain_marks() -> None:
        assert aggregator is not None  # noqa: S101 - the lifespan made it before the first mark
        if not await aggregator.drain_marks():
            await asyncio.sleep(MARKS_INTERVAL)

    shell = ConsumerShell(SERVICE, settings, handle, resources, expired)
    return shell

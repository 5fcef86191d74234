"""Wiring of the sankey-aggregator."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

from services.consumers.failover import leave_silent_servers
from services.consumers.handling import Batches
from services.consumers.positions import Placement
from services.consumers.shell import ConsumerShell
from services.runtime.database import Connection, Pool, bounded_beyond_stuck, close_pool, open_pool
from services.runtime.kafka import Record
from services.runtime.migrate import check_migrated
from services.runtime.settings import Settings
from services.runtime.tasks import beside
from services.sankey_aggregator import store
from services.sankey_aggregator.handlers import MARKS_INTERVAL, SERVICE, Aggregator

log = logging.getLogger("stepstream.aggregator")


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
            async with beside(leave_silent_servers(settings, pool)), shell.background(drain_marks):
                yield pool
        finally:
            await close_pool(pool)

    async def handle(records: Sequence[Record], batches: Batches) -> None:
        assert aggregator is not None  # noqa: S101 - the lifespan made it before the first batch
        await aggregator.handle(records, batches)

    async def on_discontinuity(connection: Connection, _: Mapping[int, Placement]) -> None:
        """Events that are gone name no journeys any more: all are looked at."""
        marks = await store.mark_all(connection)
        log.warning("marked all journeys, %d of them, to be counted again", marks)

    async def drain_marks() -> None:
        assert aggregator is not None  # noqa: S101 - the lifespan made it before the first mark
        await aggregator.resume()
        if not await aggregator.drain_marks():
            await asyncio.sleep(MARKS_INTERVAL)

    shell = ConsumerShell(SERVICE, settings, handle, resources, on_discontinuity, {"cut"})
    return shell

"""Wiring of the sankey-aggregator."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Mapping

from services.consumers.failover import leave_silent_servers
from services.consumers.positions import Placement
from services.consumers.shell import ConsumerShell
from services.runtime.database import Connection, bounded_beyond_stuck, keep_as_it_is, opened_pool
from services.runtime.migrate import check_migrated
from services.runtime.settings import Settings
from services.runtime.tasks import beside
from services.sankey_aggregator import counting, transactions
from services.sankey_aggregator.handlers import MARKS_INTERVAL, SERVICE, Aggregator

log = logging.getLogger("stepstream.aggregator")


class AggregatorShell(ConsumerShell[Aggregator]):
    """The service, ready to run."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Aggregator]:
        """The pool, and what looks for marks beside the handler."""
        settings = self.settings
        server_settings = counting.SERVER_SETTINGS | bounded_beyond_stuck(settings)
        async with opened_pool(
            settings, counting.prepare, server_settings, keep_as_it_is, refusals=self.refusals
        ) as pool:
            await check_migrated(pool)  # the shell asks too, but marks are looked for before
            await counting.follow_showings(pool)
            aggregator = Aggregator(settings, pool, self.pause, self.in_hand.wait)
            async with (
                beside(leave_silent_servers(settings, pool)),
                beside(transactions.watch(pool)),
                beside(aggregator.listen()),
                self.background(functools.partial(_drain_marks, aggregator)),
            ):
                yield aggregator

    async def on_discontinuity(self, connection: Connection, placements: Mapping[int, Placement]) -> None:
        """Events that are gone name no journeys any more: all are looked at."""
        marks = await counting.mark_all(connection)
        log.warning("marked all journeys, %d of them, to be counted again", marks)


async def _drain_marks(aggregator: Aggregator) -> None:
    await aggregator.resume()
    if not await aggregator.drain_marks():
        await asyncio.sleep(MARKS_INTERVAL)


def build(settings: Settings) -> AggregatorShell:
    """The service, ready to run."""
    return AggregatorShell(SERVICE, settings, {"cut"})

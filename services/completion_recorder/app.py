"""Wiring of the completion-recorder."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import get_args

from services.completion_recorder import connections
from services.completion_recorder.advance import mark_all
from services.completion_recorder.handlers import Recorder
from services.completion_recorder.resuming import Resumer, keep_resuming
from services.completion_recorder.watch import keep_watching
from services.consumers.failover import leave_silent_servers
from services.consumers.lag import RECORDER
from services.consumers.positions import Cause, Placement
from services.consumers.shell import ConsumerShell
from services.runtime.database import Connection, bounded_beyond_stuck, keep_as_it_is, opened_pool
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES
from services.runtime.migrate import check_migrated
from services.runtime.producer import producer
from services.runtime.settings import Settings
from services.runtime.tasks import beside


class RecorderShell(ConsumerShell[Recorder]):
    """The service, ready to run."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Recorder]:
        """Pool, producer of dead letters, and what runs beside the handler."""
        settings = self.settings
        server_settings = connections.SERVER_SETTINGS | bounded_beyond_stuck(settings)
        async with (
            opened_pool(
                settings, connections.prepare, server_settings, keep_as_it_is, refusals=self.refusals
            ) as pool,
            producer(
                settings,
                settings.dead_letter_topic,
                max_request_size=DEAD_LETTER_MAX_BYTES,
                max_batch_size=256 * 1024,
                request_timeout_ms=15_000,
            ) as letters,
        ):
            await letters.start()
            await check_migrated(pool)  # the shell asks too, but what runs beside it looks before
            recorder = Recorder(settings, pool, letters, self.pause, self._count_partitions)
            await recorder.know_sources()
            async with (
                beside(leave_silent_servers(settings, pool)),
                beside(keep_resuming(Resumer(settings, pool, recorder.letters), recorder)),
                beside(keep_watching(settings, pool, RECORDER)),
            ):
                yield recorder

    def _count_partitions(self) -> int:
        return len(self.consumer.partitions_for_topic(self.settings.topic) or ())

    async def on_discontinuity(self, connection: Connection, placements: Mapping[int, Placement]) -> None:
        """What was recorded last, the aggregator may never hear of from this log."""
        if any(placement.other_log for placement in placements.values()):
            await mark_all(connection)


def build(settings: Settings) -> RecorderShell:
    """The service, ready to run."""
    return RecorderShell(RECORDER, settings, get_args(Cause))

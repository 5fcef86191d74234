"""Wiring of the completion-recorder."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import get_args

from aiokafka.errors import KafkaError

from services.completion_recorder import connections
from services.completion_recorder.advance import mark_all
from services.completion_recorder.handlers import Recorder
from services.completion_recorder.resuming import Resumer, keep_resuming
from services.completion_recorder.watch import keep_watching
from services.consumers.failover import leave_silent_servers
from services.consumers.handling import Batches
from services.consumers.lag import RECORDER
from services.consumers.positions import Cause, Placement
from services.consumers.shell import ConsumerShell
from services.runtime.database import Connection, Pool, bounded_beyond_stuck, close_pool, open_pool
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, Record, RenewedProducer, unreachable
from services.runtime.migrate import check_migrated
from services.runtime.settings import Settings
from services.runtime.tasks import beside


def build(settings: Settings) -> ConsumerShell:
    """The service, ready to run."""
    recorder: Recorder | None = None

    @contextlib.asynccontextmanager
    async def resources() -> AsyncIterator[Pool]:
        nonlocal recorder
        server_settings = connections.SERVER_SETTINGS | bounded_beyond_stuck(settings)
        pool = await open_pool(settings, connections.prepare, server_settings, refusals=shell.refusals)
        producer = RenewedProducer(
            settings,
            settings.dead_letter_topic,
            max_request_size=DEAD_LETTER_MAX_BYTES,
            max_batch_size=256 * 1024,
            request_timeout_ms=15_000,
        )
        try:
            try:
                await producer.start()
            except KafkaError as error:
                raise unreachable(settings, error) from error
            await check_migrated(pool)  # the shell asks too, but what runs beside it looks before
            recorder = Recorder(settings, pool, producer, shell.pause, partitions)
            await recorder.know_sources()
            watching = keep_watching(settings, pool, RECORDER)
            failover = leave_silent_servers(settings, pool)
            resuming = keep_resuming(Resumer(settings, pool, recorder.letters), recorder)
            async with beside(failover), beside(resuming), beside(watching):
                yield pool
        finally:
            await producer.stop()
            await close_pool(pool)

    def partitions() -> int:
        return len(shell.consumer.partitions_for_topic(settings.topic) or ())

    async def handle(records: Sequence[Record], batches: Batches) -> None:
        assert recorder is not None  # noqa: S101 - the lifespan made it before the first batch
        await recorder.handle(records, batches)

    async def on_discontinuity(connection: Connection, placements: Mapping[int, Placement]) -> None:
        """What was recorded last, the aggregator may never hear of from this log."""
        if any(placement.other_log for placement in placements.values()):
            await mark_all(connection)

    shell = ConsumerShell(RECORDER, settings, handle, resources, on_discontinuity, get_args(Cause))
    return shell

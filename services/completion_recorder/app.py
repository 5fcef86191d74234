"""Wiring of the completion-recorder."""

import contextlib
from collections.abc import AsyncIterator, Sequence

from services.completion_recorder import store
from services.completion_recorder.handlers import SERVICE, Recorder
from services.runtime.database import Pool, open_pool
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, Record, make_producer
from services.runtime.settings import Settings
from services.runtime.shell import ConsumerShell


def build(settings: Settings) -> ConsumerShell:
    """The service, ready to run."""
    recorder: Recorder | None = None

    @contextlib.asynccontextmanager
    async def resources() -> AsyncIterator[Pool]:
        nonlocal recorder
        pool = await open_pool(settings, store.prepare, store.SERVER_SETTINGS)
        producer = make_producer(settings, max_request_size=DEAD_LETTER_MAX_BYTES)
        try:
            await producer.start()
            recorder = Recorder(settings, pool, producer, shell.pause)
            yield pool
        finally:
            await producer.stop()
            await pool.close()

    async def handle(records: Sequence[Record]) -> None:
        assert recorder is not None  # noqa: S101 - the lifespan made it before the first batch
        await recorder.handle(records)

    shell = ConsumerShell(SERVICE, settings, handle, resources)
    return shell

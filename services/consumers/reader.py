"""Reading a topic without a group: a consumer that commits nothing, and ranges of offsets."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from services.consumers.reading import Unreadable, leave_out_the_unreadable
from services.runtime.kafka import connection, unreachable
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.lag")


@contextlib.asynccontextmanager
async def reader(
    settings: Settings, *, quiet: bool = False, isolation_level: str = "read_committed", **options: Any
) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of no group, which commits nothing, for looking.

    What cannot be read it leaves out, and says so, unless it is `quiet`.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    consumer = AIOKafkaConsumer(
        **connection(settings),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=isolation_level,
        **options,
    )
    try:
        try:
            await consumer.start()
        except KafkaError as error:
            raise unreachable(settings, error) from error
        leave_out_the_unreadable(consumer, _ignore if quiet else _tell)
        await asyncio.sleep(0)  # its tasks begin: one that is cancelled before makes its stop raise
        yield consumer
    finally:
        await consumer.stop()


def _tell(found: Unreadable) -> None:
    log.error("%s", found)


def _ignore(_: Unreadable) -> None:
    pass

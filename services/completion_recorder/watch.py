"""Tells, beside the batches, whether database, topic and groups agree, and how much is gone."""

import asyncio
import logging

import asyncpg
from aiokafka.errors import KafkaError

from services.completion_recorder.source_stats import forget_sources
from services.consumers.agreement import agreement
from services.consumers.lag import read_groups_with
from services.consumers.reader import reader
from services.consumers.stored_positions import TABLES, read_positions
from services.consumers.topic import describe_log
from services.runtime.database import Pool, load_queries
from services.runtime.database_errors import may_pass
from services.runtime.errors import StepstreamError
from services.runtime.faults import Beside
from services.runtime.kafka import admin_client, kafka_may_return
from services.runtime.settings import Settings
from services.runtime.telemetry import DISAGREEMENTS, GONE

SQL = load_queries(__file__)

log = logging.getLogger("stepstream.recorder")

#: Between two looks, and how long one may take.
_EVERY_SECONDS = 15.0
_CHECK_SECONDS = 10.0


async def keep_watching(settings: Settings, pool: Pool, service: str) -> None:
    """Looks again and again, until it is cancelled; what does not answer is asked again."""
    faults = Beside(service, "cannot see whether database, topic and groups agree")
    while True:
        try:
            await _watch(settings, pool, service, faults)
        except Exception as error:  # noqa: BLE001 - the batches go on without it
            passes = may_pass(error) or kafka_may_return(error)
            # What is wrong with the schema the batches find, too: they say so, and end the service.
            if passes or isinstance(error, KafkaError | StepstreamError | asyncpg.SyntaxOrAccessError):
                log.debug("cannot see whether all agree: %s", type(error).__name__)
            else:
                faults.fail(error)
        await asyncio.sleep(_EVERY_SECONDS)


async def _watch(settings: Settings, pool: Pool, service: str, faults: Beside) -> None:
    """With the same clients, as long as they answer."""
    async with admin_client(settings) as admin, reader(settings) as consumer:
        known: set[str] = set()
        while True:
            async with asyncio.timeout(_CHECK_SECONDS):
                groups = await read_groups_with(admin, consumer, settings, [service])
                topic_log = await describe_log(consumer._client, settings.topic)  # noqa: SLF001
                # Then the database: it is never behind what is committed, unless it went back.
                async with pool.acquire() as connection:
                    stored = {of: await read_positions(connection, of, settings.topic) for of in TABLES}
                GONE.set(await pool.fetchval(SQL["count_gone"]))
                await forget_sources(pool)
            problems = set(agreement(groups, topic_log, stored).problems)
            for problem in sorted(problems - known):
                log.warning("%s", problem)
            known = problems
            DISAGREEMENTS.set(len(problems))
            faults.go_on()
            await asyncio.sleep(_EVERY_SECONDS)

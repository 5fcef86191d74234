"""The process around a consumer: FastStream, health and metrics over HTTP, signals, and how it ends.

A batch is either applied and committed, or the process ends with nothing of it committed. FastStream
logs a handler's error and goes on to the next batch, whose commit would pass over the failed one; so
no error leaves the handler here: the first one stops the service.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream, AsgiResponse, get
from faststream.kafka import KafkaBroker, KafkaMessage
from prometheus_client import make_asgi_app

from services.runtime.database import Pool
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.kafka import (
    Record,
    admin_client,
    commit_offsets,
    next_offsets,
    subscriber_options,
)
from services.runtime.migrate import check_migrated, pending
from services.runtime.process import Process
from services.runtime.settings import Settings
from services.runtime.telemetry import BATCH_EVENTS, BATCH_SECONDS

log = logging.getLogger("stepstream.shell")

#: How long a revoke waits for the batch in hand before its partitions go on without it.
REVOKE_WAIT_SECONDS = 15.0
#: A batch that neither ends nor waits for longer than this is stuck, and the service no longer alive.
STUCK_SECONDS = 300.0


class Interrupted(Exception):  # noqa: N818 - no error: the batch is left for whoever comes next
    """The batch in hand is given up, uncommitted, because the service stops or loses its partitions."""


class ConsumerShell(Process):
    """Runs one batch handler on the topic under one group.

    The handler gets a batch's records, all of partitions still owned, and returns when everything that
    must outlive a crash is committed in the database; the shell then commits exactly their offsets.
    """

    def __init__(
        self,
        service: str,
        settings: Settings,
        handle: Callable[[Sequence[Record]], Awaitable[None]],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Pool]],
    ) -> None:
        super().__init__(service, settings)
        self.interrupt = asyncio.Event()
        self._handle = handle
        self._resources = resources
        self._pool: Pool | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_hand = False
        self._progress = time.monotonic()
        broker = KafkaBroker(
            settings.kafka_bootstrap_servers,
            client_id=f"stepstream-{service}",
            apply_types=False,
            graceful_timeout=settings.drain_timeout_seconds,
            # Joining a group may take as long as its rebalance or its session.
            request_timeout_ms=int(max(40, settings.session_timeout_seconds + 10) * 1000),
            allow_auto_create_topics=False,
            logger=None,
        )
        self.subscriber = broker.subscriber(
            settings.topic,
            group_id=settings.group(service),
            ack_policy=AckPolicy.MANUAL,
            parser=parse_batch,
            decoder=decode_batch,
            listener=_Listener(self),
            **subscriber_options(settings),
        )
        self.subscriber(self._on_batch)
        self.app = AsgiFastStream(
            broker,
            lifespan=self._lifespan,
            logger=None,
            asgi_routes=[
                ("/health/live", get(self._live)),
                ("/health/ready", get(self._ready)),
                ("/metrics", make_asgi_app()),
                ("/metrics/", make_asgi_app()),
            ],
        )

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The consumer underneath, while the service runs."""
        consumer: AIOKafkaConsumer | None = self.subscriber.consumer
        if consumer is None:
            raise Interrupted
        return consumer

    def stop(self) -> None:
        """Ends the service after the batch in hand."""
        self.interrupt.set()
        super().stop()

    async def pause(self, seconds: float) -> None:
        """Sleeps inside a handler.

        Raises:
            Interrupted: the service stops, or its partitions are being taken away.
        """
        self._progress = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.interrupt.wait(), seconds)
        if self.interrupt.is_set():
            raise Interrupted

    @contextlib.asynccontextmanager
    async def background(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Runs `work` again and again beside the batches; when it fails, the service stops."""

        async def again() -> None:
            while not self.stopping.is_set():
                with contextlib.suppress(Interrupted):
                    await work()
                # Interrupted by a rebalance: let it finish before the next round.
                while self.interrupt.is_set() and not self.stopping.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

        async with self.beside(again):
            yield

    async def _on_batch(self, records: Sequence[Record]) -> None:
        if self.failure is not None or self.stopping.is_set():
            return
        began = self._progress = time.monotonic()
        self._in_hand = True
        self._idle.clear()
        try:
            owned = self.consumer.assignment()
            mine = [r for r in records if TopicPartition(r.topic, r.partition) in owned]
            if mine:
                await self._handle(mine)
                await self._commit(mine)
                BATCH_EVENTS.labels(self.service).observe(len(mine))
                BATCH_SECONDS.labels(self.service).observe(time.monotonic() - began)
        except Interrupted:
            log.info("%s leaves a batch of %d events uncommitted", self.service, len(records))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must not go past this batch
            self.fail(error)
        finally:
            self._in_hand = False
            self._idle.set()

    async def _commit(self, records: Sequence[Record]) -> None:
        try:
            await commit_offsets(self.consumer, next_offsets(records), self.settings.commit_timeout_seconds)
        except TimeoutError:
            raise StepstreamError(
                f"Kafka did not take a commit of offsets within {self.settings.commit_timeout_seconds:g} s. "
                "What it covers is in the database; after a restart it is read again and changes nothing"
            ) from None

    async def revoked(self) -> None:
        """Waits for the batch in hand, a bounded time; a handler that only waits gives up at once."""
        self.interrupt.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), REVOKE_WAIT_SECONDS)

    def assigned(self) -> None:
        """New partitions: handlers may wait again."""
        if not self.stopping.is_set():
            self.interrupt.clear()

    @contextlib.asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        try:
            async with self._resources() as pool:
                await check_ready_to_start(self.settings, pool)
                self._pool = pool
                self.log_start()
                yield
        except BaseException as error:
            self.fail(_first(error))
            raise
        self.log_end()

    async def _live(self, scope: Any) -> AsgiResponse:
        stuck = self._in_hand and time.monotonic() - self._progress > STUCK_SECONDS
        dead = all(task.done() for task in self.subscriber.tasks)
        if self.failure is not None or dead or stuck:
            return AsgiResponse(b"not alive\n", 503)
        return AsgiResponse(b"alive\n", 200)

    async def _ready(self, scope: Any) -> AsgiResponse:
        try:
            if self._pool is None or not self.consumer.assignment():
                return AsgiResponse(b"no partitions are assigned yet\n", 503)
            async with asyncio.timeout(5), self._pool.acquire() as connection:
                if missing := await pending(connection):
                    return AsgiResponse(f"migrations are pending: {', '.join(missing)}\n".encode(), 503)
        except Interrupted:
            return AsgiResponse(b"stopping\n", 503)
        except Exception as error:  # noqa: BLE001 - any failure of the check means: not ready
            return AsgiResponse(f"database: {type(error).__name__}\n".encode(), 503)
        return AsgiResponse(b"ready\n", 200)

    async def run(self, port: int) -> int:
        """Runs until SIGTERM, SIGINT or a failure; returns the exit code."""
        return await self.serve(self.app, port)


async def parse_batch(records: tuple[Record, ...]) -> KafkaMessage:
    """Wraps a batch for FastStream without touching keys, values or headers.

    FastStream's own parser decodes every header as UTF-8, and one that is not fails the whole batch.
    """
    return KafkaMessage(
        raw_message=records,
        body=b"",
        message_id=f"{records[0].partition}:{records[0].offset}",
        consumer=_NeverCommits(),
    )


async def decode_batch(message: KafkaMessage) -> object:
    """The raw records: the handler reads the bytes itself."""
    return message.raw_message


class _NeverCommits:
    """Stands where FastStream keeps the consumer for acknowledging: `commit_offsets` is the only way."""

    async def commit(self) -> None:
        raise RuntimeError("offsets are committed by commit_offsets alone")

    def seek(self, partition: TopicPartition, offset: int) -> None:
        raise RuntimeError("the position is never moved by an acknowledgement")


def _first(error: BaseException) -> BaseException:
    """The first error of a group: FastStream starts its brokers in a task group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Listener(ConsumerRebalanceListener):
    def __init__(self, shell: ConsumerShell) -> None:
        self.shell = shell

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        if revoked:
            await self.shell.revoked()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.shell.assigned()
        log.info("%s has partitions %s", self.shell.service, sorted(p.partition for p in assigned))


async def check_ready_to_start(settings: Settings, pool: Pool) -> None:
    """Looks for what a service cannot do without.

    Raises:
        ConfigurationError: migrations are pending, or the topics do not exist.
    """
    await check_migrated(pool)
    async with admin_client(settings) as admin:
        there = await admin.list_topics()
    absent = [t for t in (settings.topic, settings.dead_letter_topic) if t not in there]
    if absent:
        raise ConfigurationError(
            f"Kafka has no topic {' and no topic '.join(absent)}: run `stepstream migrate` first"
        )

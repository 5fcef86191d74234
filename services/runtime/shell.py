"""The process around a consumer: FastStream, health and metrics over HTTP, signals, and how it ends.

A batch is either applied and committed, or the process ends with nothing of it committed. FastStream
logs a handler's error and goes on to the next batch, whose commit would pass over the failed one; so
no error leaves the handler here: the first one stops the service.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from opentelemetry.trace import SpanKind
from starlette.routing import Router

from services.runtime.database import Pool, retrying
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.http import Answered, health_routes, problem_of_database
from services.runtime.kafka import (
    Record,
    admin_client,
    check_codecs,
    commit_offsets,
    kafka_may_return,
    next_offsets,
    renew_password,
    subscriber_options,
    tls_context,
    unreachable,
)
from services.runtime.migrate import check_migrated
from services.runtime.process import Process
from services.runtime.settings import Settings
from services.runtime.telemetry import (
    BATCH_EVENTS,
    BATCH_SECONDS,
    CANCELLED,
    EXPIRED,
    LAG,
    PAUSED,
    PHASE_SECONDS,
    REBALANCES,
)
from services.runtime.tracing import message_spans, parents_of

log = logging.getLogger("stepstream.shell")

_PATHS = ("/health/live", "/health/ready", "/metrics", "/metrics/")
#: How long Kafka may take to say where partitions begin and end.
_LOOK_SECONDS = 5.0
#: How long a cancelled batch may take to roll back.
_ROLL_BACK_SECONDS = 5.0
#: How long leaving the group may take.
_GOODBYE_SECONDS = 8.0

#: Commits the offsets of these records, once everything of them that must outlive a crash is committed.
Commit: TypeAlias = Callable[[Sequence[Record]], Awaitable[None]]


class Interrupted(Exception):  # noqa: N818 - no error: the batch is left for whoever comes next
    """The batch in hand is given up, uncommitted, because the service stops or loses its partitions."""


class ConsumerShell(Process):
    """Runs one batch handler on the topic under one group.

    The handler gets a batch's records, all of partitions still owned, and a way to commit the offsets of
    those that it is done with. It may wait in `pause`, for what is away.

    Args:
        service: its name, and that of its group.
        settings: where everything is.
        handle: the handler.
        resources: what the handler needs, opened before the first batch.
        expired: called before the batch when Kafka has removed events that this group had not read.
    """

    def __init__(
        self,
        service: str,
        settings: Settings,
        handle: Callable[[Sequence[Record], Commit], Awaitable[None]],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Pool]],
        expired: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(service, settings)
        self.interrupt = asyncio.Event()
        self._handle = handle
        self._resources = resources
        self._expired = expired
        self._pool: Pool | None = None
        self._batch: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._ground = _Ground(service)
        for metric in (REBALANCES, CANCELLED, EXPIRED, PAUSED):
            metric.labels(service)  # there from the start, so that the first increase is seen as one
        #: Held from the look until what it found is told: no batch is committed in between.
        self._exploring = asyncio.Lock()
        self._mending = False
        broker = KafkaBroker(
            settings.kafka_bootstrap_servers,
            client_id=f"stepstream-{service}",
            security=_security(settings),
            apply_types=False,
            graceful_timeout=settings.drain_timeout_seconds,
            # Joining a group may take as long as its rebalance or its session.
            request_timeout_ms=int(max(40, settings.session_timeout_seconds + 10) * 1000),
            metadata_max_age_ms=int(settings.metadata_max_age_seconds * 1000),
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
        routes: Any = Router(health_routes(self.problem_of_life, self.problem_of_readiness))
        self.app = AsgiFastStream(
            broker,
            lifespan=self._lifespan,
            logger=None,
            # Not FastStream's own handlers: they would swallow an error and answer 500 without a line.
            asgi_routes=[(path, routes) for path in _PATHS],
        )

    @property
    def served(self) -> Answered:
        """What the HTTP port serves."""
        app: Any = self.app
        return Answered(app, self.service)

    @property
    def consumer(self) -> AIOKafkaConsumer:
        """The consumer underneath, while the service runs."""
        consumer: AIOKafkaConsumer | None = self.subscriber.consumer
        if consumer is None:
            raise Interrupted
        return consumer

    @property
    def _in_hand(self) -> bool:
        return self._batch is not None and not self._batch.done()

    def fail(self, error: BaseException) -> None:
        """Stops the service with this error; one of Kafka's is told as a line for people."""
        super().fail(unreachable(self.settings, error) if isinstance(error, KafkaError) else error)

    def stop(self) -> None:
        """Ends the service after the batch in hand."""
        self.interrupt.set()
        super().stop()

    async def pause(self, seconds: float) -> None:
        """Sleeps inside a handler, which waits for something that is away; fetching pauses meanwhile.

        Raises:
            Interrupted: the service stops, or its partitions are being taken away.
        """
        self._progress = time.monotonic()
        if self._in_hand and not self.consumer.paused():
            self.consumer.pause(*self.consumer.assignment())
            PAUSED.labels(self.service).set(1)
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

    # --- a batch --------------------------------------------------------------------------------------

    async def _on_batch(self, records: Sequence[Record]) -> None:
        if self.failure is not None or self.stopping.is_set():
            return
        self._batch = asyncio.create_task(self._process(records))
        try:
            await asyncio.wait({self._batch})
        finally:
            if not self._batch.done():  # FastStream ends, and has waited as long as it may
                self._batch.cancel()

    async def _process(self, records: Sequence[Record]) -> None:
        began = self._progress = time.monotonic()
        left = len(records)

        async def commit(done: Sequence[Record]) -> None:
            nonlocal left
            await self._commit(done)
            left -= len(done)
            if left and self.interrupt.is_set():
                raise Interrupted

        try:
            if self.interrupt.is_set():  # fetched before a rebalance that has begun since
                raise Interrupted
            owned = self.consumer.assignment()
            mine = [r for r in records if TopicPartition(r.topic, r.partition) in owned]
            left = len(mine)
            if mine:
                await self._look_for_expired(owned, mine)
                parents = parents_of(r.headers for r in mine)
                name = f"process {self.settings.topic}"
                with message_spans(self.service, name, SpanKind.CONSUMER, parents, len(mine)):
                    await self._handle(mine, commit)
                BATCH_EVENTS.labels(self.service).observe(len(mine))
                BATCH_SECONDS.labels(self.service).observe(time.monotonic() - began)
        except Interrupted:
            log.info("%s leaves %d events of a batch uncommitted", self.service, left)
        except asyncio.CancelledError:
            CANCELLED.labels(self.service).inc()
            log.warning("%s rolls back a batch, %d events are left uncommitted", self.service, left)
            if not self.interrupt.is_set():  # the next batch would pass over this one
                self.fail(StepstreamError("a batch was cancelled, and nobody knows why"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must not go past this batch
            self.fail(error)
        finally:
            self._resume()

    def _resume(self) -> None:
        with contextlib.suppress(Interrupted):
            self.consumer.resume(*self.consumer.paused())
        PAUSED.labels(self.service).set(0)

    async def _commit(self, records: Sequence[Record]) -> None:
        """Commits these records' offsets; while Kafka is away, again and again.

        What they cover is in the database: should the process end before, they are read again, and
        change nothing.
        """
        offsets = next_offsets(records)
        with PHASE_SECONDS.labels(self.service, "commit").time():
            async for attempt in retrying(self.service, self.pause, kafka_may_return):
                with attempt:
                    await commit_offsets(self.consumer, offsets, self.settings.commit_timeout_seconds)
        self._ground.handled(offsets)
        self._progress = time.monotonic()

    # --- partitions come and go -----------------------------------------------------------------------

    async def revoked(self) -> None:
        """Waits for the batch in hand, a bounded time, then rolls it back.

        A handler that only waits gives up at once. When this returns, nothing more is written for the
        partitions that go.
        """
        self.interrupt.set()
        batch = self._batch
        if batch is None or batch.done():
            return
        await asyncio.wait({batch}, timeout=self.settings.revoke_wait_seconds)
        if not batch.done():
            batch.cancel()
            await asyncio.wait({batch}, timeout=_ROLL_BACK_SECONDS)

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """New partitions: handlers may wait again."""
        _bound_the_end(self.consumer)
        self._ground.assigned(partitions)
        REBALANCES.labels(self.service).inc()
        if not self.stopping.is_set():
            self.interrupt.clear()

    async def _look_for_expired(self, owned: Collection[TopicPartition], records: Sequence[Record]) -> None:
        """Where the batch does not follow on what was handled: has Kafka removed what lay between?"""
        async with self._exploring:
            if not self._ground.has_gap(owned, records):
                return
            async for attempt in retrying(self.service, self.pause, kafka_may_return):
                with attempt:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        lost = await self._ground.explore(self.consumer, owned)
            await self._tell_expired(lost)

    async def _tell_expired(self, lost: int) -> None:
        if not lost:
            return
        EXPIRED.labels(self.service).inc(lost)
        log.error(
            "%s: Kafka removed %d events before they were read (retention?); the oldest there is comes next",
            self.service,
            lost,
        )
        if self._expired is not None:
            self._mending = True
            try:
                await self._expired()
            finally:
                self._mending = False

    async def look(self) -> None:
        """Looks at begins and ends of partitions: lag, expired events, and whether there is progress."""
        try:
            consumer = self.consumer
            renew_password(consumer, self.settings)
            owned = consumer.assignment()
            async with self._exploring:
                async with asyncio.timeout(_LOOK_SECONDS):
                    lost = await self._ground.explore(consumer, owned)
                await self._tell_expired(lost)
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._ground.measure(consumer, owned, idle=not self._in_hand)
        except (Interrupted, IllegalStateError):
            pass  # stopping, or partitions have just moved
        except (KafkaError, OSError, TimeoutError) as error:
            self._ground.unseen()
            log.debug("Kafka does not say how far it is: %s", type(error).__name__)

    # --- life and its end -----------------------------------------------------------------------------

    def problem_of_life(self) -> str | None:
        """A dead task, a batch without end, or lag without progress."""
        bound = self.settings.stuck_seconds
        if problem := super().problem_of_life():
            return problem
        if self.subscriber.consumer is None:
            return None
        if dead := _dead_tasks(self.consumer, self.subscriber.tasks):
            return f"its {dead} task is dead"
        if self._mending:
            return None
        if self._in_hand and time.monotonic() - self._progress > bound:
            return f"a batch is stuck: no answer for more than {bound:g} s"
        stale = None if self._in_hand else self._ground.stale(bound)
        return stale and f"partition {stale} has lag, and nothing of it was read for more than {bound:g} s"

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

    async def problem_of_readiness(self) -> str | None:
        """What keeps the service from handling events: no partitions, no database, or pending migrations."""
        try:
            if self._pool is None or not self.consumer.assignment():
                return "no partitions are assigned yet"
        except Interrupted:
            return "stopping"
        return await problem_of_database(self._pool)

    async def run(self, port: int) -> int:
        """Runs until SIGTERM, SIGINT or a failure; returns the exit code."""
        return await self.serve(self.served, port)


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
        self.shell.assigned(assigned)
        log.info("%s has partitions %s", self.shell.service, sorted(p.partition for p in assigned))


async def check_ready_to_start(settings: Settings, pool: Pool) -> None:
    """Looks for what a service cannot do without.

    Raises:
        ConfigurationError: a codec cannot be read, migrations are pending, or the topics do not exist.
    """
    check_codecs()
    await check_migrated(pool)
    async with admin_client(settings) as admin:
        there = await admin.list_topics()
    absent = [t for t in (settings.topic, settings.dead_letter_topic) if t not in there]
    if absent:
        raise ConfigurationError(
            f"Kafka has no topic {' and no topic '.join(absent)}: run `stepstream migrate` first"
        )


def _bound_the_end(consumer: AIOKafkaConsumer) -> None:
    """Makes a consumer's stop leave its group in bounded time: with Kafka away it would wait for 40 s.

    FastStream stops it when everything is handled; who does not get to say goodbye is missed by its silence.
    """
    stop: Any = consumer.stop
    if getattr(stop, "__func__", None) is not AIOKafkaConsumer.stop:
        return

    async def bounded() -> None:
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await stop()
        except TimeoutError:
            log.warning("Kafka does not answer: the group will miss this consumer after its session timeout")

    consumer.stop = bounded  # type: ignore[method-assign]


class _Ground:
    """Where the partitions of this instance begin and end, and how far it has come."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._next: dict[TopicPartition, int] = {}
        self._moved: dict[TopicPartition, tuple[int, float]] = {}
        self._behind: set[TopicPartition] = set()

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """Forgets what it knew: others may have been here meanwhile."""
        for gone in self._moved.keys() - set(partitions):
            with contextlib.suppress(KeyError):
                LAG.remove(self._service, str(gone.partition))
        self._next.clear()
        self._moved.clear()
        self._behind.clear()

    def handled(self, offsets: Any) -> None:
        """These offsets are committed."""
        self._next.update(offsets)

    def has_gap(self, partitions: Collection[TopicPartition], records: Sequence[Record]) -> bool:
        """Whether offsets lie between what was handled and the batch, or that is not known."""
        if any(p not in self._next for p in partitions):
            return True
        firsts: dict[TopicPartition, int] = {}
        for record in records:
            firsts.setdefault(TopicPartition(record.topic, record.partition), record.offset)
        return any(offset > self._next[p] for p, offset in firsts.items())

    def unseen(self) -> None:
        """Kafka does not answer: what was known of the ends says nothing about progress."""
        self._behind.clear()

    async def explore(self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> int:
        """How many events expired between where the group was and where partitions begin."""
        lost = 0
        begins = await consumer.beginning_offsets(list(partitions)) if partitions else {}
        for partition, begin in begins.items():
            if partition not in self._next:
                self._next[partition] = await consumer.committed(partition) or 0
            lost += max(0, begin - self._next[partition])
            self._next[partition] = max(begin, self._next[partition])
        return lost

    async def measure(
        self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], *, idle: bool
    ) -> None:
        """Looks how far partitions go; the end is the last offset that no open transaction holds back."""
        ends = await consumer.end_offsets(list(partitions)) if partitions else {}
        now = time.monotonic()
        for partition, end in ends.items():
            position = await consumer.position(partition)
            if not idle or position != self._moved.get(partition, (-1, 0))[0]:
                self._moved[partition] = (position, now)
            if position < end:
                self._behind.add(partition)
            else:
                self._behind.discard(partition)
                self._moved[partition] = (position, now)
            # Past the last record there may be the marker of a transaction, which nobody reads.
            at = end if idle and position >= end else self._next.get(partition, 0)
            LAG.labels(self._service, str(partition.partition)).set(max(0, end - at))

    def stale(self, bound: float) -> str | None:
        """A partition with lag whose position has not moved for so many seconds."""
        now = time.monotonic()
        for partition in self._behind:
            if now - self._moved[partition][1] > bound:
                return str(partition.partition)
        return None


def _dead_tasks(consumer: AIOKafkaConsumer, tasks: Collection["asyncio.Task[Any]"]) -> str | None:
    """Which of the tasks that feed the handler has ended; aiokafka shows its own nowhere."""
    fetcher, coordinator = consumer._fetcher, consumer._coordinator  # noqa: SLF001 - no other way to see them
    parts = {
        "fetching": fetcher is not None and fetcher._fetch_task.done(),  # noqa: SLF001
        "coordinating": coordinator is not None and coordinator._coordination_task.done(),  # noqa: SLF001
        "consuming": bool(tasks) and all(task.done() for task in tasks),
    }
    return next((name for name, dead in parts.items() if dead), None)


def _security(settings: Settings) -> BaseSecurity | None:
    """TLS and sign-in as FastStream wants them."""
    context = tls_context(settings)
    if not settings.kafka_security_protocol.startswith("SASL"):
        return BaseSecurity(context, use_ssl=True) if context else None
    kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    return kinds[settings.kafka_sasl_mechanism](
        settings.kafka_username,
        settings.read_kafka_password() or "",
        ssl_context=context,
        use_ssl=context is not None,
    )

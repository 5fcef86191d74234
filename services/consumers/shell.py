"""The process around a consumer: FastStream, health and metrics over HTTP, signals, and how it ends.

A batch is either applied and committed, or the process ends with nothing of it committed. FastStream
logs a handler's error and goes on to the next batch, whose commit would pass over the failed one; so
no error leaves the handler here: the first one stops the service.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    IllegalStateError,
    KafkaError,
)
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from opentelemetry.trace import SpanKind
from starlette.routing import Router

from services.consumers.handling import Batches, Interrupted
from services.consumers.keeper import Keeper
from services.consumers.placements import OnDiscontinuity
from services.consumers.placing import CHECK_SECONDS, Placing
from services.consumers.positions import Cause, Placement
from services.consumers.prerequisites import check_prerequisites
from services.consumers.progress import Progress
from services.consumers.standing import Standing
from services.consumers.stored_positions import Advance, MovedError, PositionLockedError
from services.consumers.subscription import bound_the_end, dead_task, decode_batch, make_broker, parse_batch
from services.runtime.database import Connection, Pool
from services.runtime.database_errors import DATABASE_ERRORS, may_pass
from services.runtime.errors import StepstreamError
from services.runtime.http import Answered, health_routes, problem_of_database
from services.runtime.kafka import (
    Record,
    commit_offsets,
    kafka_may_return,
    renew_password,
    subscriber_options,
    unreachable,
)
from services.runtime.process import Process, Stopped
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.telemetry import (
    BATCH_EVENTS,
    BATCH_SECONDS,
    CANCELLED,
    EXPIRED,
    PAUSED,
    PHASE_SECONDS,
    REBALANCES,
    REWINDS,
)
from services.runtime.tracing import message_spans, parents_of

log = logging.getLogger("stepstream.shell")

_PATHS = ("/health/live", "/health/ready", "/metrics", "/metrics/")
#: How long a cancelled batch may take to roll back.
_ROLL_BACK_SECONDS = 5.0


class ConsumerShell(Process):
    """Runs one batch handler on the topic under one group.

    The handler gets a batch's records, all of partitions still owned, and a way to commit the offsets of
    those that it is done with. It may wait in `pause`, for what is away.

    Args:
        service: its name, and that of its group.
        settings: where everything is.
        handle: the handler.
        resources: what the handler needs, opened before the first batch.
        on_discontinuity: called in the transaction that moves positions where no event tells which journeys
            changed: Kafka has removed events that this group had not read, or the log is another one.
        names: of which causes this service names what is gone.
    """

    def __init__(
        self,
        service: str,
        settings: Settings,
        handle: Callable[[Sequence[Record], Batches], Awaitable[None]],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Pool]],
        on_discontinuity: OnDiscontinuity,
        names: Collection[Cause],
    ) -> None:
        super().__init__(service, settings)
        self.interrupt = asyncio.Event()
        self._handle = handle
        self._resources = resources
        self._on_discontinuity = on_discontinuity
        self.keeper = Keeper(service, settings, self._around_discontinuity, names)
        self._pool: Pool | None = None
        self._batch: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._reached = Progress(service)
        for metric in (REBALANCES, REWINDS, CANCELLED, EXPIRED, PAUSED):
            metric.labels(service)  # there from the start, so that the first increase is seen as one
        self._mending = False
        #: Whether events were fetched that have not come to be a batch in hand, or to be done.
        self._is_on_its_way = False
        self._looks: asyncio.Task[None] | None = None
        #: Whether all partitions pause, because the batch in hand waits.
        self.is_waiting = False
        self.standing = Standing(self)
        self.placing = Placing(self)
        broker = make_broker(service, settings)
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
        routes: Any = Router(health_routes(self.problem_of_life, self.problem_of_readiness, self.remark))
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
    def pool(self) -> Pool:
        """Connections to the database, while the service runs."""
        if self._pool is None:
            raise Interrupted
        return self._pool

    @property
    def pool_if_open(self) -> "Pool | None":
        return self._pool

    @property
    def is_busy(self) -> bool:
        """Whether a batch is in hand, or on its way to be."""
        return self._in_hand or self._is_on_its_way

    def partitions(self, numbers: Collection[int]) -> list[TopicPartition]:
        """Partitions of the topic by their numbers."""
        return [TopicPartition(self.settings.topic, p) for p in numbers]

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
        if self._in_hand and not self.is_waiting:
            self.consumer.pause(*self.consumer.assignment())
            self.is_waiting = True
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
        batch = _Batch(self)
        try:
            owned = self._owned()
            mine = [r for r in records if TopicPartition(r.topic, r.partition) in owned]
            batch.left = len(mine)
            mine = await self.placing.following_on(owned, mine) if mine else []
            if mine:
                parents = parents_of(r.headers for r in mine)
                name = f"process {self.settings.topic}"
                with message_spans(self.service, name, SpanKind.CONSUMER, parents, len(mine)):
                    await self._handle_what_goes_on(mine, batch)
                BATCH_EVENTS.labels(self.service).observe(len(mine))
                BATCH_SECONDS.labels(self.service).observe(time.monotonic() - began)
        except Interrupted:
            log.info("%s leaves %d events of a batch uncommitted", self.service, batch.left)
        except MovedError as moved:
            log.warning("%s does not go on where the database is: %s", self.service, moved)
            self.keeper.forget({r.partition for r in records})
            self.place_soon()
        except asyncio.CancelledError:
            CANCELLED.labels(self.service).inc()
            log.warning("%s rolls back a batch, %d events are left uncommitted", self.service, batch.left)
            if not self.interrupt.is_set():  # the next batch would pass over this one
                self.fail(StepstreamError("a batch was cancelled, and nobody knows why"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must not go past this batch
            self.fail(error)
        finally:
            self._resume()

    def _owned(self) -> set[TopicPartition]:
        if self.interrupt.is_set():  # fetched before a rebalance that has begun since
            raise Interrupted
        owned: set[TopicPartition] = self.consumer.assignment()
        return owned

    async def _handle_what_goes_on(self, records: list[Record], batch: "_Batch") -> None:
        """Handles a batch, but for the partitions whose positions somebody has locked."""
        while records:
            batch.left = len(records)
            try:
                await self._handle(records, batch)
                break
            except PositionLockedError as locked:
                self.standing.hold_locked(locked)
            at = {p: position.reads_from for p, position in self.keeper.positions.items()}
            records = [
                r
                for r in records
                if r.partition not in self.standing.held and r.offset >= at.get(r.partition, math.inf)
            ]

    def _resume(self) -> None:
        self.is_waiting = False
        with contextlib.suppress(Interrupted):
            self.consumer.resume(*(self.consumer.paused() - self.standing.partitions))
        PAUSED.labels(self.service).set(0)

    def over(self, records: Sequence[Record]) -> Advance:
        """How these records move positions on."""
        return self.keeper.over(records)

    async def recheck(self, records: Sequence[Record]) -> None:
        """Looks whether records of the batch in hand, which wait, are still what comes next.

        Raises:
            MovedError: the database or the log went elsewhere meanwhile.
        """
        partitions = sorted({r.partition for r in records})
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                moved = await self.keeper.moved(self.consumer, self.pool, partitions)
        except (KafkaError, OSError, TimeoutError, *DATABASE_ERRORS) as error:
            if not (may_pass(error) or kafka_may_return(error)):
                raise
            return
        if moved:
            raise MovedError(f"partitions {', '.join(map(str, moved))}, while events of theirs waited")

    async def commit(self, advance: Advance) -> None:
        """Commits offsets; while Kafka is away, again and again.

        What they cover is in the database: should the process end before, they are read again, and
        change nothing.
        """
        self.keeper.done(advance)
        with PHASE_SECONDS.labels(self.service, "commit").time():
            async for attempt in retrying(self.service, self.pause, kafka_may_return):
                with attempt:
                    await commit_offsets(
                        self.consumer,
                        advance.offsets,
                        self.settings.commit_timeout_seconds,
                        self.keeper.words_of(advance),
                    )
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
        bound_the_end(self.consumer)
        self._note_fetches(self.consumer)
        self.standing.assigned(self.consumer, partitions)
        self.keeper.forget()
        self.placing.assigned()
        self._reached.assigned(partitions)
        REBALANCES.labels(self.service).inc()
        if not self.stopping.is_set():
            self.interrupt.clear()
            if partitions:
                self.place_soon()

    def _note_fetches(self, consumer: AIOKafkaConsumer) -> None:
        """Remembers of each batch when it was fetched: after how many placings."""
        getmany: Any = consumer.getmany
        if getattr(getmany, "__func__", None) is not AIOKafkaConsumer.getmany:
            return

        async def noting(*args: Any, **options: Any) -> Any:
            self._is_on_its_way = False
            fetched = await getmany(*args, **options)
            self.standing.show_unreadable()
            self.placing.fetched()
            self._is_on_its_way = bool(fetched)
            for records in fetched.values():
                self.keeper.fetched(records[-1])
            return fetched

        consumer.getmany = noting  # type: ignore[method-assign]

    def remark(self) -> str | None:
        """What a service that is ready leaves undone."""
        return "; ".join(self.standing.reasons) or None

    def place_soon(self) -> None:
        """Places partitions without waiting for events of theirs."""
        self._looks = asyncio.create_task(self._look())

    async def _around_discontinuity(
        self, connection: Connection, placements: Mapping[int, Placement]
    ) -> None:
        self._mending = True
        try:
            await self._on_discontinuity(connection, placements)
        finally:
            self._mending = False

    async def look(self) -> None:
        """Looks where partitions and the database are: lag, what has moved, and whether there is progress."""
        try:
            consumer = self.consumer
            renew_password(consumer, self.settings)
            owned = consumer.assignment()
            if not self._in_hand and not self.interrupt.is_set():
                async with self.placing.lock:
                    if not self._in_hand:
                        await self.placing.check_and_place(owned, 0)
                        await self.placing.pass_what_nobody_reads(owned)
                        await self.standing.retry_unreadable()
            async with asyncio.timeout(CHECK_SECONDS):
                await self._reached.measure(consumer, owned, self.keeper.positions, idle=not self._in_hand)
        except (Interrupted, IllegalStateError, MovedError):
            pass  # stopping, or partitions have just moved
        except (KafkaError, OSError, TimeoutError, *DATABASE_ERRORS) as error:
            if not (may_pass(error) or kafka_may_return(error)):
                raise
            self._reached.unseen()
            log.debug("cannot see how far this is: %s", type(error).__name__)

    # --- life and its end -----------------------------------------------------------------------------

    def problem_of_life(self) -> str | None:
        """A dead task, a batch without end, or lag without progress."""
        bound = self.settings.stuck_seconds
        if problem := super().problem_of_life():
            return problem
        if self.subscriber.consumer is None:
            return None
        if dead := dead_task(self.consumer, self.subscriber.tasks):
            return f"its {dead} task is dead"
        if self._mending:
            return None
        if self._in_hand and time.monotonic() - self._progress > bound:
            return f"a batch is stuck: no answer for more than {bound:g} s"
        stale = None if self._in_hand else self._reached.stale(bound, self.standing.partitions)
        return stale and f"partition {stale} has lag, and nothing of it was read for more than {bound:g} s"

    @contextlib.asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        try:
            async with self._resources() as pool:
                await check_prerequisites(self.settings, pool)
                with contextlib.suppress(Stopped):
                    await self.keeper.join(pool, self.sleep)
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


class _Batch:
    """A batch in hand, as its handler sees the shell."""

    def __init__(self, shell: ConsumerShell) -> None:
        self._shell = shell
        self.left = 0

    def over(self, records: Sequence[Record]) -> Advance:
        return self._shell.over(records)

    async def recheck(self, records: Sequence[Record]) -> None:
        await self._shell.recheck(records)

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        if advance is not None:
            await self._shell.commit(advance)
        self.left -= len(records)
        if self.left and self._shell.interrupt.is_set():
            raise Interrupted

    def leave(self, partition: int, why: str, until: Callable[[], Awaitable[bool]]) -> bool:
        self._shell.standing.hold(partition, why, until)
        return True

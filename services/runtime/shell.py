"""The process around a consumer: FastStream, health and metrics over HTTP, signals, and how it ends.

A batch is either applied and committed, or the process ends with nothing of it committed. FastStream
logs a handler's error and goes on to the next batch, whose commit would pass over the failed one; so
no error leaves the handler here: the first one stops the service.
"""

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from opentelemetry.trace import SpanKind
from starlette.routing import Router
from tenacity import AsyncRetrying

from services.runtime.batches import Reading, Unreadable
from services.runtime.database import DATABASE_ERRORS, Connection, Pool, may_pass, retrying
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.http import Answered, health_routes, problem_of_database
from services.runtime.kafka import (
    Record,
    admin_client,
    check_codecs,
    commit_offsets,
    kafka_may_return,
    refuse_compacted,
    renew_password,
    subscriber_options,
    tls_context,
    unreachable,
)
from services.runtime.keeper import Keeper, OtherGround
from services.runtime.migrate import check_migrated
from services.runtime.positions import Cause, Placement, Position
from services.runtime.process import Process, Stopped
from services.runtime.settings import Settings
from services.runtime.stored_positions import (
    Advance,
    MovedError,
    PositionLockedError,
    lock_free_positions,
)
from services.runtime.telemetry import (
    BATCH_EVENTS,
    BATCH_SECONDS,
    CANCELLED,
    EXPIRED,
    HELD,
    LAG,
    PAUSED,
    PHASE_SECONDS,
    REBALANCES,
    REWINDS,
    UNREADABLE,
)
from services.runtime.tracing import message_spans, parents_of

log = logging.getLogger("stepstream.shell")

_PATHS = ("/health/live", "/health/ready", "/metrics", "/metrics/")
#: How long Kafka may take to say where partitions begin and end.
_LOOK_SECONDS = 5.0
#: How long a cancelled batch may take to roll back.
_ROLL_BACK_SECONDS = 5.0
#: Between two looks whether partitions that stand still may go on.
_HELD_SECONDS = 0.5
#: How long leaving the group may take.
_GOODBYE_SECONDS = 8.0


class Batches(Protocol):
    """What a handler needs of the shell, or of whoever else feeds it."""

    def over(self, records: Sequence[Record]) -> Advance | None:
        """How these records move positions on, to be written in the transaction of what they change.

        None where positions stay: all of it was read before.
        """

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        """Commits their offsets to Kafka, once all of them that must outlive a crash is committed."""

    async def look_again(self, records: Sequence[Record]) -> None:
        """Looks whether these records, which wait, are still what comes next.

        Raises:
            MovedError: the database or the log went elsewhere meanwhile; they are to be fetched again.
        """

    def leave(self, partition: int, why: str, until: Callable[[], Awaitable[bool]]) -> bool:
        """Leaves the records of a partition that are not committed, until they may go on.

        They come again then. Returns False where they cannot be left: then the handler goes on waiting.
        """


class _Hold(NamedTuple):
    """Why a partition stands still, for people, and what says that it may go on."""

    why: str
    until: Callable[[], Awaitable[bool]]
    #: Whether its position cannot be moved, either.
    is_locked: bool


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
        on_other_ground: called in the transaction that moves positions where no event tells which journeys
            changed: Kafka has removed events that this group had not read, or the log is another one.
        names: of which causes this service names what is gone.
    """

    def __init__(
        self,
        service: str,
        settings: Settings,
        handle: Callable[[Sequence[Record], Batches], Awaitable[None]],
        resources: Callable[[], contextlib.AbstractAsyncContextManager[Pool]],
        on_other_ground: OtherGround,
        names: Collection[Cause],
    ) -> None:
        super().__init__(service, settings)
        self.interrupt = asyncio.Event()
        self._handle = handle
        self._resources = resources
        self._on_other_ground = on_other_ground
        self._keeper = Keeper(service, settings, self._around_other_ground, names)
        self._pool: Pool | None = None
        self._batch: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._ground = _Ground(service)
        for metric in (REBALANCES, REWINDS, CANCELLED, EXPIRED, PAUSED):
            metric.labels(service)  # there from the start, so that the first increase is seen as one
        #: Held while partitions are looked at and placed: no batch begins in between.
        self._placing = asyncio.Lock()
        self._looked_at = -math.inf
        self._mending = False
        #: What was fetched before the last placing may not follow on what is stored.
        self._placed_times = 0
        self._fetched_after = 0
        #: Whether events were fetched that have not come to be a batch in hand, or to be done.
        self._is_on_its_way = False
        #: Whether partitions are new, and the consumer reads them from where the group has committed.
        self._at_committed = False
        self._looks: asyncio.Task[None] | None = None
        self._reading: Reading | None = None
        #: The partitions that metrics show as unreadable.
        self._shown: set[int] = set()
        #: The partitions that stand still while others go on, and who looks whether they may.
        self._held: dict[int, _Hold] = {}
        self._holding: asyncio.Task[None] | None = None
        #: Whether all partitions pause, because the batch in hand waits.
        self._is_waiting = False
        broker = _make_broker(service, settings)
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
        if self._in_hand and not self._is_waiting:
            self.consumer.pause(*self.consumer.assignment())
            self._is_waiting = True
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
            mine = await self._following_on(owned, mine) if mine else []
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
            self._keeper.forget({r.partition for r in records})
            self._look_soon()
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
                self._hold_locked(locked)
            at = {p: position.reads_from for p, position in self._keeper.positions.items()}
            records = [
                r
                for r in records
                if r.partition not in self._held and r.offset >= at.get(r.partition, math.inf)
            ]

    async def _following_on(self, owned: Collection[TopicPartition], records: list[Record]) -> list[Record]:
        """Of a batch that begins where the database is, all but what stands still; else nothing.

        Then it is fetched again, from there. Between the two there may be offsets of which nobody reads
        anything, and those that Kafka has removed.
        """
        async with self._placing:
            async for attempt in self._retrying():
                with attempt:
                    await self._look_and_place(owned, _LOOK_SECONDS)
            records = [r for r in records if r.partition not in self._held]
            firsts: dict[int, int] = {}
            for record in records:
                firsts.setdefault(record.partition, record.offset)
            at = {p: self._keeper.positions[p].reads_from for p in firsts}
            if self._fetched_after == self._placed_times:
                if all(first == at[p] for p, first in firsts.items()):
                    return records
                # Another place than ours, or a gap: is there something of which we know nothing?
                odd = [p for p, first in firsts.items() if first != at[p]]
                async for attempt in self._retrying():
                    with attempt:
                        async with asyncio.timeout(_LOOK_SECONDS):
                            begins = await self.consumer.beginning_offsets(self._partitions(odd))
                if not any(
                    firsts[tp.partition] < at[tp.partition] or begin > at[tp.partition]
                    for tp, begin in begins.items()
                ):
                    return records
                self._keeper.forget(odd)
                async for attempt in self._retrying():
                    with attempt:
                        await self._place(owned)
            with _moving():
                for tp in self._partitions(firsts.keys() & self._keeper.positions.keys()):
                    self.consumer.seek(tp, self._keeper.positions[tp.partition].reads_from)
            self._placed_times += 1
            return []

    def _partitions(self, numbers: Collection[int]) -> list[TopicPartition]:
        return [TopicPartition(self.settings.topic, p) for p in numbers]

    def _retrying(self) -> AsyncRetrying:
        return retrying(self.service, self.pause, lambda e: may_pass(e) or kafka_may_return(e), self._pool)

    async def _look_and_place(self, owned: Collection[TopicPartition], patience: float) -> None:
        """Places what has to be placed; looks before whether something has moved, if that is long ago."""
        if time.monotonic() - self._looked_at >= patience:
            with _moving():
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._keeper.look(self.consumer, self._opened, [p.partition for p in owned])
            self._looked_at = time.monotonic()
        await self._place(owned)

    async def _pass_what_nobody_reads(self, owned: Collection[TopicPartition]) -> None:
        """Moves positions past markers of transactions and events of aborted ones that nothing follows."""
        reached = {tp.partition: await self.consumer.position(tp) for tp in owned}
        if self._in_hand or self._is_on_its_way:
            return
        moves = {
            p: (known, known.past(reached[p]))
            for p, known in self._keeper.positions.items()
            if reached.get(p, 0) > known.reads_from
        }
        if not moves:
            return
        advance = Advance(self.service, self.settings.topic, moves)
        try:
            async with self._opened.acquire() as connection, connection.transaction():
                await advance.write(connection)
        except PositionLockedError as locked:
            self._hold_locked(locked)
            return
        self._keeper.done(advance)
        with _moving():
            await commit_offsets(
                self.consumer,
                advance.offsets,
                self.settings.commit_timeout_seconds,
                self._keeper.words_of(advance),
            )

    async def _place(self, owned: Collection[TopicPartition]) -> None:
        unplaced = self._keeper.unplaced(owned)
        for partition in self._held.keys() & set(unplaced):
            if not self._held[
                partition
            ].is_locked:  # its database or log went elsewhere: what it waits for, too
                self._go_on(partition)
        unplaced = [p for p in unplaced if p not in self._held]
        if not unplaced:
            return
        with _moving():
            at_committed, self._at_committed = self._at_committed, False
            try:
                went = await self._keeper.place(
                    self.consumer, self._opened, unplaced, at_committed=at_committed
                )
            except MovedError as moved:
                raise asyncpg.LockNotAvailableError(str(moved)) from moved
            except PositionLockedError as locked:
                self._hold_locked(locked)
                went = True
        self._placed_times += went

    @property
    def _opened(self) -> Pool:
        if self._pool is None:
            raise Interrupted
        return self._pool

    def _resume(self) -> None:
        self._is_waiting = False
        with contextlib.suppress(Interrupted):
            standing = self._unreadable.keys() | set(self._partitions(self._held))
            self.consumer.resume(*(self.consumer.paused() - standing))
        PAUSED.labels(self.service).set(0)

    def over(self, records: Sequence[Record]) -> Advance:
        """How these records move positions on."""
        return self._keeper.over(records)

    async def look_again(self, records: Sequence[Record]) -> None:
        """Looks whether records of the batch in hand, which wait, are still what comes next.

        Raises:
            MovedError: the database or the log went elsewhere meanwhile.
        """
        partitions = sorted({r.partition for r in records})
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                moved = await self._keeper.moved(self.consumer, self._opened, partitions)
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
        self._keeper.done(advance)
        with PHASE_SECONDS.labels(self.service, "commit").time():
            async for attempt in retrying(self.service, self.pause, kafka_may_return):
                with attempt:
                    await commit_offsets(
                        self.consumer,
                        advance.offsets,
                        self.settings.commit_timeout_seconds,
                        self._keeper.words_of(advance),
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
        _bound_the_end(self.consumer)
        self._note_fetches(self.consumer)
        if self._reading is None:
            self._reading = Reading(self.consumer, self._tell_unreadable)
        self._reading.assigned(partitions)
        self._keeper.forget()
        for partition in list(self._held):
            self._forget_hold(partition)
        self._placed_times += 1
        self._at_committed = True
        self._ground.assigned(partitions)
        REBALANCES.labels(self.service).inc()
        if not self.stopping.is_set():
            self.interrupt.clear()
            if partitions:
                self._look_soon()

    def _note_fetches(self, consumer: AIOKafkaConsumer) -> None:
        """Remembers of each batch when it was fetched: after how many placings."""
        getmany: Any = consumer.getmany
        if getattr(getmany, "__func__", None) is not AIOKafkaConsumer.getmany:
            return

        async def noting(*args: Any, **options: Any) -> Any:
            self._is_on_its_way = False
            fetched = await getmany(*args, **options)
            self._show_unreadable()
            self._fetched_after = self._placed_times
            self._is_on_its_way = bool(fetched)
            for records in fetched.values():
                self._keeper.fetched(records[-1])
            return fetched

        consumer.getmany = noting  # type: ignore[method-assign]

    # --- what stands still ----------------------------------------------------------------------------

    def _hold_locked(self, locked: PositionLockedError) -> None:
        """These partitions stand still until their rows are free."""
        for partition, why in locked.partitions.items():
            self.hold(partition, why, functools.partial(self._is_free, partition), is_locked=True)

    async def _is_free(self, partition: int) -> bool:
        async with self._opened.acquire() as connection:
            return not await lock_free_positions(connection, self.service, self.settings.topic, [partition])

    def hold(
        self, partition: int, why: str, until: Callable[[], Awaitable[bool]], *, is_locked: bool = False
    ) -> None:
        """Handles nothing of this partition until it may go on: then what is not committed comes again.

        With `is_locked`, its position is not looked at meanwhile, either.
        """
        if partition not in self._held:
            others = "and goes on with the others"
            log.warning("%s stands still in partition %d, %s: %s", self.service, partition, others, why)
            HELD.labels(self.service, str(partition)).set(1)
        self._held[partition] = _Hold(why, until, is_locked)
        tp = TopicPartition(self.settings.topic, partition)
        with contextlib.suppress(IllegalStateError):  # it has just moved to somebody else
            self.consumer.pause(tp)
            if partition in self._keeper.positions:
                self.consumer.seek(tp, self._keeper.positions[partition].reads_from)
        if self._holding is None or self._holding.done():
            self._holding = asyncio.create_task(self._look_at_held())

    async def _look_at_held(self) -> None:
        while self._held and not self.stopping.is_set():
            await asyncio.sleep(_HELD_SECONDS)
            for partition, hold in list(self._held.items()):
                try:
                    may_go_on = await hold.until()
                except Exception as error:  # noqa: BLE001 - whatever it is, the partition would stand still for ever
                    if not may_pass(error) and not isinstance(error, Interrupted):
                        self.fail(error)
                    may_go_on = False
                if may_go_on and self._held.get(partition) is hold:
                    self._go_on(partition)

    def _go_on(self, partition: int) -> None:
        self._forget_hold(partition)
        log.info("%s goes on with partition %d", self.service, partition)
        with contextlib.suppress(Interrupted, IllegalStateError):
            if not self._is_waiting:
                self.consumer.resume(TopicPartition(self.settings.topic, partition))
        if partition not in self._keeper.positions:
            self._look_soon()

    def _forget_hold(self, partition: int) -> None:
        del self._held[partition]
        HELD.remove(self.service, str(partition))

    # --- what cannot be read --------------------------------------------------------------------------

    @property
    def _unreadable(self) -> Mapping[TopicPartition, Unreadable]:
        return {} if self._reading is None else self._reading.held

    def _tell_unreadable(self, found: Unreadable) -> None:
        log.error(
            "%s stands still there, and goes on with the others: %s. `stepstream skip --partition %d` shows "
            "what it would leave behind",
            self.service,
            found,
            found.tp.partition,
        )

    def _show_unreadable(self) -> None:
        held = {tp.partition for tp in self._unreadable}
        for partition in self._shown - held:
            UNREADABLE.remove(self.service, str(partition))
        for partition in held - self._shown:
            UNREADABLE.labels(self.service, str(partition)).set(1)
        self._shown = held

    async def _go_on_where_it_can(self) -> None:
        """Goes on where an operator has moved the position, and tries the rest again now and then."""
        if self._reading is not None and self._reading.held:
            for done in await self._reading.go_on():
                log.info("%s goes on with partition %d", self.service, done.tp.partition)

    def remark(self) -> str | None:
        """What a service that is ready leaves undone."""
        standing = [*map(str, self._unreadable.values()), *(hold.why for hold in self._held.values())]
        return "; ".join(standing) or None

    def _look_soon(self) -> None:
        """Places partitions without waiting for events of theirs."""
        self._looks = asyncio.create_task(self._look())

    async def _around_other_ground(self, connection: Connection, placements: Mapping[int, Placement]) -> None:
        self._mending = True
        try:
            await self._on_other_ground(connection, placements)
        finally:
            self._mending = False

    async def look(self) -> None:
        """Looks where partitions and the database are: lag, what has moved, and whether there is progress."""
        try:
            consumer = self.consumer
            renew_password(consumer, self.settings)
            owned = consumer.assignment()
            if not self._in_hand and not self.interrupt.is_set():
                async with self._placing:
                    if not self._in_hand:
                        await self._look_and_place(owned, 0)
                        await self._pass_what_nobody_reads(owned)
                        await self._go_on_where_it_can()
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._ground.measure(consumer, owned, self._keeper.positions, idle=not self._in_hand)
        except (Interrupted, IllegalStateError, MovedError):
            pass  # stopping, or partitions have just moved
        except (KafkaError, OSError, TimeoutError, *DATABASE_ERRORS) as error:
            if not (may_pass(error) or kafka_may_return(error)):
                raise
            self._ground.unseen()
            log.debug("cannot see how far this is: %s", type(error).__name__)

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
        standing = {*self._unreadable, *self._partitions(self._held)}
        stale = None if self._in_hand else self._ground.stale(bound, standing)
        return stale and f"partition {stale} has lag, and nothing of it was read for more than {bound:g} s"

    @contextlib.asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        try:
            async with self._resources() as pool:
                await check_ready_to_start(self.settings, pool)
                with contextlib.suppress(Stopped):
                    await self._keeper.join(pool, self.sleep)
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
        ConfigurationError: a codec cannot be read, migrations are pending, or the topics do not exist or are
            compacted.
    """
    check_codecs()
    await check_migrated(pool)
    async with admin_client(settings) as admin:
        there = await admin.list_topics()
        absent = [t for t in (settings.topic, settings.dead_letter_topic) if t not in there]
        if not absent:
            await refuse_compacted(admin, [settings.topic, settings.dead_letter_topic])
    if absent:
        raise ConfigurationError(
            f"Kafka has no topic {' and no topic '.join(absent)}: run `stepstream migrate` first"
        )


def _make_broker(service: str, settings: Settings) -> KafkaBroker:
    """How the consumer of a service connects."""
    return KafkaBroker(
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


class _Batch:
    """A batch in hand, as its handler sees the shell."""

    def __init__(self, shell: ConsumerShell) -> None:
        self._shell = shell
        self.left = 0

    def over(self, records: Sequence[Record]) -> Advance:
        return self._shell.over(records)

    async def look_again(self, records: Sequence[Record]) -> None:
        await self._shell.look_again(records)

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        if advance is not None:
            await self._shell.commit(advance)
        self.left -= len(records)
        if self.left and self._shell.interrupt.is_set():
            raise Interrupted

    def leave(self, partition: int, why: str, until: Callable[[], Awaitable[bool]]) -> bool:
        self._shell.hold(partition, why, until)
        return True


@contextlib.contextmanager
def _moving() -> Iterator[None]:
    """Partitions may move while they are looked at: then whoever has them next will look."""
    try:
        yield
    except (CommitFailedError, IllegalStateError, RebalanceInProgressError, UnknownMemberIdError) as error:
        raise Interrupted from error


class _Ground:
    """Where the partitions of this instance end, and whether there is progress."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._moved: dict[TopicPartition, tuple[int, float]] = {}
        self._behind: set[TopicPartition] = set()

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """Forgets what it knew: others may have been here meanwhile."""
        for gone in self._moved.keys() - set(partitions):
            with contextlib.suppress(KeyError):
                LAG.remove(self._service, str(gone.partition))
        self._moved.clear()
        self._behind.clear()

    def unseen(self) -> None:
        """Kafka does not answer: what was known of the ends says nothing about progress."""
        self._behind.clear()

    async def measure(
        self,
        consumer: AIOKafkaConsumer,
        partitions: Collection[TopicPartition],
        positions: Mapping[int, Position],
        *,
        idle: bool,
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
            known = positions.get(partition.partition)
            at = end if idle and position >= end else known.reads_from if known else 0
            LAG.labels(self._service, str(partition.partition)).set(max(0, end - at))

    def stale(self, bound: float, held: Collection[TopicPartition]) -> str | None:
        """A partition with lag whose position has not moved for so many seconds; not those that are held."""
        now = time.monotonic()
        for partition in self._behind.difference(held):
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

"""The process around a consumer: FastStream, health and metrics over HTTP, signals, and how it ends.

A batch is either applied and committed, or the process ends with nothing of it committed.
"""

import abc
import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.asgi import AsgiFastStream
from starlette.routing import Router

from services.consumers.commits import Commits
from services.consumers.fetches import Fetches
from services.consumers.handling import BatchHandler, Interrupted
from services.consumers.in_hand import InHand
from services.consumers.keeper import PositionKeeper
from services.consumers.membership import Membership
from services.consumers.paused_partitions import PausedPartitions
from services.consumers.placing import CHECK_SECONDS, Placing
from services.consumers.positions import Cause, Placement
from services.consumers.prerequisites import check_prerequisites
from services.consumers.progress import Progress
from services.consumers.stored_positions import MovedError
from services.consumers.subscription import dead_task, decode_batch, make_broker, parse_batch
from services.runtime.database import Connection, Pool
from services.runtime.database_errors import DATABASE_ERRORS, may_pass
from services.runtime.http import Answered
from services.runtime.kafka import kafka_may_return, renew_secrets, subscriber_options, unreachable
from services.runtime.process import Process, Stopped
from services.runtime.settings import Settings
from services.runtime.telemetry import CANCELLED, EXPIRED, PAUSED, REBALANCES, REWINDS

log = logging.getLogger("stepstream.shell")

_PATHS = ("/health/live", "/health/ready", "/metrics", "/metrics/")


H_co = TypeVar("H_co", bound=BatchHandler, covariant=True)


class ConsumerShell(Process[H_co]):
    """Runs one batch handler on the topic under one group.

    The handler gets a batch's records, all of partitions still owned.

    Args:
        service: its name, and that of its group.
        settings: where everything is.
        names: of which causes this service names what is gone.
    """

    def __init__(self, service: str, settings: Settings, names: Collection[Cause]) -> None:
        super().__init__(service, settings)
        self.interrupt = asyncio.Event()
        self._mending = False
        self._polling: asyncio.Task[None] | None = None
        self.keeper = PositionKeeper(service, settings, self._around_discontinuity, names)
        self.reached = Progress(service)
        self.commits = Commits(self)
        self.in_hand = InHand(self)
        self.paused_partitions = PausedPartitions(self)
        self.placing = Placing(self)
        self.fetches = Fetches(self)
        for metric in (REBALANCES, REWINDS, CANCELLED, EXPIRED, PAUSED):
            metric.labels(service)  # there from the start, so that the first increase is seen as one
        broker = make_broker(service, settings)
        self.subscriber = broker.subscriber(
            settings.topic,
            group_id=settings.group(service),
            ack_policy=AckPolicy.MANUAL,
            parser=parse_batch,
            decoder=decode_batch,
            listener=Membership(self),
            **subscriber_options(settings),
        )
        self.subscriber(self.in_hand.take)
        routes: Any = Router(self.health_routes())
        self.app = AsgiFastStream(
            broker,
            lifespan=self._lifespan,
            logger=None,
            # Not FastStream's own handlers: they would swallow an error and answer 500 without a line.
            asgi_routes=[(path, routes) for path in _PATHS],
        )

    # --- what its parts, and its handler, ask ---------------------------------------------------------

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
        if not self.is_open:
            raise Interrupted
        return self.handler.pool

    @property
    def pool_if_open(self) -> "Pool | None":
        return self.handler.pool if self.is_open else None

    def partitions(self, numbers: Collection[int]) -> list[TopicPartition]:
        """Partitions of the topic by their numbers."""
        return [TopicPartition(self.settings.topic, p) for p in numbers]

    async def pause(self, seconds: float) -> None:
        """Sleeps inside a handler, which waits for something that is away; fetching pauses meanwhile.

        Raises:
            Interrupted: the service stops, or its partitions are being taken away.
        """
        await self.in_hand.pause(seconds)

    async def rest(self, seconds: float, until: asyncio.Event | None = None) -> None:
        """Waits so long at most; until something happens, where that is given.

        Raises:
            Interrupted: the service stops, or its partitions are being taken away.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await (until or self.interrupt).wait()
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

    # --- looking --------------------------------------------------------------------------------------

    def place_soon(self) -> None:
        """Places partitions without waiting for events of theirs."""
        self._polling = asyncio.create_task(self._poll())

    @abc.abstractmethod
    async def on_discontinuity(self, connection: Connection, placements: Mapping[int, Placement]) -> None:
        """Called in the transaction that moves positions where no event tells which journeys changed.

        Kafka has removed events that this group had not read, or the log is another one.
        """

    async def _around_discontinuity(
        self, connection: Connection, placements: Mapping[int, Placement]
    ) -> None:
        self._mending = True
        try:
            await self.on_discontinuity(connection, placements)
        finally:
            self._mending = False

    async def poll(self) -> None:
        """Looks where partitions and the database are: lag, what has moved, and whether there is progress."""
        try:
            consumer = self.consumer
            renew_secrets(consumer, self.settings)
            owned = consumer.assignment()
            if not self.in_hand and not self.interrupt.is_set():
                async with self.placing.lock:
                    if not self.in_hand:
                        await self.placing.check_and_place(owned, 0)
                        await self.placing.pass_control_records(owned)
                        await self.paused_partitions.retry_unreadable()
            async with asyncio.timeout(CHECK_SECONDS):
                await self.reached.measure(consumer, owned, self.keeper.positions, idle=not self.in_hand)
        except (Interrupted, IllegalStateError, MovedError):
            pass  # stopping, or partitions have just moved
        except (KafkaError, OSError, TimeoutError, *DATABASE_ERRORS) as error:
            if not (may_pass(error) or kafka_may_return(error)):
                raise
            self.reached.unseen()
            log.debug("cannot see how far this is: %s", type(error).__name__)

    # --- life and its end -----------------------------------------------------------------------------

    def application(self) -> Answered:
        """Health and metrics; the consumer runs while they are served."""
        app: Any = self.app
        return Answered(app, self.service)

    async def prepare(self, pool: Pool) -> None:
        """Looks for what every consumer needs, and waits until the group is free for this database."""
        await check_prerequisites(self.settings, pool)
        with contextlib.suppress(Stopped):
            await self.keeper.wait_for_own_group(pool, self.sleep)

    @contextlib.asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        async with self.running():
            yield

    def fail(self, error: BaseException) -> None:
        """Stops the service with this error; one of Kafka's is told as a line for people."""
        super().fail(unreachable(self.settings, error) if isinstance(error, KafkaError) else error)

    def stop(self) -> None:
        """Ends the service after the batch in hand."""
        self.interrupt.set()
        super().stop()

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
        if self.in_hand and time.monotonic() - self.in_hand.progress > bound:
            return f"a batch is stuck: no answer for more than {bound:g} s"
        stale = None if self.in_hand else self.reached.stale(bound, self.paused_partitions.partitions)
        return stale and f"partition {stale} has lag, and nothing of it was read for more than {bound:g} s"

    async def problem_of_readiness(self) -> str | None:
        """What keeps the service from handling events: no partitions, no database, or pending migrations."""
        try:
            if not self.is_open or not self.consumer.assignment():
                return "no partitions are assigned yet"
        except Interrupted:
            return "stopping"
        return await super().problem_of_readiness()

    def remark(self) -> str | None:
        """What a service that is ready leaves undone."""
        return "; ".join(self.paused_partitions.reasons) or None

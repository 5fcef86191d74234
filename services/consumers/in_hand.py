"""The batch in hand: applied and committed, or left to whoever has its partitions next.

FastStream logs a handler's error and goes on to the next batch, whose commit would pass over the failed one;
so no error leaves the handler here: the first one stops the service.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from opentelemetry.trace import SpanKind

from services.consumers.handling import BatchHandler, Interrupted
from services.consumers.placing import CHECK_SECONDS
from services.consumers.stored_positions import Advance, MovedError, PositionLockedError
from services.runtime.database_errors import DATABASE_ERRORS, may_pass
from services.runtime.errors import StepstreamError
from services.runtime.kafka import Record, kafka_may_return
from services.runtime.telemetry import BATCH_EVENTS, BATCH_SECONDS, CANCELLED, PAUSED
from services.runtime.tracing import message_spans, parents_of

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

log = logging.getLogger("stepstream.shell")

#: How long a cancelled batch may take to roll back.
_ROLL_BACK_SECONDS = 5.0


class InHand:
    """Hands batches of a shell to its handler, one at a time."""

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        self._task: asyncio.Task[None] | None = None
        #: When something of a batch was done, by the monotonic clock.
        self.progress = time.monotonic()
        #: Whether all partitions pause, because the batch waits.
        self.is_waiting = False
        #: Whether events were fetched that have not come to be a batch in hand, or to be done.
        self.is_on_its_way = False

    def __bool__(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def is_busy(self) -> bool:
        """Whether a batch is in hand, or on its way to be."""
        return bool(self) or self.is_on_its_way

    async def take(self, records: Sequence[Record]) -> None:
        """Handles a batch."""
        if self._shell.failure is not None or self._shell.stopping.is_set():
            return
        self._task = asyncio.create_task(self._process(records))
        try:
            await asyncio.wait({self._task})
        finally:
            if not self._task.done():  # FastStream ends, and has waited as long as it may
                self._task.cancel()

    async def end(self) -> None:
        """Waits for the batch, a bounded time, then rolls it back; nothing more of it is written then."""
        task = self._task
        if task is None or task.done():
            return
        await asyncio.wait({task}, timeout=self._shell.settings.revoke_wait_seconds)
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_ROLL_BACK_SECONDS)

    # --- handling -------------------------------------------------------------------------------------

    async def _process(self, records: Sequence[Record]) -> None:
        shell, service = self._shell, self._shell.service
        began = self.progress = time.monotonic()
        batch = _Batch(shell)
        try:
            owned = self._owned()
            mine = [r for r in records if TopicPartition(r.topic, r.partition) in owned]
            batch.left = len(mine)
            mine = await shell.placing.records_that_follow(owned, mine) if mine else []
            if mine:
                shell.fetches.fetch_ahead()
                parents = parents_of(r.headers for r in mine)
                name = f"process {shell.settings.topic}"
                with message_spans(service, name, SpanKind.CONSUMER, parents, len(mine)):
                    await self._handle_what_goes_on(mine, batch)
                BATCH_EVENTS.labels(service).observe(len(mine))
                BATCH_SECONDS.labels(service).observe(time.monotonic() - began)
        except Interrupted:
            log.info("%s leaves %d events of a batch uncommitted", service, batch.left)
        except MovedError as moved:
            log.warning("%s does not go on where the database is: %s", service, moved)
            shell.keeper.forget({r.partition for r in records})
            shell.place_soon()
        except asyncio.CancelledError:
            CANCELLED.labels(service).inc()
            log.warning("%s rolls back a batch, %d events are left uncommitted", service, batch.left)
            if not shell.interrupt.is_set():  # the next batch would pass over this one
                shell.fail(StepstreamError("a batch was cancelled, and nobody knows why"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must not go past this batch
            shell.fail(error)
        finally:
            self._resume()

    def _owned(self) -> set[TopicPartition]:
        if self._shell.interrupt.is_set():  # fetched before a rebalance that has begun since
            raise Interrupted
        owned: set[TopicPartition] = self._shell.consumer.assignment()
        return owned

    async def _handle_what_goes_on(self, records: list[Record], batch: "_Batch") -> None:
        """Handles a batch, but for the partitions whose positions somebody has locked."""
        paused_partitions, keeper = self._shell.paused_partitions, self._shell.keeper
        while records:
            batch.left = len(records)
            try:
                await self._shell.handler.handle(records, batch)
                break
            except PositionLockedError as locked:
                paused_partitions.hold_locked(locked)
            at = {p: position.reads_from for p, position in keeper.positions.items()}
            records = [
                r
                for r in records
                if r.partition not in paused_partitions.held and r.offset >= at.get(r.partition, math.inf)
            ]

    # --- waiting --------------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        """Sleeps inside a handler, which waits for something that is away; fetching pauses meanwhile.

        Raises:
            Interrupted: the service stops, or its partitions are being taken away.
        """
        shell = self._shell
        self.progress = time.monotonic()
        if self and not self.is_waiting:
            shell.consumer.pause(*shell.consumer.assignment())
            self.is_waiting = True
            PAUSED.labels(shell.service).set(1)
        await shell.rest(seconds)

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        """Waits inside a handler for something that comes soon, so long at most; fetching goes on.

        Raises:
            Interrupted: as `pause`, when the wait is over.
        """
        self.progress = time.monotonic()
        await self._shell.rest(seconds, event)

    def _resume(self) -> None:
        shell = self._shell
        self.is_waiting = False
        with contextlib.suppress(Interrupted):
            shell.consumer.resume(*(shell.consumer.paused() - shell.paused_partitions.partitions))
        PAUSED.labels(shell.service).set(0)

    async def recheck(self, records: Sequence[Record]) -> None:
        """Looks whether records of the batch, which wait, are still what comes next.

        Raises:
            MovedError: the database or the log went elsewhere meanwhile.
        """
        shell = self._shell
        partitions = sorted({r.partition for r in records})
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                moved = await shell.keeper.no_longer_as_placed(shell.consumer, shell.pool, partitions)
        except (KafkaError, OSError, TimeoutError, *DATABASE_ERRORS) as error:
            if not (may_pass(error) or kafka_may_return(error)):
                raise
            return
        if moved:
            raise MovedError(f"partitions {', '.join(map(str, moved))}, while events of theirs waited")


class _Batch:
    """A batch in hand, as its handler sees the shell."""

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        self.left = 0

    def advance_over(self, records: Sequence[Record]) -> Advance:
        return self._shell.keeper.advance_over(records)

    async def recheck(self, records: Sequence[Record]) -> None:
        await self._shell.in_hand.recheck(records)

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        if advance is not None:
            self._shell.keeper.committed(advance)
            self._shell.commits.soon(advance)
        self._shell.in_hand.progress = time.monotonic()
        self.left -= len(records)
        if self.left and self._shell.interrupt.is_set():
            raise Interrupted

    def leave(self, partition: int, why: str, may_go_on: Callable[[], Awaitable[bool]]) -> bool:
        self._shell.paused_partitions.hold(partition, why, may_go_on)
        return True

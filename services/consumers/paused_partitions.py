"""Partitions that stand still while others go on, and whether they may go on.

A partition is paused for one of three reasons: its position is locked, it waits for the recorder, or a batch
in it is unreadable.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError

from services.consumers.handling import BatchHandler, Interrupted
from services.consumers.reading import Reading, Unreadable
from services.consumers.stored_positions import PositionLockedError, lock_free_positions
from services.runtime.database_errors import may_pass
from services.runtime.telemetry import HELD, UNREADABLE

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

log = logging.getLogger("stepstream.shell")

#: Between two looks whether partitions that stand still may go on.
_HELD_SECONDS = 0.5


class Hold(NamedTuple):
    """Why a partition stands still, for people, and what says whether it may go on."""

    why: str
    may_go_on: Callable[[], Awaitable[bool]]
    #: Whether its position cannot be moved, either.
    is_locked: bool


class PausedPartitions:
    """The partitions of a shell that stand still: locked, waiting, or unreadable."""

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        self.held: dict[int, Hold] = {}
        self._polling: asyncio.Task[None] | None = None
        self._reading: Reading | None = None
        #: The partitions that metrics show as unreadable.
        self._shown: set[int] = set()

    @property
    def unreadable(self) -> Mapping[TopicPartition, Unreadable]:
        return {} if self._reading is None else self._reading.held

    @property
    def partitions(self) -> set[TopicPartition]:
        return {*self.unreadable, *self._shell.partitions(self.held)}

    @property
    def reasons(self) -> list[str]:
        """Why they stand still, for people."""
        return [*map(str, self.unreadable.values()), *(hold.why for hold in self.held.values())]

    def assigned(self, consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]) -> None:
        """New partitions: none stands still yet."""
        if self._reading is None:
            fetches = self._shell.fetches
            self._reading = Reading(
                consumer, self._log_unreadable, asks_anew=lambda: not fetches.are_of_one_batch
            )
        self._reading.assigned(partitions)
        for partition in list(self.held):
            self.forget(partition)

    # --- held -----------------------------------------------------------------------------------------

    def hold_locked(self, locked: PositionLockedError) -> None:
        """These partitions stand still until their rows are free."""
        for partition, why in locked.partitions.items():
            self.hold(partition, why, functools.partial(self._is_free, partition), is_locked=True)

    async def _is_free(self, partition: int) -> bool:
        shell = self._shell
        async with shell.pool.acquire() as connection:
            return not await lock_free_positions(connection, shell.service, shell.settings.topic, [partition])

    def hold(
        self, partition: int, why: str, may_go_on: Callable[[], Awaitable[bool]], *, is_locked: bool = False
    ) -> None:
        """Handles nothing of this partition until it may go on: then what is not committed comes again.

        With `is_locked`, its position is not looked at meanwhile, either.
        """
        shell = self._shell
        if partition not in self.held:
            others = "and goes on with the others"
            log.warning("%s stands still in partition %d, %s: %s", shell.service, partition, others, why)
            HELD.labels(shell.service, str(partition)).set(1)
        self.held[partition] = Hold(why, may_go_on, is_locked)
        (tp,) = shell.partitions([partition])
        with contextlib.suppress(IllegalStateError):  # it has just moved to somebody else
            shell.consumer.pause(tp)
            if partition in shell.keeper.positions:
                shell.consumer.seek(tp, shell.keeper.positions[partition].reads_from)
                shell.placing.sought()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._release_held())

    async def _release_held(self) -> None:
        while self.held and not self._shell.stopping.is_set():
            await asyncio.sleep(_HELD_SECONDS)
            for partition, hold in list(self.held.items()):
                try:
                    is_free = await hold.may_go_on()
                except Exception as error:  # noqa: BLE001 - whatever it is, the partition would stand still for ever
                    if not may_pass(error) and not isinstance(error, Interrupted):
                        self._shell.fail(error)
                    is_free = False
                if is_free and self.held.get(partition) is hold:
                    self.go_on(partition)

    def go_on(self, partition: int) -> None:
        """It stands still no more."""
        shell = self._shell
        self.forget(partition)
        log.info("%s goes on with partition %d", shell.service, partition)
        with contextlib.suppress(Interrupted, IllegalStateError):
            if not shell.in_hand.is_waiting:
                shell.consumer.resume(*shell.partitions([partition]))
        if partition not in shell.keeper.positions:
            shell.place_soon()

    def forget(self, partition: int) -> None:
        """It is no longer held; it is not resumed, either."""
        del self.held[partition]
        HELD.remove(self._shell.service, str(partition))

    # --- what cannot be read --------------------------------------------------------------------------

    def _log_unreadable(self, found: Unreadable) -> None:
        log.error(
            "%s stands still there, and goes on with the others: %s. `stepstream skip --partition %d` shows "
            "what it would leave behind",
            self._shell.service,
            found,
            found.tp.partition,
        )

    def show_unreadable(self) -> None:
        """Brings the metric up to date."""
        unreadable = {tp.partition for tp in self.unreadable}
        for partition in self._shown - unreadable:
            UNREADABLE.remove(self._shell.service, str(partition))
        for partition in unreadable - self._shown:
            UNREADABLE.labels(self._shell.service, str(partition)).set(1)
        self._shown = unreadable

    async def retry_unreadable(self) -> None:
        """Goes on where an operator has moved the position, and tries the rest again now and then."""
        if self._reading is not None and self._reading.held:
            for done in await self._reading.go_on():
                log.info("%s goes on with partition %d", self._shell.service, done.tp.partition)

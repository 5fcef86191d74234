"""Where a consumer reads on: where the database says, whatever has moved."""

import asyncio
import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import asyncpg
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from tenacity import AsyncRetrying

from services.consumers.handling import BatchHandler, Interrupted
from services.consumers.stored_positions import Advance, MovedError, PositionLockedError
from services.runtime.database_errors import may_pass
from services.runtime.kafka import Record, kafka_may_return
from services.runtime.retrying import retrying

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

#: How long Kafka may take to say where partitions begin and end.
CHECK_SECONDS = 5.0


class Placing:
    """Puts the consumer of a shell where the stored positions are, and batches aside that begin elsewhere."""

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        #: Held while partitions are looked at and placed: no batch begins in between.
        self.lock = asyncio.Lock()
        self._rechecked_at = -math.inf
        #: How often something was placed or sought; and how often when the batch was fetched that is handled
        #: next. Where they differ, it was fetched before, and may not begin where the database is.
        self._placed_times = 0
        self._fetched_after = 0
        #: Whether partitions are new, and the consumer reads them from where the group has committed.
        self._at_committed = False

    def assigned(self) -> None:
        """Partitions are new: they are to be placed."""
        self._placed_times += 1
        self._at_committed = True

    def sought(self) -> None:
        """The consumer was told to read elsewhere: what was fetched before does not follow."""
        self._placed_times += 1

    @property
    def moment(self) -> int:
        """Another one whenever something was placed or sought."""
        return self._placed_times

    def is_next(self, moment: int) -> None:
        """The batch that was fetched at this moment is handled next."""
        self._fetched_after = moment

    async def records_that_follow(
        self, owned: Collection[TopicPartition], records: list[Record]
    ) -> list[Record]:
        """Those records of a batch that may be handled: all but the partitions that stand still, or none.

        None where the batch does not begin where the database is: then the consumer has gone there, and it
        is fetched again. Only offsets without events (markers of transactions, aborted events, compacted
        ones) may lie between the two.
        """
        shell, keeper = self._shell, self._shell.keeper
        async with self.lock:
            async for attempt in self._retrying():
                with attempt:
                    await self.check_and_place(owned, CHECK_SECONDS)
            records = [r for r in records if r.partition not in shell.paused_partitions.held]
            firsts: dict[int, int] = {}
            for record in records:
                firsts.setdefault(record.partition, record.offset)
            at = {p: keeper.positions[p].reads_from for p in firsts}
            if self._fetched_after == self._placed_times:
                not_following = [p for p, first in firsts.items() if first != at[p]]
                if not not_following or not await self._need_placing(firsts, at, not_following):
                    return records
                keeper.forget(not_following)
                async for attempt in self._retrying():
                    with attempt:
                        await self._place(owned)
            with interrupted_by_rebalance():
                for tp in shell.partitions(firsts.keys() & keeper.positions.keys()):
                    shell.consumer.seek(tp, keeper.positions[tp.partition].reads_from)
            self._placed_times += 1
            return []

    async def _need_placing(
        self, firsts: Mapping[int, int], at: Mapping[int, int], not_following: list[int]
    ) -> bool:
        """Whether partitions that begin elsewhere than where the database is have to be placed anew.

        They have where a batch begins before the position, or Kafka has removed events behind it. A batch
        that begins later, with the position still in the log, has only offsets without events before it.
        """
        begins: dict[TopicPartition, int] = {}
        async for attempt in self._retrying():
            with attempt:
                async with asyncio.timeout(CHECK_SECONDS):
                    begins = await self._shell.consumer.beginning_offsets(
                        self._shell.partitions(not_following)
                    )
        return any(
            firsts[tp.partition] < at[tp.partition] or begin > at[tp.partition]
            for tp, begin in begins.items()
        )

    def _retrying(self) -> AsyncRetrying:
        shell = self._shell
        return retrying(
            shell.service, shell.pause, lambda e: may_pass(e) or kafka_may_return(e), shell.pool_if_open
        )

    async def check_and_place(self, owned: Collection[TopicPartition], patience: float) -> None:
        """Places what has to be placed; looks before whether something has moved, if that is long ago."""
        if time.monotonic() - self._rechecked_at >= patience:
            with interrupted_by_rebalance():
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._shell.keeper.recheck(
                        self._shell.consumer, self._shell.pool, [p.partition for p in owned]
                    )
            self._rechecked_at = time.monotonic()
        await self._place(owned)

    async def _place(self, owned: Collection[TopicPartition]) -> None:
        """Places those of these partitions that are not placed yet, but for those that stand still.

        What only waits for the recorder is let go, and placed too. A position that somebody has locked makes
        its partition stand still; one that somebody else moves meanwhile is tried again, as a lock is.
        """
        paused_partitions, keeper = self._shell.paused_partitions, self._shell.keeper
        unplaced = keeper.unplaced(owned)
        for partition in paused_partitions.held.keys() & set(unplaced):
            if not paused_partitions.held[partition].is_locked:
                # Its database or log went elsewhere: what it waits for, too.
                paused_partitions.go_on(partition)
        unplaced = [p for p in unplaced if p not in paused_partitions.held]
        if not unplaced:
            return
        with interrupted_by_rebalance():
            at_committed, self._at_committed = self._at_committed, False
            try:
                has_sought = await keeper.place(
                    self._shell.consumer, self._shell.pool, unplaced, at_committed=at_committed
                )
            except MovedError as moved:
                raise asyncpg.LockNotAvailableError(str(moved)) from moved
            except PositionLockedError as locked:
                paused_partitions.hold_locked(locked)
                has_sought = True
        self._placed_times += has_sought

    async def pass_control_records(self, owned: Collection[TopicPartition]) -> None:
        """Moves positions past markers of transactions and events of aborted ones that nothing follows."""
        shell, keeper = self._shell, self._shell.keeper
        reached = {tp.partition: await shell.consumer.position(tp) for tp in owned}
        if shell.in_hand.is_busy:
            return
        moves = {
            p: (known, known.past(reached[p]))
            for p, known in keeper.positions.items()
            if reached.get(p, 0) > known.reads_from
        }
        if not moves:
            return
        advance = Advance(shell.service, shell.settings.topic, moves)
        try:
            async with shell.pool.acquire() as connection, connection.transaction():
                await advance.write(connection)
        except PositionLockedError as locked:
            shell.paused_partitions.hold_locked(locked)
            return
        keeper.committed(advance)
        shell.commits.soon(advance)


@contextlib.contextmanager
def interrupted_by_rebalance() -> Iterator[None]:
    """Raises `Interrupted` where Kafka's client says that a rebalance has begun, or partitions are gone."""
    try:
        yield
    except (CommitFailedError, IllegalStateError, RebalanceInProgressError, UnknownMemberIdError) as error:
        raise Interrupted from error

"""Keeps a consumer where the database says: it places partitions, and sees what moved.

Kafka's committed offset is a copy of the position. An operator who moves it back asks for a replay, and gets
it; one that is ahead of the database is set back to where the database is.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.consumers.database_identity import Ours, read_identity
from services.consumers.gone import read_skipped
from services.consumers.lag import AGGREGATOR, RECORDER
from services.consumers.ownership import CommittedOffset, Ownership, read_committed
from services.consumers.placements import (
    OnDiscontinuity,
    log_placements,
    marking_what_is_counted,
    store_placements,
)
from services.consumers.positions import Cause, Fingerprint, Placement, Position, Seen, decide
from services.consumers.records_at import with_times
from services.consumers.sent import read_contested, read_sent, trust_sent
from services.consumers.stored_positions import Advance, PositionLockedError, read_positions
from services.consumers.topic import TopicLog, describe_log
from services.consumers.truncation import KnownRecords, LastRecords, see
from services.consumers.witnessed import check_witnessed
from services.runtime.database import Pool
from services.runtime.errors import RefusedError
from services.runtime.kafka import Record
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.positions")


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the database says: which it is, where the service and the aggregator are, and what relays sent.

    `every` is of all partitions that it knows, `mine` of those that are to be placed.
    """

    ours: Ours
    every: Mapping[int, Position]
    mine: Mapping[int, Position]
    counted: Mapping[int, Position]
    sent: Mapping[int, Fingerprint]


class PositionKeeper:
    """Where the partitions of this instance are; all that is stored is of one service and topic.

    Args:
        service: whose positions.
        settings: where Kafka is.
        on_discontinuity: called in the transaction that stores placements where events were missed, or the
            log is another one: it marks the journeys.
        names: the causes for which this service writes down which offsets are gone: all for the recorder,
            a cut alone for the aggregator.
    """

    def __init__(
        self, service: str, settings: Settings, on_discontinuity: OnDiscontinuity, names: Collection[Cause]
    ) -> None:
        self._service = service
        self._settings = settings
        self._topic = settings.topic
        self._on_discontinuity = on_discontinuity
        self._names = names
        self.positions: dict[int, Position] = {}
        self.ours = Ours(None)
        self._ownership = Ownership(service, settings)
        self._last_records = LastRecords()

    # --- what the shell asks --------------------------------------------------------------------------

    def forget(self, partitions: Collection[int] | None = None) -> None:
        """These partitions, or all, have to be placed before anything of them is handled."""
        if partitions is None:  # others may have been at work meanwhile
            self.positions.clear()
            self._last_records.clear()
        for partition in partitions or ():
            self.positions.pop(partition, None)

    def unplaced(self, partitions: Collection[TopicPartition]) -> list[int]:
        """Those of them that have to be placed."""
        return sorted(p.partition for p in partitions if p.partition not in self.positions)

    def fetched(self, last: Record) -> None:
        """This record was in the log: if it is not there after an election, the log was cut."""
        self._last_records.fetched(last)

    def advance_over(self, records: Sequence[Record]) -> Advance:
        """How these records, which follow on what was handled, move positions on."""
        return Advance.over(self._service, self._topic, self.positions, records)

    def commit_metadata(self, advance: Advance) -> dict[TopicPartition, str]:
        """What goes with its offsets when they are committed."""
        return {
            TopicPartition(self._topic, p): self.ours.commit_metadata(new)
            for p, (_, new) in advance.moves.items()
        }

    def committed(self, advance: Advance) -> None:
        """It is committed to the database."""
        self.positions.update({partition: new for partition, (_, new) in advance.moves.items()})

    async def wait_for_own_group(self, pool: Pool, pause: Callable[[float], Awaitable[None]]) -> None:
        """Waits until the group is this database's or nobody's, and for a cluster that has just started.

        Raises:
            RefusedError: the group is another database's, and stays so.
            StepstreamError: Kafka cannot be reached.
        """
        async with pool.acquire() as connection:
            self.ours = await read_identity(connection)
        await self._ownership.wait_for(self.ours, pause)

    # --- placing --------------------------------------------------------------------------------------

    async def place(
        self, consumer: AIOKafkaConsumer, pool: Pool, partitions: Sequence[int], *, at_committed: bool
    ) -> bool:
        """Finds out where these partitions are read on, stores it, goes there, and tells Kafka.

        With `at_committed` the consumer reads from the committed offsets on, and nothing was left out:
        where they are right, it need not go anywhere.

        Returns:
            Whether it sought: what was fetched before does not follow on.

        Raises:
            RefusedError: what is stored is of another cluster.
            KafkaError: Kafka is away, or hands the partitions over.
            PostgresError: the database is away, or is one that a failover has left behind.
            MovedError: somebody else moves the same positions.
            PositionLockedError: somebody else has locked some of them; the others are placed.
        """
        stored = await self._read_stored(pool, partitions)
        topic_log = await describe_log(consumer._client, self._topic)  # noqa: SLF001 - aiokafka asks for less
        self._refuse_another_cluster(stored.mine, topic_log)
        committed = await read_committed(consumer, self._tps(partitions))
        await self._ownership.refuse_newer(pool, stored.ours, committed)
        known = KnownRecords(self._last_records, stored.sent)
        seen = await see(consumer, self._settings, topic_log, partitions, stored.mine, committed, known)
        placements = await self._decide(partitions, stored, seen)
        locked = await self._store(pool, stored.mine, placements)
        placements = {p: new for p, new in placements.items() if p not in locked}
        await self._place_absent(pool, stored.every, topic_log)
        has_sought = self._seek(consumer, placements, None if not at_committed else committed)
        log_placements(self._service, placements, stored.mine)
        self.ours = stored.ours
        # Before anything is handled: should this process end between its commit to the database and the one
        # to Kafka, the group's offset says so, and what follows on the first is done once more.
        await self._commit_where_it_differs(
            consumer, {p: new.position for p, new in placements.items()}, committed
        )
        self.positions |= {p: placement.position for p, placement in placements.items()}
        self._last_records.placed(placements)
        if locked:
            raise PositionLockedError(locked)
        return has_sought

    async def _read_stored(self, pool: Pool, partitions: Sequence[int]) -> _Stored:
        async with pool.acquire() as connection:
            ours = await read_identity(connection)
            every = await read_positions(connection, self._service, self._topic)
            counted = await read_positions(connection, AGGREGATOR, self._topic, partitions)
            sent = await read_sent(connection, self._topic)
        return _Stored(ours, every, {p: every[p] for p in partitions if p in every}, counted, sent)

    def _refuse_another_cluster(self, stored: Mapping[int, Position], topic_log: TopicLog) -> None:
        known = {p.cluster_id for p in stored.values()} - {"", topic_log.cluster_id}
        if known and topic_log.cluster_id:
            raise RefusedError(
                f"this database's positions are of the Kafka cluster {' and '.join(sorted(known))}, and "
                f"{', '.join(self._settings.kafka_bootstrap_servers)} is the cluster {topic_log.cluster_id}. "
                "Is STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS right? If the events have moved there, stop every "
                "recorder and aggregator and run `stepstream move-cluster`"
            )

    async def _decide(
        self, partitions: Sequence[int], stored: _Stored, seen: Mapping[int, Seen]
    ) -> dict[int, Placement]:
        """Where these partitions are read on, with what is gone as far as this service names it."""
        placements = {p: decide(stored.mine.get(p), seen[p]) for p in partitions}
        if self._service == RECORDER:
            placements = {
                p: marking_what_is_counted(new, stored.counted.get(p)) for p, new in placements.items()
            }
        placements = self._naming(placements)
        gone = await with_times(self._settings, {p: new.gone for p, new in placements.items()})
        return {p: replace(new, gone=gone[p]) for p, new in placements.items()}

    def _naming(self, placements: Mapping[int, Placement]) -> dict[int, Placement]:
        """The same without what this service does not name."""
        return {
            p: replace(new, gone=[g for g in new.gone if g.cause in self._names])
            for p, new in placements.items()
        }

    async def _store(
        self, pool: Pool, stored: Mapping[int, Position], placements: Mapping[int, Placement]
    ) -> Mapping[int, str]:
        return await store_placements(
            pool, self._service, self._topic, stored, placements, self._on_discontinuity
        )

    async def _place_absent(self, pool: Pool, every: Mapping[int, Position], topic_log: TopicLog) -> None:
        """Places partitions that the topic, made anew with fewer, has no more: no instance is assigned them.

        What of them is gone is named, and the discontinuity marked, as for those that are assigned.
        """
        absent = {
            p: position
            for p, position in every.items()
            if topic_log.leaders
            and p not in topic_log.leaders
            and position.cluster_id == topic_log.cluster_id
            and not _is_of(position, topic_log)
        }
        if not absent:
            return
        seen = Seen(0, None, topic_log.cluster_id, topic_log.topic_id)
        placements = self._naming({p: decide(position, seen) for p, position in absent.items()})
        locked = await self._store(pool, absent, placements)
        log_placements(self._service, {p: new for p, new in placements.items() if p not in locked}, absent)

    def _seek(
        self,
        consumer: AIOKafkaConsumer,
        placements: Mapping[int, Placement],
        at: Mapping[TopicPartition, CommittedOffset] | None,
    ) -> bool:
        """Seeks, but not where the consumer is `at` the right offset; returns whether it did."""
        elsewhere = {
            tp: to
            for tp, to in ((TopicPartition(self._topic, p), new.position) for p, new in placements.items())
            if at is None or tp not in at or at[tp].offset != to.reads_from
        }
        for tp, to in elsewhere.items():
            consumer.seek(tp, to.reads_from)
        return bool(elsewhere)

    # --- committing -----------------------------------------------------------------------------------

    def _tps(self, partitions: Collection[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, p) for p in partitions]

    async def _commit_where_it_differs(
        self,
        consumer: AIOKafkaConsumer,
        positions: Mapping[int, Position],
        committed: Mapping[TopicPartition, CommittedOffset],
    ) -> None:
        wanted = {
            TopicPartition(self._topic, p): CommittedOffset(at.reads_from, self.ours.commit_metadata(at))
            for p, at in positions.items()
        }
        await self._commit(consumer, {tp: to for tp, to in wanted.items() if committed.get(tp) != to})

    async def _commit(
        self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, CommittedOffset]
    ) -> None:
        if offsets:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                await consumer.commit(offsets)

    # --- looking --------------------------------------------------------------------------------------

    async def recheck(self, consumer: AIOKafkaConsumer, pool: Pool, owned: Sequence[int]) -> None:
        """Forgets the partitions of `owned` that are not any more what they were when they were placed.

        To be called while nothing of them is handled.

        Raises:
            RefusedError: another database's services work in this group, or those of a later timeline.
            KafkaError, PostgresError: somebody is away.
        """
        topic = self._topic
        async with pool.acquire() as connection:
            ours = await read_identity(connection)
            stored = await read_positions(connection, self._service, topic, owned)
            contested = await read_contested(connection, topic) if self._service == RECORDER else set()
        fetches = self._last_records.counts()
        topic_log = await describe_log(consumer._client, topic)  # noqa: SLF001
        known = {p: self.positions[p] for p in owned if p in self.positions}
        await self._take_up_skips(consumer, pool, known, stored)
        for p, position in known.items():
            seen = Seen(0, None, topic_log.cluster_id, topic_log.topic_id, topic_log.epochs.get(p))
            if stored.get(p) != position or not _is_of(position, topic_log) or seen.is_later_epoch(position):
                self.forget([p])
            else:
                self._last_records.checked(p, position.last, fetches.get(p, 0))
        # No other leader took over: nothing was cut, and later ones may take their place again.
        if as_they_were := sorted(contested & known.keys() & self.positions.keys()):
            async with pool.acquire() as connection:
                await trust_sent(connection, topic, as_they_were)
        if self._service == RECORDER:
            await check_witnessed(consumer, pool, self._settings, owned, topic_log)
        begins = await consumer.beginning_offsets(self._tps(owned))
        for tp, begin in begins.items():
            if tp.partition in self.positions and begin > self.positions[tp.partition].reads_from:
                self.forget([tp.partition])
        committed = await read_committed(consumer, self._tps(sorted(topic_log.leaders)))
        if await self._ownership.is_alone(pool, ours, committed):
            self.ours = ours
            # What a rebalance has kept from being committed.
            still = {p: self.positions[p] for p in known if p in self.positions}
            there = {p: at for p, at in still.items() if TopicPartition(topic, p) in committed}
            await self._commit_where_it_differs(consumer, there, committed)

    async def no_longer_as_placed(
        self, consumer: AIOKafkaConsumer, pool: Pool, partitions: Sequence[int]
    ) -> list[int]:
        """Those of these partitions that are not any more what they were when they were placed.

        Raises:
            KafkaError, PostgresError: somebody is away.
        """
        async with pool.acquire() as connection:
            stored = await read_positions(connection, self._service, self._topic, partitions)
        topic_log = await describe_log(consumer._client, self._topic)  # noqa: SLF001
        known = {p: self.positions.get(p) for p in partitions}
        return [
            p
            for p, position in known.items()
            if position is None
            or stored.get(p) != position
            or not _is_of(position, topic_log)
            or topic_log.epochs.get(p, position.leader_epoch) != position.leader_epoch
        ]

    async def _take_up_skips(
        self,
        consumer: AIOKafkaConsumer,
        pool: Pool,
        known: Mapping[int, Position],
        stored: Mapping[int, Position],
    ) -> None:
        """Commits to Kafka what an operator has left behind; else it would be asked for again.

        Only a member may commit: the operator, who has moved the position, could not.
        """
        ahead = {
            p: (position.reads_from, stored[p].reads_from)
            for p, position in known.items()
            if p in stored and stored[p].reads_from > position.reads_from
        }
        if not ahead:
            return
        async with pool.acquire() as connection:
            ranges = await read_skipped(connection, self._topic, list(ahead))
        tps = {TopicPartition(self._topic, p): move for p, move in ahead.items() if (p, *move) in ranges}
        committed = await read_committed(consumer, tps)
        # An offset that somebody has moved since asks for a replay.
        offsets = {
            tp: CommittedOffset(until, self.ours.words)
            for tp, (first, until) in tps.items()
            if tp not in committed or committed[tp].offset == first
        }
        await self._commit(consumer, offsets)
        for tp, (until, _) in offsets.items():
            log.warning(
                "partition %d is read on from offset %d: an operator has left behind what is before",
                tp.partition,
                until,
            )


def _is_of(position: Position, topic_log: TopicLog) -> bool:
    ids = ((position.cluster_id, topic_log.cluster_id), (position.topic_id, topic_log.topic_id))
    return all(not seen or mine == seen for mine, seen in ids)

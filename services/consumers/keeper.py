"""Keeps a consumer where the database says: it places partitions, and sees what moved.

Kafka's committed offsets are a true copy for tools. Moved back, they ask for events again; what is ahead of
the database is not believed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from services.consumers.database_identity import Ours, identity_in, last_in, read_identity
from services.consumers.gone import name_gone, read_skipped
from services.consumers.lag import AGGREGATOR, RECORDER, Committed, committed_with
from services.consumers.positions import Cause, Fingerprint, Gone, Placement, Position, Seen, Witnessed, place
from services.consumers.reader import reader
from services.consumers.reading import unreadable_of
from services.consumers.sent import (
    forget_sent,
    read_contested,
    read_sent,
    read_witnessed,
    settle_witnessed,
    trust_sent,
)
from services.consumers.stored_positions import (
    Advance,
    MovedError,
    PositionLockedError,
    lock_free_positions,
    read_positions,
    set_positions,
)
from services.consumers.topic import TopicLog, describe_log, ends_of_epochs, high_watermarks
from services.runtime.database import Connection, Pool
from services.runtime.errors import RefusedError, StepstreamError
from services.runtime.kafka import Record, admin_client, kafka_may_return, unreachable
from services.runtime.settings import Settings
from services.runtime.telemetry import EXPIRED, REWINDS

log = logging.getLogger("stepstream.positions")

#: How long no record may come where some are read again, and how much of a partition is fetched for one.
_READ_SECONDS = 5.0
_READ_BYTES = 64 * 1024
#: Between two looks whether another database's services have left the group.
_AGAIN_SECONDS = 0.5
#: How often in a row another database, or a later one, is met before the service ends.
_OFTEN = 3
#: Of so many fetches between two looks the last records are known, and of the newest.
_MOST_FETCHES = 1_000

_Place: TypeAlias = tuple[TopicPartition, int]
#: A record in short; None where there is none.
_Found: TypeAlias = Fingerprint | Literal["unreadable"] | None
#: Called in the transaction that places partitions where events can tell no more which journeys changed.
OnDiscontinuity: TypeAlias = Callable[[Connection, Mapping[int, Placement]], Awaitable[None]]


class _Offset(NamedTuple):
    """A committed offset, and what was said with it: whose it is, and the last record before it."""

    offset: int
    words: str

    @property
    def whose(self) -> str:
        return identity_in(self.words)


class Keeper:
    """Where the partitions of this instance are; all that is stored is of one service and topic.

    Args:
        service: whose positions.
        settings: where Kafka is.
        on_discontinuity: see there; it is called for what was missed, and for a log that is another.
        names: of which causes it names what is gone.
    """

    def __init__(
        self, service: str, settings: Settings, on_discontinuity: OnDiscontinuity, names: Collection[Cause]
    ) -> None:
        self._service = service
        self._settings = settings
        self._on_discontinuity = on_discontinuity
        self._names = names
        self.positions: dict[int, Position] = {}
        self.ours = Ours(None)
        #: The last records of when each partition was last seen to be the log that it was.
        self._checked: dict[int, Fingerprint | None] = {}
        #: The last record of each fetch since then, and of one before, read or not, in the order of time.
        self._fetched: dict[int, list[Fingerprint]] = {}
        #: Offsets of other databases that were there when partitions were placed.
        self._met: dict[int, _Offset] = {}
        self._conflicts = 0

    # --- what the shell asks --------------------------------------------------------------------------

    def forget(self, partitions: Collection[int] | None = None) -> None:
        """These partitions, or all, have to be placed before anything of them is handled."""
        if partitions is None:  # others may have been at work meanwhile
            self.positions.clear()
            self._checked.clear()
            self._fetched.clear()
        for partition in partitions or ():
            self.positions.pop(partition, None)

    def unplaced(self, partitions: Collection[TopicPartition]) -> list[int]:
        """Those of them that have to be placed."""
        return sorted(p.partition for p in partitions if p.partition not in self.positions)

    def fetched(self, last: Record) -> None:
        """This record was in the log: if it is not there after an election, the log was cut."""
        known = self._fetched.setdefault(last.partition, [])
        del known[_MOST_FETCHES:]
        known.append(Fingerprint.of(last))

    def over(self, records: Sequence[Record]) -> Advance:
        """How these records, which follow on what was handled, move positions on."""
        return Advance.over(self._service, self._settings.topic, self.positions, records)

    def words_of(self, advance: Advance) -> dict[TopicPartition, str]:
        """What goes with its offsets when they are committed."""
        topic = self._settings.topic
        return {TopicPartition(topic, p): self.ours.words_of(new) for p, (_, new) in advance.moves.items()}

    def done(self, advance: Advance) -> None:
        """It is committed to the database."""
        self.positions.update({partition: new for partition, (_, new) in advance.moves.items()})

    # --- before joining the group ---------------------------------------------------------------------

    async def join(self, pool: Pool, pause: Callable[[float], Awaitable[None]]) -> None:
        """Waits until the group is not another database's, and for a cluster that has just started.

        Raises:
            RefusedError: it is, and stays so.
            StepstreamError: Kafka cannot be reached.
        """
        async with pool.acquire() as connection:
            self.ours = await read_identity(connection)
        patience = self._settings.session_timeout_seconds + 5
        told = ""
        async with admin_client(self._settings) as admin:
            while True:
                problem: StepstreamError | None = None
                try:
                    problem = self._problem_of(await committed_with(admin, self._settings, self._service))
                except KafkaError as error:
                    problem = unreachable(self._settings, error)
                    if not kafka_may_return(error):
                        raise problem from error
                if problem is None:
                    return
                if patience <= 0:
                    raise problem
                if isinstance(problem, RefusedError):  # Kafka that has just started is waited for
                    patience -= _AGAIN_SECONDS
                if told != str(problem):
                    told = str(problem)
                    log.warning("%s. Waiting whether that changes", told)
                await pause(_AGAIN_SECONDS)

    def _problem_of(self, group: Committed) -> StepstreamError | None:
        relations = {self.ours.relation_to(words): identity_in(words) for words in group.words.values()}
        if "newer" in relations:
            return RefusedError(_left_behind(self._service, self.ours, relations["newer"]))
        if "other" in relations and group.members and "same" not in relations:
            name = self._settings.group(self._service)
            return RefusedError(
                f"the group {name} works for another database ({relations['other']}; this one is "
                f"{self.ours.words}) and has {len(group.members)} members. Stop those first, or give the "
                "services of this database their own groups with STEPSTREAM_GROUP_PREFIX"
            )
        return None

    # --- placing --------------------------------------------------------------------------------------

    async def place(
        self, consumer: AIOKafkaConsumer, pool: Pool, partitions: Sequence[int], *, at_committed: bool
    ) -> bool:
        """Finds out where these partitions are read on, stores it, goes there, and tells Kafka.

        With `at_committed` the consumer reads from the committed offsets on, and nothing was left out:
        where they are right, it need not go anywhere.

        Returns:
            Whether it went somewhere: what was fetched before does not follow on.

        Raises:
            RefusedError: what is stored is of another cluster.
            KafkaError: Kafka is away, or hands the partitions over.
            PostgresError: the database is away, or is one that a failover has left behind.
            MovedError: somebody else moves the same positions.
            PositionLockedError: somebody else has locked some of them; the others are placed.
        """
        topic = self._settings.topic
        tps = {p: TopicPartition(topic, p) for p in partitions}
        async with pool.acquire() as connection:
            ours = await read_identity(connection)
            every = await read_positions(connection, self._service, topic)
            counted = await read_positions(connection, AGGREGATOR, topic, partitions)
            sent = await read_sent(connection, topic)
        stored = {p: every[p] for p in partitions if p in every}
        topic_log = await describe_log(consumer._client, topic)  # noqa: SLF001 - aiokafka asks for less
        self._refuse_another_cluster(stored, topic_log)
        committed = await _committed(consumer, tps.values())
        for offset in committed.values():
            if ours.relation_to(offset.words) == "newer":
                await pool.expire_connections()  # new ones may find the primary
                raise asyncpg.ReadOnlySQLTransactionError(_left_behind(self._service, ours, offset.whose))
        seen = await self._see(consumer, topic_log, stored, committed, sent, tps)
        placements = {p: place(stored.get(p), seen[p]) for p in partitions}
        if self._service == RECORDER:
            placements = {p: _marking_what_is_counted(new, counted.get(p)) for p, new in placements.items()}
        named = {p: [g for g in new.gone if g.cause in self._names] for p, new in placements.items()}
        named = await self._with_times(named)
        placements = {p: replace(new, gone=named[p]) for p, new in placements.items()}
        locked = await self._store(pool, stored, placements)
        placements = {p: new for p, new in placements.items() if p not in locked}
        await self._place_absent(pool, every, topic_log)
        wanted = {
            tps[p]: (new.position.reads_from, ours.words_of(new.position)) for p, new in placements.items()
        }
        elsewhere = [
            tp
            for tp, (reads_from, _) in wanted.items()
            if not at_committed or tp not in committed or committed[tp].offset != reads_from
        ]
        for tp in elsewhere:
            consumer.seek(tp, wanted[tp][0])
        self._tell(placements, stored)
        self.ours = ours
        # Before anything is handled: should this process end between its commit to the database and the one
        # to Kafka, the group's offset says so, and what follows on the first is done once more.
        if stale := {tp: to for tp, to in wanted.items() if committed.get(tp) != to}:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                await consumer.commit(stale)
        self.positions |= {p: placement.position for p, placement in placements.items()}
        self._checked |= {p: placement.position.last for p, placement in placements.items()}
        for p, placement in placements.items():
            if placement.other_log:
                self._fetched.pop(p, None)
        if locked:
            raise PositionLockedError(locked)
        return bool(elsewhere)

    async def _place_absent(self, pool: Pool, every: Mapping[int, Position], topic_log: TopicLog) -> None:
        """Names what is gone with partitions that a topic made anew has no more: nobody gets those."""
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
        placements = {p: place(position, seen) for p, position in absent.items()}
        for p, new in placements.items():
            placements[p] = replace(new, gone=[g for g in new.gone if g.cause in self._names])
        locked = await self._store(pool, absent, placements)
        self._tell({p: new for p, new in placements.items() if p not in locked}, absent)

    async def _see(
        self,
        consumer: AIOKafkaConsumer,
        topic_log: TopicLog,
        stored: Mapping[int, Position],
        committed: Mapping[TopicPartition, _Offset],
        sent: Mapping[int, Fingerprint],
        tps: Mapping[int, TopicPartition],
    ) -> dict[int, Seen]:
        begins = await consumer.beginning_offsets(list(tps.values()))
        seen = {
            p: Seen(
                begins[tp],
                committed[tp].offset if tp in committed else None,
                topic_log.cluster_id,
                topic_log.topic_id,
                topic_log.epochs.get(p),
            )
            for p, tp in tps.items()
        }
        elected = {
            p: position
            for p, position in stored.items()
            if position.topic_id in {"", topic_log.topic_id} and seen[p].is_later_epoch(position)
        }
        if not elected:
            return seen
        epochs = {p: position.leader_epoch or 0 for p, position in elected.items()}
        ends = await ends_of_epochs(consumer._client, self._settings.topic, topic_log, epochs)  # noqa: SLF001
        behind = {}
        for p, position in elected.items():
            said = last_in(committed[tps[p]].words) if tps[p] in committed else None
            behind[tps[p]] = self._known_behind(p, position, (sent.get(p), said), ends.get(p) or 0)
        same = await self._are_still_there(behind, begins)
        return seen | {p: replace(seen[p], epoch_end=ends.get(p), same_record=same[tps[p]]) for p in elected}

    def _known_behind(
        self, partition: int, position: Position, told: Sequence[Fingerprint | None], end: int
    ) -> set[Fingerprint]:
        """Records that were in the log at this offset or later; some the relay or the group has told of.

        Of what was fetched the first that came: later ones were perhaps read behind a cut already.
        """
        fetched = next((f for f in self._fetched.get(partition, ()) if f.offset >= end), None)
        known = (position.last, self._checked.get(partition), fetched, *told)
        return {f for f in known if f is not None and f.offset >= end}

    async def _are_still_there(
        self, known: Mapping[TopicPartition, Collection[Fingerprint]], begins: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, bool | None]:
        """Whether records are in the log as they were; None where none can be looked for."""
        looked_for = {tp: [one for one in its if one.offset >= begins[tp]] for tp, its in known.items()}
        found = await self._read((tp, one.offset) for tp, its in looked_for.items() for one in its)
        answers: dict[TopicPartition, bool | None] = {}
        for tp, its in looked_for.items():
            there = [_is(one, found[tp, one.offset]) for one in its if found[tp, one.offset] != "unreadable"]
            answers[tp] = all(there) if there else None
        return answers

    async def _with_times(self, gone: Mapping[int, Sequence[Gone]]) -> dict[int, list[Gone]]:
        """With the time of the event that comes after those that are gone, where there is one."""
        topic = self._settings.topic
        following = {
            (p, one): (TopicPartition(topic, p), offset)
            for p, its in gone.items()
            for one in its
            for offset in [one.from_offset if one.cause == "cut" else one.until]
            if offset is not None
        }
        found = await self._read(following.values())

        def with_time(p: int, one: Gone) -> Gone:
            there = found[following[p, one]] if (p, one) in following else None
            return one._replace(after_at=there.timestamp) if isinstance(there, Fingerprint) else one

        return {p: [with_time(p, one) for one in its] for p, its in gone.items()}

    async def _read(self, wanted: Iterable[_Place]) -> dict[_Place, _Found]:
        """The records at these places, or the next that there are; None where none comes.

        Many partitions at once: one after another they would take a tenth of a second each.
        """
        found: dict[_Place, _Found] = {}
        left = sorted(set(wanted))
        while left:
            at: dict[TopicPartition, int] = {}
            for tp, offset in left:
                at.setdefault(tp, offset)
            left = [(tp, offset) for tp, offset in left if at[tp] != offset]
            found |= {(tp, at[tp]): there for tp, there in (await self._read_of_each(at)).items()}
        return found

    async def _read_of_each(self, at: Mapping[TopicPartition, int]) -> dict[TopicPartition, _Found]:
        """One record of each partition."""
        found: dict[TopicPartition, _Found] = dict.fromkeys(at)
        async with reader(self._settings, quiet=True, max_partition_fetch_bytes=_READ_BYTES) as consumer:
            consumer.assign(list(at))
            ends = await consumer.end_offsets(list(at))
            for tp, offset in at.items():
                consumer.seek(tp, offset)
            left = {tp for tp, offset in at.items() if ends[tp] > offset}
            with contextlib.suppress(TimeoutError):
                while left:
                    async with asyncio.timeout(_READ_SECONDS):
                        record = await consumer.getone(*left)
                    tp = TopicPartition(record.topic, record.partition)
                    found[tp] = Fingerprint.of(record)
                    left.discard(tp)
            return found | {one.tp: "unreadable" for one in unreadable_of(consumer)}

    def _refuse_another_cluster(self, stored: Mapping[int, Position], topic_log: TopicLog) -> None:
        known = {p.cluster_id for p in stored.values()} - {"", topic_log.cluster_id}
        if known and topic_log.cluster_id:
            raise RefusedError(
                f"this database's positions are of the Kafka cluster {' and '.join(sorted(known))}, and "
                f"{', '.join(self._settings.kafka_bootstrap_servers)} is the cluster {topic_log.cluster_id}. "
                "Is STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS right? If the events have moved there, stop every "
                "recorder and aggregator and run `stepstream move-cluster`"
            )

    async def _store(
        self, pool: Pool, stored: Mapping[int, Position], placements: Mapping[int, Placement]
    ) -> Mapping[int, str]:
        """Stores what has changed, but for the rows that somebody else has locked: it returns those."""
        topic = self._settings.topic
        changed = {p: new.position for p, new in placements.items() if new.position != stored.get(p)}
        if not changed and self._service != RECORDER:
            return {}
        async with pool.acquire() as connection, connection.transaction():
            locked = await lock_free_positions(connection, self._service, topic, list(placements))
            placements = {p: new for p, new in placements.items() if p not in locked}
            changed = {p: position for p, position in changed.items() if p not in locked}
            known = {p: position for p, position in stored.items() if p in placements}
            if await read_positions(connection, self._service, topic, list(placements)) != known:
                raise MovedError("somebody else has moved them meanwhile")
            other = {p: new for p, new in placements.items() if new.missed or new.other_log}
            if other:
                await self._on_discontinuity(connection, other)
            await name_gone(connection, topic, {p: new.gone for p, new in placements.items()})
            if self._service == RECORDER and (anew := [p for p, new in other.items() if new.other_log]):
                await forget_sent(connection, topic, anew)
            if self._service == RECORDER:
                await trust_sent(connection, topic, list(placements))
            if changed:
                await set_positions(connection, self._service, topic, changed)
        return locked

    def _tell(self, placements: Mapping[int, Placement], stored: Mapping[int, Position]) -> None:
        if missed := sum(new.missed for new in placements.values()):
            EXPIRED.labels(self._service).inc(missed)
            log.error(
                "%s: Kafka removed %d events before they were read (retention?); the oldest there is comes "
                "next",
                self._service,
                missed,
            )
        for p, new in sorted(placements.items()):
            _log_gone({p: new.gone})
            if p in stored and new.position.reads_from < stored[p].next_offset:
                REWINDS.labels(self._service).inc()
            if p in stored and new.why:
                at, why = new.position.reads_from, "; ".join(new.why)
                log.warning("partition %d is read on from offset %d: %s", p, at, why)

    # --- looking --------------------------------------------------------------------------------------

    async def look(self, consumer: AIOKafkaConsumer, pool: Pool, owned: Sequence[int]) -> None:
        """Forgets the partitions of `owned` that are not any more what they were when they were placed.

        To be called while nothing of them is handled.

        Raises:
            RefusedError: another database's services work in this group, or those of a later timeline.
            KafkaError, PostgresError: somebody is away.
        """
        topic = self._settings.topic
        async with pool.acquire() as connection:
            ours = await read_identity(connection)
            stored = await read_positions(connection, self._service, topic, owned)
            contested = await read_contested(connection, topic) if self._service == RECORDER else set()
        fetched = {p: len(fingerprints) for p, fingerprints in self._fetched.items()}
        topic_log = await describe_log(consumer._client, topic)  # noqa: SLF001
        known = {p: self.positions[p] for p in owned if p in self.positions}
        await self._take_up_skips(consumer, pool, known, stored)
        for p, position in known.items():
            seen = Seen(0, None, topic_log.cluster_id, topic_log.topic_id, topic_log.epochs.get(p))
            if stored.get(p) != position or not _is_of(position, topic_log) or seen.is_later_epoch(position):
                self.forget([p])
            else:
                self._checked[p] = position.last
                del self._fetched.get(p, [])[: max(0, fetched.get(p, 0) - 1)]
        # No other leader took over: nothing was cut, and later ones may take their place again.
        if as_they_were := sorted(contested & known.keys() & self.positions.keys()):
            async with pool.acquire() as connection:
                await trust_sent(connection, topic, as_they_were)
        if self._service == RECORDER:
            await self._look_for_witnessed(consumer, pool, owned, topic_log)
        begins = await consumer.beginning_offsets([TopicPartition(topic, p) for p in owned])
        for tp, begin in begins.items():
            if tp.partition in self.positions and begin > self.positions[tp.partition].reads_from:
                self.forget([tp.partition])
        committed = await _committed(consumer, [TopicPartition(topic, p) for p in sorted(topic_log.leaders)])
        if not await self._is_alone(pool, ours, committed):
            return
        # What a rebalance has kept from being committed.
        wanted = {
            tp: (self.positions[tp.partition].reads_from, ours.words_of(self.positions[tp.partition]))
            for tp in committed
            if tp.partition in known and tp.partition in self.positions
        }
        if stale := {tp: to for tp, to in wanted.items() if committed[tp] != to}:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                await consumer.commit(stale)
        self.ours = ours

    async def moved(self, consumer: AIOKafkaConsumer, pool: Pool, partitions: Sequence[int]) -> list[int]:
        """Those of these partitions that are not any more what they were when they were placed.

        Raises:
            KafkaError, PostgresError: somebody is away.
        """
        async with pool.acquire() as connection:
            stored = await read_positions(connection, self._service, self._settings.topic, partitions)
        topic_log = await describe_log(consumer._client, self._settings.topic)  # noqa: SLF001
        known = {p: self.positions.get(p) for p in partitions}
        return [
            p
            for p, position in known.items()
            if position is None
            or stored.get(p) != position
            or not _is_of(position, topic_log)
            or topic_log.epochs.get(p, position.leader_epoch) != position.leader_epoch
        ]

    async def _look_for_witnessed(
        self, consumer: AIOKafkaConsumer, pool: Pool, owned: Sequence[int], topic_log: TopicLog
    ) -> None:
        """Names what was cut off and a relay alone knows of: the database came from another server since."""
        topic = self._settings.topic
        async with pool.acquire() as connection:
            witnessed = await read_witnessed(connection, topic, owned)
        if not witnessed:
            return
        begins = await consumer.beginning_offsets([TopicPartition(topic, w.partition) for w in witnessed])
        old = {
            one
            for one in witnessed
            if one.topic_id != topic_log.topic_id
            or one.record.offset < begins[TopicPartition(topic, one.partition)]
        }
        are_there = await self._are_there(consumer, [w for w in witnessed if w not in old], topic_log)
        for one in witnessed:
            there = False if one in old else are_there[one]
            if there is None:
                continue
            begin = begins[TopicPartition(topic, one.partition)]
            cut = [] if one in old or there else [await self._cut_before(consumer, one, begin, topic_log)]
            async with pool.acquire() as connection, connection.transaction():
                await name_gone(connection, topic, {one.partition: cut})
                await settle_witnessed(connection, topic, one, is_there=there)
            _log_gone({one.partition: cut})

    async def _are_there(
        self, consumer: AIOKafkaConsumer, witnessed: Sequence[Witnessed], topic_log: TopicLog
    ) -> dict[Witnessed, bool | None]:
        """Whether records are in the log; None while a codec, or an open transaction, hides one."""
        if not witnessed:
            return {}
        topic = self._settings.topic
        ends = await high_watermarks(consumer._client, topic, topic_log)  # noqa: SLF001
        places = {one: (TopicPartition(topic, one.partition), one.record.offset) for one in witnessed}
        readable = await consumer.end_offsets([tp for tp, _ in places.values()])
        hidden = {
            one for one, (tp, offset) in places.items() if readable[tp] <= offset < ends.get(one.partition, 0)
        }
        found = await self._read(place for one, place in places.items() if one not in hidden)
        return {
            one: None if one in hidden or found[place] == "unreadable" else _is(one.record, found[place])
            for one, place in places.items()
        }

    async def _cut_before(
        self, consumer: AIOKafkaConsumer, one: Witnessed, begin: int, topic_log: TopicLog
    ) -> Gone:
        """What is gone with a record that is not there any more."""
        client, epoch = consumer._client, {one.partition: one.leader_epoch}  # noqa: SLF001
        end = (await ends_of_epochs(client, self._settings.topic, topic_log, epoch))[one.partition]
        first = min(begin if end is None else end, one.record.offset)
        gone = await self._with_times({one.partition: [Gone("cut", first, None)]})
        return gone[one.partition][0]

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
        topic = self._settings.topic
        ahead = {
            p: (position.reads_from, stored[p].reads_from)
            for p, position in known.items()
            if p in stored and stored[p].reads_from > position.reads_from
        }
        if not ahead:
            return
        async with pool.acquire() as connection:
            ranges = await read_skipped(connection, topic, list(ahead))
        tps = {TopicPartition(topic, p): move for p, move in ahead.items() if (p, *move) in ranges}
        committed = await _committed(consumer, tps)
        # An offset that somebody has moved since asks for a replay.
        offsets = {
            tp: (until, self.ours.words)
            for tp, (first, until) in tps.items()
            if tp not in committed or committed[tp].offset == first
        }
        if offsets:
            async with asyncio.timeout(self._settings.commit_timeout_seconds):
                await consumer.commit(offsets)
        for tp, (until, _) in offsets.items():
            log.warning(
                "partition %d is read on from offset %d: an operator has left behind what is before",
                tp.partition,
                until,
            )

    async def _is_alone(self, pool: Pool, ours: Ours, committed: Mapping[TopicPartition, _Offset]) -> bool:
        """Looks whose offsets are committed, also of partitions that are not ours."""
        before, self._met = self._met, {}
        conflict = None
        for tp, offset in committed.items():
            relation = ours.relation_to(offset.words)
            if relation == "newer":
                conflict = _left_behind(self._service, ours, offset.whose)
            elif relation in {"other", "older"}:
                self._met[tp.partition] = offset
                if relation == "other" and before.get(tp.partition, offset) != offset:
                    conflict = (
                        f"services of another database ({offset.whose}; this one is {ours.words}) work in "
                        f"the group {self._settings.group(self._service)}, too. Stop those, or these; each "
                        "database needs its own groups: STEPSTREAM_GROUP_PREFIX"
                    )
        if conflict is None:
            self._conflicts = 0
            return True
        self._conflicts += 1
        log.error("%s", conflict)
        if self._conflicts >= _OFTEN:
            raise RefusedError(conflict)
        # The connections may be the last ones to a server that a failover has left behind.
        await pool.expire_connections()
        return False


def _is(one: Fingerprint, found: _Found) -> bool:
    """Whether what was found is this record."""
    return isinstance(found, Fingerprint) and (found.offset, found.checksum) == (one.offset, one.checksum)


def _marking_what_is_counted(placement: Placement, counted: Position | None) -> Placement:
    """Of where the aggregator has been already, no event tells it what changes: marks have to."""
    position = placement.position
    if counted is None or counted.next_offset <= max(position.next_offset, position.marks_until):
        return placement
    return replace(placement, position=replace(position, marks_until=counted.next_offset))


def _log_gone(gone: Mapping[int, Sequence[Gone]]) -> None:
    for partition, ranges in sorted(gone.items()):
        for one in ranges:
            log.error(
                "partition %d: events from offset %d to %s are gone from Kafka (%s). `stepstream status` "
                "names them until somebody acknowledges them with `stepstream gone acknowledge`",
                partition,
                one.from_offset,
                "an unknown one" if one.until is None else one.until - 1,
                one.cause,
            )


def _is_of(position: Position, topic_log: TopicLog) -> bool:
    ids = ((position.cluster_id, topic_log.cluster_id), (position.topic_id, topic_log.topic_id))
    return all(not seen or mine == seen for mine, seen in ids)


def _left_behind(service: str, ours: Ours, words: str) -> str:
    return (
        f"the {service} of a later timeline of this database has been at work ({words}; this one is "
        f"{ours.words}): a failover has left this server behind. Is the host in STEPSTREAM_DATABASE_URL the "
        "primary?"
    )


async def _committed(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, _Offset]:
    """What the group has committed, in one request."""
    coordinator: Any = consumer._coordinator  # noqa: SLF001 - `committed` asks for one at a time
    found = await coordinator.fetch_committed_offsets(list(partitions))
    return {tp: _Offset(o.offset, o.metadata or "") for tp, o in found.items() if o.offset >= 0}

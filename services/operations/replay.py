"""Events again: a stopped group's offsets moved back, or a bounded range fed through without moving them.

A replay never skips events: where the group is already before the wanted place, it stays. Whatever is read
again changes nothing in the tables; it mends what a wrong version or a restored database lacks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from services.completion_recorder import connections as recorder_connections
from services.completion_recorder.dead_letters import parse, read_partitions
from services.completion_recorder.handlers import Recorder
from services.completion_recorder.waiting import count_waiting
from services.consumers.database_identity import read_identity
from services.consumers.handling import Batches
from services.consumers.lag import RECORDER, read_groups
from services.consumers.reader import read_range, reader
from services.consumers.reading import unreadable_of
from services.consumers.stored_positions import Advance, lock_positions, read_positions, set_positions
from services.operations.offsets import bounded_move, commit_for, reads_on_at, refuse_members
from services.runtime.database import bounded_beyond_stuck, connected, opened_pool
from services.runtime.database_errors import explaining
from services.runtime.errors import RefusedError, StepstreamError, UsageError
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, Record, check_codecs
from services.runtime.producer import producer
from services.runtime.settings import Settings
from services.sankey_aggregator import counting
from services.sankey_aggregator.handlers import Aggregator


@dataclass(frozen=True, slots=True)
class ReplayStart:
    """Where to begin: one of the three."""

    time_ms: int | None = None
    offset: int | None = None
    beginning: bool = False


@dataclass(frozen=True, slots=True)
class ReplayEnd:
    """Where to stop, exclusively: a time or an offset; neither is where the group is."""

    time_ms: int | None = None
    offset: int | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether there is an end before where the group is."""
        return self.time_ms is not None or self.offset is not None


@dataclass(frozen=True, slots=True)
class PartitionReplay:
    """What becomes of a partition: it is read from `new` up to `until`.

    `expired` is how many of the wanted events Kafka has removed; with `expired_at_most` it is known only that
    there are no more than so many.
    """

    partition: int
    present: int
    new: int
    until: int
    events: int
    expired: int
    expired_at_most: bool = False
    #: Dead letters that were made of events of the range; those that are refused again come once more.
    letters: int = 0


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a replay would do."""

    service: str
    group: str
    topic: str
    bounded: bool
    members: int
    moves: list[PartitionReplay]

    @property
    def events(self) -> int:
        """How many events are read again."""
        return sum(m.events for m in self.moves)


@dataclass
class Fed:
    """What was fed through again, where the plan is bounded.

    `waiting` is how many events wait for rows that somebody else has locked; `left_out` says what could not
    be read.
    """

    events: int = 0
    waiting: int = 0
    left_out: list[str] = field(default_factory=list)


async def make_plan(
    settings: Settings, service: str, start: ReplayStart, end: ReplayEnd, partitions: Sequence[int] | None
) -> ReplayPlan:
    """Looks where the group is, and where it would be.

    Raises:
        UsageError: there is no such partition.
        StepstreamError: Kafka cannot be reached.
    """
    (group,) = await read_groups(settings, [service], ages=False)
    async with connected(settings) as db:
        stored = await read_positions(db, service, settings.topic)
    chosen = [p for p in group.positions if partitions is None or p.partition in partitions]
    if absent := set(partitions or ()) - {p.partition for p in group.positions}:
        raise UsageError(
            f"{settings.topic} has partitions 0 to {len(group.positions) - 1}, and no "
            f"{', '.join(map(str, absent))}"
        )
    tps = {p.partition: TopicPartition(settings.topic, p.partition) for p in chosen}
    starts = await _offsets_at(settings, tps.values(), start.time_ms)
    ends = await _offsets_at(settings, tps.values(), end.time_ms)
    moves = []
    for p in chosen:
        tp, present = tps[p.partition], reads_on_at(p, stored.get(p.partition))
        wanted, at_most = 0, False
        if start.offset is not None:
            wanted = start.offset
        elif start.time_ms is not None:
            # No offset: nothing is as new as that.
            wanted = present if starts[tp] is None else starts[tp] or 0
            # Everything there is is newer: what was before it may have been, too.
            at_most = wanted == p.begin and p.begin > 0
            wanted = 0 if at_most else wanted
        until = present
        if end.offset is not None:
            until = min(present, end.offset)
        elif end.time_ms is not None and ends[tp] is not None:
            until = min(present, ends[tp] or 0)
        new = min(max(wanted, p.begin), present)
        expired = max(0, min(p.begin, until) - wanted)
        moves.append(
            PartitionReplay(p.partition, present, new, max(new, until), max(0, until - new), expired, at_most)
        )
    if service == RECORDER:
        moves = await _with_letters(settings, moves)
    return ReplayPlan(service, group.group, settings.topic, end.is_bounded, len(group.members), moves)


async def _with_letters(settings: Settings, moves: Sequence[PartitionReplay]) -> list[PartitionReplay]:
    """With how many dead letters are of events in the range of each."""
    ranges = {m.partition: m for m in moves if m.events}
    found: dict[int, set[int]] = {}
    if ranges:
        async for record in read_partitions(settings, settings.dead_letter_topic):
            source = parse(record).source
            if source is None or source.topic != settings.topic or source.partition not in ranges:
                continue
            move = ranges[source.partition]
            if move.new <= source.offset < move.until:
                found.setdefault(source.partition, set()).add(source.offset)
    return [replace(m, letters=len(found.get(m.partition, ()))) for m in moves]


async def _offsets_at(
    settings: Settings, partitions: Iterable[TopicPartition], time_ms: int | None
) -> dict[TopicPartition, int | None]:
    """The first offset of each partition that came at the time or later."""
    if time_ms is None:
        return {}
    try:
        async with reader(settings) as consumer:
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, time_ms))
    except KafkaError as error:
        raise StepstreamError(f"Kafka does not say which offsets are of that time: {error}") from error
    return {p: o.offset if o is not None else None for p, o in found.items()}


async def refuse_gaps(settings: Settings, plan: ReplayPlan) -> None:
    """Raises RefusedError where the database has not judged what lies before or in the range.

    So it is with a database that is an older copy: a replay from later on would leave events out for good.
    """
    async with connected(settings) as db:
        stored = await read_positions(db, RECORDER, plan.topic)
    recorded = {partition: position.next_offset for partition, position in stored.items()}
    for move in plan.moves:
        known = recorded.get(move.partition, 0)
        needed = move.new if plan.service == RECORDER else move.until if plan.bounded else 0
        if move.events and known < needed:
            raise RefusedError(
                f"partition {move.partition}: this database has judged events only up to offset {known:,}, "
                "so "
                f"what lies between there and {needed:,} would be left out: replay {RECORDER} from "
                f"{known:,} or "
                "before, without --to"
            )


async def execute(settings: Settings, plan: ReplayPlan, progress: Callable[[int, int], None]) -> Fed:
    """Carries the plan out; returns what was fed through (nothing where offsets were moved).

    Raises:
        RefusedError: the group has members.
        ConfigurationError: events are to be fed through, and a codec cannot be read.
        StepstreamError: Kafka or the database cannot be reached.
    """
    refuse_members(plan.members, plan.group, plan.service)
    if plan.bounded:
        check_codecs()
        return await _feed(settings, plan, progress)
    await _set_offsets(settings, plan)
    return Fed()


async def _set_offsets(settings: Settings, plan: ReplayPlan) -> None:
    """Moves the database's positions, and the group's offsets, which are their copy.

    The offsets first: where the broker refuses them nothing has changed. Should it end in between, the
    service starts at the smaller of the two, which is what was asked for.
    """
    moved = {m.partition: m.new for m in plan.moves if m.new != m.present}
    if not moved:
        return
    async with connected(settings, server_settings=bounded_move()) as db, db.transaction():
        await lock_positions(db, plan.service, plan.topic, list(moved))
        stored = await read_positions(db, plan.service, plan.topic, list(moved))
        back = {p: position.back_to(moved[p]) for p, position in stored.items()}
        await set_positions(db, plan.service, plan.topic, back)
        words = (await read_identity(db)).words
        offsets = {TopicPartition(plan.topic, p): offset for p, offset in moved.items()}
        await commit_for(settings, plan.service, offsets, words)


async def _feed(settings: Settings, plan: ReplayPlan, progress: Callable[[int, int], None]) -> Fed:
    """Reads the ranges and hands them to the service's own handler; the group's offsets stay."""
    ranges = {TopicPartition(plan.topic, m.partition): m for m in plan.moves if m.events}
    recording = plan.service == RECORDER
    connections = recorder_connections if recording else counting
    server_settings = connections.SERVER_SETTINGS | bounded_beyond_stuck(settings)
    dead_letters = settings.dead_letter_topic
    async with (
        opened_pool(settings, connections.prepare, server_settings) as pool,
        producer(settings, dead_letters, max_request_size=DEAD_LETTER_MAX_BYTES) as letters,
    ):
        handler: Recorder | Aggregator = (
            Recorder(settings, pool, letters, asyncio.sleep)
            if recording
            else Aggregator(settings, pool, asyncio.sleep)
        )
        with explaining():
            fed = await _read_ranges(settings, ranges, handler.handle, progress)
            if recording:
                fed.waiting, _ = await count_waiting(pool)
            return fed


class _Feeding:
    """All that is fed was read before: positions and offsets stay."""

    def advance_over(self, records: Sequence[Record]) -> Advance | None:
        return None

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        pass

    async def recheck(self, records: Sequence[Record]) -> None:
        pass

    def leave(self, partition: int, why: str, may_go_on: Callable[[], Awaitable[bool]]) -> bool:
        return False


async def _read_ranges(
    settings: Settings,
    ranges: Mapping[TopicPartition, PartitionReplay],
    handle: Callable[[Sequence[Record], Batches], Awaitable[None]],
    progress: Callable[[int, int], None],
) -> Fed:
    total = sum(m.events for m in ranges.values())
    fed = Fed()
    async with reader(settings, quiet=True, max_partition_fetch_bytes=16 * 1024 * 1024) as consumer:
        wanted = {tp: (move.new, move.until) for tp, move in ranges.items()}
        async for piece in read_range(consumer, wanted, at_most=settings.batch_max_records):
            if piece.records:
                await handle(piece.records, _Feeding())
                fed.events += len(piece.records)
                progress(fed.events, total)
        fed.left_out = [
            str(found) for found in unreadable_of(consumer) if found.offset < ranges[found.tp].until
        ]
    return fed

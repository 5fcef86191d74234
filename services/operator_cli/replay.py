"""Events again: a stopped group's offsets moved back, or a bounded range fed through without moving them.

A replay never skips events: where the group is already before the wanted place, it stays. Whatever is read
again changes nothing in the tables; it mends what a wrong version or a restored database lacks.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError
from rich.markup import escape

from services.completion_recorder import connections as recorder_connections
from services.completion_recorder.dead_letters import parse, read_partitions
from services.completion_recorder.handlers import Recorder
from services.completion_recorder.waiting import count_waiting
from services.consumers.batches import unreadable_of
from services.consumers.handling import Batches
from services.consumers.lag import RECORDER, read_groups, reader
from services.consumers.lag import GroupPosition as Seen
from services.consumers.positions import Position
from services.consumers.stored_positions import (
    Advance,
    lock_positions,
    read_identity,
    read_positions,
    set_positions,
)
from services.operator_cli.options import not_executed, print_json, print_table, say
from services.runtime.database import (
    bounded_beyond_stuck,
    close_pool,
    connected,
    explaining,
    open_pool,
)
from services.runtime.errors import RefusedError, StepstreamError, UsageError
from services.runtime.kafka import (
    DEAD_LETTER_MAX_BYTES,
    Record,
    RenewedProducer,
    check_codecs,
    connection,
    unreachable,
)
from services.runtime.settings import Settings
from services.runtime.text import plural
from services.sankey_aggregator import store as aggregator_store
from services.sankey_aggregator.handlers import Aggregator

_COMMIT_SECONDS = 15.0


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
    def bounded(self) -> bool:
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
    return ReplayPlan(service, group.group, settings.topic, end.bounded, len(group.members), moves)


def reads_on_at(seen: Seen, stored: Position | None) -> int:
    """Where the service reads on: where the database says, or the group's offset, the smaller of the two."""
    if stored is None:
        return seen.begin
    at = stored.reads_from if seen.committed is None else min(stored.reads_from, seen.committed)
    return max(at, seen.begin)


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


def refuse_members(plan: ReplayPlan) -> None:
    """Raises RefusedError while the group has members."""
    refuse_a_group_with(plan.members, plan.group, plan.service)


def refuse_a_group_with(members: int, group: str, service: str) -> None:
    """Raises RefusedError while a group has members."""
    if members:
        raise RefusedError(
            f"the group {group} has {plural(members, 'member')}: stop every {service} "
            "first (SIGTERM), then run this again, then start them again. A killed one leaves its group "
            "after STEPSTREAM_SESSION_TIMEOUT_SECONDS"
        )


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


async def execute(settings: Settings, plan: ReplayPlan, progress: Callable[[int, int], None]) -> int:
    """Carries the plan out; returns how many events were fed through (0 where offsets were moved).

    Raises:
        RefusedError: the group has members.
        ConfigurationError: events are to be fed through, and a codec cannot be read.
        StepstreamError: Kafka or the database cannot be reached.
    """
    refuse_members(plan)
    if plan.bounded:
        check_codecs()
        return await _feed(settings, plan, progress)
    await _set_offsets(settings, plan)
    return 0


async def _set_offsets(settings: Settings, plan: ReplayPlan) -> None:
    """Moves the database's positions, and then the group's offsets, which are their copy.

    Should it end in between, the service starts at the smaller of the two.
    """
    moved = {m.partition: m.new for m in plan.moves if m.new != m.present}
    if not moved:
        return
    async with connected(settings) as db, db.transaction():
        await lock_positions(db, plan.service, plan.topic, list(moved))
        stored = await read_positions(db, plan.service, plan.topic, list(moved))
        back = {p: position.back_to(moved[p]) for p, position in stored.items()}
        await set_positions(db, plan.service, plan.topic, back)
        words = (await read_identity(db)).words
    offsets = {TopicPartition(plan.topic, p): offset for p, offset in moved.items()}
    await commit_for(settings, plan.service, offsets, words)


async def commit_for(
    settings: Settings, service: str, offsets: Mapping[TopicPartition, int], words: str
) -> None:
    """Commits offsets as nobody's: the broker takes that only while the group has no members.

    Raises:
        RefusedError: the group has got members.
        StepstreamError: Kafka cannot be reached.
    """
    group = settings.group(service)
    consumer = AIOKafkaConsumer(**connection(settings), group_id=group, enable_auto_commit=False)
    try:
        await consumer.start()
        consumer.assign(list(offsets))
        async with asyncio.timeout(_COMMIT_SECONDS):
            await consumer.commit({tp: (offset, words) for tp, offset in offsets.items()})
    except CommitFailedError:
        raise RefusedError(f"the group {group} got members meanwhile: stop every {service}") from None
    except TimeoutError:
        raise StepstreamError(
            f"Kafka did not answer in {_COMMIT_SECONDS:g} s; look at the plan again"
        ) from None
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()


async def _feed(settings: Settings, plan: ReplayPlan, progress: Callable[[int, int], None]) -> int:
    """Reads the ranges and hands them to the service's own handler; the group's offsets stay."""
    ranges = {TopicPartition(plan.topic, m.partition): m for m in plan.moves if m.events}
    recording = plan.service == RECORDER
    store = recorder_connections if recording else aggregator_store
    pool = await open_pool(settings, store.prepare, store.SERVER_SETTINGS | bounded_beyond_stuck(settings))
    letters = RenewedProducer(settings, settings.dead_letter_topic, max_request_size=DEAD_LETTER_MAX_BYTES)
    try:
        handler: Recorder | Aggregator = (
            Recorder(settings, pool, letters, asyncio.sleep)
            if recording
            else Aggregator(settings, pool, asyncio.sleep)
        )
        with explaining():
            fed = await _read_ranges(settings, ranges, handler.handle, progress)
            if recording and (waiting := (await count_waiting(pool))[0]):
                say(
                    f"[yellow]{plural(waiting, 'event')} wait for rows that somebody else has locked[/]: "
                    f"{RECORDER} records them when the locks go. `stepstream status` says which rows"
                )
            return fed
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await letters.stop()
        await close_pool(pool)


class _Feeding:
    """All that is fed was read before: positions and offsets stay."""

    def over(self, records: Sequence[Record]) -> Advance | None:
        return None

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        pass

    async def recheck(self, records: Sequence[Record]) -> None:
        pass

    def leave(self, partition: int, why: str, until: Callable[[], Awaitable[bool]]) -> bool:
        return False


async def _read_ranges(
    settings: Settings,
    ranges: Mapping[TopicPartition, PartitionReplay],
    handle: Callable[[Sequence[Record], Batches], Awaitable[None]],
    progress: Callable[[int, int], None],
) -> int:
    total = sum(m.events for m in ranges.values())
    fed = 0
    async with reader(settings, quiet=True, max_partition_fetch_bytes=16 * 1024 * 1024) as consumer:
        left = set(ranges)
        consumer.assign(list(left))
        for partition, move in ranges.items():
            consumer.seek(partition, move.new)
        while left:
            batch: list[Record] = []
            got = await consumer.getmany(timeout_ms=200, max_records=settings.batch_max_records)
            for partition, records in got.items():
                batch += [r for r in records if r.offset < ranges[partition].until]
            if batch:
                await handle(batch, _Feeding())
                fed += len(batch)
                progress(fed, total)
            for partition in list(left):
                if await consumer.position(partition) >= ranges[partition].until:
                    left.discard(partition)
                    consumer.pause(partition)
        for found in unreadable_of(consumer):
            if found.offset < ranges[found.tp].until:
                say(f"[yellow]left out[/]: {escape(str(found))}")
    return fed


def show_plan(plan: ReplayPlan, *, as_json: bool, executed: bool, fed: int = 0) -> None:
    """Tells the plan, and whether it was carried out."""
    if as_json:
        print_json(
            {
                "service": plan.service,
                "group": plan.group,
                "topic": plan.topic,
                "bounded": plan.bounded,
                "members": plan.members,
                "events": plan.events,
                "partitions": [asdict(m) for m in plan.moves],
                "executed": executed,
            }
        )
    else:
        columns = ("topic", "partition", "group is at", "from", "up to", "events", "expired", "dead letters")
        rows = [
            (
                plan.topic,
                m.partition,
                m.present,
                m.new,
                m.until,
                m.events,
                f"up to {m.expired:,}" if m.expired and m.expired_at_most else m.expired,
                m.letters,
            )
            for m in plan.moves
        ]
        what = "fed through again, the group stays" if plan.bounded else "read again by the group"
        print_table(f"{plan.group}: {plural(plan.events, 'event')} {what}", columns, rows)
    if expired := sum(m.expired for m in plan.moves):
        at_most = "up to " if any(m.expired_at_most and m.expired for m in plan.moves) else ""
        say(
            f"[yellow]{at_most}{expired:,} of the wanted events have expired[/]: Kafka has removed them, "
            "and what "
            "is there is read from its first event on. The completions that they made stay"
        )
    if letters := sum(m.letters for m in plan.moves):
        say(
            f"{plural(letters, 'dead letter')} {'is' if letters == 1 else 'are'} of events in this range: "
            "what is refused again comes to the dead letters once more"
        )
    if not executed:
        not_executed()
    elif plan.bounded:
        say(f"[green]done[/]: {fed:,} events were fed through; {escape(plan.group)} is where it was")
    elif plan.events:
        say(f"[green]done[/]: start {plan.service} again, and it reads {plan.events:,} events once more")
    else:
        say("[green]done[/]: there was nothing to move")

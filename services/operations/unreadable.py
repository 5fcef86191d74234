"""A batch that cannot be read, left behind: kept as a dead letter, named as gone, passed by both services."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from services.consumers.batches import ERROR_CLASS, Batch, UnreadableError, fetch_batch
from services.consumers.database_identity import read_identity
from services.consumers.gone import name_gone
from services.consumers.lag import AGGREGATOR, GROUPS, RECORDER, Group, read_groups
from services.consumers.positions import Digest, Gone, Position
from services.consumers.reader import reader
from services.consumers.stored_positions import lock_positions, read_positions, set_positions
from services.operations.offsets import bounded_move, commit_for, reads_on_at
from services.runtime.database import connected
from services.runtime.errors import RefusedError, UsageError
from services.runtime.kafka import DEAD_LETTER_HEADERS, DEAD_LETTER_MAX_BYTES, unreachable
from services.runtime.producer import NULL, producer, send_all
from services.runtime.settings import Settings
from services.sankey_aggregator import counting

#: What headers and the record around it may take of a dead letter.
_OVERHEAD = 4_096
#: How long services that run may take to go on behind it, and between two looks at them.
_TAKE_UP_SECONDS = 60.0
_CHECK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class BatchSkip:
    """A batch, and what would be left behind of it.

    `services` stand at `offset` and go to `batch.until`; `elsewhere` is where the others are.
    """

    topic: str
    partition: int
    offset: int
    batch: Batch
    services: Sequence[str]
    elsewhere: Mapping[str, int]

    @property
    def offsets(self) -> int:
        """How many offsets are left behind."""
        return self.batch.until - self.offset

    @property
    def is_kept(self) -> bool:
        """Whether its bytes fit into a dead letter."""
        return len(self.batch.raw) <= DEAD_LETTER_MAX_BYTES - _OVERHEAD


async def plan_skip(settings: Settings, partition: int, services: Sequence[str] = GROUPS) -> BatchSkip:
    """Looks for a batch of a partition that a service cannot read.

    Raises:
        UsageError: there is no such partition, or what comes next can be read.
        UnreadableError: where the batch ends cannot be told.
        StepstreamError: Kafka or the database cannot be reached.
    """
    groups = {group.service: group for group in await read_groups(settings, ages=False)}
    at = await _where_they_are(settings, groups, partition)
    end = max(p.end for group in groups.values() for p in group.positions if p.partition == partition)
    tp = TopicPartition(settings.topic, partition)
    for offset in sorted({at[service] for service in services if at[service] < end}):
        batch = await _fetch(settings, tp, offset, end)
        if batch.cause is not None:
            standing = [service for service in services if at[service] == offset]
            elsewhere = {service: at[service] for service in GROUPS if service not in standing}
            return BatchSkip(settings.topic, partition, offset, batch, standing, elsewhere)
    where = ", ".join(f"{service} is at {at[service]:,}" for service in services)
    raise UsageError(
        f"partition {partition} of {settings.topic} can be read where the services go on ({where}, it ends "
        f"at {end:,}). To leave events behind that can be read, give --group and --to-offset"
    )


async def _where_they_are(settings: Settings, groups: Mapping[str, Group], partition: int) -> dict[str, int]:
    at = {}
    async with connected(settings) as db:
        for service, group in groups.items():
            found = next((p for p in group.positions if p.partition == partition), None)
            if found is None:
                raise UsageError(f"{settings.topic} has no partition {partition}")
            stored = await read_positions(db, service, settings.topic, [partition])
            at[service] = reads_on_at(found, stored.get(partition))
    return at


async def _fetch(settings: Settings, tp: TopicPartition, offset: int, end: int) -> Batch:
    async with reader(settings) as consumer:
        try:
            return await fetch_batch(consumer._client, tp, offset, end)  # noqa: SLF001
        except UnreadableError as error:
            raise UnreadableError(
                f"{error}. Mend the broker. If that cannot be: stop both services, and leave behind what is "
                "before an offset of your choice with --group and --to-offset"
            ) from error
        except KafkaError as error:
            raise unreachable(settings, error) from error


async def skip(settings: Settings, plan: BatchSkip) -> bool:
    """Keeps the batch as a dead letter, names what is left behind, and moves the services on.

    Services that run see within seconds that their position has moved.

    Returns:
        Whether all of them are behind the batch; else one of them does not look.

    Raises:
        RefusedError: a service has moved meanwhile.
        StepstreamError: Kafka or the database cannot be reached.
    """
    if RECORDER in plan.services:
        await _keep(settings, plan)
    words = await _move(settings, plan)
    waiting, deadline = list(plan.services), time.monotonic() + _TAKE_UP_SECONDS
    while waiting and time.monotonic() < deadline:
        for service in list(waiting):
            if await _has_taken_up(settings, plan, service, words):
                waiting.remove(service)
        if waiting:
            await asyncio.sleep(_CHECK_SECONDS)
    return not waiting


async def _keep(settings: Settings, plan: BatchSkip) -> None:
    """Sends the batch to the dead letters, and returns when it is acknowledged."""
    batch = plan.batch
    size = f"{len(batch.raw)} bytes{'' if plan.is_kept else ', too large to be kept'}"
    described = (
        plan.topic,
        plan.partition,
        plan.offset,
        batch.timestamp,
        ERROR_CLASS,
        f"offsets {plan.offset} to {batch.until - 1}, {size}, codec {batch.codec}: {batch.cause}",
    )
    headers = [
        (name, str(value).encode()) for name, value in zip(DEAD_LETTER_HEADERS, described, strict=True)
    ]
    value = batch.raw if plan.is_kept else NULL
    topic = settings.dead_letter_topic
    async with producer(settings, topic, max_request_size=DEAD_LETTER_MAX_BYTES) as letters:
        letter = {"key": None, "value": value, "headers": headers}
        await send_all(await letters.start(), topic, {plan.partition: [letter]})


async def _move(settings: Settings, plan: BatchSkip) -> str:
    """Moves the positions in the database; returns what goes with offsets of this database."""
    partition, until = plan.partition, plan.batch.until
    async with (
        connected(settings, counting.prepare, counting.SERVER_SETTINGS | bounded_move()) as db,
        db.transaction(),
    ):
        recorded: Position | None = None
        for service in GROUPS:
            await lock_positions(db, service, plan.topic, [partition])
            stored = (await read_positions(db, service, plan.topic, [partition])).get(partition)
            position = stored or Position(plan.offset, plan.offset, digest=Digest(plan.offset))
            if service == RECORDER:
                recorded = position
            if service not in plan.services:
                continue
            if stored is not None and stored.reads_from < plan.offset:
                raise RefusedError(f"{service} has moved meanwhile: look at the plan again")
            after = replace(position, reads_from=until)
            if until > position.next_offset:
                after = replace(after, next_offset=until, digest=Digest(until))
            await set_positions(db, service, plan.topic, {partition: after})
        assert recorded is not None  # noqa: S101 - one of the groups
        had = min(recorded.next_offset, until)
        last = recorded.last.timestamp if recorded.last else None
        gone = Gone("skipped", plan.offset, until, last, judged_until=had if had > plan.offset else None)
        await name_gone(db, plan.topic, {partition: [gone]})
        if AGGREGATOR in plan.services and had > plan.offset:
            # What the recorder has of these events, no event will tell it.
            await counting.mark_all(db)
        return (await read_identity(db)).words


async def _has_taken_up(settings: Settings, plan: BatchSkip, service: str, words: str) -> bool:
    """Whether a service is behind the batch; for one that does not run, this commits its offset."""
    (group,) = await read_groups(settings, [service], ages=False)
    position = next(p for p in group.positions if p.partition == plan.partition)
    if position.committed is not None and position.committed >= plan.batch.until:
        return True
    async with connected(settings) as db:
        stored = (await read_positions(db, service, plan.topic, [plan.partition]))[plan.partition]
    if stored.reads_from < plan.batch.until:  # it was starting, and has believed the group's offset
        await _move(settings, replace(plan, services=[service]))
    if not group.members:
        tp = TopicPartition(plan.topic, plan.partition)
        try:
            await commit_for(settings, service, {tp: plan.batch.until}, words)
        except RefusedError:
            return False  # it has just started
        return True
    return False

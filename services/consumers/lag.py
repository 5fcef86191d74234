"""How far the consumer groups are, who is in them, and how long events wait."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from services.consumers.batches import UnreadableError
from services.consumers.reader import read_first, reader
from services.consumers.reading import Unreadable, unreadable_of
from services.runtime.kafka import Record, admin_client, check_codecs, describe_topics, unreachable
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.lag")

GROUPS = ("completion-recorder", "sankey-aggregator")
RECORDER, AGGREGATOR = GROUPS

#: How long the oldest waiting events may take to read, in seconds, before lag is told without its age.
_READ_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Lag:
    """A group's progress, summed over the partitions of the topic."""

    group: str
    committed: int
    end: int

    @property
    def events(self) -> int:
        """Events that the group has yet to commit."""
        return self.end - self.committed


@dataclass(frozen=True, slots=True)
class GroupPosition:
    """Where a group is on a partition.

    `committed` is None where the group never committed, and so begins at `begin`. `waiting_since` is when
    the oldest event that it has yet to pass came to Kafka, in milliseconds since the epoch; None where none
    waits, or that could not be read. `lag` counts offsets: markers of transactions among them.
    """

    partition: int
    begin: int
    committed: int | None
    end: int
    lag: int
    waiting_since: int | None = None
    member: str | None = None
    #: What the group cannot read next, and why.
    unreadable: str | None = None

    @property
    def next_offset(self) -> int:
        """What the group reads next."""
        return self.begin if self.committed is None else max(self.committed, self.begin)


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: its service and name, Kafka's word for its state, who is in it, and where it is."""

    service: str
    group: str
    state: str
    members: dict[str, list[int]]
    positions: list[GroupPosition] = field(default_factory=list)

    @property
    def lag(self) -> int:
        """Events that the group has yet to pass."""
        return sum(p.lag for p in self.positions)

    @property
    def waiting_since(self) -> int | None:
        """When the oldest event that waits came to Kafka."""
        return min((p.waiting_since for p in self.positions if p.waiting_since is not None), default=None)


@dataclass(frozen=True, slots=True)
class Committed:
    """What a group has committed, by partition of the topic, and who is in it.

    `words` is what was said with the offsets: whose database it is that has all before them.
    """

    state: str
    members: dict[str, list[int]]
    committed: dict[int, int]
    words: dict[int, str] = field(default_factory=dict)


async def partitions_of(admin: AIOKafkaAdminClient, topic: str) -> list[TopicPartition]:
    """The partitions of a topic in order.

    Raises:
        ConfigurationError: there is no such topic.
        TopicAuthorizationFailedError: Kafka does not tell us whether there is.
    """
    (described,) = await describe_topics(admin, topic)
    return [TopicPartition(topic, n) for n in sorted(p["partition"] for p in described["partitions"])]


async def committed_offsets(settings: Settings, service: str) -> Committed:
    """What a service's group has committed.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    async with admin_client(settings) as admin:
        try:
            return await committed_with(admin, settings, service)
        except KafkaError as error:
            raise unreachable(settings, error) from error


async def committed_with(admin: AIOKafkaAdminClient, settings: Settings, service: str) -> Committed:
    """As `committed_offsets`, with a client that stays open.

    Raises:
        KafkaError: Kafka does not answer.
    """
    # One group a request: aiokafka reads an answer of several wrongly.
    answer: Any
    (answer,) = await admin.describe_consumer_groups([settings.group(service)])
    state, members = answer.groups[0][2], answer.groups[0][5]
    offsets = await admin.list_consumer_group_offsets(settings.group(service))
    ours = {p.partition: o for p, o in offsets.items() if p.topic == settings.topic and o.offset >= 0}
    return Committed(
        state,
        {_name(m): _assigned(m[4], settings.topic) for m in members},
        {p: o.offset for p, o in ours.items()},
        {p: o.metadata or "" for p, o in ours.items()},
    )


def _name(member: Sequence[Any]) -> str:
    """A member in short: the random part of its id, and its host."""
    member_id, client_id, host = member[:3]
    return f"{member_id.removeprefix(client_id + '-')[:8]} at {host.removeprefix('/')}"


def _assigned(encoded: bytes, topic: str) -> list[int]:
    if not encoded:
        return []
    decoded = ConsumerProtocolMemberAssignment.decode(encoded)
    return sorted(p.partition for p in decoded.partitions() if p.topic == topic)


async def read_groups(
    settings: Settings, services: Sequence[str] = GROUPS, *, ages: bool = True
) -> list[Group]:
    """Each group of Stepstream, partition by partition.

    Args:
        settings: where Kafka is.
        services: whose groups.
        ages: whether to read the oldest waiting events, for when they came.

    Raises:
        StepstreamError: Kafka cannot be reached.
        ConfigurationError: there is no topic, or a codec cannot be read.
    """
    async with admin_client(settings) as admin, reader(settings) as consumer:
        groups = await read_groups_with(admin, consumer, settings, services)
    if not ages:
        return groups
    try:
        return [replace(g, positions=await _with_ages(settings, g.positions)) for g in groups]
    except KafkaError as error:
        raise unreachable(settings, error) from error


async def read_groups_with(
    admin: AIOKafkaAdminClient,
    consumer: AIOKafkaConsumer,
    settings: Settings,
    services: Sequence[str] = GROUPS,
) -> list[Group]:
    """As `look` without ages, with clients that stay open: for those who look again and again."""
    try:
        partitions = await partitions_of(admin, settings.topic)
        begins = await consumer.beginning_offsets(partitions)
        groups = []
        for service in services:
            found = await committed_with(admin, settings, service)
            # After what is committed, so that no group is ahead of the end.
            ends = await consumer.end_offsets(partitions)
            members = {p: name for name, owned in found.members.items() for p in owned}
            positions = []
            for p in partitions:
                at = found.committed.get(p.partition)
                following = begins[p] if at is None else max(at, begins[p])
                lag = max(0, ends[p] - following)
                member = members.get(p.partition)
                positions.append(GroupPosition(p.partition, begins[p], at, ends[p], lag, None, member))
            groups.append(Group(service, settings.group(service), found.state, found.members, positions))
    except KafkaError as error:
        raise unreachable(settings, error) from error
    return groups


async def _with_ages(settings: Settings, positions: Sequence[GroupPosition]) -> list[GroupPosition]:
    """With when the oldest waiting event came; where only markers of transactions wait, nothing does."""
    waiting = {TopicPartition(settings.topic, p.partition): p for p in positions if p.lag}
    if waiting:
        check_codecs()
    oldest, left_out = await _read_oldest(settings, waiting)
    unreadable = {
        found.tp.partition: found
        for found in reversed(left_out)
        if found.offset == waiting[found.tp].next_offset
    }
    passed = {tp.partition for tp, record in oldest.items() if record is None}
    since = {tp.partition: record.timestamp for tp, record in oldest.items() if record is not None}
    since |= {p: found.timestamp for p, found in unreadable.items() if found.timestamp is not None}
    return [
        GroupPosition(
            p.partition,
            p.begin,
            p.committed,
            p.end,
            0 if p.partition in passed - unreadable.keys() else p.lag,
            since.get(p.partition),
            p.member,
            str(unreadable[p.partition]) if p.partition in unreadable else None,
        )
        for p in positions
    ]


async def held_back_since(
    settings: Settings, positions: Sequence[GroupPosition], high_watermarks: Mapping[int, int]
) -> dict[int, int]:
    """When the oldest event came that a producer's open transaction holds back, by partition.

    In milliseconds since the epoch, as its producer says. Partitions of which nothing is held back are left
    out, and those of which it cannot be read in time.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    held = {
        TopicPartition(settings.topic, p.partition): replace(p, committed=p.end, end=end)
        for p in positions
        if (end := high_watermarks.get(p.partition, 0)) > p.end
    }
    oldest, _ = await _read_oldest(settings, held, "read_uncommitted")
    return {tp.partition: record.timestamp for tp, record in oldest.items() if record is not None}


async def _read_oldest(
    settings: Settings,
    waiting: Mapping[TopicPartition, GroupPosition],
    isolation_level: str = "read_committed",
) -> tuple[dict[TopicPartition, "Record | None"], list[Unreadable]]:
    """The oldest waiting event of each partition, read in bounded time, and what cannot be read.

    None where only markers of transactions wait.
    """
    found: dict[TopicPartition, Record | None] = {}
    if not waiting:
        return found, []
    # A consumer of its own: one that is assigned a partition again does not get past a marker there.
    async with reader(settings, quiet=True, isolation_level=isolation_level) as consumer:
        with contextlib.suppress(TimeoutError, UnreadableError):
            async with asyncio.timeout(_READ_SECONDS):
                ranges = {tp: (p.next_offset, p.end) for tp, p in waiting.items()}
                await read_first(consumer, ranges, found)
        return found, unreadable_of(consumer)


async def lags(settings: Settings) -> list[Lag]:
    """The lag of each group of Stepstream; a group that never committed is at the beginning.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    return [
        Lag(g.service, sum(p.next_offset for p in g.positions), sum(p.end for p in g.positions))
        for g in await read_groups(settings, ages=False)
    ]

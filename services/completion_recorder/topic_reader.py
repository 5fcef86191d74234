"""Reads the topic portion by portion, to be held against the tables."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.completion_recorder.topic_parts import Part, TopicStart, plan_part
from services.consumers.lag import partitions_of
from services.consumers.positions import Position
from services.consumers.reader import read_first, read_range
from services.consumers.reading import Unreadable, unreadable_of
from services.consumers.topic import describe_log
from services.runtime.errors import UsageError
from services.runtime.kafka import Record, admin_client
from services.runtime.settings import Settings

#: So long without a record, in seconds, and Kafka is said to be away.
_SILENCE = 60.0
#: How long to look whether nothing but markers of transactions is left, in seconds.
_MARKERS_SECONDS = 5.0

#: Told how many offsets of how many are done.
Progress: TypeAlias = Callable[[int, int], None]


class TopicReader:
    """What is read of the topic, with a consumer that is alone at it.

    Args:
        settings: which topic.
        consumer: without a group.
        progress: told after each portion.
        portion: about so many records come at once.
    """

    def __init__(
        self, settings: Settings, consumer: AIOKafkaConsumer, progress: Progress, portion: int
    ) -> None:
        self._settings = settings
        self._consumer = consumer
        self._progress = progress
        self._portion = portion

    async def plan(
        self, start: TopicStart, partitions: Sequence[int] | None, stored: Mapping[int, Position]
    ) -> list[Part]:
        """What of each partition is to be read, given where the recorder is.

        Raises:
            UsageError: there is no such partition.
        """
        async with admin_client(self._settings) as admin:
            there = await partitions_of(admin, self._settings.topic)
        tps = [tp for tp in there if partitions is None or tp.partition in partitions]
        if absent := set(partitions or ()) - {tp.partition for tp in there}:
            raise UsageError(
                f"{self._settings.topic} has partitions 0 to {len(there) - 1}, and no "
                f"{', '.join(map(str, sorted(absent)))}"
            )
        log = await describe_log(self._consumer._client, self._settings.topic)  # noqa: SLF001
        wanted: dict[TopicPartition, int | None] = dict.fromkeys(tps, start.offset or 0)
        if start.time_ms is not None:
            found = await self._consumer.offsets_for_times(dict.fromkeys(tps, start.time_ms))
            wanted = {tp: None if at is None else at.offset for tp, at in found.items()}
        begins = await self._consumer.beginning_offsets(tps)
        ends = await self._consumer.end_offsets(tps)
        return [
            plan_part(tp.partition, begins[tp], ends[tp], wanted[tp], stored.get(tp.partition), log)
            for tp in tps
        ]

    async def begins(self, partitions: Sequence[int]) -> dict[int, int]:
        """The first offset of each partition that Kafka still has."""
        begins = await self._consumer.beginning_offsets(self._tps(partitions))
        return {tp.partition: offset for tp, offset in begins.items()}

    async def ends(self, partitions: Sequence[int]) -> dict[int, int]:
        """The offset behind the last of each partition."""
        ends = await self._consumer.end_offsets(self._tps(partitions))
        return {tp.partition: offset for tp, offset in ends.items()}

    def _tps(self, partitions: Sequence[int]) -> list[TopicPartition]:
        return [TopicPartition(self._settings.topic, partition) for partition in partitions]

    async def portions(self, ranges: Mapping[int, tuple[int, int]]) -> AsyncIterator[list[Record]]:
        """The records of these ranges: of each partition from an offset up to another.

        Raises:
            SilentError: Kafka has sent nothing for long.
        """
        tps = {TopicPartition(self._settings.topic, p): r for p, r in ranges.items() if r[0] < r[1]}
        total, batch = sum(until - first for first, until in tps.values()), list[Record]()
        async for piece in read_range(self._consumer, tps, at_most=self._portion, patience=_SILENCE):
            batch += piece.records
            if len(batch) >= self._portion or (batch and piece.finished == tps.keys()):
                yield batch
                batch = []
                self._progress(piece.passed, total)

    async def without_markers(self, parts: Sequence[Part]) -> list[Part]:
        """Looks whether an event comes after what was read, where there is something."""
        left = {
            TopicPartition(self._settings.topic, p.partition): (p.until, p.end) for p in parts if p.not_judged
        }
        found: dict[TopicPartition, Record | None] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MARKERS_SECONDS):
                await read_first(self._consumer, left, found)
        passed = {tp.partition for tp, record in found.items() if record is None}
        return [replace(p, ends_with_markers=p.partition in passed) for p in parts]

    def unreadable(self, parts: Sequence[Part]) -> list[Unreadable]:
        """The batches of these parts that nobody can read, in order."""
        ends = {p.partition: p.until for p in parts}
        found = {u for u in unreadable_of(self._consumer) if u.offset < ends[u.tp.partition]}
        return sorted(found, key=lambda u: (u.tp.partition, u.offset))

"""How far the partitions of an instance go, and whether there is progress."""

import contextlib
import time
from collections.abc import Collection, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.consumers.positions import Position
from services.runtime.telemetry import LAG


class Progress:
    """Where the partitions of this instance end, and whether there is progress."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._moved: dict[TopicPartition, tuple[int, float]] = {}
        self._behind: set[TopicPartition] = set()

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """Forgets what it knew: others may have been here meanwhile."""
        for gone in self._moved.keys() - set(partitions):
            with contextlib.suppress(KeyError):
                LAG.remove(self._service, str(gone.partition))
        self._moved.clear()
        self._behind.clear()

    def unseen(self) -> None:
        """Kafka does not answer: what was known of the ends says nothing about progress."""
        self._behind.clear()

    async def measure(
        self,
        consumer: AIOKafkaConsumer,
        partitions: Collection[TopicPartition],
        positions: Mapping[int, Position],
        *,
        idle: bool,
    ) -> None:
        """Looks how far partitions go; the end is the last offset that no open transaction holds back."""
        ends = await consumer.end_offsets(list(partitions)) if partitions else {}
        now = time.monotonic()
        for partition, end in ends.items():
            position = await consumer.position(partition)
            if not idle or position != self._moved.get(partition, (-1, 0))[0]:
                self._moved[partition] = (position, now)
            if position < end:
                self._behind.add(partition)
            else:
                self._behind.discard(partition)
                self._moved[partition] = (position, now)
            # Past the last record there may be the marker of a transaction, which nobody reads.
            known = positions.get(partition.partition)
            at = end if idle and position >= end else known.reads_from if known else 0
            LAG.labels(self._service, str(partition.partition)).set(max(0, end - at))

    def stale(self, bound: float, held: Collection[TopicPartition]) -> str | None:
        """A partition with lag whose position has not moved for so many seconds; not those that are held."""
        now = time.monotonic()
        for partition in self._behind.difference(held):
            if now - self._moved[partition][1] > bound:
                return str(partition.partition)
        return None

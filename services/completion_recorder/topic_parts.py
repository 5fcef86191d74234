"""What is read of each partition where the tables are held against the topic, and the digests of it: pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.consumers.positions import Digest, Position
from services.consumers.topic import TopicLog
from services.runtime.kafka import Record


@dataclass(frozen=True, slots=True)
class TopicStart:
    """Where to begin: at a time or an offset; neither is the first event that there is."""

    time_ms: int | None = None
    offset: int | None = None

    @property
    def is_beginning(self) -> bool:
        """Whether all is read."""
        return self.time_ms is None and self.offset is None


Agreement: TypeAlias = Literal["same", "differs", "not comparable"]


@dataclass(frozen=True, slots=True)
class Part:
    """What is read of a partition: from `start` up to `until`, of what Kafka holds from `begin` to `end`.

    `recorded` is the stored digest where all that it covers is read, and None elsewhere.
    """

    partition: int
    begin: int
    start: int
    until: int
    end: int
    recorded: Digest | None = None
    note: str = ""
    #: Whether nothing but markers of transactions comes after `until`.
    ends_with_markers: bool = False

    @property
    def not_judged(self) -> int:
        """Offsets that the recorder has yet to pass."""
        return 0 if self.ends_with_markers else self.end - max(self.until, self.begin)


def plan_part(
    partition: int, begin: int, end: int, wanted: int | None, stored: Position | None, log: TopicLog
) -> Part:
    """What of a partition is read, given where the recorder is; `wanted` is None where nothing is so new."""
    until, note = 0 if stored is None else stored.next_offset, ""
    if stored is not None and not _is_of(stored, log):
        until, note = begin, "the recorder's position is of another log: the topic was made anew, or moved"
        stored = None
    elif until > end:
        note = (
            f"the recorder has read up to offset {until:,}, and the log ends at {end:,}: its end was cut off"
        )
        until, stored = end, None
    until = max(until, begin)
    start = until if wanted is None else min(max(wanted, begin), until)
    recorded = None
    if stored is not None and until == stored.next_offset and start <= stored.digest.from_offset:
        recorded = stored.digest
    return Part(partition, begin, start, until, end, recorded, note)


def _is_of(position: Position, log: TopicLog) -> bool:
    ids = ((position.cluster_id, log.cluster_id), (position.topic_id, log.topic_id))
    return all(not mine or not seen or mine == seen for mine, seen in ids)


def compare_digests(recorded: Digest | None, read: Digest) -> Agreement:
    """Whether the recorder has read what the topic holds."""
    if recorded is None:
        return "not comparable"
    return "same" if recorded == read else "differs"


def add_to_digests(digests: Mapping[int, Digest], records: Iterable[Record]) -> dict[int, Digest]:
    """With these records, each in that of its partition from its first offset on."""
    parts: dict[int, list[Record]] = {}
    for record in records:
        digest = digests.get(record.partition)
        if digest is not None and record.offset >= digest.from_offset:
            parts.setdefault(record.partition, []).append(record)
    return {**digests, **{p: digests[p].after(fingerprints) for p, fingerprints in parts.items()}}

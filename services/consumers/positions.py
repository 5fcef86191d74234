"""Where a service reads on: the rule, without I/O.

A position is kept in PostgreSQL, in the transaction of what it covers, and says which log it is of. Reading
again is harmless and skipping is not: whatever moved, the service reads on at the smaller place.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from services.runtime.kafka import Record

Cause: TypeAlias = Literal["expired", "cut", "topic-made-anew", "moved", "skipped"]

_64_BITS: Final = 2**64
_32_BITS: Final = 2**32


class Fingerprint(NamedTuple):
    """A record in short: its offset, when it came in milliseconds, and a checksum of key and value."""

    offset: int
    timestamp: int
    checksum: int

    @classmethod
    def of(cls, record: Record) -> "Fingerprint":
        """The fingerprint of a record."""
        return cls(record.offset, record.timestamp, checksum(record))


class Witnessed(NamedTuple):
    """A record that was in the log of this topic id, in this leader epoch of its partition or a later one."""

    topic_id: str
    partition: int
    leader_epoch: int
    record: Fingerprint


def checksum(record: Record) -> int:
    """CRC-32 of key and value."""
    return zlib.crc32(record.value or b"", zlib.crc32(record.key or b""))


class Digest(NamedTuple):
    """What was read from an offset on: how many records, and a sum of a checksum of each, in 64 bits.

    A sum, so that batches add up however they are cut; each record's offset is in its checksum.
    """

    from_offset: int
    events: int = 0
    total: int = 0

    def after(self, records: Sequence[Record]) -> "Digest":
        crc32 = zlib.crc32  # for each of many events
        more = sum([crc32(r.value or b"", crc32(r.key or b"", r.offset % _32_BITS)) for r in records])
        return Digest(self.from_offset, self.events + len(records), (self.total + more) % _64_BITS)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a service is on a partition, and of which log that is said.

    It reads on at `reads_from`. All before `next_offset` it has read once; the two differ while events are
    read again. Ids that are not known are empty.
    """

    reads_from: int = 0
    next_offset: int = 0
    #: Before this offset all is replayed: a log before this one went so far.
    marks_until: int = 0
    cluster_id: str = ""
    topic_id: str = ""
    leader_epoch: int | None = None
    last: Fingerprint | None = None
    digest: Digest = field(default_factory=lambda: Digest(0))

    def after(self, records: Sequence[Record]) -> "Position":
        """Behind these records of the partition, of which the first is the next that there is."""
        following = records[-1].offset + 1
        if following <= self.next_offset:
            return replace(self, reads_from=following)
        horizon = max(self.next_offset, self.digest.from_offset)
        new = records if records[0].offset >= horizon else [r for r in records if r.offset >= horizon]
        return replace(
            self,
            reads_from=following,
            next_offset=following,
            last=Fingerprint.of(records[-1]),
            digest=self.digest.after(new),
        )

    def back_to(self, offset: int) -> "Position":
        """To be read again from there; where all is, the digest begins anew behind it."""
        digest = Digest(self.next_offset) if offset <= self.digest.from_offset else self.digest
        return replace(self, reads_from=min(self.reads_from, offset), digest=digest)

    def past(self, offset: int) -> "Position":
        """Past offsets of which nobody reads anything."""
        return replace(self, reads_from=offset, next_offset=max(self.next_offset, offset))

    def agrees_with(self, other: "Position") -> bool | None:
        """Whether both have read the same; None where their digests cannot be compared."""
        mine, others = self.digest, other.digest
        if self.next_offset != other.next_offset or mine.from_offset != others.from_offset:
            return None
        return mine == others


@dataclass(frozen=True, slots=True)
class Seen:
    """What Kafka says about a partition, and what the group has committed there; None is not known.

    `epoch_end` is where the epoch of the stored position ends in this log, where there is a later one; None
    where the log knows of no such epoch. `same_record` is whether records that were known to be behind it are
    there still: the last that was read, fetched, or acknowledged to a relay.
    """

    begin: int
    committed: int | None = None
    cluster_id: str = ""
    topic_id: str = ""
    leader_epoch: int | None = None
    epoch_end: int | None = None
    same_record: bool | None = None

    def is_later_epoch(self, stored: Position) -> bool:
        """Whether another leader may have cut the log since the position was written."""
        epochs = (stored.leader_epoch, self.leader_epoch)
        return None not in epochs and stored.leader_epoch != self.leader_epoch


class Gone(NamedTuple):
    """Offsets whose events are in Kafka no more; `until` is exclusive, None where it is not known."""

    cause: Cause
    from_offset: int
    until: int | None
    #: When the last event before them came, and the first after them, in milliseconds since the epoch.
    before_at: int | None = None
    after_at: int | None = None
    #: Up to where they had been judged before they were gone, exclusively: that is in the tables.
    judged_until: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a service reads on, and why there.

    `missed` counts offsets that it had not read and cannot read any more. With `other_log` what it had read,
    or others had, may be told by no event: all journeys are to be looked at.
    """

    position: Position
    gone: Sequence[Gone] = ()
    missed: int = 0
    other_log: bool = False
    why: Sequence[str] = field(default_factory=list)


def decide(stored: Position | None, seen: Seen) -> Placement:
    """Where a service reads on, given what it knows of a partition and what Kafka says."""
    if stored is None:
        fresh = Position(seen.begin, seen.begin, digest=Digest(seen.begin))
        gone = [Gone("expired", 0, seen.begin)] if seen.begin else []
        why = ["this database knows nothing of the partition"]
        return Placement(_of_log(fresh, seen), gone, seen.begin, why=why)
    if _is_other(stored.cluster_id, seen.cluster_id) or _is_other(stored.topic_id, seen.topic_id):
        return _anew(stored, seen)
    position, gone, why = stored, [], []
    if seen.is_later_epoch(stored):
        position, gone, why = _check_truncation(stored, seen)
    other_log = bool(gone)
    if seen.committed is not None and seen.committed < position.reads_from:
        why.append(f"the group's committed offset is {seen.committed}: from there it is read again")
        position = replace(position, reads_from=seen.committed)
    elif seen.committed is not None and seen.committed > position.reads_from:
        why.append(
            f"the group's committed offset is {seen.committed}, and the database has only what is before "
            f"{position.reads_from}: from there it is read again"
        )
    missed = max(0, seen.begin - position.reads_from)
    if missed:
        position, expired = _after_expiry(position, seen.begin)
        gone += expired
    return Placement(_of_log(position, seen), gone, missed, other_log, why)


def _is_other(stored: str, seen: str) -> bool:
    return bool(stored and seen and stored != seen)


def _of_log(position: Position, seen: Seen) -> Position:
    """With the log's ids and epoch as they are now, where they are known."""
    epoch = position.leader_epoch if seen.leader_epoch is None else seen.leader_epoch
    return replace(
        position,
        cluster_id=seen.cluster_id or position.cluster_id,
        topic_id=seen.topic_id or position.topic_id,
        leader_epoch=epoch,
    )


def _at(last: Fingerprint | None) -> int | None:
    return None if last is None else last.timestamp


def _anew(stored: Position, seen: Seen) -> Placement:
    """Another log: all of it is read, and what the old one held after the position is gone."""
    is_moved = _is_other(stored.cluster_id, seen.cluster_id)
    cause: Cause = "moved" if is_moved else "topic-made-anew"
    fresh = Position(
        seen.begin,
        seen.begin,
        marks_until=max(stored.marks_until, stored.next_offset),
        digest=Digest(seen.begin),
    )
    gone = [Gone(cause, stored.next_offset, None, _at(stored.last))]
    if seen.begin:
        gone.append(Gone("expired", 0, seen.begin))
    why = ["it is another cluster" if is_moved else "the topic was made anew"]
    return Placement(_of_log(fresh, seen), gone, seen.begin, other_log=True, why=why)


def _check_truncation(stored: Position, seen: Seen) -> tuple[Position, list[Gone], list[str]]:
    """Was the log cut behind our back? Kafka's answer is where the epoch that we know ends (KIP-320)."""
    end = seen.epoch_end
    if seen.same_record is not False:
        # Read in a later epoch already, maybe behind a cut that nobody saw: once more does no harm.
        reads_from = stored.reads_from if end is None else min(stored.reads_from, end)
        why = [f"another leader took over at offset {end}"] if reads_from < stored.reads_from else []
        return replace(stored, reads_from=reads_from), [], why
    if end is None:
        end = seen.begin
    why = [f"the log was cut at offset {end}, and was read up to {stored.next_offset}"]
    if end >= stored.next_offset:  # what is gone had not been read
        return stored, [Gone("cut", end, None, _at(stored.last))], why
    position = replace(
        stored,
        reads_from=min(stored.reads_from, end),
        next_offset=end,
        marks_until=max(stored.marks_until, stored.next_offset),
        last=None,
        digest=Digest(end),
    )
    return position, [Gone("cut", end, None, judged_until=stored.next_offset)], why


def _after_expiry(position: Position, begin: int) -> tuple[Position, list[Gone]]:
    """Retention was quicker: it goes on at the oldest event there is."""
    if begin <= position.next_offset:
        return replace(position, reads_from=begin), []
    gone = [Gone("expired", position.next_offset, begin, _at(position.last))]
    return replace(position, reads_from=begin, next_offset=begin, digest=Digest(begin)), gone

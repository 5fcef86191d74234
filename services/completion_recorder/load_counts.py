"""Loads, and what one adds to the counts: pure, from what was known before it and what became of it.

Only what is read for the first time is counted: a replay tells nothing of who sends what.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from services.completion_recorder.guard import Chunk, Recent, what_is_wrong
from services.completion_recorder.judge import Accepted, Refused
from services.completion_recorder.source_tally import (
    Counts,
    SourceNames,
    Unwritten,
    count_by_source,
    kinds_of,
)
from services.consumers.stored_positions import Advance
from services.runtime.kafka import Offsets, Record


class Before(NamedTuple):
    """What was known of a partition before a load."""

    #: What is below this offset was read before: it is not where the service reads on, which may be lower.
    replayed_before: int
    #: Of the recent events, how many there were, and how many were refused.
    recent: Chunk


class Load(NamedTuple):
    """Records that are written in one transaction: readable events, other records, and how far they go.

    Without `advance` they are written as they are, wherever the position is; it moves only forward. Events of
    the sources `registering` have people and sessions made that are missing.
    """

    topic: str
    offsets: Offsets
    accepted: Sequence[Accepted]
    unreadable: Sequence[Refused] = ()
    advance: Advance | None = None
    registering: Set[str] = frozenset()

    @property
    def records(self) -> list[Record]:
        """All of them; not in the order of the log."""
        return [one.record for part in (self.accepted, self.unreadable) for one in part]


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What this process knew before a load."""

    recent: Recent = field(default_factory=Recent)
    #: Partitions of which this process has recorded. How many recent events of the others were refused a
    #: predecessor may have seen: that is in the database.
    recorded_partitions: Set[int] = frozenset()
    #: Sources that are told apart.
    names: Set[str] = frozenset()
    #: How many the topic has; 0 where that is not known.
    partitions: int = 0
    #: Counts of loads before, to be written with those of this one; None where that is not due yet.
    taken: Unwritten | None = None
    #: Whether this process has recorded of the topic, which may not be written yet.
    has_recorded: bool = False
    #: Whether it may be the wrong database.
    is_guarded: bool = True


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """What is counted of a load, and what of it is to be written in its transaction."""

    recent: Recent
    #: How many events were judged for the first time, and refused.
    judged: Chunk
    counts: Mapping[str, Counts]
    #: Sources that were not told apart before.
    new_names: Set[str]
    #: How many of the records were read before.
    read_again: int
    #: Partition and offset of the records of people who were erased.
    of_erased: Collection[tuple[int, int]]
    to_write: Unwritten
    #: What to say where this is the wrong database; empty where it does not look like it.
    wrong_database_message: str


def count_load(
    load: Load,
    context: LoadContext,
    before: Mapping[int, Before],
    refused: Sequence[Refused],
    of_erased: Collection[tuple[int, int]],
) -> LoadCounts:
    """Counts what is read for the first time.

    Args:
        load: its records.
        context: what this process knew before.
        before: what the database knew of their partitions.
        refused: those of the records that are no event that counts.
        of_erased: partition and offset of those of people who were erased.
    """
    records = load.records
    new = [r for r in records if r.offset >= before[r.partition].replayed_before]
    new_refused = [r for r in refused if r.record.offset >= before[r.record.partition].replayed_before]
    names = SourceNames(context.names)
    counts = count_by_source(new, new_refused, of_erased, names, context.partitions)
    recent = Recent()
    if context.is_guarded:
        recent = _resumed(context, before).after(len(new), len(new_refused))
    is_suspect = recent.is_suspect and bool(new_refused)
    return LoadCounts(
        recent,
        Chunk(len(new), len(new_refused)),
        counts,
        names.new,
        len(records) - len(new),
        of_erased,
        _to_write(context.taken, counts, new_refused, names),
        what_is_wrong(recent.total, load.topic, new_refused, names) if is_suspect else "",
    )


def _resumed(context: LoadContext, before: Mapping[int, Before]) -> Recent:
    recent = context.recent
    for partition in before.keys() - context.recorded_partitions:
        recent = recent.resumed(before[partition].recent)
    return recent


def _to_write(
    taken: Unwritten | None, counts: Mapping[str, Counts], refused: Sequence[Refused], names: SourceNames
) -> Unwritten:
    """What was refused, always; the rest where it is due."""
    kinds = kinds_of(refused, names)
    if taken is None:
        return Unwritten(refused=kinds)
    due = Unwritten(refused=[*taken.refused, *kinds])
    due.add(Unwritten(taken.counts, taken.source_servers))
    due.add(Unwritten(dict(counts)))
    return due

"""What a load adds to the counts: pure, from what was known before it and what became of it.

Only what is read for the first time is counted: a replay tells nothing of who sends what.
"""

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from services.completion_recorder.guard import Chunk, Recent, what_is_wrong
from services.completion_recorder.judge import Refused
from services.completion_recorder.tally import Counts, Names, Unwritten, count_by_source, kinds_of
from services.runtime.kafka import Record


class Before(NamedTuple):
    """What was known of a partition before the batch; before `next_offset` all is replayed."""

    next_offset: int
    recent: Chunk


@dataclass(frozen=True, slots=True)
class Load:
    """Records that are written together, and what this process knew before them."""

    records: Sequence[Record]
    recent: Recent = field(default_factory=Recent)
    #: Partitions of which this process has recorded. How many recent events of the others were refused a
    #: predecessor may have seen: that is in the database.
    seen: Set[int] = frozenset()
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
    counts: Mapping[str, Counts]
    #: Sources that were not told apart before.
    new_names: Set[str]
    #: How many of the records were read before.
    read_again: int
    #: Partition and offset of the records of people who were erased.
    of_erased: Collection[tuple[int, int]]
    to_write: Unwritten
    #: What to say where this is the wrong database; empty where it does not look like it.
    if_wrong: str


def count_load(
    load: Load,
    topic: str,
    before: Mapping[int, Before],
    refused: Sequence[Refused],
    of_erased: Collection[tuple[int, int]],
) -> LoadCounts:
    """Counts what is read for the first time.

    Args:
        load: its records, and what was known.
        topic: what they were read from.
        before: what the database knew of their partitions.
        refused: those of the records that are no event that counts.
        of_erased: partition and offset of those of people who were erased.
    """
    new = [r for r in load.records if r.offset >= before[r.partition].next_offset]
    new_refused = [r for r in refused if r.record.offset >= before[r.record.partition].next_offset]
    names = Names(load.names)
    counts = count_by_source(new, new_refused, of_erased, names, load.partitions)
    recent = Recent()
    if load.is_guarded:
        recent = _resumed(load, before).after(len(new), len(new_refused))
    is_suspect = recent.is_suspect and bool(new_refused)
    return LoadCounts(
        recent,
        counts,
        names.new,
        len(load.records) - len(new),
        of_erased,
        _to_write(load.taken, counts, new_refused, names),
        what_is_wrong(recent.total, topic, new_refused, names) if is_suspect else "",
    )


def _resumed(load: Load, before: Mapping[int, Before]) -> Recent:
    recent = load.recent
    for partition in before.keys() - load.seen:
        recent = recent.resumed(before[partition].recent)
    return recent


def _to_write(
    taken: Unwritten | None, counts: Mapping[str, Counts], refused: Sequence[Refused], names: Names
) -> Unwritten:
    """What was refused, always; the rest where it is due."""
    kinds = kinds_of(refused, names)
    if taken is None:
        return Unwritten(refused=kinds)
    due = Unwritten(refused=[*taken.refused, *kinds])
    due.add(Unwritten(taken.counts, taken.places))
    due.add(Unwritten(dict(counts)))
    return due

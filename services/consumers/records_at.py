"""Single records of a topic, looked up: whether they are in the log still, and when they came."""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from aiokafka import TopicPartition

from services.consumers.batches import UnreadableError
from services.consumers.positions import Fingerprint, Gone
from services.consumers.reader import SilentError, read_first, reader
from services.consumers.reading import unreadable_of
from services.runtime.kafka import Record
from services.runtime.settings import Settings

#: How long no record may come where some are read again, and how much of a partition is fetched for one.
_READ_SECONDS = 5.0
_READ_BYTES = 64 * 1024

Place: TypeAlias = tuple[TopicPartition, int]
#: A record in short; None where there is none.
Found: TypeAlias = Fingerprint | Literal["unreadable"] | None


async def records_at(settings: Settings, wanted: Iterable[Place]) -> dict[Place, Found]:
    """The records at these places, or the next that there are; None where none comes.

    Many partitions at once: one after another they would take a tenth of a second each.
    """
    found: dict[Place, Found] = {}
    left = sorted(set(wanted))
    while left:
        at: dict[TopicPartition, int] = {}
        for tp, offset in left:
            at.setdefault(tp, offset)
        left = [(tp, offset) for tp, offset in left if at[tp] != offset]
        found |= {(tp, at[tp]): there for tp, there in (await _record_of_each(settings, at)).items()}
    return found


async def _record_of_each(
    settings: Settings, at: Mapping[TopicPartition, int]
) -> dict[TopicPartition, Found]:
    """One record of each partition."""
    found: dict[TopicPartition, Record | None] = dict.fromkeys(at)
    async with reader(settings, quiet=True, max_partition_fetch_bytes=_READ_BYTES) as consumer:
        ends = await consumer.end_offsets(list(at))
        ranges = {tp: (offset, ends[tp]) for tp, offset in at.items()}
        with contextlib.suppress(SilentError, UnreadableError):
            await read_first(consumer, ranges, found, patience=_READ_SECONDS)
        shown: dict[TopicPartition, Found] = {
            tp: None if record is None else Fingerprint.of(record) for tp, record in found.items()
        }
        for one in unreadable_of(consumer):
            record = found[one.tp]
            if record is None or one.offset < record.offset:  # else it is behind what was looked for
                shown[one.tp] = "unreadable"
        return shown


def is_record(one: Fingerprint, found: Found) -> bool:
    """Whether what was found is this record."""
    return isinstance(found, Fingerprint) and (found.offset, found.checksum) == (one.offset, one.checksum)


async def are_still_there(
    settings: Settings,
    known: Mapping[TopicPartition, Collection[Fingerprint]],
    begins: Mapping[TopicPartition, int],
) -> dict[TopicPartition, bool | None]:
    """Whether records are in the log as they were; None where none can be looked for."""
    looked_for = {tp: [one for one in its if one.offset >= begins[tp]] for tp, its in known.items()}
    found = await records_at(settings, ((tp, one.offset) for tp, its in looked_for.items() for one in its))
    answers: dict[TopicPartition, bool | None] = {}
    for tp, its in looked_for.items():
        there = [
            is_record(one, found[tp, one.offset]) for one in its if found[tp, one.offset] != "unreadable"
        ]
        answers[tp] = all(there) if there else None
    return answers


async def with_times(settings: Settings, gone: Mapping[int, Sequence[Gone]]) -> dict[int, list[Gone]]:
    """With the time of the event that comes after those that are gone, where there is one."""
    topic = settings.topic
    following = {
        (p, one): (TopicPartition(topic, p), offset)
        for p, its in gone.items()
        for one in its
        for offset in [one.from_offset if one.cause == "cut" else one.until]
        if offset is not None
    }
    found = await records_at(settings, following.values())

    def with_time(p: int, one: Gone) -> Gone:
        there = found[following[p, one]] if (p, one) in following else None
        return one._replace(after_at=there.timestamp) if isinstance(there, Fingerprint) else one

    return {p: [with_time(p, one) for one in its] for p, its in gone.items()}

"""What is odd about a producer's events taken together, where each of them alone may count: pure."""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from aiokafka.partitioner import DefaultPartitioner

from schemas import AnyEvent
from services.operations.event_files import Item
from services.runtime.sources import NO_SOURCE, source_of
from services.runtime.text import format_duration, format_time, plural

_DAY_MS: Final = 86_400_000
_HALF_HOUR_MS: Final = 1_800_000
#: From so many events on times that are alike are no chance.
_LEAST: Final = 5
#: Clocks may differ by this much, in milliseconds.
_CLOCKS_MS: Final = 60_000
#: Zones are at most so far from UTC; and so near to whole half hours is meant.
_ZONES_MS: Final = 14 * 3_600_000
_NEAR_MS: Final = 120_000
#: Such a part of the records has to be apart from their own time by the same half hours.
_MOST: Final = 0.8
#: What Kafka takes of a batch by default is a little more.
_LARGE: Final = 1_000_000
_NIL: Final = "00000000-0000-0000-0000-000000000000"

_murmur2 = DefaultPartitioner()


def _fnv_1a(key: bytes) -> int:
    value = 0x811C9DC5
    for byte in key:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def _sarama(key: bytes, partitions: int) -> int:
    value = _fnv_1a(key)
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return abs(signed) % partitions


#: How other clients choose a partition by default, and what makes them choose Kafka's.
_OTHER_PARTITIONERS: Final[dict[str, Callable[[bytes, int], int]]] = {
    "as librdkafka does by default (CRC32): set `partitioner=murmur2_random`": lambda key, n: (
        zlib.crc32(key) % n
    ),
    "as sarama does by default (FNV-1a): set `Producer.Partitioner = sarama.NewMurmur2Partitioner`": _sarama,
}


#: A rule that fits fewer different keys may do so by chance.
_ENOUGH_KEYS: Final = 10
_SET_MURMUR2: Final = (
    "set the producer's partitioner to murmur2 (of kafkajs `Partitioners.DefaultPartitioner`, not the legacy "
    "one)"
)


@dataclass
class Habits:
    """Counts of one source's records, from which `told` says what is odd.

    Args:
        partitions: of the topic; None where that is not known.
    """

    partitions: int | None = None
    records: int = 0
    large: int = 0
    with_key: int = 0
    without_key: int = 0
    #: Of those that are events: the key is not the person.
    other_key: int = 0
    placed: int = 0
    #: Some of the keys that have a partition.
    placed_keys: set[bytes] = field(default_factory=set)
    elsewhere: int = 0
    by_other_rule: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    without_source: int = 0
    times: int = 0
    first: int | None = None
    last: int | None = None
    #: The time of day in UTC that all have so far; None once they differ.
    time_of_day: int | None = None
    ahead: int = 0
    most_ahead: int = 0
    held_against_records: int = 0
    apart: Counter[int] = field(default_factory=Counter)
    nil_ids: int = 0
    other_ids: int = 0

    def note(self, item: Item, event: AnyEvent | None, now_ms: int, *, has_another_id: bool) -> None:
        """Takes one more; `event` is None where it is none."""
        self.records += 1
        self.large += len(item.record.value or b"") > _LARGE
        if item.codec is not None:
            self.codecs[item.codec] += 1
        if item.known.headers:
            self.without_source += source_of(item.record.headers) == NO_SOURCE
        if item.known.key:
            self._note_key(item, event)
        if event is not None:
            self._note_time(item, event.happened_at, now_ms)
            self.nil_ids += event.event_id == _NIL
            self.other_ids += has_another_id

    def _note_key(self, item: Item, event: AnyEvent | None) -> None:
        key = item.record.key
        if key is None:
            self.without_key += 1
            return
        self.with_key += 1
        self.other_key += event is not None and key != event.mcp_server_user_id.encode()
        if item.known.partition and self.partitions:
            self.placed += 1
            if len(self.placed_keys) < _ENOUGH_KEYS:
                self.placed_keys.add(key)
            numbers = list(range(self.partitions))
            if _murmur2(key, numbers, numbers) != item.record.partition:
                self.elsewhere += 1
            for name, rule in _OTHER_PARTITIONERS.items():
                self.by_other_rule[name] += rule(key, self.partitions) == item.record.partition

    def _note_time(self, item: Item, at: int, now_ms: int) -> None:
        of_day = at % _DAY_MS
        if not self.times:
            self.time_of_day = of_day
        elif self.time_of_day != of_day:
            self.time_of_day = None
        self.times += 1
        self.first = at if self.first is None else min(self.first, at)
        self.last = at if self.last is None else max(self.last, at)
        if at - now_ms > _CLOCKS_MS:
            self.ahead += 1
            self.most_ahead = max(self.most_ahead, at - now_ms)
        if item.known.timestamp:
            self.held_against_records += 1
            apart = round((at - item.record.timestamp) / _HALF_HOUR_MS) * _HALF_HOUR_MS
            is_near = abs(at - item.record.timestamp - apart) <= _NEAR_MS
            if apart and is_near and abs(apart) <= _ZONES_MS:
                self.apart[apart] += 1

    def told(self) -> list[str]:
        """What its producer should look at, in sentences; none where nothing is odd."""
        return [*self._of_times(), *self._of_ids(), *self._of_records()]

    def _of_times(self) -> Iterator[str]:
        if self.times >= _LEAST and self.first == self.last:
            yield (
                f"all {self.times:,} events have one time, {format_time(self.first)}: is it when they were "
                "sent, and not when it happened?"
            )
        elif self.times >= _LEAST and self.time_of_day is not None:
            of_day = format_time(self.time_of_day)[11:-1]
            yield (
                f"all {self.times:,} times are at {of_day} of the day in UTC: they are dates without a time "
                "of day, and steps of one day have no order"
            )
        if self.ahead:
            yield (
                f"{_of(self.ahead, self.times)} times are ahead of this clock, by up to "
                f"{format_duration(self.most_ahead / 1000)}: is it local time that was taken for UTC? More "
                "than 24 hours ahead is refused"
            )
        if self.apart:
            apart, count = self.apart.most_common(1)[0]
            if count >= max(_LEAST, _MOST * self.held_against_records):
                side = "ahead of" if apart > 0 else "behind"
                yield (
                    f"{_of(count, self.held_against_records)} times are {format_duration(abs(apart) / 1000)} "
                    f"{side} the records' own: is it local time that was taken for UTC?"
                )

    def _of_ids(self) -> Iterator[str]:
        if self.nil_ids:
            yield f"{_of(self.nil_ids, self.times)} event ids are the nil UUID: each event needs its own"
        if self.other_ids:
            yield (
                f"{plural(self.other_ids, 'event')} came before, of the same person, step and time, under "
                "another event_id: a retry has the id of what it repeats"
            )

    def _of_records(self) -> Iterator[str]:
        if self.without_key:
            yield (
                f"{_of(self.without_key, self.records)} records have no key: send mcp_server_user_id as the "
                "key, so that a person's events stay in order"
            )
        if self.other_key:
            yield (
                f"{_of(self.other_key, self.with_key)} keys are not the event's mcp_server_user_id, as its "
                "bytes alone: they count, and a person's events may be out of order"
            )
        if self.elsewhere:
            rule = next((name for name, fits in self.by_other_rule.items() if fits == self.placed), None)
            is_named = rule is not None and len(self.placed_keys) >= _ENOUGH_KEYS
            told = f"they are placed {rule}" if is_named else _SET_MURMUR2
            yield (
                f"{_of(self.elsewhere, self.placed)} records are in another partition than Kafka's default "
                f"partitioner (murmur2) chooses for their key: {told}"
            )
        if self.without_source:
            yield (
                f"{_of(self.without_source, self.records)} records have no header ce_source: what is refused "
                "of them is shown under no name of yours"
            )
        if self.large:
            yield (
                f"{plural(self.large, 'value')} are larger than {_LARGE:,} bytes: Kafka refuses what does "
                "not fit into 1 MiB with key and headers"
            )


def _of(some: int, every: int) -> str:
    return f"all {every:,}" if some == every else f"{some:,} of {every:,}"

"""What is odd about a producer's events taken together."""

import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from schemas import StepCompleted, decode
from services.operations.event_files import Item, Known
from services.operations.event_habits import Habits
from tests.support.world import completed

NOW = 1_764_000_000_000  # 2025-11-24T16:00:00Z
HOUR, DAY = 3_600_000, 86_400_000
ALONE = Known()
RECORD = Known(key=True, headers=True, partition=True, timestamp=True)


def told(
    *times: int, now: int = NOW, known: Known = ALONE, partitions: int | None = None, **record: Any
) -> list[str]:
    """What is said of events at these times, as records with these properties."""
    habits = Habits(partitions)
    for n, at in enumerate(times):
        event = completed(f"u{n}", "a", at)
        value = json.dumps(event).encode()
        made = ConsumerRecord("t", 0, n, at, 0, f"u{n}".encode(), value, None, 0, 0, [("ce_source", b"/x")])
        given = {name: make(n) if callable(make) else make for name, make in record.items()}
        item = Item(str(n), replace(made, **given), known)
        habits.note(item, decode(value, 2 * NOW), now, has_another_id=False)
    return habits.told()


def test_nothing_is_said_of_events_at_their_own_times() -> None:
    assert told(*(NOW - n * 7_919_000 for n in range(50))) == []
    assert told(*(NOW - n * 7_919_000 for n in range(50)), known=RECORD, partitions=1) == []


def test_one_time_for_all_is_perhaps_that_of_sending() -> None:
    assert told(*[NOW - 5] * 4) == []
    (said,) = told(*[NOW - 5] * 5)
    assert said.startswith("all 5 events have one time, 2025-11-24T15:59:59Z")


@pytest.mark.parametrize(("of_day", "name"), [(0, "00:00:00"), (5 * HOUR, "05:00:00")])
def test_the_same_time_of_each_day_is_no_time_but_a_date(of_day: int, name: str) -> None:
    midnight = NOW // DAY * DAY
    (said,) = told(*(midnight - n * DAY + of_day - DAY for n in range(5)))
    assert said.startswith(f"all 5 times are at {name} of the day in UTC: they are dates")


def test_times_ahead_of_the_clock_are_perhaps_of_another_zone() -> None:
    assert told(NOW + 1_000, NOW - 5_000) == []  # clocks differ
    (said,) = told(NOW + 2 * HOUR, NOW - HOUR)
    assert said.startswith("1 of 2 times are ahead of this clock, by up to 2h: is it local time")


@pytest.mark.parametrize(("apart", "side"), [(-2 * HOUR, "2h ahead of"), (19_800_000, "5h30m behind")])
def test_times_whole_hours_from_the_records_own_are_perhaps_of_another_zone(apart: int, side: str) -> None:
    times = [NOW - 30 * HOUR - n * 7_919_000 for n in range(10)]
    (said,) = told(*times, known=RECORD, timestamp=lambda n: times[n] + apart + 20_000, partitions=1)
    assert said.startswith(f"all 10 times are {side} the records' own")


def test_backfilled_times_are_no_zone() -> None:
    times = [NOW - n * 7_919_000 for n in range(40)]
    assert told(*times, known=RECORD, timestamp=NOW, partitions=1) == []


def test_keys_that_are_not_the_person_are_told() -> None:
    times = [NOW - n * 7_919_000 for n in range(4)]
    (said,) = told(*times, known=RECORD, key=lambda n: b'"u%d"' % n if n else b"u0", partitions=1)
    assert said.startswith("3 of 4 keys are not the event's mcp_server_user_id")
    (said,) = told(*times, known=RECORD, key=None, partitions=1)
    assert said.startswith("all 4 records have no key")


def test_the_partitioner_is_named_where_all_are_where_it_puts_them() -> None:
    times = [NOW - n * 7_919_000 for n in range(30)]
    (said,) = told(*times, known=RECORD, partitions=12, partition=lambda n: zlib.crc32(f"u{n}".encode()) % 12)
    assert "partitioner=murmur2_random" in said
    (said,) = told(*times, known=RECORD, partitions=12, partition=lambda n: n % 12)
    assert "of kafkajs `Partitioners.DefaultPartitioner`" in said
    # Of one record, or one key over and over, any rule may be right by chance.
    for times_of_one in (times[:1], times):
        (said,) = told(
            *times_of_one,
            known=RECORD,
            key=lambda _: b"u0",
            partitions=12,
            partition=lambda _: zlib.crc32(b"u0") % 12,
        )[-1:]
        assert "CRC32" not in said
    assert told(*times, known=RECORD, partitions=None, partition=lambda n: n % 12) == []


def test_records_without_a_source_are_told() -> None:
    (said,) = told(NOW - 1, known=RECORD, headers=(), partitions=1)
    assert said.startswith("all 1 records have no header ce_source")


def test_the_nil_uuid_and_retries_with_new_ids_are_told() -> None:
    habits = Habits()
    event = decode(
        json.dumps(completed("u", "a", NOW, event_id="0" * 8 + "-0000-0000-0000-" + "0" * 12)).encode(), NOW
    )
    assert isinstance(event, StepCompleted)
    item = Item("1", ConsumerRecord("t", 0, 0, 0, 0, None, b"", None, 0, 0, ()), Known())
    habits.note(item, event, NOW, has_another_id=True)
    nil, another = habits.told()
    assert nil.startswith("all 1 event ids are the nil UUID")
    assert another.startswith(
        "1 event came before, of the same person, step and time, under another event_id"
    )

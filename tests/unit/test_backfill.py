"""Times for steps of which only some are known."""

import json

from hypothesis import given
from hypothesis import strategies as st

from schemas import decode
from services.operations.backfill import Candidate, event_of, spread

AT = 10**12 - 5


def test_between_start_and_end_they_are_even() -> None:
    assert spread([None, None, None], 0, 30) == [10, 20, 30]
    assert spread([None, 100, None, None], 0, 300) == [50, 100, 200, 300]
    assert spread([None], 7, 7) == [8]
    assert spread([], 1, 2) == []


@given(st.lists(st.none() | st.integers(0, 10**6), max_size=20), st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_known_stay_and_the_others_rise_from_the_one_before(
    times: list[int | None], start: int, end: int
) -> None:
    found = spread(times, start, end)
    assert len(found) == len(times)
    before = start
    for given_, got in zip(times, found, strict=True):
        assert got == given_ if given_ is not None else got > before
        before = got


@given(st.lists(st.booleans(), min_size=1, max_size=15), st.integers(0, 10**9), st.integers(10**3, 10**9))
def test_with_times_in_order_and_room_all_rise(known: list[bool], start: int, step: int) -> None:
    real = [start + step * (i + 1) for i in range(len(known))]
    found = spread([t if k else None for t, k in zip(real, known, strict=True)], start, real[-1])
    assert found == sorted(set(found))
    assert found[-1] == real[-1]


def test_the_id_is_made_from_what_the_event_says() -> None:
    candidate = Candidate("line 1", "ann", "wt_a", "a", AT, "srv", "s")
    event = event_of(candidate)
    assert event == event_of(Candidate("elsewhere", "ann", "wt_a", "a", AT, "srv", "s"))
    assert (
        event["event_id"] != event_of(Candidate("line 1", "ann", "wt_a", "a", AT + 1, "srv", "s"))["event_id"]
    )
    assert decode(json.dumps(event).encode(), 10**12).happened_at == AT

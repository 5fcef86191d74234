"""The rule of the flood against a plain count over all verdicts."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.completion_recorder.flood import WINDOW, Chunk, FloodError, Limits, Recent, Verdict

GOOD, MISSING, BROKEN = Verdict.GOOD, Verdict.MISSING, Verdict.BROKEN
LIMITS = Limits(percent=1, in_a_row=100)


def fed(verdicts: Sequence[Verdict], limits: Limits = LIMITS, batch: int = 700) -> Recent:
    recent = Recent()
    for i in range(0, len(verdicts), batch):
        recent = recent.after([(0, v) for v in verdicts[i : i + batch]], limits)
    return recent


def test_a_hundred_bad_of_ten_thousand_pass_and_one_more_does_not() -> None:
    spread = ([BROKEN] + [GOOD] * 99) * 100
    assert fed(spread).total == Chunk(10_000, 0, 100)
    with pytest.raises(FloodError, match="101 of the last"):
        fed([*spread[:-50], BROKEN, *spread[-50:]])


def test_few_events_of_which_many_are_bad_are_no_flood_yet() -> None:
    assert fed(([BROKEN] * 9 + [GOOD]) * 11).total.broken == 99


def test_a_hundred_in_a_row_on_one_partition_are_a_flood() -> None:
    assert fed([BROKEN] * 99).in_a_row == {0: 99}
    with pytest.raises(FloodError, match="100 bad events in a row on partition 0"):
        fed([BROKEN] * 100, batch=30)


def test_rows_are_counted_by_partition() -> None:
    mixed = [(n % 2, BROKEN if n % 2 else GOOD) for n in range(180)]
    assert Recent().after(mixed, LIMITS).in_a_row == {1: 90}
    assert Recent(in_a_row={0: 5, 1: 6}).after_good(10, [1], LIMITS).in_a_row == {0: 5}


def test_old_trouble_is_forgotten() -> None:
    recent = fed([BROKEN] * 99 + [GOOD] * (WINDOW + 200))
    assert recent.total.broken == 0
    assert fed([BROKEN] * 99).after_good(WINDOW, [0], LIMITS).total.broken == 0


def test_a_large_good_batch_moves_the_window_by_what_it_holds() -> None:
    recent = fed([BROKEN] * 60).after_good(9_000, [0], LIMITS)
    assert recent.total == Chunk(9_060, 0, 60)
    recent = recent.after_good(20_000, [0], LIMITS)
    assert recent.total == Chunk(WINDOW, 0, 0)
    assert recent.after([(0, BROKEN), (0, GOOD)] * 60, LIMITS).total.broken == 60


def test_one_percent_of_what_a_predecessor_left_and_what_came_since_is_no_flood() -> None:
    recent = Recent().resumed(Chunk(10_000, 0, 90)).after_good(9_000, [0], LIMITS)
    assert recent.after([(0, BROKEN), (0, GOOD)] * 20, LIMITS).total.broken == 110


def test_missing_references_count_only_when_nearly_all_are_missing() -> None:
    assert fed([MISSING] * 980 + [GOOD] * 20, batch=100).total.missing == 980
    with pytest.raises(FloodError, match="Is it the one that belongs to this topic"):
        fed([MISSING] * 1_100)


def test_it_can_be_switched_off() -> None:
    """And what passed meanwhile is forgiven when it is on again."""
    off = Limits(percent=100, in_a_row=0)
    assert fed([BROKEN] * 3_000 + [MISSING] * 9_000, off) == Recent()


def test_a_successor_goes_on_with_the_worse_count() -> None:
    left = fed([BROKEN] * 90).total
    assert Recent().resumed(left).total == left
    assert fed([BROKEN] * 95).resumed(left).total.broken == 95


@given(
    st.lists(st.sampled_from([GOOD] * 30 + [MISSING] * 3 + [BROKEN]), max_size=3_000),
    st.integers(1, 999),
    st.integers(1, 4),
)
@settings(deadline=None)
def test_batching_does_not_matter_beyond_the_grain_of_the_window(
    verdicts: list[Verdict], batch: int, repeat: int
) -> None:
    """All events together fit into the window or not; what is counted is what the newest of them are."""
    verdicts = verdicts * repeat
    total = fed(verdicts, Limits(99, 0), batch).total
    assert total.events == min(len(verdicts), total.events)
    newest = verdicts[len(verdicts) - total.events :]
    assert (total.missing, total.broken) == (newest.count(MISSING), newest.count(BROKEN))
    assert min(len(verdicts), WINDOW) <= total.events < WINDOW + 200

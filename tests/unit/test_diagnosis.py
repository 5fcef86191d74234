"""What a diagnosis concludes, and what it leaves open."""

from collections.abc import Sequence

import pytest

from services.journeys.comparison import Shares
from services.journeys.diagnosis import ENOUGH, Passed, comparable, foremost, progress
from services.journeys.intervals import wilson


@pytest.mark.parametrize(("part", "whole"), [(0, 40), (1, 40), (13, 40), (40, 40), (300, 10_000)])
def test_the_interval_of_a_share_is_wilsons(part: int, whole: int) -> None:
    # Here, as it takes a second, and only one of all workers needs it.
    from scipy.stats import binomtest

    expected = binomtest(part, whole).proportion_ci(method="wilson")
    assert wilson(part, whole) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson(0, 0) is None


def test_the_largest_count_is_told_only_where_it_is_more_than_chance() -> None:
    clear = foremost({"a": 60, "b": 10, "c": 8})
    assert clear is not None
    assert (clear.key, clear.like_it) == ("a", ())
    close = foremost({"a": 30, "b": 26, "c": 2})
    assert close is not None
    assert (close.key, close.like_it) == ("a", ("b",))
    assert foremost({"a": ENOUGH - 1}) is None
    assert foremost({}) is None


def test_the_more_counts_there_are_the_more_the_largest_needs() -> None:
    two = foremost({"a": 30, "b": 15})
    ten = foremost({"a": 30, "b": 15, **{f"c{i}": 1 for i in range(8)}})
    assert two is not None
    assert ten is not None
    assert two.like_it == ()
    assert ten.like_it == ("b",)


def paths_of(
    order: Sequence[str], *paths: tuple[Sequence[str], Sequence[str], int], then: Sequence[str] | None = None
) -> list[Passed]:
    """Finished are those that passed all."""
    return [
        Passed(steps, skipped, count, then or order, bool(order) and set(order) <= set(steps))
        for steps, skipped, count in paths
    ]


def test_each_unfinished_journey_waits_at_the_first_step_that_is_left() -> None:
    order = ["a", "b", "c"]
    paths = [((), (), 2), (("a",), (), 3), (("a", "c"), (), 5), (("c", "b", "a"), (), 7)]
    found = progress(order, paths_of(order, *paths))
    assert (found.journeys, found.finished) == (17, 7)
    assert dict(found.done) == {"a": 15, "b": 7, "c": 12}
    assert dict(found.reached) == {"a": 17, "b": 15, "c": 12}
    assert progress([], paths_of([], ((), (), 4))).finished == 0


def test_an_unfinished_journey_waits_by_the_order_of_its_time() -> None:
    """A step that was added since waits for nobody who had another before them; one that was removed is gone."""
    order = ["new", "b", "a"]
    earlier = paths_of(order, (("a",), (), 3), then=["a", "gone", "b"])
    found = progress(order, [*earlier, *paths_of(order, (("a", "b"), (), 2), then=["a", "b"])])
    assert (found.journeys, found.finished) == (5, 0)
    assert dict(found.reached) == {"a": 5, "b": 5, "new": 2}


def test_a_skipped_step_was_reached_and_not_done_and_all_passed_is_finished() -> None:
    order = ["a", "b"]
    found = progress(order, paths_of(order, (("a", "b"), ("a",), 5), (("a",), ("a",), 3)))
    assert (found.journeys, found.finished) == (8, 5)
    assert (found.done, found.reached) == ({"b": 5}, {"a": 8, "b": 8})


def test_what_too_few_reached_is_not_compared() -> None:
    order = ["a", "b"]
    passed = ((), ("a",), ("a", "b"))
    before, after = (
        progress(order, paths_of(order, *((p, (), n) for p, n in zip(passed, counts, strict=True))))
        for counts in ((10, 30, 40), (30, 5, 4))
    )
    assert comparable(["a", "b"], before, after) == {
        None: Shares(80, 40, 39, 4),
        "a": Shares(80, 70, 39, 9),
    }

"""How long journeys take to finish: against the estimate by hand."""

from fractions import Fraction
from itertools import pairwise
from math import exp, log, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.journeys.survival import Point, Quantile, curve_of, thinned

#: Freireich et al., 1963 (remission of leukaemia under 6-MP, in weeks), the usual example of the estimate: nine
#: relapses, twelve that were censored.
ENDED = [6, 6, 6, 7, 10, 13, 16, 22, 23]
CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
#: What textbooks print of it: the share without a relapse, and Greenwood's standard error.
PUBLISHED = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
ERRORS = {6: 0.0764, 7: 0.0869, 10: 0.0963, 13: 0.1068, 16: 0.1141, 22: 0.1282, 23: 0.1346}


def test_the_published_example_comes_out_as_published() -> None:
    curve = curve_of(ENDED, CENSORED)
    assert (curve.finished, curve.censored) == (9, 12)
    assert {p.ms: round(1 - p.share, 3) for p in curve.points} == PUBLISHED
    for point in curve.points:
        left = PUBLISHED[point.ms]
        spread = 1.959964 * ERRORS[point.ms] / (left * abs(log(left)))
        assert point.low == pytest.approx(1 - left ** exp(-spread), abs=0.004)
        assert point.high == pytest.approx(1 - left ** exp(spread), abs=0.004)
    # The median is 23 weeks, 13 to an unknown number by the log-log interval.
    assert curve.median == Quantile(23, 13, None)
    assert curve.p90 == Quantile(None, None, None)


def by_hand(finished: list[int], unfinished: list[int]) -> list[tuple[int, Fraction]]:
    left, found = Fraction(1), []
    for time in sorted(set(finished)):
        at_risk = sum(t >= time for t in finished + unfinished)
        left *= 1 - Fraction(finished.count(time), at_risk)
        found.append((time, 1 - left))
    return found


times = st.lists(st.integers(0, 30), max_size=25)


@given(times, times)
def test_the_curve_is_the_one_by_hand_and_lies_within_its_interval(
    finished: list[int], unfinished: list[int]
) -> None:
    curve = curve_of(finished, unfinished)
    wanted = by_hand(finished, unfinished)
    assert [(p.ms, pytest.approx(p.share)) for p in curve.points] == [(t, float(s)) for t, s in wanted]
    for point in curve.points:
        assert point.low is None or point.low <= point.share + 1e-9
        assert point.high is None or point.high >= point.share - 1e-9
    reached = [t for t, share in wanted if share >= Fraction(1, 2)]
    assert curve.median.ms == (reached[0] if reached else None)
    for of in (curve.median, curve.p90):
        if of.ms is not None:
            assert of.low is None or of.low <= of.ms
            assert of.high is None or of.high >= of.ms


def test_greenwoods_variance_is_in_the_interval() -> None:
    """Of ten people without anybody censored, after the third: the binomial variance."""
    point = curve_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], []).points[2]
    left = 0.7
    spread = 1.959964 * sqrt(0.3 / (left * 10)) / abs(log(left))
    assert point == Point(
        3, pytest.approx(0.3), pytest.approx(1 - left ** exp(-spread)), pytest.approx(1 - left ** exp(spread))
    )


def test_nobody_finished_and_nobody_there_have_no_points() -> None:
    assert curve_of([], [3, 4]).points == curve_of([], []).points == ()
    assert curve_of([], [3, 4]).median.ms is None


def test_of_many_points_the_first_and_the_last_stay() -> None:
    points = [Point(ms, ms / 1000, None, None) for ms in range(1, 1000)]
    few = thinned(points, 200)
    assert (len(few), few[0], few[-1]) == (200, points[0], points[-1])
    assert few == sorted(set(few))
    assert max(b.share - a.share for a, b in pairwise(few)) <= 0.01
    assert thinned(points[:200]) == points[:200]

"""Between which values a share, or the difference of two, lies 19 times in 20.

Pure. Wilson's interval of a share holds for small samples and shares near 0 and 1, too; Newcombe's of a
difference is made of two of them.
"""

from math import sqrt
from typing import Final, NamedTuple

#: The normal distribution's quantile of an interval that holds 19 times in 20.
_Z: Final = 1.959964


class Interval(NamedTuple):
    """Between which values the true one lies, 19 times in 20."""

    low: float
    high: float


def wilson(part: int, whole: int) -> Interval | None:
    """The interval of a share; None where there is nothing."""
    if not whole:
        return None
    share, spread = part / whole, _Z * _Z / whole
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * sqrt(share * (1 - share) / whole + spread / (4 * whole)) / (1 + spread)
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def newcombe(in_a: int, of_a: int, in_b: int, of_b: int) -> Interval | None:
    """The interval of share B minus share A; None where a side has nothing.

    Newcombe's hybrid score interval ("Interval estimation for the difference between independent
    proportions", 1998, method 10).
    """
    a, b = wilson(in_a, of_a), wilson(in_b, of_b)
    if a is None or b is None:
        return None
    share_a, share_b = in_a / of_a, in_b / of_b
    difference = share_b - share_a
    below = sqrt((share_b - b.low) ** 2 + (a.high - share_a) ** 2)
    above = sqrt((b.high - share_b) ** 2 + (share_a - a.low) ** 2)
    return Interval(max(-1.0, difference - below), min(1.0, difference + above))

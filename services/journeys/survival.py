"""How long journeys take to finish, where many are not finished yet: the Kaplan-Meier estimate.

Pure. Who is not finished counts for as long as they have been on their way (right-censored): so they are
neither left out, which would make all look quick, nor taken for people who never finish.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np

#: So many points of a curve are told at most.
MOST_POINTS: Final = 200


class Point(NamedTuple):
    """The share that had finished so many milliseconds after their beginning, and its 95 % interval.

    Where all had finished there is no interval.
    """

    ms: int
    share: float
    low: float | None
    high: float | None


class Quantile(NamedTuple):
    """When so many had finished, and its 95 % interval; None where the curve does not get there."""

    ms: int | None = None
    low: int | None = None
    high: int | None = None


_NEVER: Final = Quantile()


@dataclass(frozen=True, slots=True)
class Curve:
    """The share that had finished by time: one point for each time at which somebody did."""

    finished: int
    censored: int
    points: tuple[Point, ...] = ()
    median: Quantile = _NEVER
    p90: Quantile = _NEVER


def curve_of(finished_ms: Sequence[int], unfinished_ms: Sequence[int]) -> Curve:
    """The estimate, with intervals by the log-log transform of Greenwood's variance.

    The interval of a quantile is where the curve's own interval crosses it (Brookmeyer and Crowley, 1982).

    Args:
        finished_ms: how long each finished journey took.
        unfinished_ms: for how long each other one has been on its way.
    """
    if not finished_ms:
        return Curve(0, len(unfinished_ms))
    # It takes half a second to import, which a start of the service does not wait for.
    import numpy as np
    from scipy.stats import CensoredData, ecdf

    left = ecdf(CensoredData(uncensored=list(finished_ms), right=list(unfinished_ms))).sf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of shares 0 and 1, which have no interval
        between = left.confidence_interval(method="log-log")
    shares, lows, highs = (
        1 - np.asarray(getattr(of, "probabilities"))  # noqa: B009 - the stubs know less
        for of in (left, between.high, between.low)
    )
    rises = np.flatnonzero(np.diff(shares, prepend=0.0) > 0)
    times = np.asarray(left.quantiles)[rises]
    shares, lows, highs = shares[rises], lows[rises], highs[rises]
    points = [
        Point(int(ms), float(share), _known(low), _known(high))
        for ms, share, low, high in zip(times, shares, lows, highs, strict=True)
    ]
    return Curve(
        len(finished_ms),
        len(unfinished_ms),
        tuple(points),
        *(
            Quantile(*(_first(times, reached) for reached in (shares >= part, highs >= part, lows >= part)))
            for part in (0.5, 0.9)
        ),
    )


def _known(value: float) -> float | None:
    return None if isnan(value) else float(value)


def _first(times: "np.ndarray[Any, Any]", reached: "np.ndarray[Any, Any]") -> int | None:
    return int(times[reached.argmax()]) if reached.any() else None


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many of the points, evenly by their number; the first and the last stay."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]

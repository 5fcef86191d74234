"""What figures allow to be concluded: where most people stop, and which step loses the largest share of them.

Pure. Whoever takes the largest of several counts and then tests it against the others tests it as often as
there are others, so its p-values are multiplied by their number (Bonferroni).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.journeys.comparison import LEVEL, Shares
from services.journeys.flow import Outcome, Variant
from services.journeys.versions import first_open

#: With fewer journeys nothing is concluded.
ENOUGH: Final = 30


@dataclass(frozen=True, slots=True)
class Foremost:
    """The key of the largest count, and those that may as well be the largest; `p_value` is the largest."""

    key: str
    like_it: tuple[str, ...]
    p_value: float


def foremost(counts: Mapping[str, int]) -> Foremost | None:
    """Which of disjoint counts is the largest by more than chance; None where their sum is below ENOUGH."""
    if sum(counts.values()) < ENOUGH:
        return None
    # It takes half a second to import, which a start of the service does not wait for.
    from scipy.stats import binomtest

    (first, most), *others = Counter(counts).most_common()
    p_values = {
        key: min(1.0, len(others) * float(binomtest(most, most + count).pvalue)) for key, count in others
    }
    like_it = tuple(key for key, p in p_values.items() if p >= LEVEL)
    return Foremost(first, like_it, max(p_values.values(), default=0.0))


@dataclass(frozen=True, slots=True)
class Progress:
    """How far journeys had come after the same time: each unfinished one waits at one step.

    For every step, `reached[step] = done[step] + those that skipped it + those that wait at it`.
    """

    journeys: int
    finished: int
    done: Mapping[str, int]
    reached: Mapping[str, int]


class Passed(NamedTuple):
    """Journeys that passed the same steps: which of them were skipped, and the display order of that time."""

    step_ids: Sequence[str]
    skipped: Collection[str]
    journeys: int
    order: Sequence[str]
    is_finished: bool


def progress(order: Sequence[str], paths: Iterable[Passed]) -> Progress:
    """The sums of paths; `order` is the walkthrough's steps of today in display order."""
    journeys = finished = 0
    done: Counter[str] = Counter()
    reached: Counter[str] = Counter()
    for path in paths:
        passed, count = set(path.step_ids), path.journeys
        journeys += count
        for step in passed:
            reached[step] += count
        for step in passed.difference(path.skipped):
            done[step] += count
        if path.is_finished:
            finished += count
        elif (left := first_open(path.order, order, path.step_ids)) is not None:
            reached[left] += count
    return Progress(journeys, finished, done, reached)


def progress_of(
    order: Sequence[str], orders: Sequence[Sequence[str]], variants: Iterable[Variant]
) -> Progress:
    """The sums of variants; `orders` are the display orders of all versions, by their numbers from 1."""
    return progress(
        order,
        (
            Passed(
                v.step_ids,
                set(v.step_ids).difference(v.done),
                v.journeys,
                order if v.version is None else orders[v.version - 1],
                v.outcome is Outcome.FINISHED,
            )
            for v in variants
        ),
    )


def step_shares(order: Sequence[str], a: Progress, b: Progress) -> dict[str, Shares]:
    """Of each step, how many reached it on each side and how many of them did it."""
    return {
        step: Shares(a.reached.get(step, 0), a.done.get(step, 0), b.reached.get(step, 0), b.done.get(step, 0))
        for step in order
    }


def comparable(order: Sequence[str], earlier: Progress, recent: Progress) -> dict[str | None, Shares]:
    """What can be compared: of each step the share that did it, and under None the share that finished.

    Only where each side has ENOUGH journeys.
    """
    found: dict[str | None, Shares] = {
        None: Shares(earlier.journeys, earlier.finished, recent.journeys, recent.finished)
    }
    found.update(step_shares(order, earlier, recent))
    return {key: shares for key, shares in found.items() if min(shares.of_a, shares.of_b) >= ENOUGH}

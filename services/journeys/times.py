"""How long journeys took: what lies behind a view's links, steps and paths, as percentiles and histograms.

Sums can be kept in counts, and taken away again; percentiles cannot. So they are of single journeys.

Pure: values in, values out.
"""

from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Final, NamedTuple

from services.journeys.flow import LinkKey, Outcome, Path, View
from services.journeys.paths import PathKey, path_key

#: Where the bins of a histogram begin, in milliseconds: five to a power of ten, from 1 s to 291 days. Before
#: the first of them is one bin more.
BOUNDS_MS: Final = tuple(round(1000 * 10 ** (k / 5)) for k in range(38))


class Timed(NamedTuple):
    """A journey with its times, in milliseconds since the epoch.

    `completed_at[i]` is when step `i` was completed, or skipped where `skipped[i]`, and `shown_at[i]` when it
    was shown before. Where no step was skipped, or none is known to have been shown, they are empty.
    """

    step_ids: tuple[str, ...]
    completed_at: Sequence[int]
    outcome: Outcome
    started_at: int | None = None
    skipped: tuple[bool, ...] = ()
    shown_at: Sequence[int | None] = ()


def _none() -> "array[int]":
    return array("q")


@dataclass(slots=True)
class Durations:
    """Of each journey, in milliseconds: since the step before, and since the step was shown."""

    elapsed: "array[int]" = field(default_factory=_none)
    active: "array[int]" = field(default_factory=_none)

    @classmethod
    def of(cls, parts: Sequence["Durations"]) -> "Durations":
        """Those of several together, in order."""
        elapsed = chain.from_iterable(part.elapsed for part in parts)
        active = chain.from_iterable(part.active for part in parts)
        return cls(array("q", sorted(elapsed)), array("q", sorted(active)))


@dataclass(frozen=True, slots=True)
class Spread:
    """Of so many durations: their mean, the median and the 90th percentile; None where there are none."""

    timed: int = 0
    mean_ms: float | None = None
    median_ms: float | None = None
    p90_ms: float | None = None


def spread(ordered: Sequence[int]) -> Spread:
    """Mean and percentiles of durations in order; these as PostgreSQL's `percentile_cont` has them."""
    if not ordered:
        return Spread()
    mean = sum(ordered) / len(ordered)
    return Spread(len(ordered), mean, _percentile(ordered, 0.5), _percentile(ordered, 0.9))


def _percentile(ordered: Sequence[int], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def histogram(ordered: Sequence[int]) -> list[int]:
    """How many of durations in order are shorter than the first of BOUNDS_MS, then from each to the next."""
    ends = [0, *(bisect_left(ordered, bound) for bound in BOUNDS_MS), len(ordered)]
    return [end - begin for begin, end in pairwise(ends)]


def link_durations(view: View, journeys: Iterable[Timed]) -> dict[LinkKey, Durations]:
    """The durations of each link of a view, in order.

    As in `View.flows`, what was before the view is no part of it.
    """
    links: defaultdict[LinkKey, Durations] = defaultdict(Durations)
    known: dict[tuple[tuple[str, ...], tuple[bool, ...]], list[_Hop]] = {}
    for journey in journeys:
        way = journey.step_ids, journey.skipped
        hops = known.get(way)
        if hops is None:
            hops = known[way] = _hops(view, *way, links)
        started_at = None if view.start_at is not None else journey.started_at
        for hop in hops:
            at = journey.completed_at[hop.at]
            since = started_at if hop.before is None else journey.completed_at[hop.before]
            if since is not None:
                hop.of.elapsed.append(at - since)
            if journey.shown_at and (shown := journey.shown_at[hop.at]) is not None:
                hop.of.active.append(at - shown)
    return {key: Durations.of([durations]) for key, durations in links.items()}


class _Hop(NamedTuple):
    """A link of a path: where its durations go, and which steps of the journey it joins."""

    of: Durations
    before: int | None
    at: int


def _hops(
    view: View, step_ids: Sequence[str], skipped: Sequence[bool], links: Mapping[LinkKey, Durations]
) -> list[_Hop]:
    path = view.path(step_ids)
    hops: list[_Hop] = []
    before: int | None = None
    for position, index in enumerate(() if path is None else path.shown):
        from_step = None if before is None else step_ids[before]
        is_skip = bool(skipped) and skipped[index]
        hops.append(_Hop(links[LinkKey(position, from_step, step_ids[index], is_skip)], before, index))
        before = index
    return hops


def step_durations(journeys: Iterable[Timed]) -> dict[str, Durations]:
    """The durations before each step was completed, wherever in a journey it was, in order."""
    steps: defaultdict[str, list[Durations]] = defaultdict(list)
    for key, durations in link_durations(View(), journeys).items():
        if not key.skipped:
            steps[key.to_step_id].append(durations)
    return {step: Durations.of(parts) for step, parts in steps.items()}


def path_durations(view: View, journeys: Iterable[Timed]) -> dict[PathKey, list[int]]:
    """Of each path, in order, how long journeys took from their beginning in the view to their last step.

    Of one that begins with its last step, because its start is not known, no time is known.
    """
    found: defaultdict[PathKey, list[int]] = defaultdict(list)
    known: dict[tuple[tuple[str, ...], tuple[bool, ...], Outcome], tuple[PathKey, Path] | None] = {}
    for journey in journeys:
        way = journey.step_ids, journey.skipped, journey.outcome
        if way not in known:
            known[way] = path_key(view, *way)
        shown = known[way]
        if shown is None or not shown[1].shown:
            continue
        key, path = shown
        last = path.shown[-1]
        if view.start_at is None and journey.started_at is not None:
            found[key].append(journey.completed_at[last] - journey.started_at)
        elif last > (first := path.shown[0] if view.start_at is not None else 0):
            found[key].append(journey.completed_at[last] - journey.completed_at[first])
    return {key: sorted(durations) for key, durations in found.items()}

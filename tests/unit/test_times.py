"""Times of single journeys: percentiles and bins, and that they are of what the sums of a view are of."""

import itertools
import statistics
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.journeys.flow import Flows, LinkKey, Outcome, Variant, View
from services.journeys.paths import count_paths
from services.journeys.times import (
    BOUNDS_MS,
    Timed,
    histogram,
    link_durations,
    path_durations,
    spread,
    step_durations,
)

STEPS = "abcdef"
durations = st.lists(st.integers(0, 40_000_000_000), max_size=30)


@st.composite
def journeys(draw: st.DrawFn) -> Timed:
    """Somebody's way, with steps that were skipped and shown."""
    steps = tuple(draw(st.permutations(STEPS)))[: draw(st.integers(0, len(STEPS)))]
    at, times = draw(st.integers(10**12, 10**12 + 10**6)), []
    began = at
    for _ in steps:
        at += draw(st.integers(0, 10**7))
        times.append(at)
    shown: list[int | None] = [draw(st.none() | st.integers(began, t)) for t in times]
    skipped = tuple(draw(st.booleans()) for _ in steps) if draw(st.booleans()) else ()
    return Timed(
        steps,
        times,
        Outcome.FINISHED if len(steps) == len(STEPS) else draw(st.sampled_from([*Outcome][1:3])),
        began if draw(st.booleans()) or not steps else None,
        skipped,
        tuple(shown) if draw(st.booleans()) else (),
    )


views = st.builds(
    View,
    st.none() | st.sampled_from(STEPS[:2]),
    st.none() | st.sampled_from(STEPS[2:4]),
    st.frozensets(st.sampled_from(STEPS[4:])),
    st.dictionaries(st.integers(0, 2), st.frozensets(st.sampled_from(STEPS), min_size=1), max_size=1),
)


def variant(of: Timed) -> Variant:
    """A journey as one that nobody else took."""
    began = of.started_at if of.started_at is not None else next(iter(of.completed_at), 0)
    shown = of.shown_at or (None,) * len(of.step_ids)
    pairs = list(zip(of.completed_at, shown, strict=True))
    return Variant(
        of.step_ids,
        of.outcome,
        of.started_at is not None,
        1,
        tuple(t - began for t in of.completed_at),
        of.skipped,
        None,
        tuple(0 if s is None else t - s for t, s in pairs),
        tuple(int(s is not None) for _, s in pairs),
    )


def sums(flows: Flows) -> dict[LinkKey, tuple[int, int, int, int]]:
    return {x.key: (x.timed_journeys, x.elapsed_ms, x.active_journeys, x.active_ms) for x in flows.links}


@given(st.lists(journeys(), max_size=12), views)
def test_durations_are_of_the_journeys_that_the_sums_are_of(of: list[Timed], view: View) -> None:
    links = link_durations(view, of)
    added = {key: (len(d.elapsed), sum(d.elapsed), len(d.active), sum(d.active)) for key, d in links.items()}
    assert added == sums(view.flows([variant(journey) for journey in of]))


@given(st.lists(journeys(), max_size=12))
def test_a_step_has_the_durations_of_all_links_in_which_it_was_done(of: list[Timed]) -> None:
    wanted: defaultdict[str, list[int]] = defaultdict(list)
    for j in of:
        for i, step in enumerate(j.step_ids):
            before = j.completed_at[i - 1] if i else j.started_at
            if before is not None and not (j.skipped and j.skipped[i]):
                wanted[step].append(j.completed_at[i] - before)
    found = {step: list(d.elapsed) for step, d in step_durations(of).items() if d.elapsed}
    assert found == {step: sorted(d) for step, d in wanted.items()}


@given(st.lists(journeys(), max_size=12), views)
def test_paths_have_each_journey_of_a_view_once(of: list[Timed], view: View) -> None:
    paths = count_paths(view, [variant(journey) for journey in of])
    flows = view.flows([variant(journey) for journey in of])
    assert sum(path.journeys for path in paths) == flows.journeys
    assert [path.journeys for path in paths] == sorted((p.journeys for p in paths), reverse=True)
    ends = Counter[tuple[int, Outcome]]()
    for path in paths:
        ends[len(path.key.step_ids), path.key.outcome] += path.journeys
    assert ends == sum((Counter({(e.steps_passed, e.outcome): e.journeys}) for e in flows.endings), Counter())
    took = path_durations(view, of)
    counts = {path.key: path.journeys for path in paths if path.key.step_ids}
    assert all(len(durations) <= counts[key] for key, durations in took.items())
    assert {key for key in counts if len(key.step_ids) > 1} <= took.keys()
    assert all(ms >= 0 for d in took.values() for ms in d)


@given(durations)
def test_percentiles_are_interpolated_as_postgresql_does(of: list[int]) -> None:
    found = spread(sorted(of))
    assert found.timed == len(of)
    if not of:
        assert (found.mean_ms, found.median_ms, found.p90_ms) == (None, None, None)
        return
    assert found.median_ms == pytest.approx(statistics.median(of))
    tenths = statistics.quantiles(of, n=10, method="inclusive") if len(of) > 1 else of * 9
    assert found.p90_ms == pytest.approx(tenths[-1])


@given(durations)
def test_each_duration_is_in_the_one_bin_that_it_belongs_to(of: list[int]) -> None:
    bins = histogram(sorted(of))
    edges = [0, *BOUNDS_MS, 10**18]
    assert bins == [sum(a <= ms < b for ms in of) for a, b in itertools.pairwise(edges)]
    rest = histogram(sorted(of[3:]))
    assert histogram(sorted(of[:3])) == [a - b for a, b in zip(bins, rest, strict=True)], "it adds up"

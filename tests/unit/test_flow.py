"""The flow graph: what a view shows of journeys, and what folding and cutting leave as they were."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.journeys import Contributions, Journey, add, contributions
from services.journeys.flow import (
    START,
    Ending,
    Flows,
    Link,
    NodeKey,
    Outcome,
    Variant,
    View,
    first_positions,
    flows,
    graph,
)

STEPS = "abcdef"
HOUR = 3_600_000

walks = st.lists(
    st.tuples(
        st.permutations(STEPS).flatmap(lambda p: st.integers(0, len(p)).map(lambda n: tuple(p[:n]))),
        st.lists(st.integers(0, 10 * HOUR), min_size=7, max_size=7),
        st.booleans(),
        # Which of the steps were skipped.
        st.frozensets(st.sampled_from(STEPS), max_size=3),
    ).filter(lambda walk: bool(walk[0]) or walk[2]),
    max_size=12,
)
views = st.builds(
    View,
    st.none() | st.sampled_from(STEPS[:2]),
    st.none() | st.sampled_from(STEPS[2:4]),
    st.frozensets(st.sampled_from(STEPS[4:])),
)
Walk = tuple[tuple[str, ...], list[int], bool, frozenset[str]]


def journey(walk: Walk) -> Journey:
    steps, gaps, is_started, skipped = walk
    at, times = 0, []
    for gap, _ in zip(gaps[1:], steps, strict=False):
        at += gap
        times.append(gaps[0] + at)
    skips = [step in skipped for step in steps]
    return Journey(
        "wt", "srv", steps, times, gaps[0] if is_started else None, skipped=skips if any(skips) else None
    )


def outcome(steps: Sequence[str]) -> Outcome:
    return Outcome.FINISHED if len(steps) == len(STEPS) else Outcome.DROPPED


def variants(of: list[Walk]) -> list[Variant]:
    """As the database would group them."""
    sums: dict[tuple[tuple[str, ...], bool, tuple[bool, ...]], tuple[int, list[int]]] = {}
    for walk in of:
        j = journey(walk)
        began = j.began_at or 0
        key = (walk[0], walk[2], tuple(j.skipped or ()))
        number, totals = sums.get(key, (0, [0] * len(walk[0])))
        sums[key] = (
            number + 1,
            [a + t - began for a, t in zip(totals, j.completed_at, strict=True)],
        )
    return [
        Variant(steps, outcome(steps), started, n, tuple(times), skipped)
        for (steps, started, skipped), (n, times) in sums.items()
    ]


def counted(of: list[Walk]) -> Flows:
    """From the counts that the aggregator keeps."""
    total = Contributions()
    for walk in of:
        add(total, contributions(journey(walk)))
    cells: Counter[tuple[int, int, str | None]] = Counter()
    for key, n in total.endings.items():
        cells[key.steps_done, key.steps_skipped, key.step_id] += n
    links: dict[tuple[int, str | None, str, bool], list[int]] = {}
    for k, flow in total.transitions.items():
        cell = links.setdefault((k.position, k.from_step_id, k.to_step_id, k.skipped), [0, 0, 0])
        for i, amount in enumerate(flow[:3]):
            cell[i] += amount
    return flows(
        (Link(*ends, *cell, is_skip) for (*ends, is_skip), cell in links.items()),
        (
            Ending(
                done + skipped,
                step,
                Outcome.FINISHED if done + skipped == len(STEPS) else Outcome.DROPPED,
                n,
                skipped,
            )
            for (done, skipped, step), n in cells.items()
        ),
    )


@given(walks)
def test_without_a_view_the_counts_and_the_journeys_say_the_same(of: list[Walk]) -> None:
    assert View().flows(variants(of)) == counted(of)


@given(walks, views)
def test_a_view_shows_what_a_plain_walk_shows(of: list[Walk], view: View) -> None:
    links: dict[tuple[int, str | None, str, bool], list[int]] = {}
    endings: Counter[tuple[int, str | None, Outcome, int]] = Counter()
    for walk in of:
        j, skipped = journey(walk), walk[3]
        pairs = list(zip(j.step_ids, j.completed_at, strict=True))
        since, ends = j.started_at, outcome(j.step_ids)
        if view.start_at is not None:
            while pairs and pairs[0][0] != view.start_at:
                del pairs[0]
            since = None
            if not pairs:
                continue
        if view.end_at is not None:
            if view.end_at not in dict(pairs):
                continue
            while pairs[-1][0] != view.end_at:
                del pairs[-1]
            ends = Outcome.REACHED
        pairs = [pair for pair in pairs if pair[0] not in view.exclude]
        before = None
        for position, (step, at) in enumerate(pairs):
            cell = links.setdefault((position, before, step, step in skipped), [0, 0, 0])
            cell[0] += 1
            if since is not None:
                cell[1] += at - since
                cell[2] += 1
            before, since = step, at
        endings[len(pairs), before, ends, sum(step in skipped for step, _ in pairs)] += 1
    shown = view.flows(variants(of))
    assert {tuple(link.key): list(link[3:6]) for link in shown.links} == links
    assert {(*e[:3], e.steps_skipped): e.journeys for e in shown.endings} == dict(endings)


def _balance(of: Flows, most_nodes: int | None = None, unfolded: frozenset[int] = frozenset()) -> None:
    """At every node, in = out + ended."""
    drawn = graph(of, most_nodes, unfolded)
    into: Counter[NodeKey] = Counter({NodeKey(START, None): of.journeys})
    out: Counter[NodeKey] = Counter()
    for edge in drawn.edges:
        assert edge.target.position == edge.source.position + 1
        into[edge.target] += edge.journeys
        out[edge.source] += edge.journeys
    for stop in drawn.stops:
        out[stop.node] += stop.journeys
    sizes = {key: node.journeys for key, node in drawn.nodes.items() if node.journeys}
    assert {k: n for k, n in into.items() if n} == sizes == {k: n for k, n in out.items() if n}


@given(walks, views, st.integers(1, 5), st.none() | st.integers(1, 3), st.frozensets(st.integers(0, 3)))
def test_what_comes_into_a_node_goes_on_or_ends_there(
    of: list[Walk], view: View, positions: int, most_nodes: int | None, unfolded: frozenset[int]
) -> None:
    shown = view.flows(variants(of))
    _balance(shown, most_nodes, unfolded)
    cut = first_positions(shown, positions)
    _balance(cut, most_nodes, unfolded)
    assert cut.journeys == shown.journeys
    assert all(link.position < positions for link in cut.links)
    assert set(cut.links) <= set(shown.links)


@given(walks, st.integers(1, 3))
def test_folding_keeps_the_largest_and_names_the_rest(of: list[Walk], most: int) -> None:
    shown = counted(of)
    whole, folded = graph(shown), graph(shown, most)
    for position in range(len(STEPS)):
        here = sorted((n.journeys for k, n in whole.nodes.items() if k.position == position), reverse=True)
        kept = [n for k, n in folded.nodes.items() if k.position == position]
        rest = [n for n in kept if n.key.step_id is None]
        if len(here) <= most + 1:
            assert not rest
            continue
        assert sorted((n.journeys for n in kept if n.key.step_id is not None), reverse=True) == here[:most]
        assert [n.journeys for n in rest] == [sum(here[most:])] == [sum(m for _, m in rest[0].folded)]
    assert graph(shown, most, frozenset(range(len(STEPS)))).nodes == whole.nodes


def test_a_cycle_between_steps_is_none_between_nodes() -> None:
    of = counted([(("a", "b"), [0] * 7, True, frozenset()), (("b", "a"), [0] * 7, True, frozenset())])
    assert sorted((e.source, e.target) for e in graph(of).edges if e.source.position == 0) == [
        (NodeKey(0, "a"), NodeKey(1, "b")),
        (NodeKey(0, "b"), NodeKey(1, "a")),
    ]

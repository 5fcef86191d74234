"""Sankey: from links and endings to the answer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.analytics_api.figures.common import outcomes_of, share, titles_of, view_of
from services.analytics_api.models import (
    FoldedStep,
    Freshness,
    Outcomes,
    Sampling,
    Sankey,
    SankeyEnding,
    SankeyLink,
    SankeyNode,
    SankeyQuestion,
)
from services.analytics_api.store import Context
from services.journeys.flow import START, Edge, Flows, Graph, LinkKey, NodeKey, graph
from services.journeys.times import BOUNDS_MS, Durations, histogram, spread


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each link of a view took, and of whom that is."""

    links: Mapping[LinkKey, Durations]
    sampling: Sampling


def node_id(key: NodeKey) -> str:
    """A node's name within an answer."""
    if key.position == START:
        return "start"
    return f"{key.position}:other" if key.step_id is None else f"{key.position}:step:{key.step_id}"


def sankey(
    context: Context,
    question: SankeyQuestion,
    flows: Flows,
    freshness: Freshness,
    timing: Timing | None = None,
) -> Sankey:
    """The flow graph as it is drawn, with rare steps folded."""
    total = flows.journeys
    drawn = graph(flows, question.nodes, frozenset(question.unfold), (question.min_share or 0) * total)
    parts = {} if timing is None else _parts(drawn, timing)
    spreads = {ends: _spread(of[0] if len(of) == 1 else Durations.of(of)) for ends, of in parts.items()}
    return Sankey(
        walkthrough=context.walkthrough,
        journeys=total,
        outcomes=outcomes_of(flows),
        nodes=list(_nodes(context, drawn, total, _times_into(parts))),
        links=[_link(drawn, edge, total, spreads.get(_ends(edge), {})) for edge in drawn.edges],
        endings=[
            SankeyEnding(
                steps_done=stop.node.position + 1 - stop.steps_skipped,
                steps_skipped=stop.steps_skipped,
                position=stop.node.position,
                step_id=stop.node.step_id,
                outcome=stop.outcome,
                journeys=stop.journeys,
                node=node_id(stop.node),
                share=share(stop.journeys, total),
                share_of_node=share(stop.journeys, drawn.nodes[stop.node].journeys),
            )
            for stop in drawn.stops
        ],
        read_from="journeys"
        if not context.only.is_all or context.rule.needs_journeys or view_of(context, question).changes_paths
        else "counts",
        times=None if timing is None else timing.sampling,
        bounds_ms=None if timing is None else list(BOUNDS_MS),
        freshness=freshness,
    )


def _nodes(
    context: Context, drawn: Graph, total: int, times: Mapping[NodeKey, Mapping[str, Any]]
) -> Iterator[SankeyNode]:
    titles = titles_of(context)
    ended: dict[NodeKey, dict[str, int]] = {}
    for stop in drawn.stops:
        outcomes = ended.setdefault(stop.node, {})
        outcomes[stop.outcome.value] = outcomes.get(stop.outcome.value, 0) + stop.journeys
    for key, node in drawn.nodes.items():
        folded = [FoldedStep(step_id=s, title=titles(s), journeys=n) for s, n in node.folded]
        yield SankeyNode(
            id=node_id(key),
            kind="start" if key.position == START else "step" if key.step_id is not None else "other",
            position=key.position,
            step_id=key.step_id,
            title=f"{len(folded)} other steps" if folded else titles(key.step_id),
            journeys=node.journeys,
            share=share(node.journeys, total),
            ended=Outcomes(**ended.get(key, {})),
            folded=folded,
            **times.get(key, {}),
        )


#: A drawn link: where it comes from and leads to, and whether the step there was skipped.
_Ends = tuple[NodeKey, NodeKey, bool]


def _ends(edge: Edge) -> _Ends:
    return edge.source, edge.target, edge.skipped


def _parts(drawn: Graph, timing: Timing) -> dict[_Ends, list[Durations]]:
    """The times of each link that is drawn, and of those that are folded into it."""
    homes = drawn.homes()
    parts: dict[_Ends, list[Durations]] = {_ends(edge): [] for edge in drawn.edges}
    for key, of in timing.links.items():
        source = homes.get((key.position - 1, key.from_step_id))
        target = homes.get((key.position, key.to_step_id))
        # It is not drawn where a view is cut before it, or where it came between the two reads.
        if source and target and (source, target, key.skipped) in parts:
            parts[source, target, key.skipped].append(of)
    return parts


def _times_into(parts: Mapping[_Ends, list[Durations]]) -> dict[NodeKey, dict[str, Any]]:
    """Percentiles of the times before each node, whichever link they are of."""
    into: dict[NodeKey, list[Durations]] = {}
    for (_, target, _), of in parts.items():
        into.setdefault(target, []).extend(of)
    found = {}
    for key, of in into.items():
        elapsed = spread(Durations.of(of).elapsed)
        found[key] = {"median_ms": elapsed.median_ms, "p90_ms": elapsed.p90_ms, "timed": elapsed.timed}
    return found


def _spread(of: Durations) -> dict[str, Any]:
    elapsed, active = spread(of.elapsed), spread(of.active)
    return {
        "median_ms": elapsed.median_ms,
        "p90_ms": elapsed.p90_ms,
        "timed": elapsed.timed,
        "median_active_ms": active.median_ms,
        "p90_active_ms": active.p90_ms,
        "active": active.timed,
        "histogram": histogram(of.elapsed),
    }


def _link(drawn: Graph, edge: Edge, total: int, times: Mapping[str, Any]) -> SankeyLink:
    return SankeyLink(
        position=edge.target.position,
        from_step_id=edge.source.step_id,
        to_step_id=edge.target.step_id,
        source=node_id(edge.source),
        target=node_id(edge.target),
        journeys=edge.journeys,
        share=share(edge.journeys, total),
        share_of_node=share(edge.journeys, drawn.nodes[edge.source].journeys),
        mean_ms=share(edge.elapsed_ms, edge.timed_journeys),
        timed_journeys=edge.timed_journeys,
        skipped=edge.skipped,
        mean_active_ms=share(edge.active_ms, edge.active_journeys),
        active_journeys=edge.active_journeys,
        **times,
    )

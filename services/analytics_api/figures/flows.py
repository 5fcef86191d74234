"""Sankey and comparison: from links and endings to answers."""

from collections.abc import Iterator

from services.analytics_api.figures.common import outcomes_of, share, titles_of, view_of
from services.analytics_api.models import (
    ComparedDrop,
    ComparedLink,
    Comparison,
    CompletionDifference,
    FoldedStep,
    Freshness,
    Outcomes,
    Sankey,
    SankeyEnding,
    SankeyLink,
    SankeyNode,
    SankeyQuestion,
)
from services.analytics_api.store import Context
from services.journeys import comparison
from services.journeys.flow import START, Edge, Flows, Graph, NodeKey, Outcome, graph


def node_id(key: NodeKey) -> str:
    """A node's name within an answer."""
    if key.position == START:
        return "start"
    return f"{key.position}:other" if key.step_id is None else f"{key.position}:step:{key.step_id}"


def sankey(context: Context, question: SankeyQuestion, flows: Flows, freshness: Freshness) -> Sankey:
    """The flow graph as it is drawn, with rare steps folded."""
    drawn = graph(flows, question.nodes, frozenset(question.unfold))
    total = flows.journeys
    return Sankey(
        walkthrough=context.walkthrough,
        journeys=total,
        outcomes=outcomes_of(flows),
        nodes=list(_nodes(context, drawn, total)),
        links=[_link(drawn, edge, total) for edge in drawn.edges],
        endings=[
            SankeyEnding(
                steps_done=stop.node.position + 1,
                step_id=stop.node.step_id,
                outcome=stop.outcome,
                journeys=stop.journeys,
                node=node_id(stop.node),
                share=share(stop.journeys, total),
                share_of_node=share(stop.journeys, drawn.nodes[stop.node].journeys),
            )
            for stop in drawn.stops
        ],
        read_from="journeys" if view_of(context, question).changes_paths else "counts",
        freshness=freshness,
    )


def _nodes(context: Context, drawn: Graph, total: int) -> Iterator[SankeyNode]:
    titles = titles_of(context)
    ended: dict[NodeKey, dict[str, int]] = {}
    for stop in drawn.stops:
        ended.setdefault(stop.node, {})[stop.outcome.value] = stop.journeys
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
        )


def _link(drawn: Graph, edge: Edge, total: int) -> SankeyLink:
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
    )


def compare(context: Context, a: Flows, b: Flows, freshness: Freshness) -> Comparison:
    """Two cohorts, link by link and drop by drop, with what is more than chance."""
    titles = titles_of(context)
    links, drops = comparison.link_shares(a, b), comparison.drop_shares(a, b)
    whole = comparison.Shares(a.journeys, a.ended(Outcome.FINISHED), b.journeys, b.ended(Outcome.FINISHED))
    (completion,) = comparison.compare([whole])
    # Links and drops are one family: what leaves a node goes on or drops.
    compared = comparison.compare([*links.values(), *drops.values()])
    means = [{link[:3]: link.mean_ms for link in side.links} for side in (a, b)]
    return Comparison(
        walkthrough=context.walkthrough,
        journeys_a=a.journeys,
        journeys_b=b.journeys,
        outcomes_a=outcomes_of(a),
        outcomes_b=outcomes_of(b),
        completion=CompletionDifference(**completion.figures()),
        links=[
            ComparedLink(
                position=key[0],
                from_step_id=key[1],
                from_title=titles(key[1]),
                to_step_id=key[2],
                to_title=titles(key[2]),
                mean_ms_a=means[0].get(key),
                mean_ms_b=means[1].get(key),
                **result.figures(),
            )
            for key, result in zip(links, compared, strict=False)
        ],
        drops=[
            ComparedDrop(position=key[0], step_id=key[1], title=titles(key[1]), **result.figures())
            for key, result in zip(drops, compared[len(links) :], strict=True)
        ],
        freshness=freshness,
    )

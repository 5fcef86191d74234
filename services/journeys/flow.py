"""The flow graph that people look at: its links and endings, what a view leaves of a journey, and its nodes.

There is one definition of every figure: a journey's path as a view shows it. Links and endings come either
from the counts, where the view shows paths as they are, or from *variants* (distinct paths, with how many
journeys took each), where it changes them; both are the same sums. At every node

    journeys in = journeys out + journeys that end there.

Pure: values in, values out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

#: The position of the start, in front of the first step's.
START = -1


class Outcome(StrEnum):
    """How a journey ends in a view: as it stands, or because the view shows no more of it."""

    FINISHED = "finished"
    IN_PROGRESS = "in_progress"
    DROPPED = "dropped"
    #: It reached the step at which the view ends.
    REACHED = "reached"
    #: It went on past the positions that the view shows.
    WENT_ON = "went_on"


class Link(NamedTuple):
    """Journeys that came to a step at a position; `elapsed_ms` is the sum over `timed_journeys` of them."""

    position: int
    from_step_id: str | None
    to_step_id: str
    journeys: int
    elapsed_ms: int
    timed_journeys: int

    @property
    def mean_ms(self) -> float | None:
        """The mean time from the step before; None where no time is known."""
        return self.elapsed_ms / self.timed_journeys if self.timed_journeys else None


class Ending(NamedTuple):
    """Journeys that stand at a step, `steps_done` of the view's steps done; None where none is."""

    steps_done: int
    step_id: str | None
    outcome: Outcome
    journeys: int


@dataclass(frozen=True, slots=True)
class Flows:
    """Links and endings of all journeys of a view, each key once, in a fixed order."""

    links: tuple[Link, ...]
    endings: tuple[Ending, ...]

    @property
    def journeys(self) -> int:
        """How many journeys there are."""
        return sum(e.journeys for e in self.endings)

    def ended(self, outcome: Outcome) -> int:
        """How many of them end so."""
        return sum(e.journeys for e in self.endings if e.outcome is outcome)


@dataclass(frozen=True, slots=True)
class Variant:
    """A path that journeys took, in order, and how they stand.

    `since_began_ms[i]` is the sum over the journeys of the milliseconds to step `i`, from their start where
    they are `started` (that is, it is known), else from their first step.
    """

    step_ids: tuple[str, ...]
    outcome: Outcome
    started: bool
    journeys: int
    since_began_ms: tuple[int, ...]


class Path(NamedTuple):
    """What a view shows of a journey: the indices of its steps, and where it cuts it, if it does."""

    shown: tuple[int, ...]
    cut: Outcome | None


@dataclass(frozen=True, slots=True)
class View:
    """Which part of each journey is shown.

    `start_at` shows the journeys that did that step, from it on; `end_at` those that did that step (later),
    up to it; steps in `exclude` are left out and their neighbours joined, the time between them added up.
    Of the paths that are then shown, `through` keeps those with one of these steps at each of its positions.
    """

    start_at: str | None = None
    end_at: str | None = None
    exclude: frozenset[str] = frozenset()
    through: Mapping[int, frozenset[str]] = field(default_factory=dict)

    @property
    def changes_paths(self) -> bool:
        """Whether the view cannot be had from the counts."""
        return bool(self.start_at or self.end_at or self.exclude or self.through)

    def path(self, step_ids: Sequence[str]) -> Path | None:
        """What is shown of a journey; None where it is not in the view."""
        first, last, cut = 0, len(step_ids), None
        if self.start_at is not None:
            if self.start_at not in step_ids:
                return None
            first = step_ids.index(self.start_at)
        if self.end_at is not None:
            if self.end_at not in step_ids[first:]:
                return None
            last, cut = step_ids.index(self.end_at, first) + 1, Outcome.REACHED
        shown = tuple(i for i in range(first, last) if step_ids[i] not in self.exclude)
        for position, steps in self.through.items():
            if position >= len(shown) or step_ids[shown[position]] not in steps:
                return None
        return Path(shown, cut)

    def flows(self, variants: Iterable[Variant]) -> Flows:
        """The links and endings of all journeys in the view."""
        links: defaultdict[tuple[int, str | None, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        endings: Counter[tuple[int, str | None, Outcome]] = Counter()
        for variant in variants:
            path = self.path(variant.step_ids)
            if path is None:
                continue
            before: int | None = None
            for position, index in enumerate(path.shown):
                step = variant.step_ids[index]
                from_step = None if before is None else variant.step_ids[before]
                amounts = links[position, from_step, step]
                elapsed, timed = self._elapsed(variant, before, index)
                amounts[0] += variant.journeys
                amounts[1] += elapsed
                amounts[2] += timed
                before = index
            stands = None if before is None else variant.step_ids[before]
            endings[len(path.shown), stands, path.cut or variant.outcome] += variant.journeys
        return flows(
            (Link(*key, *amounts) for key, amounts in links.items()),
            (Ending(*key, n) for key, n in endings.items()),
        )

    def _elapsed(self, variant: Variant, before: int | None, index: int) -> tuple[int, int]:
        """The time from the step before, and how many journeys it is of."""
        since = variant.since_began_ms
        if before is not None:
            return since[index] - since[before], variant.journeys
        if self.start_at is not None or not variant.started:
            return 0, 0  # what was before is not part of the view, or is not known
        return since[index], variant.journeys


def flows(links: Iterable[Link], endings: Iterable[Ending]) -> Flows:
    """Links and endings in their order, without those of no journey."""
    return Flows(
        tuple(sorted((x for x in links if x.journeys), key=_link_order)),
        tuple(sorted((x for x in endings if x.journeys), key=_ending_order)),
    )


def _link_order(link: Link) -> tuple[int, str, str]:
    return link.position, link.from_step_id or "", link.to_step_id


def _ending_order(ending: Ending) -> tuple[int, str, str]:
    return ending.steps_done, ending.step_id or "", ending.outcome


def first_positions(whole: Flows, positions: int) -> Flows:
    """The flows up to so many positions; what goes on from the last of them ends there as `went_on`."""
    beyond: Counter[str | None] = Counter()
    for link in whole.links:
        if link.position == positions:
            beyond[link.from_step_id] += link.journeys
    return flows(
        (link for link in whole.links if link.position < positions),
        [
            *(e for e in whole.endings if e.steps_done <= positions),
            *(Ending(positions, step, Outcome.WENT_ON, n) for step, n in beyond.items()),
        ],
    )


class NodeKey(NamedTuple):
    """A node: a position and a step; no step is the start, or at other positions the steps folded there."""

    position: int
    step_id: str | None


@dataclass(slots=True)
class Node:
    """A step at a position, the start, or the steps folded into one."""

    key: NodeKey
    journeys: int = 0
    #: What is folded into it: steps and their journeys, the largest first.
    folded: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """A link between nodes."""

    source: NodeKey
    target: NodeKey
    journeys: int
    elapsed_ms: int
    timed_journeys: int


@dataclass(frozen=True, slots=True)
class Stop:
    """An ending at a node."""

    node: NodeKey
    outcome: Outcome
    journeys: int


@dataclass(slots=True)
class Graph:
    """What is drawn: without cycles, since every link leads from a position to the next."""

    nodes: dict[NodeKey, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)


def graph(of: Flows, most_nodes: int | None = None, unfolded: frozenset[int] = frozenset()) -> Graph:
    """The nodes and edges of flows.

    Args:
        of: the flows.
        most_nodes: how many steps a position shows; the rest, where that is more than one, is folded into
            one node. None folds nothing.
        unfolded: positions that show all.
    """
    sizes: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for link in of.links:
        sizes[link.position][link.to_step_id] += link.journeys
    result = Graph()
    result.nodes[NodeKey(START, None)] = Node(NodeKey(START, None), of.journeys)
    where: dict[tuple[int, str | None], NodeKey] = {(START, None): NodeKey(START, None)}
    for position in sorted(sizes):
        ranked = sorted(sizes[position].items(), key=lambda item: (-item[1], item[0]))
        shown = len(ranked)
        if most_nodes is not None and position not in unfolded and len(ranked) > most_nodes + 1:
            shown = most_nodes
        for step, journeys in ranked[:shown]:
            key = where[position, step] = NodeKey(position, step)
            result.nodes[key] = Node(key, journeys)
        if rest := ranked[shown:]:
            other = NodeKey(position, None)
            where.update({(position, step): other for step, _ in rest})
            result.nodes[other] = Node(other, sum(n for _, n in rest), tuple(rest))
    edges: defaultdict[tuple[NodeKey, NodeKey], list[int]] = defaultdict(lambda: [0, 0, 0])
    for link in of.links:
        amounts = edges[where[link.position - 1, link.from_step_id], where[link.position, link.to_step_id]]
        for i, amount in enumerate((link.journeys, link.elapsed_ms, link.timed_journeys)):
            amounts[i] += amount
    result.edges = [Edge(source, target, *amounts) for (source, target), amounts in edges.items()]
    stops: Counter[tuple[NodeKey, Outcome]] = Counter()
    for ending in of.endings:
        stops[where[ending.steps_done - 1, ending.step_id], ending.outcome] += ending.journeys
    result.stops = [Stop(node, outcome, n) for (node, outcome), n in stops.items()]
    return result

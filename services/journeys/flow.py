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
    """Journeys that came to a step at a position, by completing or by skipping it.

    `elapsed_ms` is the sum over `timed_journeys` of them, since the step before; `active_ms` that over
    `active_journeys`, since the step was shown.
    """

    position: int
    from_step_id: str | None
    to_step_id: str
    journeys: int
    elapsed_ms: int
    timed_journeys: int
    skipped: bool = False
    active_ms: int = 0
    active_journeys: int = 0

    @property
    def key(self) -> "LinkKey":
        """Which link it is."""
        return LinkKey(self.position, self.from_step_id, self.to_step_id, self.skipped)

    @property
    def mean_ms(self) -> float | None:
        """The mean time from the step before; None where no time is known."""
        return self.elapsed_ms / self.timed_journeys if self.timed_journeys else None


class LinkKey(NamedTuple):
    """A link: to which step at which position it leads, from where, and whether that step was skipped."""

    position: int
    from_step_id: str | None
    to_step_id: str
    skipped: bool

    @property
    def order(self) -> tuple[int, str, str, bool]:
        """By which links are sorted."""
        return self.position, self.from_step_id or "", self.to_step_id, self.skipped


class Ending(NamedTuple):
    """Journeys that stand at a step after `steps_passed` of the view's steps; None where that is 0.

    So many of these were skipped; that is not told of journeys that went on.
    """

    steps_passed: int
    step_id: str | None
    outcome: Outcome
    journeys: int
    steps_skipped: int = 0


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
    they are `started` (that is, it is known), else from their first step. `skipped[i]` says whether step `i`
    was skipped; where none was it may be empty. `shown_step_id` is what was shown last and is not passed;
    None where that is not known. `version` is then the number of the version of their last activity.
    `active_ms[i]` is the sum of the milliseconds since step `i` was shown, over `active_journeys[i]`; where
    no showing is known they may be empty.
    """

    step_ids: tuple[str, ...]
    outcome: Outcome
    started: bool
    journeys: int
    since_began_ms: tuple[int, ...]
    skipped: tuple[bool, ...] = ()
    shown_step_id: str | None = None
    active_ms: tuple[int, ...] = ()
    active_journeys: tuple[int, ...] = ()
    version: int | None = None

    @property
    def done(self) -> list[str]:
        """The steps that were completed."""
        if not self.skipped:
            return list(self.step_ids)
        return [step for step, is_skip in zip(self.step_ids, self.skipped, strict=True) if not is_skip]


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
        links: defaultdict[LinkKey, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
        endings: Counter[tuple[int, str | None, Outcome, int]] = Counter()
        for variant in variants:
            path = self.path(variant.step_ids)
            if path is None:
                continue
            before: int | None = None
            for position, index in enumerate(path.shown):
                step = variant.step_ids[index]
                from_step = None if before is None else variant.step_ids[before]
                is_skip = bool(variant.skipped) and variant.skipped[index]
                amounts = links[LinkKey(position, from_step, step, is_skip)]
                elapsed, timed = self._elapsed(variant, before, index)
                amounts[0] += variant.journeys
                amounts[1] += elapsed
                amounts[2] += timed
                if variant.active_ms:
                    amounts[3] += variant.active_ms[index]
                    amounts[4] += variant.active_journeys[index]
                before = index
            stands = None if before is None else variant.step_ids[before]
            skipped = sum(variant.skipped[i] for i in path.shown) if variant.skipped else 0
            endings[len(path.shown), stands, path.cut or variant.outcome, skipped] += variant.journeys
        return flows(
            (
                Link(*key[:3], journeys, elapsed_ms, timed, key.skipped, *active)
                for key, (journeys, elapsed_ms, timed, *active) in links.items()
            ),
            (
                Ending(passed, stands, outcome, n, skipped)
                for (passed, stands, outcome, skipped), n in endings.items()
            ),
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


def _link_order(link: Link) -> tuple[int, str, str, bool]:
    return link.key.order


def _ending_order(ending: Ending) -> tuple[int, str, str, int]:
    return ending.steps_passed, ending.step_id or "", ending.outcome, ending.steps_skipped


def first_positions(whole: Flows, positions: int) -> Flows:
    """The flows up to so many positions; what goes on from the last of them ends there as `went_on`."""
    beyond: Counter[str | None] = Counter()
    for link in whole.links:
        if link.position == positions:
            beyond[link.from_step_id] += link.journeys
    return flows(
        (link for link in whole.links if link.position < positions),
        [
            *(e for e in whole.endings if e.steps_passed <= positions),
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
    #: Whether the step that it leads to was skipped.
    skipped: bool = False
    active_ms: int = 0
    active_journeys: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """An ending at a node, after `steps_skipped` steps were skipped."""

    node: NodeKey
    outcome: Outcome
    journeys: int
    steps_skipped: int = 0


@dataclass(slots=True)
class Graph:
    """What is drawn: without cycles, since every link leads from a position to the next."""

    nodes: dict[NodeKey, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)

    def homes(self) -> dict[tuple[int, str | None], NodeKey]:
        """For each step at a position the node that shows it, which may fold several; None is the start."""
        homes: dict[tuple[int, str | None], NodeKey] = {}
        for key, node in self.nodes.items():
            homes.update({(key.position, step): key for step, _ in node.folded})
            if not node.folded:
                homes[key] = key
        return homes


def graph(
    of: Flows, most_nodes: int | None = None, unfolded: frozenset[int] = frozenset(), least: float = 0
) -> Graph:
    """The nodes and edges of flows.

    Args:
        of: the flows.
        most_nodes: how many steps a position shows; the rest, where that is more than one, is folded into
            one node. None folds nothing.
        unfolded: positions that show all.
        least: steps with fewer journeys at a position are folded as well, where that is more than one.
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
        if position not in unfolded:
            large = sum(1 for _, journeys in ranked if journeys >= least)
            most = large if most_nodes is None else min(large, most_nodes)
            shown = most if len(ranked) > most + 1 else len(ranked)
        for step, journeys in ranked[:shown]:
            key = where[position, step] = NodeKey(position, step)
            result.nodes[key] = Node(key, journeys)
        if rest := ranked[shown:]:
            other = NodeKey(position, None)
            where.update({(position, step): other for step, _ in rest})
            result.nodes[other] = Node(other, sum(n for _, n in rest), tuple(rest))
    edges: defaultdict[tuple[NodeKey, NodeKey, bool], list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for link in of.links:
        source, target = where[link.position - 1, link.from_step_id], where[link.position, link.to_step_id]
        amounts = edges[source, target, link.skipped]
        sums = link.journeys, link.elapsed_ms, link.timed_journeys, link.active_ms, link.active_journeys
        for i, amount in enumerate(sums):
            amounts[i] += amount
    result.edges = [
        Edge(source, target, journeys, elapsed_ms, timed, skipped, *active)
        for (source, target, skipped), (journeys, elapsed_ms, timed, *active) in edges.items()
    ]
    stops: Counter[tuple[NodeKey, Outcome, int]] = Counter()
    for ending in of.endings:
        node = where[ending.steps_passed - 1, ending.step_id]
        stops[node, ending.outcome, ending.steps_skipped] += ending.journeys
    result.stops = [Stop(node, outcome, n, skipped) for (node, outcome, skipped), n in stops.items()]
    return result

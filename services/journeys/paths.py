"""Whole paths of a view: how many journeys took each, from beginning to end.

Pure: values in, values out.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.journeys.flow import Outcome, Path, Variant, View


class PathKey(NamedTuple):
    """A path as a view shows it: its steps in order, which of them were skipped, and how it ends."""

    step_ids: tuple[str, ...]
    skipped: tuple[bool, ...]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class PathCount:
    """How many journeys took a path, and of how many of them the start is known."""

    key: PathKey
    journeys: int
    started: int


def path_key(
    view: View, step_ids: Sequence[str], skipped: Sequence[bool], outcome: Outcome
) -> tuple[PathKey, Path] | None:
    """Which path a journey is in a view, and what the view shows of it; None where it is not in the view."""
    path = view.path(step_ids)
    if path is None:
        return None
    skips = tuple(bool(skipped) and skipped[i] for i in path.shown)
    return PathKey(tuple(step_ids[i] for i in path.shown), skips, path.cut or outcome), path


def count_paths(view: View, variants: Iterable[Variant]) -> list[PathCount]:
    """The paths of a view, the most frequent first."""
    counts: defaultdict[PathKey, list[int]] = defaultdict(lambda: [0, 0])
    for variant in variants:
        shown = path_key(view, variant.step_ids, variant.skipped, variant.outcome)
        if shown is not None:
            count = counts[shown[0]]
            count[0] += variant.journeys
            count[1] += variant.journeys if variant.started else 0
    found = [PathCount(key, journeys, started) for key, (journeys, started) in counts.items()]
    return sorted(found, key=lambda path: (-path.journeys, path.key))

"""The most frequent paths: from counts and durations of paths to an answer."""

from collections.abc import Mapping, Sequence

from services.analytics_api.figures.common import share
from services.analytics_api.models import FrequentPaths, Freshness, PathFigures, PathsBeyond, Sampling
from services.analytics_api.store import Context
from services.journeys.paths import PathCount, PathKey
from services.journeys.times import spread


def frequent_paths(
    context: Context,
    counts: Sequence[PathCount],
    limit: int,
    durations: Mapping[PathKey, Sequence[int]],
    times: Sampling,
    freshness: Freshness,
) -> FrequentPaths:
    """The first of all paths, and how many the others are."""
    journeys = sum(path.journeys for path in counts)
    beyond = sum(path.journeys for path in counts[limit:])
    return FrequentPaths(
        walkthrough=context.walkthrough,
        journeys=journeys,
        all_paths=len(counts),
        paths=[
            _path(place, path, journeys, durations.get(path.key, ()))
            for place, path in enumerate(counts[:limit], start=1)
        ],
        other=PathsBeyond(paths=max(0, len(counts) - limit), journeys=beyond, share=share(beyond, journeys)),
        times=times,
        freshness=freshness,
    )


def _path(place: int, path: PathCount, journeys: int, durations: Sequence[int]) -> PathFigures:
    took = spread(durations)
    steps, skipped, outcome = path.key
    return PathFigures(
        place=place,
        step_ids=list(steps),
        skipped_step_ids=[step for step, is_skip in zip(steps, skipped, strict=True) if is_skip],
        outcome=outcome,
        journeys=path.journeys,
        share=share(path.journeys, journeys),
        started=path.started,
        median_ms=took.median_ms,
        p90_ms=took.p90_ms,
        timed=took.timed,
    )

"""Funnel, steps and trends: from variants to figures."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from services.analytics_api.figures.common import share
from services.analytics_api.models import MostStop, StepFigures, TrendsQuestion
from services.analytics_api.problems import unanswerable
from services.journeys.diagnosis import foremost
from services.journeys.flow import Outcome, Variant
from services.journeys.times import Durations, histogram, spread
from services.journeys.versions import Versions, first_open

#: How many days or weeks an answer may have.
_MOST_POINTS = 3_700


def is_assumed(order: Sequence[str], shown: str | None) -> bool:
    """Whether where a journey stands is assumed: no showing says, or of a step that went elsewhere since."""
    return shown is None or shown not in order


def stands_at(
    then: Sequence[str], order: Sequence[str], passed: Iterable[str], shown: str | None
) -> str | None:
    """The step that an unfinished journey stands at: what was shown last and is not passed.

    Where that is not known, what would have been shown by the order of `then` is assumed.
    """
    return first_open(then, order, passed) if is_assumed(order, shown) else shown


def order_then(versions: Versions, number: int | None) -> tuple[str, ...]:
    """The order of a version; today's where it is not told."""
    found = None if number is None else versions.numbered(number)
    return (found or versions.newest).order


@dataclass(slots=True)
class FunnelCounts:
    """How many began, how many completed and skipped each step, and how many passed it and all before it."""

    started: int
    completed: Counter[str]
    skipped: Counter[str]
    through: list[int]


def count_funnel(order: Sequence[str], variants: Iterable[Variant]) -> FunnelCounts:
    """The funnel's figures."""
    counts = FunnelCounts(0, Counter(), Counter(), [0] * len(order))
    for variant in variants:
        counts.started += variant.journeys
        _count_passed(variant, counts.completed, counts.skipped)
        passed = set(variant.step_ids)
        for place, step in enumerate(order):
            if step not in passed:
                break
            counts.through[place] += variant.journeys
    return counts


@dataclass(slots=True)
class StepCounts:
    """How many completed and skipped each step, and where unfinished journeys stand.

    `assumed` is of how many of these that is assumed from an order of steps.
    """

    completed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    standing: Counter[tuple[str | None, Outcome]] = field(default_factory=Counter)
    assumed: int = 0


def count_by_step(versions: Versions, variants: Iterable[Variant]) -> StepCounts:
    """The figures of all steps."""
    counts, order = StepCounts(), versions.newest.order
    for variant in variants:
        _count_passed(variant, counts.completed, counts.skipped)
        if variant.outcome is not Outcome.FINISHED:
            then = order_then(versions, variant.version)
            at = stands_at(then, order, variant.step_ids, variant.shown_step_id)
            counts.standing[at, variant.outcome] += variant.journeys
            if is_assumed(order, variant.shown_step_id):
                counts.assumed += variant.journeys
    return counts


def _count_passed(variant: Variant, completed: Counter[str], skipped: Counter[str]) -> None:
    done = set(variant.done)
    for step in done:
        completed[step] += variant.journeys
    for step in set(variant.step_ids) - done:
        skipped[step] += variant.journeys


def step_figures(
    place: int, step: str, title: str, counts: StepCounts, durations: Durations | None
) -> StepFigures:
    """A step's figures."""
    durations = durations or Durations()
    elapsed, active = spread(durations.elapsed), spread(durations.active)
    completed, skipped = counts.completed[step], counts.skipped[step]
    dropped = counts.standing[step, Outcome.DROPPED]
    in_progress = counts.standing[step, Outcome.IN_PROGRESS]
    reached = completed + skipped + dropped + in_progress
    return StepFigures(
        place=place,
        step_id=step,
        title=title,
        reached=reached,
        completed=completed,
        skipped=skipped,
        dropped_here=dropped,
        in_progress_here=in_progress,
        completion_rate=share(completed, reached),
        mean_ms=elapsed.mean_ms,
        median_ms=elapsed.median_ms,
        p90_ms=elapsed.p90_ms,
        timed=elapsed.timed,
        histogram=histogram(durations.elapsed),
        mean_active_ms=active.mean_ms,
        median_active_ms=active.median_ms,
        p90_active_ms=active.p90_ms,
        active=active.timed,
    )


def most_stop(of: Sequence[StepFigures]) -> MostStop | None:
    """Where most people stop, as far as that can be told from chance."""
    dropped = {step.step_id: step.dropped_here for step in of if step.dropped_here}
    if not dropped:
        return None
    found = foremost(dropped)
    step = max(dropped, key=lambda step: dropped[step]) if found is None else found.key
    return MostStop(
        step_id=step,
        dropped_here=dropped[step],
        dropped=sum(dropped.values()),
        like_it=None if found is None else list(found.like_it),
    )


def days_between(known: Collection[date], question: TrendsQuestion, today: date) -> list[date]:
    """Every day, or Monday, of what is asked for and of what there is."""
    if not known and question.since is None:
        return []
    first = question.since or min(known)
    days = min(366, (date.max - first).days)
    last = question.until or max([*known, min(today, first + timedelta(days=days))])
    step = timedelta(days=7 if question.by == "week" else 1)
    if question.by == "week":
        first -= timedelta(days=first.weekday())
    if (last - first) // step > _MOST_POINTS:
        raise unanswerable(
            f"from {first} to {last} there are more than {_MOST_POINTS:,} {question.by}s", "query.from"
        )
    return [first + step * i for i in range((last - first) // step + 1)]

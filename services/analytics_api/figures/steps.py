"""Funnel, steps and trends: from variants to figures."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import date, timedelta

import asyncpg

from services.analytics_api.figures.common import share
from services.analytics_api.models import StepFigures, TrendsQuestion
from services.analytics_api.problems import unanswerable
from services.journeys.flow import Outcome, Variant

#: How many days or weeks an answer may have.
_MOST_POINTS = 3_700


def next_step(order: Sequence[str], done: Iterable[str]) -> str | None:
    """The first step in display order that is not done: what would be shown next."""
    done = set(done)
    return next((step for step in order if step not in done), None)


def count_funnel(order: Sequence[str], variants: Iterable[Variant]) -> tuple[int, Counter[str], list[int]]:
    """How many began, how many did each step, and how many did it and all before it."""
    started = 0
    completed: Counter[str] = Counter()
    through = [0] * len(order)
    for variant in variants:
        started += variant.journeys
        done = set(variant.step_ids)
        for step in done:
            completed[step] += variant.journeys
        for place, step in enumerate(order):
            if step not in done:
                break
            through[place] += variant.journeys
    return started, completed, through


def count_by_step(
    order: Sequence[str], variants: Iterable[Variant]
) -> tuple[Counter[str], Counter[tuple[str | None, Outcome]]]:
    """How many did each step, and how many unfinished journeys would be shown it next."""
    completed: Counter[str] = Counter()
    waiting: Counter[tuple[str | None, Outcome]] = Counter()
    for variant in variants:
        for step in variant.step_ids:
            completed[step] += variant.journeys
        if variant.outcome is not Outcome.FINISHED:
            waiting[next_step(order, variant.step_ids), variant.outcome] += variant.journeys
    return completed, waiting


def step_figures(
    place: int,
    step: str,
    title: str,
    completed: int,
    waiting: Counter[tuple[str | None, Outcome]],
    times: asyncpg.Record | None,
) -> StepFigures:
    """A step's figures: `waiting` are unfinished journeys by the step that would be shown next."""
    dropped, in_progress = waiting[step, Outcome.DROPPED], waiting[step, Outcome.IN_PROGRESS]
    reached = completed + dropped + in_progress
    return StepFigures(
        place=place,
        step_id=step,
        title=title,
        reached=reached,
        completed=completed,
        dropped_here=dropped,
        in_progress_here=in_progress,
        completion_rate=share(completed, reached),
        mean_ms=times["mean_ms"] if times else None,
        median_ms=times["percentiles"][0] if times else None,
        p90_ms=times["percentiles"][1] if times else None,
        timed=times["timed"] if times else 0,
    )


def days_between(known: Collection[date], question: TrendsQuestion, today: date) -> list[date]:
    """Every day, or Monday, of what is asked for and of what there is."""
    if not known and question.since is None:
        return []
    first = question.since or min(known)
    last = question.until or max([*known, min(today, first + timedelta(days=366))])
    step = timedelta(days=7 if question.by == "week" else 1)
    if question.by == "week":
        first -= timedelta(days=first.weekday())
    if (last - first) // step > _MOST_POINTS:
        raise unanswerable(
            f"from {first} to {last} there are more than {_MOST_POINTS:,} {question.by}s", "query.from"
        )
    return [first + step * i for i in range((last - first) // step + 1)]

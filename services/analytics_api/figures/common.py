"""What all answers share: shares, titles, outcomes, and the view that is asked for."""

from collections.abc import Callable

from services.analytics_api.models import Outcomes, Paths
from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context
from services.journeys.flow import Flows, Outcome, View

START_TITLE = "Start"


def view_of(context: Context, paths: Paths) -> View:
    """The view that is asked for.

    Raises:
        ProblemError: it names a step that the walkthrough does not have.
    """
    known = {step.id for step in context.steps}
    for where, step in (
        ("start_at", paths.start_at),
        ("end_at", paths.end_at),
        *(("exclude", step) for step in paths.exclude),
    ):
        if step is not None and step not in known:
            raise unanswerable(f"the walkthrough has no step `{step}`", where)
    return View(paths.start_at, paths.end_at, frozenset(paths.exclude), paths.steps_through)


def share(part: float, whole: float) -> float | None:
    """The part of a whole, 0 to 1; None where there is nothing."""
    return part / whole if whole else None


def titles_of(context: Context) -> Callable[[str | None], str]:
    """Titles of steps; a step that was deleted a moment ago goes by its id."""
    titles = {step.id: step.title for step in context.steps}
    return lambda step: START_TITLE if step is None else titles.get(step, step)


def outcomes_of(flows: Flows) -> Outcomes:
    """How many journeys have each outcome."""
    return Outcomes(**{outcome.value: flows.ended(outcome) for outcome in Outcome})

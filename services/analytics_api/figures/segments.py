"""Segments: who is asked about, and in words; which of them tell apart who stops."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context
from services.journeys.segments import Condition, Segment
from services.runtime.titles import one_line

_TITLE: Final = 60
#: So many values are named where there are more.
_NAMED: Final = 3
_WHAT: Final = {"agent": "agent", "agent_version": "agent version"}


def of_segment(context: Context, texts: Sequence[str], where: str = "query.segment") -> Context:
    """The walkthrough with the journeys of a segment alone; without texts, all.

    Raises:
        ProblemError: it has no such step.
    """
    segment = Segment.of(texts)
    known = {step.id for step in context.steps}
    if missing := [step for step in segment.steps if step not in known]:
        raise unanswerable(f"the walkthrough has no step `{missing[0]}`", where)
    return replace(context, only=replace(context.only, segment=segment))


def said_of(segment: Segment, title: Callable[[str | None], str]) -> str:
    """Whose journeys they are, in words; nothing, where they are everybody's."""
    return " and ".join(_said(segment, title))


def _said(segment: Segment, title: Callable[[str | None], str]) -> Iterator[str]:
    for of in segment.conditions:
        if of.kind == "did":
            steps = _listed(of, ", " if of.is_not else " and ", title)
            yield f"{'without having completed' if of.is_not else 'having completed'} {steps}"
        else:
            what = _WHAT.get(of.kind, f"metadata “{_short(of.key)}”")
            yield f"{what} {'not ' if of.is_not else ''}{_listed(of, ' or ')}"


def _listed(of: Condition, between: str, title: Callable[[str | None], str] = str) -> str:
    named = [f"“{_short(title(value))}”" if value else "none" for value in of.values[:_NAMED]]
    rest = len(of.values) - _NAMED
    return between.join(named) + (f" and {rest} more" if rest > 0 else "")


def _short(text: str) -> str:
    return one_line(text, _TITLE)

"""After how many days journeys are judged, and why; how many of a cohort or a day were finished by then."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

from services.analytics_api.figures.common import share
from services.analytics_api.models import FinishPoint, FinishTimes
from services.journeys.intervals import wilson
from services.journeys.survival import Curve, thinned
from services.journeys.within import Began, Judged, Proposal, judged, propose

_EPOCH: Final = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Within:
    """Journeys are judged so many days after their beginning, if that is not after `judged_at`."""

    days: int
    because: str
    judged_at: int

    def figures(self) -> dict[str, Any]:
        """As answers have it."""
        return {"within_days": self.days, "within_because": self.because, "judged_at": self.judged_at}


def within_of(asked: int | None, sides: Sequence[Sequence[Began]], otherwise: int, judged_at: int) -> Within:
    """The days that are asked for, or else those that are proposed."""
    if asked is not None:
        return Within(asked, "As asked for.", judged_at)
    proposal = propose(sides, otherwise)
    return Within(proposal.days, _because(proposal), judged_at)


def _because(proposal: Proposal) -> str:
    longest = days_text(proposal.longest)
    of = f"of the journeys that began {longest} ago or earlier"
    if not proposal.finished:
        return f"Proposed without a measure: {of}, none finished within {longest}."
    return (
        f"Proposed from the data: {of}, {proposal.finished} finished within {longest}, and 90 % of these "
        f"within {days_text(proposal.days)}."
    )


def days_text(days: int) -> str:
    """So many days, in words."""
    return "1 day" if days == 1 else f"{days} days"


def rate_figures(began: Iterable[Began], days: int) -> dict[str, Any]:
    """The completion rate of a cohort within so many days, with its interval."""
    of = judged(began, days)
    interval = wilson(of.finished, of.had_time)
    return {
        **_rate(of),
        "completion_rate_within_low": interval and interval.low,
        "completion_rate_within_high": interval and interval.high,
    }


def period_figures(began: Iterable[Began], since: date, days_in_it: int, within: Within) -> dict[str, Any]:
    """The same of those who began on some days; whether all of these are long enough ago."""
    ends = (since - _EPOCH + timedelta(days=days_in_it + within.days)) // timedelta(milliseconds=1)
    return {**_rate(judged(began, within.days)), "complete": ends <= within.judged_at}


def _rate(of: Judged) -> dict[str, Any]:
    return {
        "had_time": of.had_time,
        "finished_within": of.finished,
        "completion_rate_within": share(of.finished, of.had_time),
    }


def by_period(began: Iterable[Began], by: str) -> Mapping[date, list[Began]]:
    """Journeys by the day, or the Monday of the week, on which they began."""
    found: dict[date, list[Began]] = {}
    for of in began:
        day = _EPOCH + timedelta(days=of.day)
        found.setdefault(day - timedelta(days=day.weekday()) if by == "week" else day, []).append(of)
    return found


def finish_times(curve: Curve, as_of: int) -> FinishTimes:
    """When half of all, and nine in ten, have finished."""
    return FinishTimes(
        as_of=as_of,
        finished=curve.finished,
        censored=curve.censored,
        median_ms=curve.median.ms,
        median_low_ms=curve.median.low,
        median_high_ms=curve.median.high,
        p90_ms=curve.p90.ms,
        p90_low_ms=curve.p90.low,
        p90_high_ms=curve.p90.high,
    )


def finish_points(curve: Curve) -> list[FinishPoint]:
    """The curve, with as many points as an answer has."""
    return [FinishPoint(**point._asdict()) for point in thinned(curve.points)]

"""A diagnosis: what the figures of a walkthrough allow to be concluded, and what they do not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from services.analytics_api.models import (
    CompletionDifference,
    DiagnoseQuestion,
    Diagnosis,
    Finding,
    Freshness,
    Period,
    StepChange,
    StepFigures,
    Steps,
    StepStops,
)
from services.analytics_api.store import Context, day_ms
from services.journeys.comparison import Compared, compare
from services.journeys.diagnosis import ENOUGH, Progress, comparable, foremost
from services.journeys.flow import Flows, Outcome
from services.journeys.intervals import wilson
from services.runtime.titles import one_line

_TITLE = 60
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Figures:
    """What a diagnosis is made of.

    `steps` and `flows` are of the journeys that began in `period`; `asked` counts those of later days, too.
    `before` and `after` are how far the journeys of `earlier` and `recent` had come after the same time;
    `steps_since` is since when each step is there, in milliseconds.
    """

    period: Period
    steps: Steps
    flows: Flows
    asked: int
    earlier: Period
    recent: Period
    before: Progress
    after: Progress
    steps_since: Mapping[str, int | None]


def periods(until: date, days: int) -> tuple[Period, Period]:
    """So many days, and as many that follow, up to a last one."""
    first = until - timedelta(days=days - 1)
    return (
        Period(since=first - timedelta(days=days), until=first - timedelta(days=1)),
        Period(since=first, until=until),
    )


def diagnosis(context: Context, asked: DiagnoseQuestion, of: Figures, fresh: Freshness) -> Diagnosis:
    """All of it."""
    told = _Told(context, asked, of)
    compared, not_compared = _compared(context, of)
    completion = compared.pop(None, None)
    titles = {step.id: step.title for step in context.steps}
    changes = {
        step: StepChange(**change.figures(), step_id=step, title=titles[step])
        for step, change in compared.items()
        if step is not None
    }
    findings = [
        *told.changed(completion, list(changes.values())),
        *told.stops(),
        *told.largest_share(),
        *told.slowest(),
    ]
    return Diagnosis(
        walkthrough=context.walkthrough,
        period=of.period,
        journeys=of.flows.journeys,
        finished=of.flows.ended(Outcome.FINISHED),
        in_progress=of.flows.ended(Outcome.IN_PROGRESS),
        dropped=of.flows.ended(Outcome.DROPPED),
        too_young=max(0, of.asked - of.flows.journeys),
        steps=[_stops(s) for s in sorted(of.steps.steps, key=lambda s: (-s.dropped_here, s.place))],
        times=of.steps.times,
        earlier=of.earlier,
        recent=of.recent,
        completion=None if completion is None else CompletionDifference(**completion.figures()),
        changes=list(changes.values()),
        findings=findings,
        unknown=[*told.too_few(), *not_compared],
        freshness=fresh,
    )


def _stops(step: StepFigures) -> StepStops:
    interval = wilson(step.dropped_here, step.reached)
    return StepStops(
        place=step.place,
        step_id=step.step_id,
        title=step.title,
        reached=step.reached,
        dropped_here=step.dropped_here,
        share=step.dropped_here / step.reached if step.reached else None,
        share_low=interval and interval.low,
        share_high=interval and interval.high,
        median_ms=step.median_ms,
        p90_ms=step.p90_ms,
        timed=step.timed,
    )


def _compared(context: Context, of: Figures) -> tuple[dict[str | None, Compared], list[str]]:
    """What the two periods have in common, side by side; and what they cannot have, with the reason.

    Nobody of the earlier period could do a step that was added later, or finish what it is a part of.
    """
    begin = day_ms(of.earlier.since) or 0
    added = {s.id: at for s in context.steps if (at := of.steps_since.get(s.id)) is not None and at > begin}
    can = comparable([s.id for s in context.steps], of.before, of.after)
    why: list[str] = []
    if None not in can:
        why.append(
            f"What changed: {of.before.journeys} journeys began {_days(of.earlier)}, and {of.after.journeys} "
            f"{_days(of.recent)}; each period needs {ENOUGH}."
        )
    elif few := sum(1 for s in context.steps if s.id not in can and s.id not in added):
        why.append(f"Whether {few} steps changed: fewer than {ENOUGH} people of a period reached them.")
    # Without anybody before, nobody missed them: all may have been added with the walkthrough.
    if added and of.before.journeys:
        newest = max(added, key=lambda step: added[step])
        title = next(s.title for s in context.steps if s.id == newest)
        why.append(
            f"Whether more or fewer finish, and how {len(added)} new steps do: steps were added since "
            f"{of.earlier.since}, the last, “{one_line(title, _TITLE)}”, on {_day(added[newest])}; people "
            "of the earlier period could not do them."
        )
    kept = {key: shares for key, shares in can.items() if key not in added and not (key is None and added)}
    return dict(zip(kept, compare(list(kept.values())), strict=True)), why


class _Told:
    """Findings in sentences."""

    def __init__(self, context: Context, asked: DiagnoseQuestion, of: Figures) -> None:
        self._context, self._asked, self._of = context, asked, of
        self._steps = {s.step_id: s for s in of.steps.steps}
        self._dropped = {s.step_id: s.dropped_here for s in of.steps.steps if s.dropped_here}

    def changed(self, completion: Compared | None, changes: Sequence[StepChange]) -> Iterator[Finding]:
        """Completion first, then the steps that changed most."""
        look = {
            "from_a": self._of.earlier.since,
            "to_a": self._of.earlier.until,
            "from_b": self._of.recent.since,
            "to_b": self._of.recent.until,
            "server_a": self._asked.server,
            "server_b": self._asked.server,
            "version_a": self._asked.version,
            "version_b": self._asked.version,
            "segment_a": self._asked.segment,
            "segment_b": self._asked.segment,
            "within_days": self._asked.active_days,
        }
        if completion is not None and (figures := completion.figures())["significant"]:
            yield self._finding(
                "completion_changed",
                None,
                f"{self._change('finished', figures)}",
                completion.shares.of_a + completion.shares.of_b,
                figures["p_adjusted"],
                self._route("/compare", look),
            )
        for change in sorted(changes, key=lambda c: -abs(c.difference or 0)):
            if change.significant:
                yield self._finding(
                    "step_changed",
                    change.step_id,
                    self._change(
                        f"who reached “{one_line(change.title, _TITLE)}” did it", change.model_dump()
                    ),
                    change.of_a + change.of_b,
                    change.p_adjusted,
                    self._route("/compare", look),
                )

    def stops(self) -> Iterator[Finding]:
        """Where most people stop, or between which steps that cannot be told."""
        found = foremost(self._dropped)
        if found is None:
            return
        total, step = sum(self._dropped.values()), self._steps[found.key]
        said = f"{step.dropped_here} of {total} people who stopped did so before {self._named(found.key)}"
        kind = "most_stop_here"
        if found.like_it:
            kind = "stop_at_several"
            others = ", ".join(f"{self._named(s)} ({self._dropped[s]})" for s in found.like_it[:3])
            more = f" and {len(found.like_it) - 3} more" if len(found.like_it) > 3 else ""
            said += f"; by chance it may as well be {others}{more}"
        yield self._finding(kind, found.key, said, total, found.p_value, self._people(found.key))

    def largest_share(self) -> Iterator[Finding]:
        """The step that loses a larger share of those who reach it than any other, by the intervals."""
        shares = [
            (interval, s)
            for s in self._of.steps.steps
            if s.reached >= ENOUGH and (interval := wilson(s.dropped_here, s.reached)) is not None
        ]
        shares.sort(key=lambda pair: -pair[0].low)
        if len(shares) < 2 or any(other.high >= shares[0][0].low for other, _ in shares[1:]):
            return
        interval, step = shares[0]
        said = (
            f"of {step.reached} people who reached {self._named(step.step_id)}, {step.dropped_here} stopped "
            f"there: {step.dropped_here / step.reached:.1%} ({interval.low:.1%} to {interval.high:.1%}), "
            f"more than at any other of {len(shares)} steps"
        )
        yield self._finding(
            "loses_largest_share", step.step_id, said, step.reached, None, self._people(step.step_id)
        )

    def slowest(self) -> Iterator[Finding]:
        """The step with the longest median time."""
        timed = [s for s in self._of.steps.steps if s.timed >= ENOUGH and s.median_ms is not None]
        step = max(timed, key=lambda s: s.median_ms or 0.0, default=None)
        if step is None or step.median_ms is None or step.p90_ms is None:
            return
        said = (
            f"half of {step.timed} people took more than {_seconds(step.median_ms)} before "
            f"{self._named(step.step_id)} was done, one in ten more than {_seconds(step.p90_ms)}: "
            f"the longest of {len(timed)} steps, time away included"
        )
        yield self._finding(
            "slowest", step.step_id, said, step.timed, None, self._route("/steps", self._cohort())
        )

    def too_few(self) -> Iterator[str]:
        """What is not concluded because too few people show it."""
        if (stopped := sum(self._dropped.values())) < ENOUGH:
            yield f"Where most people stop: {stopped} stopped, and {ENOUGH} are needed."
        if not any(s.timed >= ENOUGH for s in self._of.steps.steps):
            yield f"What is slowest: of no step {ENOUGH} times are known."
        if young := max(0, self._of.asked - self._of.flows.journeys):
            yield (
                f"Of {young} people who began after {self._of.period.until} nothing: they had less than "
                f"{self._asked.active_days} whole days, so none of them can be said to have stopped."
            )

    def _change(self, what: str, figures: Mapping[str, Any]) -> str:
        return (
            f"within {self._asked.active_days} days, {figures['share_b']:.1%} {what} "
            f"({figures['in_b']} of {figures['of_b']}, began {_days(self._of.recent)}), before that "
            f"{figures['share_a']:.1%} ({figures['in_a']} of {figures['of_a']}, {_days(self._of.earlier)})"
        )

    def _named(self, step: str) -> str:
        return f"“{one_line(self._steps[step].title, _TITLE)}”"

    def _cohort(self) -> dict[str, Any]:
        return {
            "server": self._asked.server,
            "from": self._of.period.since,
            "to": self._of.period.until,
            "version": self._asked.version,
            "segment": self._asked.segment,
        }

    def _people(self, step: str) -> str:
        return self._route("/journeys", {**self._cohort(), "outcome": "dropped", "next_step": step})

    def _route(self, path: str, query: Mapping[str, Any]) -> str:
        given = {name: value for name, value in query.items() if value not in (None, [])}
        given["active_days"] = self._asked.active_days
        return f"/v1/walkthroughs/{self._context.id}{path}?{urlencode(given, doseq=True)}"

    def _finding(
        self, kind: Any, step: str | None, says: str, people: int, p_value: float | None, look_at: str
    ) -> Finding:
        title = None if step is None else self._steps[step].title
        return Finding(
            kind=kind, step_id=step, title=title, says=says, people=people, p_value=p_value, look_at=look_at
        )


def _days(period: Period) -> str:
    return f"{period.since} to {period.until}"


def _day(at: int) -> date:
    return datetime.fromtimestamp(at / 1000, UTC).date()


def _seconds(ms: float) -> str:
    """A duration in one unit."""
    for unit, size in (("days", _DAY_MS), ("h", 3_600_000), ("min", 60_000)):
        if ms >= size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms / 1000:.1f} s"

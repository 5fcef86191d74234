"""A comparison: two sides as each journey stood some days after its beginning, in figures and in words."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from services.analytics_api.figures.common import titles_of
from services.analytics_api.figures.segments import said_of
from services.analytics_api.figures.within import Within, days_text
from services.analytics_api.models import (
    ComparedDrop,
    ComparedFinding,
    ComparedLink,
    ComparedStep,
    CompareQuestion,
    Comparison,
    CompletionDifference,
    FlowQuestion,
    Freshness,
    OutcomesWithin,
)
from services.analytics_api.store import Context, StepSince, VariantsWithin
from services.journeys.comparison import Compared
from services.journeys.flow import Flows, Outcome
from services.journeys.segments import Segment
from services.journeys.within import Differences, Side, differences
from services.runtime.titles import one_line

_TITLE: Final = 60
_DAY_MS: Final = 86_400_000
#: So many are named where there are more.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Cohort:
    """The journeys that were read of a side, and what the view shows of them."""

    read: VariantsWithin
    side: Side

    @property
    def flows(self) -> Flows:
        """Its links and endings."""
        return self.side.flows


@dataclass(frozen=True, slots=True)
class Cohorts:
    """What a comparison is made of; `steps_since` is since when each step is there."""

    within: Within
    a: Cohort
    b: Cohort
    steps_since: Mapping[str, StepSince]


def comparison(context: Context, asked: CompareQuestion, of: Cohorts, fresh: Freshness) -> Comparison:
    """All of it."""
    titles = titles_of(context)
    chosen_by = {step for texts in (asked.segment_a, asked.segment_b) for step in Segment.of(texts).steps}
    order = [step.id for step in context.steps if step.id not in asked.exclude and step.id not in chosen_by]
    added = _added(context, asked, of)
    can_finish = asked.end_at is None and not chosen_by
    found = differences(order, of.a.side, of.b.side, added, can_finish=can_finish)
    told = _Told(context, asked, of, found, added, chosen_by)
    means = [{link.key: link.mean_ms for link in side.flows.links} for side in (of.a, of.b)]
    places = {step.id: place for place, step in enumerate(context.steps, start=1)}
    return Comparison(
        walkthrough=context.walkthrough,
        **of.within.figures(),
        says=told.what(),
        findings=list(told.findings()),
        unknown=list(told.unknown()),
        journeys_a=of.a.flows.journeys,
        journeys_b=of.b.flows.journeys,
        too_young_a=of.a.read.too_young,
        too_young_b=of.b.read.too_young,
        outcomes_a=_outcomes(of.a.flows),
        outcomes_b=_outcomes(of.b.flows),
        completion=CompletionDifference(**found.completion.figures()),
        steps=[
            ComparedStep(place=places[step], step_id=step, title=titles(step), **compared.figures())
            for step, compared in found.steps.items()
        ],
        links=[
            ComparedLink(
                position=key.position,
                from_step_id=key.from_step_id,
                from_title=titles(key.from_step_id),
                to_step_id=key.to_step_id,
                to_title=titles(key.to_step_id),
                skipped=key.skipped,
                mean_ms_a=means[0].get(key),
                mean_ms_b=means[1].get(key),
                **compared.figures(),
            )
            for key, compared in found.links.items()
        ],
        drops=[
            ComparedDrop(position=key[0], step_id=key[1], title=titles(key[1]), **compared.figures())
            for key, compared in found.drops.items()
        ],
        freshness=fresh,
    )


def _outcomes(of: Flows) -> OutcomesWithin:
    return OutcomesWithin(
        finished=of.ended(Outcome.FINISHED),
        not_finished=of.ended(Outcome.DROPPED),
        reached=of.ended(Outcome.REACHED),
    )


def _added(context: Context, asked: CompareQuestion, of: Cohorts) -> set[str]:
    """The steps that not everybody of both sides could do, as they were added after somebody had begun.

    Over the same days, with the same versions and segments, both sides have such people alike. Of an imported
    step that no edit is known to have added it is only known when it was first done: it is one of these where
    all of a side had had their days by then.
    """
    a, b = (
        (asked.from_a, asked.to_a, set(asked.version_a), Segment.of(asked.segment_a)),
        (asked.from_b, asked.to_b, set(asked.version_b), Segment.of(asked.segment_b)),
    )
    if a == b:
        return set()
    firsts = [at for side in (of.a, of.b) if (at := side.read.first_began_at) is not None]
    lasts = [at for side in (of.a, of.b) if (at := side.read.last_began_at) is not None]
    if not firsts:
        return set()
    first, seen = min(firsts), min(lasts) + of.within.days * _DAY_MS
    by_edit = {
        step
        for step, number in context.versions.added_in.items()
        if (context.versions.all[number - 1].since or 0) > first
    }
    return by_edit | {
        step
        for step, since in of.steps_since.items()
        if since.at is not None and (since.at > first if since.is_made_then else since.at >= seen)
    }


class _Told:
    """What is compared, and what it comes to, in sentences."""

    def __init__(
        self,
        context: Context,
        asked: CompareQuestion,
        of: Cohorts,
        found: Differences,
        added: Collection[str],
        chosen_by: Collection[str],
    ) -> None:
        self._context, self._asked, self._of, self._found = context, asked, of, found
        self._added = [step.id for step in context.steps if step.id in added]
        self._chosen_by = [step.id for step in context.steps if step.id in chosen_by]
        self._titles = titles_of(context)
        self._servers = {server.id: server.name for server in context.walkthrough.servers}
        self._within = days_text(of.within.days)

    def what(self) -> str:
        """Whose journeys, how many, and after which time."""
        of = self._of
        sides = (("A", self._asked.side("a"), of.a), ("B", self._asked.side("b"), of.b))
        told = "; ".join(
            f"{name}: {_many(side.flows.journeys)} that began {self._cohort(cohort)}"
            for name, cohort, side in sides
        )
        said = f"{told}; each as it stood {self._within} after its beginning."
        if shown := ", ".join(self._view()):
            said += f" Shown are paths {shown}."
        young = [(side.read.too_young, name) for name, _, side in sides]
        if left := " and ".join(f"{count} of {name}" for count, name in young if count):
            moment = datetime.fromtimestamp(of.within.judged_at / 1000, UTC)
            said += (
                f" {left} began less than {self._within} before {moment:%Y-%m-%d %H:%M} UTC and are left out."
            )
        return said

    def _cohort(self, of: FlowQuestion) -> str:
        match of.since, of.until:
            case None, None:
                days = "at any time"
            case None, until:
                days = f"until {until}"
            case since, None:
                days = f"since {since}"
            case since, until:
                days = f"on {since}" if since == until else f"{since} to {until}"
        names = [one_line(self._servers.get(server, server), _TITLE) for server in of.server]
        version = ""
        if of.version:
            version = f" with version {_listed(map(str, of.version), 'versions')}"
        segment = f", {said}" if (said := said_of(Segment.of(of.segment), self._titles)) else ""
        return f"{days} on {_listed(names, 'servers') if names else 'any server'}{version}{segment}"

    def _view(self) -> Iterator[str]:
        asked = self._asked
        if asked.start_at is not None:
            yield f"from {self._named(asked.start_at)} on"
        if asked.end_at is not None:
            yield f"up to {self._named(asked.end_at)}"
        if asked.exclude:
            yield f"without {_listed([self._named(step) for step in asked.exclude], 'steps')}"
        if asked.through:
            steps = len(asked.through)
            yield f"through {steps} chosen {'place' if steps == 1 else 'places'}"

    def findings(self) -> Iterator[ComparedFinding]:
        """Completion, the steps that differ most, and how many were compared."""
        yield self._completion()
        differing = [(step, of) for step, of in self._found.steps.items() if of.is_significant]
        for step, of in sorted(differing, key=lambda pair: -abs(pair[1].figures()["difference"])):
            yield self._finding(
                "step",
                of,
                f"{self._named(step)}: of those who reached it within {self._within}, "
                f"{_shares(of, 'did it')}: {_judgement(of)}.",
                step,
            )
        yield self._count("steps", ("step", "steps"), list(self._found.steps.values()))
        yield self._count("places", ("link or drop-off", "links and drop-offs"), self._found.places)

    def _completion(self) -> ComparedFinding:
        of = self._found.completion
        if of.p_value is None:
            why = next(self._why_not(), "nobody is there")
            said = f"Whether more of A or of B finish is not compared: {why}."
        else:
            said = f"Within {self._within}, {_shares(of, 'finished')}: {_judgement(of)}."
        return self._finding("completion", of, said)

    def _why_not(self) -> Iterator[str]:
        """Why completion is not compared."""
        for name, side in (("A", self._of.a), ("B", self._of.b)):
            if not side.flows.journeys:
                yield f"{name} has no journey that can be judged"
        if self._asked.end_at is not None:
            yield "the view ends before"
        if self._chosen_by:
            yield "a side is chosen by steps that were done, and who finishes does more of them"
        if self._added:
            yield "steps were added since"

    def unknown(self) -> Iterator[str]:
        """What is not compared, and why."""
        if not (self._of.a.flows.journeys and self._of.b.flows.journeys):
            yield (
                f"Anything: a side has no journey that began {self._within} ago or earlier. Ask for earlier "
                "days, or for fewer within_days."
            )
            return
        if self._chosen_by:
            named = _listed([self._named(step) for step in self._chosen_by], "steps")
            yield (
                f"How many finish, and how many do {named}: a side is chosen by what was done, at any time. "
                "Other differences may be outcomes of it, or of what led to it."
            )
        if self._added:
            named = _listed([self._named(step) for step in self._added], "steps")
            yield (
                f"How many finish, and how many do {named}: added after people of a side had begun, who "
                "could not do it."
            )
        compared = [*self._found.steps.values(), *self._found.places]
        if alone := sum(1 for of in compared if not (of.shares.of_a and of.shares.of_b)):
            yield f"Of {alone} steps, links and drop-offs anything: nobody of the other side came there."

    def _count(
        self, kind: Literal["steps", "places"], what: tuple[str, str], compared: Sequence[Compared]
    ) -> ComparedFinding:
        """How many of a family differ; `what` they are is one of them, and several."""
        tested = [of for of in compared if of.p_value is not None]
        differ = sum(1 for of in tested if of.is_significant)
        they = f"{differ} {what[1]}" if differ > 1 else f"{differ or 'No'} {what[0]}"
        does = "differ" if differ > 1 else "differs"
        said = f"{they} of {len(tested)} compared {does} by more than chance"
        if left := len(compared) - len(tested):
            said += f"; {left} more cannot be compared"
        return ComparedFinding(
            kind=kind,
            step_id=None,
            title=None,
            says=f"{said}.",
            people=self._of.a.flows.journeys + self._of.b.flows.journeys,
            p_value=None,
            significant=differ > 0,
        )

    def _finding(
        self, kind: Literal["completion", "step"], of: Compared, says: str, step: str | None = None
    ) -> ComparedFinding:
        return ComparedFinding(
            kind=kind,
            step_id=step,
            title=None if step is None else self._titles(step),
            says=says,
            people=of.shares.of_a + of.shares.of_b,
            p_value=of.p_adjusted,
            significant=of.is_significant,
        )

    def _named(self, step: str) -> str:
        return f"“{one_line(self._titles(step), _TITLE)}”"


def _many(journeys: int) -> str:
    return f"{journeys} {'journey' if journeys == 1 else 'journeys'}"


def _listed(names: Iterable[str], what: str) -> str:
    named = list(names)
    rest = len(named) - _NAMED
    return ", ".join(named[:_NAMED]) + (f" and {rest} more {what}" if rest > 0 else "")


def _shares(of: Compared, what: str) -> str:
    s = of.shares
    a = f"{s.in_a / s.of_a:.1%} of A {what} ({s.in_a} of {s.of_a})"
    return f"{a} and {s.in_b / s.of_b:.1%} of B ({s.in_b} of {s.of_b})"


def _judgement(of: Compared) -> str:
    figures: dict[str, Any] = of.figures()
    if not figures["difference"]:
        return "no difference"
    low, high = figures["difference_low"], figures["difference_high"]
    p = of.p_adjusted or 0.0
    chance = "more than chance" if of.is_significant else "that may be chance"
    return (
        f"B {_points(figures['difference'])} points (between {_points(low)} and {_points(high)}, 19 times in "
        f"20), {chance} (p {'< 0.001' if p < 0.001 else f'= {p:.2g}'})"
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"

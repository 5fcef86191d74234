"""Segments: who is asked about, and in words; which of them tell apart who stops."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from services.analytics_api.figures.common import share, titles_of
from services.analytics_api.figures.within import Within, days_text
from services.analytics_api.models import (
    Freshness,
    SegmentFigures,
    Segments,
    SegmentsQuestion,
    SegmentsRest,
)
from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context, Divided
from services.journeys.comparison import Shares
from services.journeys.segments import (
    KINDS,
    Condition,
    Kind,
    Segment,
    SegmentDifference,
    compare_segments,
    passed_before,
    written,
)
from services.journeys.within import Began, judged
from services.runtime.titles import one_line

_TITLE: Final = 60
#: So many values are named where there are more.
_NAMED: Final = 3
_WHAT: Final = {"agent": "agent", "agent_version": "agent version"}
#: So many values of a kind or key are told, and so many keys: none that has more values, or a longer name.
_MOST_VALUES: Final = 50
_MOST_KEYS: Final = 20
_MOST_DIFFERING: Final = 200
_LONGEST_KEY: Final = 100
_METADATA: Final = "metadata."


def of_segment(context: Context, texts: Sequence[str], where: str = "query.segment") -> Context:
    """The walkthrough with the journeys of a segment alone; without texts, all.

    Raises:
        ProblemError: it has no such step.
    """
    segment = Segment.of(texts)
    for step in segment.steps:
        _known(context, step, where)
    return replace(context, only=replace(context.only, segment=segment))


def _known(context: Context, step: str, where: str) -> None:
    if step not in {known.id for known in context.steps}:
        raise unanswerable(f"the walkthrough has no step `{step}`", where)


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


# --- what tells journeys apart -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of metadata that are looked at, and those that are not: how many values and journeys each has.

    These numbers are of a sample where there are many people: at least so many.
    """

    taken: Sequence[str] = ()
    left: Sequence[tuple[str, int, str]] = ()


def key_asked(question: SegmentsQuestion) -> tuple[list[str]]:
    """The key that a question names, if it does."""
    by = question.by or ""
    return ([by.removeprefix(_METADATA)] if by.startswith(_METADATA) else [],)


def keys_of(found: Iterable[tuple[Any, ...]]) -> Keys:
    """Which of keys, by name, journeys and values, are looked at: those that most journeys have."""
    taken: list[str] = []
    left: list[tuple[str, int, str]] = []
    for key, _, differing in found:
        if ":" in key or len(key) > _LONGEST_KEY:
            left.append((key, differing, "it cannot be asked for: it is too long, or has a colon"))
        elif differing > _MOST_DIFFERING:
            left.append((key, differing, f"it has more than {_MOST_DIFFERING} values"))
        elif len(taken) == _MOST_KEYS:
            left.append((key, differing, f"{_MOST_KEYS} other keys are met more often"))
        else:
            taken.append(key)
    return Keys(taken, left)


def divided(context: Context, question: SegmentsQuestion, keys: Keys) -> Divided:
    """By what journeys are divided.

    Raises:
        ProblemError: the walkthrough has no such step.
    """
    order, step = [s.id for s in context.steps], question.step
    before: list[list[str]] = []
    did = []
    if step is not None:
        _known(context, step, "query.step")
        before = [passed_before(step, then, order) for then in context.versions.orders]
        did = order[: order.index(step)]
    elif question.by == "did":
        did = order
    if question.by not in {None, "did"}:
        did = []
    kinds = [kind for kind in ("agent", "agent_version") if question.by in {None, kind}]
    return Divided(step, before, did, list(keys.taken), kinds, _MOST_VALUES)


class _Value(NamedTuple):
    """A value with its journeys, and those of all that it is compared with."""

    kind: Kind
    key: str | None
    value: str
    agent: str | None


def segments(
    context: Context,
    question: SegmentsQuestion,
    within: Within,
    began: Sequence[Began],
    keys: Keys,
    rows: Sequence[Mapping[str, Any]],
    fresh: Freshness,
) -> Segments:
    """All of it; `rows` are of the statement `by_segment`."""
    nobody = {"journeys": 0, "those": 0}
    everybody = next((row for row in rows if row["kind"] == "all"), nobody)
    by_steps = next((row for row in rows if row["kind"] == "did" and row["value"] == ""), nobody)
    many = _too_many(rows)
    listed = [
        row
        for row in rows
        if row["kind"] != "all"
        and row is not by_steps
        and row["value"] is not None
        and (row["kind"], row["key"]) not in many
    ]
    shares = [(_value(row), _shares(row, everybody, by_steps)) for row in listed]
    shares = [(value, of) for value, of in shares if of.of_a or value.kind != "agent_version"]
    found = compare_segments(shares, is_loss=question.step is not None)
    words = _Words(context, question, within, lists_steps=any(value.kind == "did" for value, _ in found))
    return Segments(
        walkthrough=context.walkthrough,
        **within.figures(),
        step_id=question.step,
        title=None if question.step is None else titles_of(context)(question.step),
        says=words.what(everybody["journeys"], everybody["those"]),
        journeys=everybody["journeys"],
        those=everybody["those"],
        share=share(everybody["those"], everybody["journeys"]),
        too_young=sum(of.journeys for of in began) - judged(began, within.days).had_time,
        tested=sum(1 for _, told in found if told.compared.p_value is not None),
        segments=[_figures(value, told, words) for value, told in found],
        left_out=[*_rests(rows, many), *_keys_left(keys), *_steps_left(question)],
        freshness=fresh,
    )


def _value(row: Mapping[str, Any]) -> _Value:
    return _Value(row["kind"], row["key"], row["value"], row["agent"])


def _shares(row: Mapping[str, Any], everybody: Mapping[str, Any], by_steps: Mapping[str, Any]) -> Shares:
    """The others (A) and those of a value (B).

    Of an agent's version, the others are its other versions; of metadata, those whose first event could have
    some.
    """
    match row["kind"]:
        case "agent":
            of_all, those = everybody["journeys"], everybody["those"]
        case "did":
            of_all, those = by_steps["journeys"], by_steps["those"]
        case _:
            of_all, those = row["of_all"], row["those_of_all"]
    return Shares(of_all - row["journeys"], those - row["those"], row["journeys"], row["those"])


def _too_many(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str | None]]:
    """Keys of metadata with more values than are looked at."""
    differing: dict[tuple[str, str | None], int] = {}
    for row in rows:
        if row["kind"] == "metadata":
            key = row["kind"], row["key"]
            differing[key] = differing.get(key, 0) + row["differing"]
    return {key for key, count in differing.items() if count > _MOST_DIFFERING}


def _figures(value: _Value, told: SegmentDifference, words: "_Words") -> SegmentFigures:
    of, figures = told.compared.shares, told.compared.figures()
    # Nothing asks for steps that were done before a step, or within some days: `did` is as it is known now.
    segment, rest = ([], []) if value.kind == "did" else _asked_for(value)
    return SegmentFigures(
        kind=value.kind,
        key=value.key,
        value=value.value,
        title=words.title(value),
        segment=segment,
        rest=rest,
        journeys=of.of_b,
        those=of.in_b,
        share=figures["share_b"],
        rest_journeys=of.of_a,
        rest_those=of.in_a,
        rest_share=figures["share_a"],
        difference=figures["difference"],
        difference_low=figures["difference_low"],
        difference_high=figures["difference_high"],
        p_value=told.compared.p_adjusted,
        significant=told.compared.is_significant,
        excess=told.loses,
        may_be_outcome=words.may_be_outcome(value),
        says=words.finding(value, told),
    )


def _asked_for(value: _Value) -> tuple[list[str], list[str]]:
    """What asks for a segment, and for the others."""
    key = value.key or ""
    one = [written(value.kind, value.value, key)]
    others = [written(value.kind, value.value, key, is_not=True)]
    if value.kind == "agent_version":
        agent = written("agent", value.agent or "")
        return [agent, *one], [agent, *others]
    return one, others


class _Words:
    """What is compared, and what it comes to, in sentences."""

    def __init__(
        self, context: Context, question: SegmentsQuestion, within: Within, *, lists_steps: bool
    ) -> None:
        self._lists_steps = lists_steps
        added = context.versions.added_in
        self._added = [step.id for step in context.steps if step.id in added]
        self._titles = titles_of(context)
        self._step = question.step
        self._days = days_text(within.days)
        step = None if question.step is None else self._titles(question.step)
        self._did = "finished" if step is None else "did not get past it"
        self._of = "" if step is None else f" that came to “{_short(step)}”"
        self._segment = said_of(Segment.of(question.segment), self._titles)

    def what(self, journeys: int, those: int) -> str:
        """Whose journeys, how many, and what is told apart."""
        who = f" ({self._segment})" if self._segment else ""
        told = f"Of {journeys} journeys{who}{self._of}, {those} {self._did} within {self._days} of beginning."
        said = [told, "Each segment is compared with the others; a difference is no cause."]
        if self._lists_steps and self._step is not None:
            said.append(
                "A step counts as done where it was completed before, of journeys that had passed all steps "
                "before this one."
            )
        elif self._lists_steps:
            said.append("Steps that were done may be outcomes: who gets further does more.")
        if self._added and self._step is None:
            said.append(f"{self._named_added()} added by an edit: who began later had more to do.")
        return " ".join(said)

    def _named_added(self) -> str:
        named = ", ".join(f"“{_short(self._titles(step))}”" for step in self._added[:_NAMED])
        more = len(self._added) - _NAMED
        were = "was" if len(self._added) == 1 else "were"
        return f"{named}{f' and {more} more' if more > 0 else ''} {were}"

    def title(self, value: _Value) -> str:
        """What to show for a value."""
        if value.kind == "did":
            return self._titles(value.value)
        told = value.value or "none"
        return f"{value.agent} {told}" if value.kind == "agent_version" else told

    def may_be_outcome(self, value: _Value) -> bool:
        return value.kind == "did" and self._step is None

    def finding(self, value: _Value, told: SegmentDifference) -> str:
        """A segment beside the others."""
        of = told.compared.shares
        who = ("" if value.kind == "did" else "with ") + said_of(
            Segment.of(_asked_for(value)[0]), self._titles
        )
        others = "other versions of it" if value.kind == "agent_version" else "the others"
        those = f"{_percent(of.in_b, of.of_b)} {self._did} ({of.in_b})"
        here = f"Of {of.of_b} journeys {who}{self._of}, {those}"
        if not of.of_a:
            return f"{here}; there are no others."
        there = f"of {others}, {_percent(of.in_a, of.of_a)} ({of.in_a} of {of.of_a})"
        return f"{here}; {there}: {_judgement(told)}{self._outcome(value)}."

    def _outcome(self, value: _Value) -> str:
        return "; it may be an outcome" if self.may_be_outcome(value) else ""


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


def _judgement(told: SegmentDifference) -> str:
    figures, p = told.compared.figures(), told.compared.p_adjusted
    if p is None:
        return "too few to compare"
    if not figures["difference"]:
        return "no difference"
    chance = "more than chance" if told.compared.is_significant else "that may be chance"
    low, high = 100 * figures["difference_low"], 100 * figures["difference_high"]
    return (
        f"{100 * figures['difference']:+.1f} points (between {low:+.1f} and {high:+.1f}, 19 times in 20), "
        f"{chance} (p {'< 0.001' if p < 0.001 else f'= {p:.2g}'})"
    )


def _rests(rows: Sequence[Mapping[str, Any]], many: set[tuple[str, str | None]]) -> Iterator[SegmentsRest]:
    """Values that are not told of a kind or key, together."""
    for kind in KINDS:
        rests: dict[str | None, list[int]] = {}
        for row in rows:
            if row["kind"] == kind and (row["value"] is None or (kind, row["key"]) in many):
                found = rests.setdefault(row["key"], [0, 0])
                found[0] += row["differing"]
                found[1] += row["journeys"]
        for key, (values, journeys) in rests.items():
            what = _plural(kind, key, values)
            told = f"and {values} more {what} with {journeys} journeys"
            if (kind, key) in many:
                told = f"{values} {what}: it has more than {_MOST_DIFFERING}, and is left out"
            yield SegmentsRest(kind=kind, key=key, values=values, journeys=journeys, says=told)


def _plural(kind: Kind, key: str | None, values: int) -> str:
    s = "" if values == 1 else "s"
    return (
        f"value{s} of metadata “{_short(key or '')}”"
        if kind == "metadata"
        else f"{_WHAT.get(kind, 'step')}{s}"
    )


def _keys_left(keys: Keys) -> Iterator[SegmentsRest]:
    for key, values, why in keys.left[:_MOST_KEYS]:
        told = f"metadata “{_short(key)}”: {why}"
        yield SegmentsRest(kind="metadata", key=key[:_LONGEST_KEY], values=values, journeys=None, says=told)
    if (more := len(keys.left) - _MOST_KEYS) > 0:
        told = f"{more} more keys of metadata"
        yield SegmentsRest(kind="metadata", key=None, values=more, journeys=None, says=told)


def _steps_left(question: SegmentsQuestion) -> Iterator[SegmentsRest]:
    if question.step is None and question.by is None:
        told = "steps that were done: who finishes does more of them; ask by did, or for a step"
        yield SegmentsRest(kind="did", key=None, values=0, journeys=None, says=told)

"""Answers for agents: facts and one short table, as text and as values, within a budget of bytes.

Rows are in the order of what they weigh, so that what is left out is what weighs least; how much that is, and
how to get it, is said. Steps go by their titles; `ids` has the id of each title that the answer shows.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import singledispatch
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from services.analytics_api.models import (
    ComparedLink,
    Comparison,
    Diagnosis,
    Difference,
    Endings,
    Event,
    FinishTimes,
    FrequentPaths,
    Freshness,
    Funnel,
    JourneyDetail,
    Journeys,
    Outcomes,
    Overview,
    Period,
    Sankey,
    SankeyLink,
    SankeyNode,
    Session,
    Step,
    Steps,
    Summary,
    Trends,
    Walkthrough,
    WalkthroughVersions,
)
from services.journeys.flow import Outcome
from services.runtime.text import format_time
from services.runtime.titles import one_line

Cell: TypeAlias = str | int | float | bool | None
Row: TypeAlias = tuple[Cell, ...]

#: How much of a title is told, in characters.
_TITLE: Final = 60
#: And of the reason for a skip.
_REASON: Final = 200
#: How many titles are told in a fact.
_NAMED: Final = 10
#: So many steps that differ are told in sentences.
_MOST_FINDINGS: Final = 8
_START: Final = "(start)"
_OTHER: Final = "(other steps)"


@dataclass(slots=True)
class Brief:
    """What an answer says, before it is cut.

    `facts` are single figures by name; `columns` and `rows` the table, what weighs most first; `ids` the id
    of each label of a step, or of a server or walkthrough, in the rows and facts; `within` says which labels
    are in a cell that has several. `more` says where all of it is to be had.
    """

    title: str
    freshness: Freshness
    facts: dict[str, Cell] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: Sequence[Row] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    more: str | None = None
    within: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """A brief within a budget: as text, and as values; `rows` of the table are in it."""

    text: str
    values: dict[str, Any]
    rows: int

    @property
    def size(self) -> int:
        """Bytes of both, in UTF-8."""
        return len(self.text.encode()) + len(json.dumps(self.values, ensure_ascii=False).encode())


def cut(brief: Brief, most_bytes: int, offset: int = 0) -> Cut:
    """As many rows as there is room for, from one on; facts are never cut.

    Args:
        brief: what there is to say.
        most_bytes: of text and values together, in UTF-8.
        offset: how many rows to pass over.
    """
    rows = len(brief.rows) - offset
    fits, too_many = 0, max(rows, 0) + 1
    step = 1
    while too_many - fits > 1:
        tried = min(fits + step, too_many - 1)
        if _write(brief, offset, tried).size <= most_bytes:
            fits, step = tried, step * 2
        else:
            too_many, step = tried, max(1, (tried - fits) // 2)
    return _write(brief, offset, fits)


def _write(brief: Brief, offset: int, count: int) -> Cut:
    rows = brief.rows[offset : offset + count]
    shown = dict.fromkeys(
        label
        for row in (*rows, brief.facts.values())
        for cell in row
        if isinstance(cell, str)
        for label in brief.within.get(cell, (cell,))
    )
    ids = {label: brief.ids[label] for label in shown if brief.ids.get(label, label) != label}
    read_on = _read_on(brief, offset, len(rows))
    fresh = _freshness(brief.freshness)
    values: dict[str, Any] = {
        "title": brief.title,
        "facts": brief.facts,
        "columns": list(brief.columns),
        "rows": [list(row) for row in rows],
        "ids": ids,
        "rows_in_all": len(brief.rows),
        "read_on": read_on,
        "current": brief.freshness.current,
        "newest_event_at": brief.freshness.newest_event_at,
    }
    parts = [brief.title]
    if brief.facts:
        parts.append("\n".join(f"{name}: {_told(value)}" for name, value in brief.facts.items()))
    if rows:
        parts.append(_table(brief.columns, rows))
    if ids:
        parts.append("ids: " + "; ".join(f"{label} = {identifier}" for label, identifier in ids.items()))
    if read_on is not None:
        parts.append(read_on)
    return Cut("\n\n".join([*parts, fresh]), values, len(rows))


def _read_on(brief: Brief, offset: int, count: int) -> str | None:
    left = len(brief.rows) - offset - count
    if left <= 0 and not offset:
        return None
    said = (
        f"Rows {offset + 1} to {offset + count} of {len(brief.rows)}." if count else "No row has room here."
    )
    if left > 0:
        said += f" {left} are left out: call again with offset {offset + count}, or a larger max_bytes"
        said += f"; {brief.more}." if brief.more else "."
    return said


def _freshness(of: Freshness) -> str:
    newest = "" if of.newest_event_at is None else f" Newest event: {_moment(of.newest_event_at)}."
    if of.current:
        return f"Exact: every event so far is in these figures.{newest}"
    if of.current is None:
        return f"How fresh this is is not known{f' ({of.problem})' if of.problem else ''}.{newest}"
    return f"Not current: events wait to be counted, ask again in a moment.{newest}"


def _table(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_told(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _told(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return str(cell)


def _moment(at: int | None) -> str | None:
    return None if at is None else format_time(at).replace("T", " ")


def _share(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _duration(ms: float | None) -> str | None:
    """A duration in the two largest units that it has."""
    if ms is None:
        return None
    if ms < 1000:
        return f"{round(ms)} ms"
    left, told = round(ms / 1000), []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count:
            told.append(f"{count} {unit}")
    return " ".join(told[:2])


def _day(value: date | None) -> str | None:
    return None if value is None else value.isoformat()


class _Labels:
    """Titles on one line; two things of one title are told apart by their ids."""

    def __init__(self, titles: Iterable[tuple[str, str]]) -> None:
        lines = {identifier: one_line(title, _TITLE) or identifier for identifier, title in titles}
        several: dict[str, int] = {}
        for line in lines.values():
            several[line] = several.get(line, 0) + 1
        self._of = {i: line if several[line] == 1 else f"{line} ({i})" for i, line in lines.items()}

    def __call__(self, identifier: str | None, otherwise: str = _START) -> str:
        return otherwise if identifier is None else self._of.get(identifier, identifier)

    @property
    def ids(self) -> dict[str, str]:
        """Id by label."""
        return {label: identifier for identifier, label in self._of.items()}


def _steps_of(walkthrough: Walkthrough) -> _Labels:
    return _Labels((step.id, step.title) for step in walkthrough.steps)


def _named(what: str, walkthrough: Walkthrough) -> str:
    return f"{what} of “{one_line(walkthrough.title, _TITLE)}” ({walkthrough.id})"


def _route(walkthrough: Walkthrough, path: str) -> str:
    return f"all of it: GET /v1/walkthroughs/{walkthrough.id}{path}, as a table with Accept: text/csv"


def _rule(walkthrough: Walkthrough) -> dict[str, Cell]:
    return {"finished_means": walkthrough.finished_means}


def _outcomes(of: Outcomes) -> dict[str, Cell]:
    return {name: count for name, count in of.model_dump().items() if count or name in _ALWAYS}


_ALWAYS: Final = {"finished", "in_progress", "dropped"}


@singledispatch
def brief_of(answer: BaseModel) -> Brief:
    """An answer as facts and a table."""
    raise TypeError(f"no brief is known of {type(answer).__name__}")


@brief_of.register
def _(answer: Overview) -> Brief:
    servers = _Labels((server.id, server.name) for server in answer.servers)
    walkthroughs = _Labels((w.walkthrough_id, w.title) for w in answer.walkthroughs)
    ranked = sorted(answer.walkthroughs, key=lambda w: -w.started)
    rules = {w.finished_means for w in ranked}
    facts: dict[str, Cell] = {"servers": "; ".join(servers.ids), "walkthroughs": len(ranked)}
    if len(rules) == 1:
        facts["finished_means"] = rules.pop()
    return Brief(
        f"Walkthroughs of {one_line(answer.organization.name, _TITLE)} ({answer.organization.id})",
        answer.freshness,
        facts,
        (
            *(
                "walkthrough",
                "id",
                "status",
                "steps",
                "servers",
                "started",
                "finished",
                "in_progress",
                "dropped",
            ),
            *("completion_rate", "last_active_on"),
            *(("finished_means",) if rules else ()),
        ),
        [
            (
                walkthroughs(w.walkthrough_id),
                w.walkthrough_id,
                w.status,
                w.steps,
                len(w.servers),
                w.started,
                w.finished,
                w.in_progress,
                w.dropped,
                _share(w.completion_rate),
                _day(w.last_active_on),
                *((w.finished_means,) if rules else ()),
            )
            for w in ranked
        ],
        more="all of it, by server too: GET /v1/organization, as a table with Accept: text/csv",
    )


@brief_of.register
def _(answer: Summary) -> Brief:
    return Brief(
        _named("Summary", answer.walkthrough),
        answer.freshness,
        {
            "started": answer.started,
            "finished": answer.finished,
            "in_progress": answer.in_progress,
            "dropped": answer.dropped,
            **_rule(answer.walkthrough),
            "completion_rate": _share(answer.completion_rate),
            **_within(answer),
            "had_time": answer.had_time,
            "finished_within": answer.finished_within,
            "completion_rate_within": _share(answer.completion_rate_within),
            "completion_rate_within_low": _share(answer.completion_rate_within_low),
            "completion_rate_within_high": _share(answer.completion_rate_within_high),
            "average_progress": _share(answer.average_progress),
            **_time_to_finish(answer.time_to_finish),
            "mean_to_finish": _duration(answer.mean_to_finish_ms),
            "median_to_finish": _duration(answer.median_to_finish_ms),
            "p90_to_finish": _duration(answer.p90_to_finish_ms),
            "steps_per_session": _share(answer.steps_per_session),
            "resume_rate": _share(answer.resume_rate),
            "return_rate": _share(answer.return_rate),
            **_sampled(answer.times.every),
            **_versions(answer),
        },
        ("place", "step", "id"),
        [
            (place, one_line(step.title, _TITLE), step.id)
            for place, step in enumerate(answer.walkthrough.steps, start=1)
        ],
        more=_route(answer.walkthrough, "/steps"),
    )


def _versions(answer: Summary) -> dict[str, Cell]:
    """Of the newest versions what each changed; of one alone nothing."""
    if answer.version_count == 1:
        return {}
    told: dict[str, Cell] = {
        f"version_{v.number}": v.says if v.since is None else f"since {_moment(v.since)}: {v.says}"
        for v in answer.newest_versions
    }
    if answer.version_count > len(told):
        told["older_versions"] = f"GET /v1/walkthroughs/{answer.walkthrough.id}/versions"
    return {"versions": answer.version_count, **told}


def _within(answer: Comparison | Summary | Trends) -> dict[str, Cell]:
    return {
        "within_days": answer.within_days,
        "within_because": answer.within_because,
        "judged_at": _moment(answer.judged_at),
    }


def _time_to_finish(of: FinishTimes) -> dict[str, Cell]:
    """Times of all who began, by Kaplan and Meier; `mean_to_finish` and so on are of those who finished."""
    told: dict[str, Cell] = {}
    for name, found, low, high in (
        ("half_of_all_finished_after", of.median_ms, of.median_low_ms, of.median_high_ms),
        ("nine_in_ten_of_all_finished_after", of.p90_ms, of.p90_low_ms, of.p90_high_ms),
    ):
        if found is None:
            told[name] = "fewer have"
        else:
            least, most = _duration(low), _duration(high) or "not known"
            told[name] = f"{_duration(found)} (19 times in 20: {least} to {most})"
    told["not_finished_as_of"] = f"{of.censored} at {_moment(of.as_of)}"
    return told


def _sampled(every: int) -> dict[str, Cell]:
    return {} if every == 1 else {"times_are_of": f"every {every}th person"}


@brief_of.register
def _(answer: Diagnosis) -> Brief:
    labels = _steps_of(answer.walkthrough)
    rows: list[Row] = [
        (
            f.kind,
            None if f.step_id is None else labels(f.step_id),
            f.says,
            f.people,
            _rounded(f.p_value),
            f.look_at,
        )
        for f in answer.findings
    ]
    rows += [("not_concluded", None, why, None, None, None) for why in answer.unknown]
    return Brief(
        _named("What to look at", answer.walkthrough),
        answer.freshness,
        {
            "began": _days(answer.period),
            "journeys": answer.journeys,
            "finished": answer.finished,
            "in_progress": answer.in_progress,
            "dropped": answer.dropped,
            **_rule(answer.walkthrough),
            "too_young_to_judge": answer.too_young,
            "earlier": _days(answer.earlier),
            "recent": _days(answer.recent),
            **_sampled(answer.times.every),
        },
        ("finding", "step", "says", "people", "p", "look_at"),
        rows,
        labels.ids,
        _route(answer.walkthrough, "/diagnose"),
    )


def _days(period: Period) -> str:
    return f"{'the first day' if period.since is None else period.since} to {period.until}"


@brief_of.register
def _(answer: Sankey) -> Brief:
    labels = _steps_of(answer.walkthrough)
    nodes = {node.id: node for node in answer.nodes}
    folded = [node for node in answer.nodes if node.kind == "other"]

    def label(node: SankeyNode) -> str:
        return {"start": _START, "other": _OTHER}.get(node.kind) or labels(node.step_id)

    columns, times_of = _link_times(answer)
    rows: list[tuple[int, int, Row]] = []
    for link in answer.links:
        target = label(nodes[link.target])
        ends = label(nodes[link.source]), f"{target} (skipped)" if link.skipped else target
        share = _share(link.share_of_node)
        row = (link.position, *ends, link.journeys, share, *times_of(link))
        rows.append((link.journeys, link.position, row))
    ended: Counter[tuple[str, Outcome]] = Counter()
    for end in answer.endings:
        ended[end.node, end.outcome] += end.journeys
    for (node, outcome), journeys in ended.items():
        at = nodes[node]
        share = _share(journeys / at.journeys if at.journeys else None)
        row = (at.position + 1, label(at), f"({outcome.value})", journeys, share, *(None for _ in columns))
        rows.append((journeys, at.position + 1, row))
    facts = {"journeys": answer.journeys, **_outcomes(answer.outcomes), **_rule(answer.walkthrough)}
    if folded:
        steps = sum(len(node.folded) for node in folded)
        facts["folded"] = f"{steps} times a step, at {len(folded)} positions, into {_OTHER}; sums are kept"
    if answer.times is not None:
        facts |= _sampled(answer.times.every)
    return Brief(
        _named("Where people go: the Sankey", answer.walkthrough),
        answer.freshness,
        facts,
        ("position", "from", "to", "journeys", "share_of_from", *columns),
        [row for *_, row in sorted(rows, key=lambda r: (-r[0], r[1]))],
        labels.ids,
        _route(answer.walkthrough, "/sankey"),
    )


def _link_times(answer: Sankey) -> tuple[tuple[str, ...], Callable[[SankeyLink], Row]]:
    """The columns of what is known of how long links take, and what is in them."""
    names = {"mean_time": "mean_ms"}
    if any(link.active_journeys for link in answer.links):
        names["mean_active_time"] = "mean_active_ms"
    if answer.times is not None:
        names |= {"median_time": "median_ms", "p90_time": "p90_ms"}
        if any(link.active for link in answer.links):
            names |= {"median_active_time": "median_active_ms", "p90_active_time": "p90_active_ms"}
    return tuple(names), lambda link: tuple(_duration(getattr(link, of)) for of in names.values())


@brief_of.register
def _(answer: FrequentPaths) -> Brief:
    labels = _steps_of(answer.walkthrough)
    within: dict[str, list[str]] = {}
    rows: list[Row] = []
    for path in answer.paths:
        steps = [labels(step) for step in path.step_ids]
        skipped = [" (skipped)" if step in path.skipped_step_ids else "" for step in path.step_ids]
        told = " → ".join(a + b for a, b in zip(steps, skipped, strict=True)) or "(nothing)"
        within[told] = steps
        times = _duration(path.median_ms), _duration(path.p90_ms)
        rows.append((told, path.outcome.value, path.journeys, _share(path.share), *times))
    return Brief(
        _named("The most frequent paths", answer.walkthrough),
        answer.freshness,
        {
            "journeys": answer.journeys,
            "paths": answer.all_paths,
            "other_paths": answer.other.paths,
            "journeys_on_other_paths": answer.other.journeys,
            **_sampled(answer.times.every),
        },
        ("path", "outcome", "journeys", "share", "median_time", "p90_time"),
        rows,
        labels.ids,
        _route(answer.walkthrough, "/paths"),
        within,
    )


@brief_of.register
def _(answer: Funnel) -> Brief:
    labels = _steps_of(answer.walkthrough)
    return Brief(
        _named("Funnel", answer.walkthrough),
        answer.freshness,
        {
            "started": answer.started,
            "order_of_version": answer.order_of,
            **({} if answer.order_since is None else {"in_this_order_since": _moment(answer.order_since)}),
            **_removed(answer.removed),
        },
        (
            "place",
            "step",
            "did_it",
            "skipped_it",
            "passed_all_up_to_it",
            "share_of_started",
            "of_step_before",
        ),
        [
            (
                s.place,
                labels(s.step_id),
                s.completed,
                s.skipped,
                s.through,
                _share(s.share),
                _share(s.share_of_previous),
            )
            for s in answer.stages
        ],
        labels.ids,
        _route(answer.walkthrough, "/funnel"),
    )


def _removed(steps: Sequence[Step]) -> dict[str, Cell]:
    return {"removed_since": _listed([one_line(step.title, _TITLE) for step in steps])} if steps else {}


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return "; ".join([*names[:_NAMED], *more])


@brief_of.register
def _(answer: Steps) -> Brief:
    labels = _steps_of(answer.walkthrough)
    return Brief(
        _named("Steps", answer.walkthrough),
        answer.freshness,
        {
            "started": answer.started,
            "order": "most dropped_here first",
            **_most_stop(answer, labels),
            **({"where_people_stand_is_assumed_of": answer.assumed} if answer.assumed else {}),
            **_sampled(answer.times.every),
        },
        (
            *("place", "step", "reached", "completed", "skipped", "dropped_here", "in_progress_here"),
            *("completion_rate", "median_time", "p90_time", "median_active_time"),
        ),
        [
            (
                s.place,
                labels(s.step_id),
                s.reached,
                s.completed,
                s.skipped,
                s.dropped_here,
                s.in_progress_here,
                _share(s.completion_rate),
                _duration(s.median_ms),
                _duration(s.p90_ms),
                _duration(s.median_active_ms),
            )
            for s in sorted(answer.steps, key=lambda s: (-s.dropped_here, s.place))
        ],
        labels.ids,
        _route(answer.walkthrough, "/steps"),
    )


def _most_stop(answer: Steps, labels: _Labels) -> dict[str, Cell]:
    """Where most people stop is the first row; this is how far it can be told from the next."""
    found = answer.most_stop
    if found is None:
        return {}
    if found.like_it is None:
        return {"most_dropped_here": f"too few stopped to tell: {found.dropped}"}
    others = [labels(step) for step in found.like_it]
    return {"may_be_first_by_chance_too": _listed(others)} if others else {}


@brief_of.register
def _(answer: Endings) -> Brief:
    labels = _steps_of(answer.walkthrough)
    return Brief(
        _named("How journeys end", answer.walkthrough),
        answer.freshness,
        {"journeys": answer.journeys, **_outcomes(answer.outcomes), **_rule(answer.walkthrough)},
        ("outcome", "last_step_done", "journeys", "share"),
        [(e.outcome.value, labels(e.step_id), e.journeys, _share(e.share)) for e in answer.endings],
        labels.ids,
        _route(answer.walkthrough, "/endings"),
    )


@brief_of.register
def _(answer: Trends) -> Brief:
    return Brief(
        _named(f"Figures by {answer.by}", answer.walkthrough),
        answer.freshness,
        {
            **_rule(answer.walkthrough),
            **_within(answer),
            "order": "newest first",
            "empty": f"a {answer.by} of which all is 0 is not listed",
        },
        (
            *("since", "started", "finished_of_those", "completion_rate"),
            *("had_time", "finished_within", "rate_within", "complete", "finished_then", "active_people"),
        ),
        [
            (
                _day(p.since),
                p.started,
                p.finished,
                _share(p.completion_rate),
                p.had_time,
                p.finished_within,
                _share(p.completion_rate_within),
                p.complete,
                p.finished_then,
                p.active_people,
            )
            for p in reversed(answer.points)
            if p.started or p.finished_then or p.active_people
        ],
        more=_route(answer.walkthrough, "/trends"),
    )


@brief_of.register
def _(answer: WalkthroughVersions) -> Brief:
    return Brief(
        _named("Versions", answer.walkthrough),
        answer.freshness,
        {"order": "newest first", "versions": len(answer.versions)},
        ("version", "since", "journeys_began", "steps", "says"),
        [(v.number, _moment(v.since), v.journeys, len(v.steps), v.says) for v in reversed(answer.versions)],
        more=_route(answer.walkthrough, "/versions"),
    )


@brief_of.register
def _(answer: Comparison) -> Brief:
    labels = _steps_of(answer.walkthrough)

    def compared(of: Difference) -> Row:
        shares = f"{of.in_a}/{of.of_a}", f"{of.in_b}/{of.of_b}"
        interval = _share(of.difference_low), _share(of.difference_high)
        return (*shares, _share(of.difference), *interval, _rounded(of.p_adjusted), of.significant)

    rows: list[tuple[Difference, Row]] = [
        (step, ("any", labels(step.step_id), "(did it)", *compared(step))) for step in answer.steps
    ]
    rows += [
        (
            link,
            (link.position, labels(link.from_step_id), _to(labels(link.to_step_id), link), *compared(link)),
        )
        for link in answer.links
    ]
    rows += [
        (drop, (drop.position + 1, labels(drop.step_id), "(not gone on)", *compared(drop)))
        for drop in answer.drops
    ]
    rows.sort(key=lambda r: (not r[0].significant, -abs(r[0].difference or 0)))
    completion = answer.completion
    return Brief(
        _named("A and B compared", answer.walkthrough),
        answer.freshness,
        {
            "says": answer.says,
            **_findings(answer),
            **_within(answer),
            "journeys_a": answer.journeys_a,
            "journeys_b": answer.journeys_b,
            "too_young_a": answer.too_young_a,
            "too_young_b": answer.too_young_b,
            **{f"{name}_a": count for name, count in answer.outcomes_a.model_dump().items()},
            **{f"{name}_b": count for name, count in answer.outcomes_b.model_dump().items()},
            **_rule(answer.walkthrough),
            "completion_a": _share(completion.share_a),
            "completion_b": _share(completion.share_b),
            "completion_difference": _share(completion.difference),
            "completion_difference_low": _share(completion.difference_low),
            "completion_difference_high": _share(completion.difference_high),
            "completion_p": _rounded(completion.p_value),
            "significant": sum(1 for of, _ in rows if of.significant),
        },
        (
            *("position", "from", "to", "a", "b"),
            *("difference", "difference_low", "difference_high", "p_adjusted", "significant"),
        ),
        [row for _, row in rows],
        labels.ids,
        _route(answer.walkthrough, "/compare"),
    )


def _findings(answer: Comparison) -> dict[str, Cell]:
    """What it comes to; of very many steps that differ the first, as the table has all."""
    steps = [found.says for found in answer.findings if found.kind == "step"]
    said = [found.says for found in answer.findings if found.kind != "step"]
    said[1:1] = steps[:_MOST_FINDINGS]
    if (left := len(steps) - _MOST_FINDINGS) > 0:
        said.append(f"{left} more steps differ: see the rows.")
    return {
        **{f"finding_{n}": says for n, says in enumerate(said, start=1)},
        **{f"not_compared_{n}": why for n, why in enumerate(answer.unknown, start=1)},
    }


def _to(label: str, link: ComparedLink) -> str:
    return f"{label} (skipped)" if link.skipped else label


def _rounded(p_value: float | None) -> float | None:
    return None if p_value is None else float(f"{p_value:.2g}")


@brief_of.register
def _(answer: Journeys) -> Brief:
    labels = _steps_of(answer.walkthrough)
    facts: dict[str, Cell] = {"order": "last active first", **_rule(answer.walkthrough)}
    if answer.of is not None:
        facts["people"] = answer.of
    if answer.next is not None:
        facts["next"] = answer.next
    return Brief(
        _named("People", answer.walkthrough),
        answer.freshness,
        facts,
        (
            *("person", "outcome", "steps_done", "last_step", "next_step", "began_at", "last_active_at"),
            *("version_began", "version_ended"),
        ),
        [
            (
                j.mcp_server_user_id,
                j.outcome.value,
                j.steps_done,
                labels(j.step_ids[-1] if j.step_ids else None),
                labels(j.next_step_id, "–"),
                _moment(j.began_at),
                _moment(j.last_active_at),
                j.version_began,
                j.version_ended,
            )
            for j in answer.journeys
        ],
        labels.ids,
        _route(answer.walkthrough, "/journeys"),
    )


@brief_of.register
def _(answer: JourneyDetail) -> Brief:
    journey = answer.journey
    labels = _steps_of(answer.walkthrough)
    return Brief(
        f"{_named('Journey', answer.walkthrough)} of {journey.mcp_server_user_id}",
        answer.freshness,
        {
            "outcome": journey.outcome.value,
            "steps_done": journey.steps_done,
            "steps_skipped": journey.steps_skipped,
            "next_step": labels(journey.next_step_id, "–"),
            "duration": _duration(journey.duration_ms),
            "version_began": journey.version_began,
            "version_ended": journey.version_ended,
            "sessions": answer.sessions,
        },
        ("at", "after", "what", "reason", "step", "server", "session"),
        [
            (*_happened(e), labels(e.step_id, "–"), e.mcp_server_id, e.mcp_server_session_id)
            for e in answer.events
        ],
        labels.ids,
    )


@brief_of.register
def _(answer: Session) -> Brief:
    return Brief(
        f"Session {answer.id} on {one_line(answer.server, _TITLE)} ({answer.mcp_server_id})",
        answer.freshness,
        {
            "person": answer.mcp_server_user_id,
            "client": answer.client,
            "client_version": answer.client_version,
            "connected_at": _moment(answer.connected_at),
            "duration": _duration(answer.duration_ms),
        },
        ("at", "after", "what", "reason", "walkthrough", "step", "person"),
        [
            (
                *_happened(e),
                one_line(e.walkthrough, _TITLE),
                None if e.step is None else one_line(e.step, _TITLE),
                e.mcp_server_user_id,
            )
            for e in answer.events
        ],
    )


def _happened(event: Event) -> Row:
    """When, how long after the event before, what, and why a step was skipped."""
    reason = None if event.reason is None else one_line(event.reason, _REASON)
    return _moment(event.at), _duration(event.since_previous_ms), event.kind, reason

"""How what the topic holds, and completions do not show, is shown."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape

from services.completion_recorder.against_topic import TopicComparison
from services.consumers.agreement import name_partitions, why_apart
from services.operator_cli.options import print_json, print_table, say
from services.runtime.errors import MismatchError
from services.runtime.text import format_time, plural

_SHOWN = 20
#: What each cause means, for people.
_CAUSES: Mapping[str, str] = {
    "no-row": "there is no row: it was removed, or never written",
    "later-row": "the row is of a later event",
    "earlier-row": "the last showing of the row is of an earlier event",
    "other-content": "the row has the event's id and other content",
    "not-noted": "the erasure is not in erased_users",
    "not-corrected": "the correction is not in completion_corrections",
    "covered-row": "the row is of an event that the correction covers",
    "rows-left": "the person was erased, and has rows",
    "skipped": "an operator left it behind; `stepstream status` names the range until it is acknowledged",
}


def report(outcome: TopicComparison, *, as_json: bool) -> None:
    """Prints what was found.

    Raises:
        MismatchError: something differs.
    """
    why = _why(outcome)
    if as_json:
        print_json(_as_json(outcome, why))
    else:
        _show(outcome)
    if outcome.differing:
        raise MismatchError("; ".join(why))
    if not as_json:
        say("[bold green]exact[/]: the tables show every event that the topic holds")


def _as_json(outcome: TopicComparison, why: list[str]) -> dict[str, Any]:
    return {
        "topic": outcome.topic,
        "partitions": [
            {
                "partition": p.partition,
                "begin": p.begin,
                "from": p.start,
                "until": p.until,
                "end": p.end,
                "not_judged": p.not_judged,
                "recorder_has_read": outcome.agreement[p.partition],
                "aggregator_agrees": outcome.aggregator.get(p.partition),
                "note": p.note,
            }
            for p in outcome.parts
        ],
        **vars(outcome.counts),
        "not_judged": sum(p.not_judged for p in outcome.parts),
        "differing": outcome.differing,
        "by_cause": dict(outcome.by_cause),
        "differences": list(outcome.differences),
        "rows_without_event": outcome.rows_without_event,
        "rows": list(outcome.rows),
        "left_out": [
            {
                "partition": u.tp.partition,
                "from_offset": u.offset,
                "until_offset": u.until,
                "cause": u.cause,
            }
            for u in outcome.left_out
        ],
        "why": why,
    }


def _why(outcome: TopicComparison) -> list[str]:
    why = []
    if events := sum(outcome.by_cause.values()):
        causes = ", ".join(f"{count:,} {cause}" for cause, count in outcome.by_cause.items())
        why.append(f"{plural(events, 'event')} of the topic not in the tables as they should be ({causes})")
    if outcome.unlike:
        why.append(
            f"the recorder has not read what the topic holds of {name_partitions(outcome.unlike)}: its "
            "position was moved past events, or the topic was changed. `stepstream replay "
            "--group completion-recorder --from-beginning` feeds the events through again"
        )
    if apart := why_apart(outcome.aggregator):
        why.append(apart)
    why += [str(u) for u in outcome.left_out]
    return why


def _show(outcome: TopicComparison) -> None:
    print_table(
        "",
        ("partition", "from", "up to", "end", "not judged yet", "the recorder has read"),
        [
            (p.partition, p.start, p.until, p.end, p.not_judged, _AGREEMENT[outcome.agreement[p.partition]])
            for p in outcome.parts
        ],
    )
    if outcome.differences:
        print_table(
            "events that the tables do not show",
            ("event", "id", "what", "cause"),
            [(f"{d['partition']}:{d['offset']}", d["id"], _about(d), _cause(d)) for d in outcome.differences],
            _SHOWN,
        )
    for p in outcome.parts:
        if p.note:
            say(f"[yellow]partition {p.partition}[/]: {escape(p.note)}")
    counts = outcome.counts
    say(
        f"{plural(counts.events, 'event')}: {plural(counts.completions, 'completion')}, "
        f"{plural(counts.starts, 'start')}, {plural(counts.skips, 'skip')}, "
        f"{plural(counts.showings, 'showing')}, "
        f"{plural(counts.erasures, 'erasure')}, {plural(counts.corrections, 'correction')}, "
        f"{sum(counts.unreadable.values()):,} unreadable"
    )
    explained = (
        (counts.of_erased, "of people who were erased"),
        (counts.covered, "covered by a correction"),
        (sum(counts.without_references.values()), "refused, or removed with what they refer to"),
        (counts.dead_letters, "refused: they have a dead letter"),
        (counts.waiting, "they wait for a lock"),
        (counts.skipped, "left behind, and acknowledged"),
        (counts.changed, "right when looked at again"),
    )
    for events, reason in explained:
        if events:
            say(
                f"{events:,} without a row are {reason}"
                if reason != "wait for a lock"
                else f"{events:,} {reason}"
            )
    if not_judged := sum(p.not_judged for p in outcome.parts):
        say(f"[yellow]{plural(not_judged, 'offset')} not judged yet[/]: the recorder has yet to pass them")
    if outcome.rows_without_event:
        causes = "other writers" if outcome.has_all else "events that have expired, or other writers"
        say(f"{plural(outcome.rows_without_event, 'row')} of no event that the topic holds: of {causes}")


_AGREEMENT = {"same": "this", "differs": "something else", "not comparable": "not known"}


_DOES = {"completion": "completes", "skip": "skips", "showing": "is shown"}


def _about(difference: Mapping[str, Any]) -> str:
    user, step = difference["mcp_server_user_id"], difference["step_id"]
    if difference["kind"] == "erasure":
        return f"erasure of {user}"
    if difference["kind"] == "start":
        return f"{user} starts {difference['walkthrough_id']}"
    if difference["kind"] == "correction":
        return f"correction of {step} of {user}"
    return f"{user} {_DOES[difference['kind']]} {step}"


def _cause(difference: Mapping[str, Any]) -> str:
    cause = _CAUSES[difference["cause"]]
    if difference["cause"] in {"later-row", "earlier-row"}:
        return f"{cause}, {difference['row_id']} of {format_time(difference['row_at'])}"
    return cause

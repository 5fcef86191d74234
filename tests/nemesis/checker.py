"""Judges a round by what is in the tables and what was acknowledged; no I/O, no clock."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from tests.nemesis.history import Answer, Copy, Gone, History, Key, Kind, Row, Sent

#: An event acknowledged so long before a look must be in the figures that are called current, in seconds.
MARGIN = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that differs: its kind, what, and the records that it is about."""

    kind: str
    what: str
    copies: tuple[Copy, ...] = ()

    def __str__(self) -> str:
        places = ", ".join(f"{c.topic}/{c.partition}@{c.offset}" for c in self.copies)
        return f"{self.kind}: {self.what}" + (f"  [{places}]" if places else "")


def check_rows(history: History, rows: Mapping[Key, Row], gone: Sequence[Gone]) -> list[Finding]:
    """Completions and starts: each is the smallest of what was acknowledged, and nothing else is there."""
    sent: dict[Key, list[Sent]] = defaultdict(list)
    for event in history.sent.values():
        if not history.is_deleted(event):
            sent[event.key].append(event)
    findings = []
    for key in sorted({*sent, *rows}):
        if key.user in history.erasing:
            continue
        finding = _check_row(history, sent.get(key, []), rows.get(key), gone)
        if finding is not None:
            kind, what, copies = finding
            findings.append(Finding(kind, f"{key.kind} {key.thing} of {key.user}: {what}", copies))
    return findings


def _check_row(
    history: History, sent: Sequence[Sent], row: Row | None, gone: Sequence[Gone]
) -> tuple[str, str, tuple[Copy, ...]] | None:
    owed = min(
        (e for e in sent if history.is_owed(e.copies, gone)), key=lambda event: event.rank, default=None
    )
    if row is None:
        if owed is None:
            return None
        return "lost", f"{owed.rank.event_id} was acknowledged and is not there", tuple(owed.copies)
    its = next((e for e in sent if e.rank == row.rank), None)
    if its is None:
        return (
            "unknown",
            f"{row.rank.event_id} at {row.rank.at} was never sent, or refers to what is deleted",
            (),
        )
    if row != Row(its.rank, its.walkthrough, its.server, its.session):
        return "altered", f"{row} is not what was sent", tuple(its.copies)
    if owed is not None and owed.rank < row.rank:
        what = f"{row.rank.event_id} is there, and {owed.rank.event_id} comes before it"
        return "lost", what, tuple(owed.copies)
    return None


def check_told(history: History, done: Container[tuple[str, str]]) -> list[Finding]:
    """Each step that an agent was told is done is a completion; `done` are those, by person and step."""
    lost = sorted(told for told in history.told if told not in done)
    what = f"{len(lost)} steps that agents were told are done, for one {lost[0]}" if lost else ""
    return [Finding("told and lost", what)] * bool(lost)


def check_led(
    history: History, known: Container[tuple[str, str]], done: Container[tuple[str, str]]
) -> list[Finding]:
    """Each step of an agent whose event is in the topic is a completion, also where the database went back.

    `known` are the sessions that are there, with their person; of others the platform forgot. `done` are
    completions, by person and step.
    """
    lost = sorted(one for one in history.led if one[:2] in known and one[1:] not in done)
    what = f"{len(lost)} steps of agents whose events are in the topic, for one {lost[0]}" if lost else ""
    return [Finding("led and lost", what)] * bool(lost)


def check_erased(history: History, left: Mapping[str, int], gone: Sequence[Gone]) -> list[Finding]:
    """Of erased people nothing is left; `left` are rows by person. Whose event may be gone is not judged."""
    return [
        Finding("not erased", f"{count} rows are left of {user}", tuple(history.erased[user]))
        for user, count in sorted(left.items())
        if count and user in history.erased and not _may_be_unread(history, history.erased[user], gone)
    ]


def _may_be_unread(history: History, copies: Sequence[Copy], gone: Sequence[Gone]) -> bool:
    return bool(copies) and not history.is_owed(copies, gone)


def check_gone(
    history: History, gone: Sequence[Gone], there: Container[tuple[str, int, int]] = ()
) -> list[Finding]:
    """Nothing is named as gone that is not: where no fault took anything out of Kafka, nothing at all.

    `there` are the records that the topic holds at the end: event, partition and offset. One that was there before the
    fault, and that the fault did not take away, is not gone. One that it took may have been sent again to its old place.
    """
    if not history.losses:
        return [Finding("not gone", f"named as gone without a reason: {g}") for g in gone]
    kept = [
        copy
        for event in history.sent.values()
        for copy in event.copies
        if (event.rank.event_id, copy.partition, copy.offset) in there
        and any(copy.at <= loss.at for loss in history.losses)
        and not any(loss.took(copy) for loss in history.losses)
        and any(g.covers(copy) for g in gone)
    ]
    return [
        Finding("not gone", f"{len(kept)} records are named as gone, and are there", tuple(kept[:5]))
    ] * bool(kept)


def check_answers(history: History, gone: Sequence[Gone], margin: float = MARGIN) -> list[Finding]:
    """No answer that is called current misses what was acknowledged before its look, or has more than was sent.

    Each person and step is counted once in the links that lead to the step, each person with a step or start once
    among the journeys. So both lie between the people whose event was acknowledged `margin` before the look and those
    for whom one was sent before the answer came. Who was ever to be erased, or deleted, counts for the upper bound
    alone.
    """
    owed = _moments(history, gone)
    sent = _first_sent(history)
    findings = []
    for answer in history.answers:
        if answer.current and answer.looked_at is not None:
            findings += _check_answer(answer, owed, sent, margin)
    return findings


#: (walkthrough, step, or None for journeys) to person to a moment.
_Moments = dict[tuple[str, str | None], dict[str, float]]


def _moments(history: History, gone: Sequence[Gone]) -> _Moments:
    """When it was first known that a person's event is in Kafka, of those that are owed."""
    found: _Moments = defaultdict(dict)
    for event in history.sent.values():
        if event.key.user in history.erasing or history.is_deleted(event):
            continue
        at = min((c.at for c in event.copies if not history.is_excused(c, gone)), default=None)
        if at is not None:
            _note(found, event, at)
    return found


def _first_sent(history: History) -> _Moments:
    found: _Moments = defaultdict(dict)
    for event in history.sent.values():
        _note(found, event, event.at)
    return found


def _note(found: _Moments, event: Sent, at: float) -> None:
    things = [None, event.key.thing] if event.key.kind is Kind.STEP else [None]
    for thing in things:
        people = found[event.walkthrough, thing]
        people[event.key.user] = min(at, people.get(event.key.user, at))


def _check_answer(answer: Answer, owed: _Moments, sent: _Moments, margin: float) -> list[Finding]:
    assert answer.looked_at is not None
    findings = []
    things = {thing for walkthrough, thing in {*owed, *sent} if walkthrough == answer.walkthrough}
    for thing in sorted(things | set(answer.steps), key=lambda t: (t is not None, t or "")):
        place = answer.walkthrough, thing
        least = sum(at <= answer.looked_at - margin for at in owed.get(place, {}).values())
        most = sum(at <= answer.answered_at for at in sent.get(place, {}).values())
        found = answer.journeys if thing is None else answer.steps.get(thing, 0)
        if not least <= found <= most:
            findings.append(
                Finding(
                    "wrong and called current",
                    f"{answer.walkthrough}, {thing or 'journeys'}: {found} answered at {answer.answered_at:.2f} from a "
                    f"look at {answer.looked_at:.2f}, and there are {least} to {most}",
                )
            )
    return findings

"""What the recorder would do with records, by its own rules: nothing is written, and nothing is locked."""

from collections import ChainMap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from schemas import AnyEvent, Known, Rejection, StepCompleted, StepCorrected, UserErased
from services.completion_recorder.erasure import find_erased
from services.completion_recorder.first_sight import of_sources, sights_in
from services.completion_recorder.judge import (
    Accepted,
    Refused,
    check_references,
    of_others,
    people_of,
    read,
    row_of,
    user_of,
)
from services.completion_recorder.references import find_known
from services.completion_recorder.reused_ids import whose, without_reused_ids
from services.completion_recorder.seen_events import SeenEvents
from services.runtime.database import Connection, load_queries
from services.runtime.kafka import Record

SQL = load_queries(__file__)


class Outcome(StrEnum):
    """What would become of a record."""

    COUNTS = "counts"
    #: A copy of one that was read before it.
    COPY = "copy"
    #: A row is of it already.
    RECORDED = "recorded"
    #: A correction says that it does not count.
    COVERED = "covered"
    #: Of somebody who was erased: nothing is kept, not even a dead letter.
    OF_ERASED = "of-erased"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What would become of a record, and why, where it would not count once."""

    record: Record
    outcome: Outcome
    event: AnyEvent | None = None
    rejection: Rejection | None = None
    message: str = ""
    #: Whether the same was there before it under another event id.
    has_another_id: bool = False


@dataclass
class Forecast:
    """Foresees records portion by portion: each is held against those of the portions before it, too.

    Args:
        seen: the events before.
        trusted: the sources whose events may decide about a person.
        registering: the sources whose events have people and sessions registered.
        place: where a record is, for people.
        erased: who was erased by an event that was read.
        users: people whom events before would have had registered, and `sessions`, each with its server and
            person.
    """

    seen: SeenEvents
    trusted: Container[str]
    registering: Container[str]
    place: Callable[[Record], str]
    erased: set[str] = field(default_factory=set)
    users: set[str] = field(default_factory=set)
    sessions: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)

    async def foresee(
        self, db: "Connection | None", records: Sequence[Record], now_ms: int
    ) -> list[Foreseen]:
        """What would become of each, in the same order.

        Args:
            db: a connection that only reads; without one neither references nor what is recorded are known.
            records: a portion.
            now_ms: the clock, milliseconds since the epoch.
        """
        accepted, unreadable = read(records, now_ms, self.trusted)
        events = {id(record): event for event, record in accepted}
        self.erased |= {e.mcp_server_user_id for e, _ in accepted if isinstance(e, UserErased)}
        erased = set(self.erased)
        found: dict[int, Foreseen] = {}
        good: Sequence[Accepted] = accepted
        if db is not None:
            erased |= await find_erased(db, set().union(*(people_of(r.record) for r in unreadable)))
            known, of_them = await find_known(db, accepted)
            erased |= of_them
            known = self._with_registered(accepted, known, erased)
            good, refused = check_references([i for i in accepted if user_of(i.event) not in erased], known)
            good, reused = await without_reused_ids(db, good, ())
            _note_refused(found, events, [*refused, *reused])
            await _note_what_is_there(db, found, good)
        _note_refused(found, events, of_others(unreadable, erased))
        for item in good:
            if user_of(item.event) not in erased:
                before = found.get(id(item.record))
                found[id(item.record)] = self._held_against_others(item, before)
        return [
            found.get(id(r)) or Foreseen(r, Outcome.OF_ERASED, events.get(id(r)), message=_OF_ERASED)
            for r in records
        ]

    def _with_registered(self, accepted: Sequence[Accepted], known: Known, erased: Container[str]) -> Known:
        """What is known once those are registered whom these events, or others before them, name first."""
        known = self._and_these(known)
        sights = sights_in(of_sources(accepted, self.registering), known, erased)
        if not sights:
            return known
        self.users |= {sight.user for sight in sights if sight.is_user_new}
        for sight in sights:
            if sight.is_session_new:
                self.sessions.setdefault(sight.session, (sight.server, sight.user))
        return self._and_these(known)

    def _and_these(self, known: Known) -> Known:
        if not self.users and not self.sessions:
            return known
        sessions = ChainMap(dict(known.sessions), self.sessions)
        return replace(known, users=_Either(known.users, self.users), sessions=sessions)

    def _held_against_others(self, item: Accepted, before: Foreseen | None) -> Foreseen:
        """With what was read before it: `before` is what the tables say."""
        event, record = item
        if isinstance(event, UserErased | StepCorrected):
            return before or Foreseen(record, Outcome.COUNTS, event)
        row, at = row_of(event), event.happened_at
        earlier = self.seen.note(row, event.event_id, at, self.place(record))
        if before is not None or earlier is None:
            again = self.seen.has_another_id(row, event.event_id, at)
            return before or Foreseen(record, Outcome.COUNTS, event, has_another_id=again)
        if not earlier.is_same_row:
            told = f"event_id: {whose(event, earlier.user)}, {earlier.place}, has it and comes first"
            return Foreseen(record, Outcome.REFUSED, event, Rejection.REUSED_EVENT_ID, told)
        self.seen.has_another_id(row, event.event_id, at)
        told = f"event_id: {earlier.place} has it, too"
        if earlier.at != at:
            told += ", with another time: the earliest counts"
        return Foreseen(record, Outcome.COPY, event, message=told)


@dataclass(frozen=True, slots=True)
class _Either:
    """What is in one of two."""

    one: Container[str]
    other: Container[str]

    def __contains__(self, name: object) -> bool:
        return name in self.one or name in self.other


_OF_ERASED = "mcp_server_user_id: this person was erased, and nothing of them is kept"


def _note_refused(
    found: dict[int, Foreseen], events: Mapping[int, AnyEvent], refused: Iterable[Refused]
) -> None:
    for record, rejection, message in ((r.record, r.rejection, r.message) for r in refused):
        event = events.get(id(record))
        found[id(record)] = Foreseen(record, Outcome.REFUSED, event, rejection, message)


async def _note_what_is_there(db: Connection, found: dict[int, Foreseen], items: Sequence[Accepted]) -> None:
    """Which events a correction covers, and of which there are rows."""
    completions = [
        (n, event.mcp_server_user_id, event.step_id, event.completed_at)
        for n, (event, _) in enumerate(items)
        if isinstance(event, StepCompleted)
    ]
    rows = [
        (n, row.table.value, event.event_id, row.user, row.of_what)
        for n, (event, _) in enumerate(items)
        if not isinstance(event, UserErased | StepCorrected)
        for row in (row_of(event),)
    ]
    told = (
        ("find_covered", completions, Outcome.COVERED, "completed_at: a correction covers it"),
        ("find_recorded", rows, Outcome.RECORDED, "event_id: it is recorded already"),
    )
    for statement, given, outcome, message in told:
        if given:
            columns = [list(column) for column in zip(*given, strict=True)]
            for (n,) in await db.fetch(SQL[statement], *columns):
                event, record = items[n]
                found[id(record)] = Foreseen(record, outcome, event, message=message)

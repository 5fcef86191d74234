"""What is accepted, as far as it can be said without the database; and the merge rule inside a batch."""

import contextlib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

from pydantic_core import from_json

from schemas import (
    OPERATOR_SOURCES,
    AnyEvent,
    EventError,
    OfStep,
    Rejection,
    StepCompleted,
    StepCorrected,
    UserErased,
    WalkthroughStarted,
    decode,
)
from services.runtime.database import can_be_stored
from services.runtime.kafka import Record

#: The longest id of the contract, in characters.
_MOST_ID: Final = 64
#: A person, found without reading the value.
_PERSON: Final = re.compile(rb'"mcp_server_user_id"\s*:\s*"((?:[^"\\]|\\.){1,400})"')


class Accepted(NamedTuple):
    """A readable event and the record that it came in."""

    event: AnyEvent
    record: Record


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that is no event that counts, and why."""

    record: Record
    rejection: Rejection
    message: str


@dataclass(slots=True)
class References:
    """The rows of other tables that events refer to, each with those that it has to belong to."""

    users: set[str] = field(default_factory=set)
    sessions: set[tuple[str, str, str]] = field(default_factory=set)  # (session, server, user)
    places: set[tuple[str, str]] = field(default_factory=set)  # (server, walkthrough)
    steps: set[tuple[str, str]] = field(default_factory=set)  # (step, walkthrough)

    @classmethod
    def of(cls, accepted: Iterable[Accepted]) -> "References":
        """What these events refer to."""
        found = cls()
        for event, _ in accepted:
            if isinstance(event, UserErased):
                continue
            user, server = event.mcp_server_user_id, event.mcp_server_id
            found.users.add(user)
            found.sessions.add((event.mcp_server_session_id, server, user))
            found.places.add((server, event.walkthrough_id))
            if isinstance(event, OfStep):
                found.steps.add((event.step_id, event.walkthrough_id))
        return found


@dataclass(frozen=True, slots=True)
class Known:
    """The rows that exist, of those that events refer to, and what each belongs to."""

    users: Container[str]
    #: The server of each session, None where it has none any more, and its user, None where it has none yet.
    sessions: Mapping[str, tuple[str | None, str | None]]
    #: The organization of each server, and of each walkthrough.
    servers: Mapping[str, str]
    walkthroughs: Mapping[str, str]
    #: The walkthrough of each step.
    steps: Mapping[str, str]


def read(
    records: Iterable[Record], now_ms: int, trusted: Container[str] = OPERATOR_SOURCES
) -> tuple[list[Accepted], list[Refused]]:
    """Reads each record; one that is no event harms no other.

    Args:
        records: as they came.
        now_ms: the clock, milliseconds since the epoch.
        trusted: the sources whose events may decide about a person.
    """
    accepted, refused = [], []
    for record in records:
        try:
            accepted.append(Accepted(read_one(record, now_ms, trusted), record))
        except EventError as error:
            refused.append(Refused(record, error.rejection, str(error)))
    return accepted, refused


def read_one(record: Record, now_ms: int, trusted: Container[str]) -> AnyEvent:
    """The event of a record.

    Raises:
        EventError: it is none, or may not decide about its person.
    """
    event = decode(record.value, now_ms)
    if isinstance(event, UserErased | StepCorrected):
        decided_by_key(record, event, trusted)
    return event


def decided_by_key(record: Record, event: UserErased | StepCorrected, trusted: Container[str]) -> None:
    """Looks whether an event may decide about its person: by the record's key, and by who sent it.

    Raises:
        EventError: the key is not the person, or the source is not one of `trusted`.
    """
    if key_of(record) != event.mcp_server_user_id:
        raise EventError(
            Rejection.NOT_ALLOWED,
            f"the key of a record with `{event.type}` is its mcp_server_user_id, and nothing else",
        )
    sources = [
        (value or b"").decode(errors="replace") for name, value in record.headers if name == "ce_source"
    ]
    if not sources or any(source not in trusted for source in sources):
        told = f"the header ce_source is {sources[-1][:200]!r}" if sources else "there is no header ce_source"
        raise EventError(
            Rejection.NOT_ALLOWED,
            f"{told}, and `{event.type}` counts from trusted sources alone: send it with `stepstream "
            f"{'erase' if isinstance(event, UserErased) else 'completions'}`, or add the source to "
            "STEPSTREAM_TRUSTED_SOURCES",
        )


def check_references(accepted: Iterable[Accepted], known: Known) -> tuple[list[Accepted], list[Refused]]:
    """Refuses the events that refer to rows which do not exist, or do not belong together."""
    good, refused = [], []
    for item in accepted:
        event = item.event
        problem = None if isinstance(event, UserErased) else _problem(event, known)
        if problem is None:
            good.append(item)
        else:
            refused.append(Refused(item.record, *problem))
    return good, refused


def of_others(refused: Iterable[Refused], erased: Set[str]) -> list[Refused]:
    """Without what is of somebody who was erased: of them no dead letter is kept either."""
    return [r for r in refused if erased.isdisjoint(people_of(r.record))]


def key_of(record: Record) -> str:
    """Whose record it is, by its key; empty where the key says nobody: no id is like that, or has a NUL."""
    try:
        key = (record.key or b"").decode()
    except UnicodeDecodeError:
        return ""
    return key if can_be_stored(key) else ""


def people_of(record: Record) -> set[str]:
    """Whose record it may be: those that its key names, and its value, in whatever state that is."""
    value = record.value or b""
    found = {key_of(record)}
    for name in _PERSON.findall(value):
        with contextlib.suppress(ValueError):  # it is no text
            found.add(str(json.loads(b'"' + name + b'"')))
    if b"\\u" in value:  # names of fields may be escaped, too
        with contextlib.suppress(ValueError):
            told = from_json(value)
            found.add(str(told.get("mcp_server_user_id", "")) if isinstance(told, dict) else "")
    return {name for name in found if 0 < len(name) <= _MOST_ID and can_be_stored(name)}


def _holds_together(event: OfStep | WalkthroughStarted, known: Known) -> bool:
    """Whether all that an event refers to is there and belongs together, in one look: most events do."""
    server, walkthrough = event.mcp_server_id, event.walkthrough_id
    session_server, session_user = known.sessions.get(event.mcp_server_session_id, (None, None))
    organization = known.servers.get(server)
    return (
        session_server == server
        and (session_user is None or session_user == event.mcp_server_user_id)
        and event.mcp_server_user_id in known.users
        and organization is not None
        and organization == known.walkthroughs.get(walkthrough)
        and (not isinstance(event, OfStep) or known.steps.get(event.step_id) == walkthrough)
    )


def _problem(event: OfStep | WalkthroughStarted, known: Known) -> tuple[Rejection, str] | None:
    """All that is wrong, from the outside in; the class is that of the first.

    What a row belongs to is asked only where the row exists. A session without a user is everybody's: the
    platform makes sessions before it knows who is there. Whether the server still offers the walkthrough is
    not asked: it may have, when it happened.
    """
    if _holds_together(event, known):
        return None
    user, walkthrough, server = event.mcp_server_user_id, event.walkthrough_id, event.mcp_server_id
    step = event.step_id if isinstance(event, OfStep) else None
    of_step = known.steps.get(step, walkthrough) if step is not None else walkthrough
    of_server = known.servers.get(server)
    of_walkthrough = known.walkthroughs.get(walkthrough)
    session_server, session_user = known.sessions.get(event.mcp_server_session_id, (server, None))
    checks = (
        (user in known.users, Rejection.UNKNOWN_USER),
        (walkthrough in known.walkthroughs, Rejection.UNKNOWN_WALKTHROUGH),
        (step is None or step in known.steps, Rejection.UNKNOWN_STEP),
        (of_step == walkthrough, Rejection.STEP_OF_ANOTHER_WALKTHROUGH),
        (server in known.servers, Rejection.UNKNOWN_SERVER),
        (event.mcp_server_session_id in known.sessions, Rejection.UNKNOWN_SESSION),
        (
            of_server == of_walkthrough or None in {of_server, of_walkthrough},
            Rejection.SERVER_OF_ANOTHER_ORGANIZATION,
        ),
        (session_server == server, Rejection.SESSION_OF_ANOTHER_SERVER),
        (session_user in {None, user}, Rejection.SESSION_OF_ANOTHER_USER),
    )
    wrong = [rejection for holds, rejection in checks if not holds]
    return (wrong[0], "; ".join(_MESSAGES[rejection] for rejection in wrong)) if wrong else None


_MESSAGES = {
    Rejection.UNKNOWN_USER: "mcp_server_user_id: there is no such user",
    Rejection.UNKNOWN_WALKTHROUGH: "walkthrough_id: there is no such walkthrough",
    Rejection.UNKNOWN_STEP: "step_id: there is no such step",
    Rejection.STEP_OF_ANOTHER_WALKTHROUGH: "step_id: the step belongs to another walkthrough",
    Rejection.UNKNOWN_SERVER: "mcp_server_id: there is no such server",
    Rejection.UNKNOWN_SESSION: "mcp_server_session_id: there is no such session",
    Rejection.SERVER_OF_ANOTHER_ORGANIZATION: (
        "mcp_server_id: the server belongs to another organization than the walkthrough"
    ),
    Rejection.SESSION_OF_ANOTHER_SERVER: "mcp_server_session_id: the session belongs to another server",
    Rejection.SESSION_OF_ANOTHER_USER: "mcp_server_session_id: the session belongs to another user",
}


def merge(accepted: Iterable[Accepted]) -> list[Accepted]:
    """Copies of one event become one; of starts only the first of each user and walkthrough is kept.

    First is the smallest `(time, event_id)`. Different contents under one event id stay side by side: the
    upsert decides between them in an order that SQL alone defines. All completions of a user and step are
    kept: which of them counts depends on corrections.
    """
    firsts: dict[tuple[str, str], tuple[int, str]] = {}
    kept: dict[tuple[str, str, str, int, str], Accepted] = {}
    #: What is not the same as the one that is kept at its place.
    others: dict[tuple[str, str, str, int, str], list[Accepted]] = {}
    for item in accepted:
        event = item.event
        if isinstance(event, StepCompleted):
            place = ("step", event.mcp_server_user_id, event.step_id, event.completed_at, event.event_id)
        elif isinstance(event, WalkthroughStarted):
            start, rank = (event.mcp_server_user_id, event.walkthrough_id), (event.started_at, event.event_id)
            first = firsts.get(start)
            if first is not None and first < rank:
                continue
            if first is not None and rank < first:
                del kept["start", *start, *first]
                others.pop(("start", *start, *first), None)
            firsts[start] = rank
            place = ("start", *start, *rank)
        else:
            continue
        first_here = kept.setdefault(place, item)
        if first_here is not item and first_here.event != event:
            same = others.setdefault(place, [])
            if all(event != other.event for other in same):
                same.append(item)
    return [*kept.values(), *(item for items in others.values() for item in items)]


def corrections(accepted: Iterable[Accepted]) -> list[Accepted]:
    """Those that are corrections."""
    return [item for item in accepted if isinstance(item.event, StepCorrected)]


class Decision(NamedTuple):
    """A row of `completion_corrections`."""

    event_id: str
    mcp_server_user_id: str
    walkthrough_id: str
    step_id: str
    mcp_server_id: str
    mcp_server_session_id: str
    corrected_at: int
    covers_until: int
    completed_at: int | None

    @property
    def key(self) -> tuple[str, str]:
        """Whose completion it decides about, and of which step."""
        return self.mcp_server_user_id, self.step_id

    def _rank(self) -> tuple[object, ...]:
        """The largest decides; what follows the id only decides between different contents under one id."""
        completed_at = -1 if self.completed_at is None else self.completed_at
        return self.corrected_at, self.event_id, completed_at, self.mcp_server_id, self.mcp_server_session_id

    def joined_with(self, other: "Decision") -> "Decision":
        """What two decisions about one user and step come to: the newest decides, the largest cover holds."""
        newest = max(self, other, key=Decision._rank)
        return newest._replace(covers_until=max(self.covers_until, other.covers_until))


def decide(items: Iterable[Accepted], before: Iterable[Decision]) -> list[Decision]:
    """What corrections come to, with what was decided before; one for each user and step."""
    decided = {decision.key: decision for decision in before}
    for event, _ in items:
        if isinstance(event, StepCorrected):
            new = Decision(*(getattr(event, name) for name in Decision._fields))
            decided[new.key] = new.joined_with(decided.get(new.key, new))
    return list(decided.values())


class SeenId(NamedTuple):
    """What the tables say of an event whose id is another event's, too."""

    #: No earlier event is recorded of its user and step, or walkthrough: it would be written.
    wins: bool
    #: The organization of its server.
    organization: str
    #: Whose event of another user or step is recorded under the id; None where there is none.
    holder_user: str | None
    #: When that happened, in milliseconds since the epoch, and the organization of its server.
    holder_at: int | None
    holder_organization: str | None


def row_of(event: StepCompleted | WalkthroughStarted) -> tuple[bool, str, str]:
    """The row that an event is about: whether it is a completion, whose it is, and of what."""
    if isinstance(event, StepCompleted):
        return True, event.mcp_server_user_id, event.step_id
    return False, event.mcp_server_user_id, event.walkthrough_id


def doubled_ids(merged: Iterable[Accepted]) -> set[tuple[bool, str]]:
    """The ids that events of different rows carry, each with whether it is of completions."""
    seen: dict[tuple[bool, str], tuple[bool, str, str]] = {}
    doubled = set()
    for event, _ in merged:
        if isinstance(event, StepCompleted | WalkthroughStarted):
            row = row_of(event)
            if seen.setdefault((row[0], event.event_id), row) != row:
                doubled.add((row[0], event.event_id))
    return doubled


def check_ids(
    merged: Sequence[Accepted], looked_up: Mapping[int, SeenId]
) -> tuple[list[Accepted], list[Refused]]:
    """Refuses events whose id another event has: the one that is recorded, else the first of them in the log.

    Args:
        merged: what is to be written.
        looked_up: by their index in it, the events of which another has the id.
    """
    firsts: dict[tuple[bool, str], tuple[Accepted, SeenId]] = {}
    refused: dict[int, Refused] = {}
    for i in sorted(looked_up, key=lambda i: (merged[i].record.partition, merged[i].record.offset)):
        (event, record), seen = merged[i], looked_up[i]
        if not isinstance(event, StepCompleted | WalkthroughStarted) or not seen.wins:
            continue
        first, seen_first = firsts.setdefault((row_of(event)[0], event.event_id), (merged[i], seen))
        if seen.holder_user is not None:
            told = _describe_holder(event, seen)
        elif isinstance(first.event, StepCompleted | WalkthroughStarted) and row_of(first.event) != row_of(
            event
        ):
            told = _describe_first(event, first, seen.organization == seen_first.organization)
        else:
            continue
        refused[i] = Refused(record, Rejection.REUSED_EVENT_ID, f"event_id: {told}")
    return [item for i, item in enumerate(merged) if i not in refused], list(refused.values())


def _describe_holder(event: StepCompleted | WalkthroughStarted, seen: SeenId) -> str:
    """Of another organization's event nothing is told."""
    if seen.holder_organization != seen.organization or seen.holder_at is None:
        return "another event is recorded under it"
    at = datetime.fromtimestamp(seen.holder_at / 1000, UTC).isoformat(timespec="milliseconds")
    whose = _whose(event, seen.holder_user)
    return f"{whose}, of {at.replace('+00:00', 'Z')}, is recorded under it"


def _describe_first(
    event: StepCompleted | WalkthroughStarted, first: Accepted, same_organization: bool
) -> str:
    if not same_organization:
        return "another event before this one has it"
    whose = _whose(event, first.event.mcp_server_user_id)
    return f"{whose}, at {first.record.partition}:{first.record.offset}, has it and comes first"


def _whose(event: StepCompleted | WalkthroughStarted, user: str | None) -> str:
    if user != event.mcp_server_user_id:
        return "another user's event"
    what = "step" if isinstance(event, StepCompleted) else "walkthrough"
    return f"an event of this user and another {what}"


Rows: TypeAlias = list[tuple[object, ...]]


def rows(merged: Iterable[Accepted], next_offsets_before: Mapping[int, int]) -> tuple[Rows, Rows]:
    """The events as rows of `incoming` and of `incoming_starts`.

    The last column says whether it is replayed: an offset that the recorder had passed before.
    """
    completions: Rows = []
    starts: Rows = []
    for event, record in merged:
        if isinstance(event, UserErased | StepCorrected):
            continue
        is_replayed = record.offset < next_offsets_before[record.partition]
        if isinstance(event, StepCompleted):
            completions.append(
                (
                    "wtsc_" + event.event_id,
                    event.mcp_server_user_id,
                    event.walkthrough_id,
                    event.step_id,
                    event.mcp_server_id,
                    event.mcp_server_session_id,
                    event.completed_at,
                    event.metadata,
                    is_replayed,
                )
            )
        else:
            starts.append(
                (
                    "wtst_" + event.event_id,
                    event.mcp_server_user_id,
                    event.walkthrough_id,
                    event.mcp_server_id,
                    event.mcp_server_session_id,
                    event.started_at,
                    event.metadata,
                    is_replayed,
                )
            )
    return completions, starts


INCOMING_COLUMNS: Sequence[str] = (
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "step_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "completed_at",
    "metadata",
    "is_replayed",
)
INCOMING_STARTS_COLUMNS: Sequence[str] = (
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "started_at",
    "metadata",
    "is_replayed",
)

"""What becomes of each item of a batch of events: pure, the clock and what the database has are passed in.

An item may have `distinct_id` and `session_id`, ids of the producer's own, in place of the platform's, and
leave the server out. It is read by `schemas.decode`, as by the consumers, with something in the place of what
is not known yet; then the database says what that is, and `judge` what counts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic_core import to_json

from schemas import (
    EventError,
    Known,
    OfStep,
    Problem,
    Rejection,
    StepCompleted,
    StepCorrected,
    UserErased,
    WalkthroughStarted,
    decode,
    problems_with,
)
from schemas.events import FIELDS
from schemas.names import hints
from services.analytics_api.intake.bodies import MOST_ITEM_BYTES, Item, hint_of_joined
from services.analytics_api.registering import own_session_id, problem_of_own_id
from services.runtime.fair import Writing


class IntakeRejection(StrEnum):
    """Why an item is refused, beside the classes of `schemas.Rejection`."""

    TYPE_NOT_ALLOWED = "type-not-allowed"
    SERVER_NOT_ALLOWED = "server-not-allowed"
    TOO_LARGE = "too-large"
    AMBIGUOUS_SERVER = "ambiguous-server"


ProducerEvent: TypeAlias = OfStep | WalkthroughStarted
#: Decide about a person: for operators alone.
_OF_OPERATORS: Final = ("user-erased", "step-corrected")
#: Stands in for an id that is not known yet: no id of the platform.
_LATER: Final = "?"
_USER, _SESSION, _SERVER = "mcp_server_user_id", "mcp_server_session_id", "mcp_server_id"
#: The producer's own names for ids of the platform.
_OWN: Final = {_USER: "distinct_id", _SESSION: "session_id"}
_OWN_NAMES: Final = frozenset(_OWN.values())
#: All names of fields that an item may have.
_NAMES: Final = _OWN_NAMES.union(*FIELDS.values())
_UNUSABLE: Final = "it has half of a surrogate pair, a number of thousands of digits, or hundreds of levels"


class Refusal(NamedTuple):
    """Why an item does not count, and which field is to be mended, if it is one."""

    rejection: Rejection | IntakeRejection
    field: str | None
    message: str


class Holder(NamedTuple):
    """Whose event is recorded under an id, of which step or walkthrough, and when it happened (ms)."""

    user: str
    of_what: str
    at: int


@dataclass(slots=True)
class Read:
    """An item that is an event, though it may not be known yet whose and where.

    `fields` are those of the contract as they came. Of `distinct_id` and `session_id` each is None where the
    item has the platform's id; `is_without_server` says that it names no server.
    """

    item: Item
    event: ProducerEvent
    fields: dict[str, Any]
    value: bytes
    distinct_id: str | None = None
    session_id: str | None = None
    is_without_server: bool = False

    @property
    def id_of(self) -> tuple[str, str] | None:
        """The table in which its id has to be its own, and that id; None where any may have it."""
        if isinstance(self.event, StepCompleted | WalkthroughStarted):
            return self.event.type, self.event.event_id
        return None

    @property
    def of_what(self) -> tuple[str, str]:
        """Whose it is, and of which step or walkthrough."""
        event = self.event
        what = event.walkthrough_id if isinstance(event, WalkthroughStarted) else event.step_id
        return event.mcp_server_user_id, what

    def set(self, name: str, value: str) -> None:
        """Puts what is known now in the place of what stood in for it."""
        if self.fields[name] != value:
            self.fields[name] = value
            vars(self.event)[name] = value  # nobody else has it, and a copy takes longer than all the reading
            self.value = _encode(self.fields)


@dataclass(slots=True)
class Wanted:
    """What has to be looked up for a batch."""

    users: set[str] = field(default_factory=set)
    distinct_ids: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    servers: set[str] = field(default_factory=set)
    walkthroughs: set[str] = field(default_factory=set)
    steps: set[str] = field(default_factory=set)
    completions: set[str] = field(default_factory=set)
    starts: set[str] = field(default_factory=set)
    only_server: bool = False

    @classmethod
    def of(cls, reads: Iterable[Read]) -> "Wanted":
        """What these events refer to, and their ids."""
        found = cls()
        for read in reads:
            event = read.event
            if read.distinct_id is None:
                found.users.add(event.mcp_server_user_id)
            else:
                found.distinct_ids.add(read.distinct_id)
            if read.is_without_server:
                found.only_server = True
            else:
                found.servers.add(event.mcp_server_id)
            found.sessions.add(event.mcp_server_session_id)
            found.walkthroughs.add(event.walkthrough_id)
            if isinstance(event, WalkthroughStarted):
                found.starts.add(event.event_id)
            else:
                found.steps.add(event.step_id)
                if isinstance(event, StepCompleted):
                    found.completions.add(event.event_id)
        return found


@dataclass(slots=True)
class Found:
    """What the database has of it that is the organization's: of what is another's nothing is here."""

    users: set[str] = field(default_factory=set)
    #: The ids here of people by the producer's own.
    people: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)
    #: The slug of each server.
    servers: dict[str, str] = field(default_factory=dict)
    walkthroughs: set[str] = field(default_factory=set)
    steps: dict[str, str] = field(default_factory=dict)
    #: Whose the ids of events are, by type and id.
    holders: dict[tuple[str, str], Holder] = field(default_factory=dict)
    #: The server that is meant where none is named; None where there are several, or none.
    only_server: str | None = None
    #: Events, by index, that change nothing, because an earlier one is recorded of the same person and step.
    surpassed: set[int] = field(default_factory=set)

    def known(self, organization: str) -> Known:
        """As the contract asks for it."""
        return Known(
            self.users,
            self.sessions,
            dict.fromkeys(self.servers, organization),
            dict.fromkeys(self.walkthroughs, organization),
            self.steps,
        )


# --- reading ---------------------------------------------------------------------------------------------


def read(item: Item, organization: str, writing: Writing, now_ms: int) -> Read | Refusal:
    """Reads an item.

    Args:
        item: as it came.
        organization: whose key brought it.
        writing: what the key may write.
        now_ms: the clock, milliseconds since the epoch.
    """
    try:
        if not isinstance(item.value, dict):
            raw = _raw_of(item)
            return _explained(raw, now_ms, [hint_of_joined(raw)] if item.value is None else [])
        return _read(item, organization, writing, now_ms)
    except (ValueError, RecursionError):
        return Refusal(Rejection.NOT_JSON, None, _UNUSABLE)


def _read(item: Item, organization: str, writing: Writing, now_ms: int) -> Read | Refusal:
    given: dict[str, Any] = item.value
    names = _names_of(given)
    if isinstance(names, Refusal):
        return names
    if (refusal := _not_allowed(given, writing)) is not None:
        return refusal
    made = {name: given[name] for name in names if name in given}
    own = _own_ids(given)
    if isinstance(own, Refusal):
        return own
    distinct_id, session_id = own.get("distinct_id"), own.get("session_id")
    if distinct_id is not None:
        made[_USER] = _LATER
    if session_id is not None:
        made[_SESSION] = own_session_id(organization, session_id)
    is_without_server = _SERVER not in given
    if is_without_server:
        made[_SERVER] = _LATER
    value = _encode(made)
    if (size := _size_of(item, made, value)) > MOST_ITEM_BYTES:
        message = f"the event has {size:,} bytes, and {MOST_ITEM_BYTES:,} are the most"
        return Refusal(IntakeRejection.TOO_LARGE, None, message)
    try:
        event = decode(value, now_ms)
    except EventError:
        whole = {name: part for name, part in given.items() if name not in _OWN_NAMES}
        return _explained(_encode({**whole, **made}), now_ms, _hints_of_own(given) if len(names) > 1 else [])
    assert not isinstance(event, UserErased | StepCorrected)  # noqa: S101 - they were refused above
    return Read(item, event, made, value, distinct_id, session_id, is_without_server)


def _names_of(given: Mapping[str, Any]) -> Sequence[str] | Refusal:
    """The fields of an item's type; of an unknown type that one alone."""
    kind = given.get("type")
    if kind in _OF_OPERATORS:
        return Refusal(
            Rejection.NOT_ALLOWED, "type", "such events decide about a person: operators send them"
        )
    return FIELDS.get(kind, ("type",)) if isinstance(kind, str) else ("type",)


def _not_allowed(given: Mapping[str, Any], writing: Writing) -> Refusal | None:
    """Why a key may not send an item, by the type and the server that it names."""
    kind, server = given.get("type"), given.get(_SERVER)
    if writing.types is not None and isinstance(kind, str) and kind in FIELDS and kind not in writing.types:
        allowed = ", ".join(sorted(writing.types))
        return Refusal(IntakeRejection.TYPE_NOT_ALLOWED, "type", f"this key may send {allowed} alone")
    if writing.server_ids is not None and isinstance(server, str) and server not in writing.server_ids:
        return Refusal(
            IntakeRejection.SERVER_NOT_ALLOWED, _SERVER, "this key may send no events of that server"
        )
    return None


def _own_ids(given: Mapping[str, Any]) -> dict[str, str] | Refusal:
    """The ids of the producer's own that an item has in the place of the platform's, by name."""
    own: dict[str, str] = {}
    for name, own_name in _OWN.items():
        if own_name not in given:
            continue
        if name in given:
            return Refusal(Rejection.INVALID, own_name, f"give either {own_name} or {name}")
        one = given[own_name]
        problem = problem_of_own_id(one) if isinstance(one, str) else "it is no text"
        if problem is not None:
            return Refusal(Rejection.INVALID, own_name, problem)
        own[own_name] = one
    return own


def _size_of(item: Item, made: Mapping[str, Any], value: bytes) -> int:
    """How large an item is: a line as it came, else as compact JSON."""
    if item.raw is not None:
        return len(item.raw)
    if item.value.keys() <= made.keys() | _OWN_NAMES:
        return len(value)
    return len(_encode(item.value))


def _encode(value: Any) -> bytes:
    """JSON of what JSON said.

    Raises:
        ValueError: it has half of a surrogate pair, or is nested too deep.
    """
    return to_json(value, inf_nan_mode="constants")


def _raw_of(item: Item) -> bytes:
    """The JSON of an item that is no object; what is no JSON as it came."""
    return item.raw if item.raw is not None else _encode(item.value)


def _hints_of_own(given: Mapping[str, Any]) -> list[str]:
    """That ids of the producer's own will do, where both are missing, and which names perhaps are these."""
    missing = [(name, own) for name, own in _OWN.items() if name not in given and own not in given]
    told = [f"{own}, an id of your own, may stand for {name}" for name, own in missing]
    return told + hints(given, {name for pair in missing for name in pair}, _NAMES)


def _explained(value: bytes, now_ms: int, more: Sequence[str]) -> Refusal:
    """What the contract says of what is no event, and what more there is to say that it does not.

    Raises:
        ValueError: it is one.
    """
    try:
        decode(value, now_ms)
    except EventError as error:
        text = str(error)
        told = [text, *(one for one in more if one and one.partition("` is perhaps")[0] not in text)]
        return Refusal(error.rejection, error.fields[0] if error.fields else None, "; ".join(told))
    raise ValueError


# --- judging ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Judged:
    """What becomes of a batch: the events that count, and why the others do not, by index."""

    good: list[Read] = field(default_factory=list)
    refused: dict[int, Refusal] = field(default_factory=dict)


def settle(reads: Iterable[Read], found: Found) -> None:
    """Puts the ids that are known now in the place of what stood in for them."""
    for read in reads:
        if read.is_without_server and found.only_server is not None:
            read.set(_SERVER, found.only_server)
        if read.distinct_id is not None:
            read.set(_USER, found.people.get(read.distinct_id, _LATER))


def contested(reads: Iterable[Read], found: Found) -> list[Read]:
    """Events whose id is recorded of another person, step or walkthrough."""
    return [read for read in reads if _other_holder(read, found) is not None]


def unregistered(reads: Iterable[Read], known: Known) -> list[Read]:
    """Events of which the person or session alone is unknown, and named by an id of the producer's own."""
    return [read for read in reads if _lacks_registration(read, problems_with(read.event, known))]


def _lacks_registration(read: Read, problems: Sequence[Problem]) -> bool:
    return bool(problems) and all(_is_of_registration(read, problem) for problem in problems)


def _is_of_registration(read: Read, problem: Problem) -> bool:
    """Whether it is that a person or session is unknown whom an id of the producer's own names."""
    return (problem.rejection is Rejection.UNKNOWN_USER and read.distinct_id is not None) or (
        problem.rejection is Rejection.UNKNOWN_SESSION and read.session_id is not None
    )


def judge(reads: Iterable[Read], found: Found, organization: str, *, registers: bool = False) -> Judged:
    """Judges the events of a batch, after `settle`, in their order.

    Where the key `registers` people and sessions, that these are unknown is no problem beside another one.
    Of those with one id that are of different people, steps or walkthroughs, the first in the batch is good.
    """
    judged, known = Judged(), found.known(organization)
    firsts: dict[tuple[str, str], tuple[str, str]] = {}
    for read in reads:
        refusal = _problem_of_references(read, known, registers) or _problem_of_id(read, firsts, found)
        if refusal is not None:
            judged.refused[read.item.index] = refusal
            continue
        judged.good.append(read)
        if (own := read.id_of) is not None:
            firsts.setdefault(own, read.of_what)
    return judged


#: What registering people and sessions does not mend.
_OF_OTHER_ROWS: Final = frozenset(
    {
        *(Rejection.UNKNOWN_WALKTHROUGH, Rejection.UNKNOWN_STEP, Rejection.STEP_OF_ANOTHER_WALKTHROUGH),
        *(Rejection.UNKNOWN_SERVER, Rejection.SERVER_OF_ANOTHER_ORGANIZATION),
    }
)


def _problem_of_references(read: Read, known: Known, registers: bool) -> Refusal | None:
    if read.fields[_SERVER] == _LATER:
        return Refusal(IntakeRejection.AMBIGUOUS_SERVER, _SERVER, "none, or several, may be meant: name one")
    problems = problems_with(read.event, known)
    if not problems:
        return None
    if registers and any(one.rejection in _OF_OTHER_ROWS for one in problems):
        problems = [one for one in problems if not _is_of_registration(read, one)]
    fields = [_name_in(read, problem.field) for problem in problems]
    message = "; ".join(f"{name}: {problem.message}" for name, problem in zip(fields, problems, strict=True))
    return Refusal(problems[0].rejection, fields[0], message)


def _name_in(read: Read, name: str) -> str:
    """What an item calls a field of the contract."""
    is_own = (name == _USER and read.distinct_id is not None) or (
        name == _SESSION and read.session_id is not None
    )
    return _OWN[name] if is_own else name


def _problem_of_id(
    read: Read, firsts: Mapping[tuple[str, str], tuple[str, str]], found: Found
) -> Refusal | None:
    """Whether another event has this one's id; a copy, or one of another time alone, is no other."""
    own = read.id_of
    if own is None:
        return None
    if firsts.get(own, read.of_what) != read.of_what:
        told = "event_id: another event of this batch has it and comes first"
        return Refusal(Rejection.REUSED_EVENT_ID, "event_id", told)
    holder = _other_holder(read, found)
    if holder is None or read.item.index in found.surpassed:
        return None
    what = "walkthrough" if isinstance(read.event, WalkthroughStarted) else "step"
    whose = f"this person and another {what}" if holder.user == read.of_what[0] else "another person"
    at = datetime.fromtimestamp(holder.at / 1000, UTC).isoformat(timespec="milliseconds")
    told = f"event_id: an event of {whose}, of {at.replace('+00:00', 'Z')}, is recorded under it"
    return Refusal(Rejection.REUSED_EVENT_ID, "event_id", told)


def _other_holder(read: Read, found: Found) -> Holder | None:
    """Who has the event's id, if that is another person, step or walkthrough."""
    own = read.id_of
    holder = None if own is None else found.holders.get(own)
    return holder if holder is not None and (holder.user, holder.of_what) != read.of_what else None

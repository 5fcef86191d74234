"""What is accepted, as far as it can be said without the database; and the merge rule inside a load."""

import contextlib
import json
import re
from collections.abc import Container, Iterable, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from pydantic_core import from_json

from schemas import (
    OPERATOR_SOURCES,
    AnyEvent,
    EventError,
    Known,
    OfStep,
    Rejection,
    StepCompleted,
    StepCorrected,
    StepShown,
    StepSkipped,
    UserErased,
    WalkthroughStarted,
    decode,
    problems_with,
)
from services.runtime.database import can_be_stored
from services.runtime.kafka import Record

#: The longest id of the contract, in characters.
_MOST_ID: Final = 64
#: A person, found without reading the value.
_PERSON: Final = re.compile(rb'"mcp_server_user_id"\s*:\s*"((?:[^"\\]|\\.){1,400})"')


#: What decides about a person, or about a completion, and becomes no row itself. Few events are like that.
DECIDING: Final = frozenset({UserErased, StepCorrected})


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


class Table(StrEnum):
    """Where events become rows."""

    COMPLETIONS = "walkthrough_step_completions"
    STARTS = "walkthrough_starts"
    SKIPS = "walkthrough_step_skips"
    SHOWINGS = "walkthrough_step_showings"


class RowKey(NamedTuple):
    """The row that an event is about: of which table, whose it is, and of which step or walkthrough."""

    table: Table
    user: str
    of_what: str

    def __str__(self) -> str:
        return f"{self.table} {self.user} {self.of_what}"


def row_of(event: AnyEvent) -> RowKey:
    """The row of an event, of a correction that of the completion; an erasure has none: its key is empty."""
    if isinstance(event, StepCompleted | StepCorrected):
        return RowKey(Table.COMPLETIONS, event.mcp_server_user_id, event.step_id)
    if isinstance(event, WalkthroughStarted):
        return RowKey(Table.STARTS, event.mcp_server_user_id, event.walkthrough_id)
    if isinstance(event, StepSkipped):
        return RowKey(Table.SKIPS, event.mcp_server_user_id, event.step_id)
    if isinstance(event, StepShown):
        return RowKey(Table.SHOWINGS, event.mcp_server_user_id, event.step_id)
    return RowKey(Table.COMPLETIONS, "", "")


_SESSION: Final = attrgetter("mcp_server_session_id", "mcp_server_id", "mcp_server_user_id")
_SERVER_WALKTHROUGH: Final = attrgetter("mcp_server_id", "walkthrough_id")
_STEP: Final = attrgetter("step_id", "walkthrough_id")
_COMPLETION: Final = attrgetter("mcp_server_user_id", "step_id", "completed_at", "event_id")


@dataclass(slots=True)
class References:
    """The rows of other tables that events refer to, each with those that it has to belong to."""

    users: set[str] = field(default_factory=set)
    sessions: set[tuple[str, str, str]] = field(default_factory=set)  # (session, server, user)
    server_walkthroughs: set[tuple[str, str]] = field(default_factory=set)  # (server, walkthrough)
    steps: set[tuple[str, str]] = field(default_factory=set)  # (step, walkthrough)

    @classmethod
    def of(cls, accepted: Iterable[Accepted]) -> "References":
        """What these events refer to."""
        events = [event for event, _ in accepted if not isinstance(event, UserErased)]
        sessions = set(map(_SESSION, events))
        return cls(
            {user for _, _, user in sessions},
            sessions,
            set(map(_SERVER_WALKTHROUGH, events)),
            set(map(_STEP, [event for event in events if isinstance(event, OfStep)])),
        )


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
    if isinstance(event, (UserErased, StepCorrected)):
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
        given = (
            f"the header ce_source is {sources[-1][:200]!r}" if sources else "there is no header ce_source"
        )
        raise EventError(
            Rejection.NOT_ALLOWED,
            f"{given}, and `{event.type}` counts from trusted sources alone: send it with `stepstream "
            f"{'erase' if isinstance(event, UserErased) else 'completions'}`, or add the source to "
            "STEPSTREAM_TRUSTED_SOURCES",
        )


def check_references(accepted: Iterable[Accepted], known: Known) -> tuple[list[Accepted], list[Refused]]:
    """Refuses the events that refer to rows which do not exist, or do not belong together."""
    good, refused = [], []
    for item in accepted:
        event = item.event
        problems = () if isinstance(event, UserErased) else problems_with(event, known)
        if problems:
            message = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
            refused.append(Refused(item.record, problems[0].rejection, message))
        else:
            good.append(item)
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
            event = from_json(value)
            found.add(str(event.get("mcp_server_user_id", "")) if isinstance(event, dict) else "")
    return {name for name in found if 0 < len(name) <= _MOST_ID and can_be_stored(name)}


def user_of(event: AnyEvent) -> str:
    """Of whom an event says that they did something; empty where it is an erasure."""
    return "" if isinstance(event, UserErased) else event.mcp_server_user_id


def merge(accepted: Iterable[Accepted]) -> list[Accepted]:
    """Copies of one event become one; of what else is of one row, only what can count is kept.

    Of starts and skips that is the first, of showings the first and the last. First is the smallest
    `(time, event_id)`. Different contents under one event id stay side by side: the upsert decides between
    them in an order that SQL alone defines. All completions of a user and step are kept: which of them counts
    depends on corrections.
    """
    distinct = _Distinct()
    completions: list[Accepted] = []
    others: list[tuple[RowKey, _Rank, Accepted]] = []
    for item in accepted:
        event = item.event
        if isinstance(event, StepCompleted):
            completions.append(item)
        elif type(event) not in DECIDING:
            others.append((row_of(event), (event.happened_at, event.event_id), item))
    distinct.add_all([(_COMPLETION(item.event), item) for item in completions])
    firsts: dict[RowKey, _Rank] = {}
    lasts: dict[RowKey, _Rank] = {}
    for row, rank, _ in others:
        firsts[row] = min(rank, firsts.get(row, rank))
        lasts[row] = max(rank, lasts.get(row, rank))
    for row, rank, item in others:
        if rank == firsts[row] or (row.table is Table.SHOWINGS and rank == lasts[row]):
            distinct.add((row, rank), item)
    return distinct.items()


_Rank: TypeAlias = tuple[int, str]


class _Distinct:
    """Events without their copies; a copy has the same key and the same content."""

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], Accepted] = {}
        #: What is not the same as the one that is kept under its key.
        self._others: dict[tuple[object, ...], list[Accepted]] = {}

    def add_all(self, pairs: Sequence[tuple[tuple[object, ...], Accepted]]) -> None:
        """Keeps events, of which nothing was kept before, unless they are copies."""
        distinct = dict(pairs)
        if len(distinct) == len(pairs):
            self._kept = distinct
            return
        for key, item in pairs:
            self.add(key, item)

    def add(self, key: tuple[object, ...], item: Accepted) -> None:
        """Keeps an event, unless it is a copy."""
        first = self._kept.setdefault(key, item)
        if first is not item and first.event != item.event:
            same = self._others.setdefault(key, [])
            if all(item.event != other.event for other in same):
                same.append(item)

    def items(self) -> list[Accepted]:
        """All that is kept."""
        return [*self._kept.values(), *(item for items in self._others.values() for item in items)]

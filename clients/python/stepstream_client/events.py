"""Typed events, and how anything is held against the contract before it is sent."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, ClassVar, Final, Self, TypeAlias

import uuid_utils
from pydantic_core import from_json

from stepstream_client.contract import (
    AnyEvent,
    EventError,
    Rejection,
    StepCorrected,
    UserErased,
    decode,
    encode,
)
from stepstream_client.contract.names import hints, meant_by
from stepstream_client.errors import InvalidEvent

#: Milliseconds since the epoch, or a time with its zone.
Time: TypeAlias = int | datetime

#: How long a producer's own id of a person or session is, in characters, at most.
MAX_OWN_ID: Final = 200
_STANDS_IN: Final = "x"
#: What of the HTTP client answers a field.
_REGISTERING: Final = {
    "mcp_server_user_id": ", and `register_people` answers it",
    "mcp_server_session_id": ", and `register_sessions` answers it",
}
#: The producer's own name of something, by the field that it stands for.
_OWN: Final = {"mcp_server_user_id": "distinct_id", "mcp_server_session_id": "session_id"}


def new_event_id() -> str:
    """A UUID of version 7."""
    return str(uuid_utils.uuid7())


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """An event as it is sent: `value` is what was judged.

    `open_fields` are those that only the HTTP route can fill; `user` is the key of the record, and None where
    the person is named by `distinct_id`.
    """

    value: bytes
    type: str
    event_id: str
    user: str | None
    at: int
    open_fields: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events say. A wrong one is never made: its class raises `InvalidEvent`.

    By HTTP, `distinct_id` and `session_id`, ids of your own, stand for the platform's, and `mcp_server_id`
    may be left out where the key leads to one server. Kafka takes the platform's ids alone.
    """

    TYPE: ClassVar[str]
    TIME: ClassVar[str]

    walkthrough_id: str
    mcp_server_user_id: str | None = None
    distinct_id: str | None = None
    mcp_server_id: str | None = None
    mcp_server_session_id: str | None = None
    session_id: str | None = None
    event_id: str = field(default_factory=new_event_id)
    metadata: Mapping[str, Any] | None = None
    #: The event as it was judged.
    prepared: Prepared = field(init=False, repr=False, compare=False)

    def __new__(cls, *_: object, **given: object) -> Self:
        """Refuses names that are no fields: its `__init__` would not say which are meant.

        Raises:
            InvalidEvent: there are such.
        """
        for name in given:
            if name not in cls.__dataclass_fields__:
                raise InvalidEvent(Rejection.INVALID, f"{name}: {_no_field(cls, name)}", field=name)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, own in _OWN.items():
            if getattr(self, name) is not None and getattr(self, own) is not None:
                raise InvalidEvent(Rejection.INVALID, f"{own}: give either {own} or {name}", field=own)
        at = getattr(self, self.TIME)
        object.__setattr__(self, self.TIME, _milliseconds(at, self.TIME))
        object.__setattr__(self, "prepared", prepare(self.as_dict()))

    @property
    def happened_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.prepared.at

    def as_dict(self) -> dict[str, Any]:
        """The event's fields under the names of the contract, without those that are not given."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return {"type": self.TYPE, "event_id": self.event_id} | {
            name: value for name, value in named.items() if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class WalkthroughStarted(Event):
    """Somebody opened a walkthrough for the first time; `started_at` is now unless it is given."""

    TYPE = "walkthrough-started"
    TIME = "started_at"

    started_at: Time = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class StepShown(Event):
    """A step was put before somebody; `shown_at` is now unless it is given."""

    TYPE = "step-shown"
    TIME = "shown_at"

    step_id: str
    version: str | None = None
    shown_at: Time = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class StepSkipped(Event):
    """Somebody went on without doing a step; `skipped_at` is now unless it is given."""

    TYPE = "step-skipped"
    TIME = "skipped_at"

    step_id: str
    reason: str | None = None
    skipped_at: Time = field(default_factory=now_ms)


@dataclass(frozen=True, kw_only=True)
class StepCompleted(Event):
    """Somebody completed a step; `completed_at` is now unless it is given."""

    TYPE = "step-completed"
    TIME = "completed_at"

    step_id: str
    completed_at: Time = field(default_factory=now_ms)


def _no_field(kind: type[Event], name: str) -> str:
    known = tuple(one.name for one in fields(kind) if one.init)
    if meant := meant_by(name, known):
        return f"there is no such field; {' or '.join(meant)} is perhaps meant"
    return f"there is no such field; there are {', '.join(known)}"


#: What producers take: a typed event, a mapping with the fields of the contract, or its JSON.
Sendable: TypeAlias = Event | Mapping[str, Any] | bytes | str


def listed(events: Sendable | Iterable[Sendable]) -> Iterable[Sendable]:
    """Several events, of which one alone may be given as it is."""
    return [events] if isinstance(events, Event | Mapping | bytes | str) else events


#: All names of fields that producers send.
_NAMES: Final = frozenset(
    {
        "type",
        *(f.name for one in (StepCompleted, StepShown, StepSkipped, WalkthroughStarted) for f in fields(one)),
    }
)


def _milliseconds(at: object, name: str) -> object:
    """A time with a zone in milliseconds; anything else stays, and the contract judges it."""
    if not isinstance(at, datetime):
        return at
    if at.utcoffset() is None:
        raise InvalidEvent(
            Rejection.INVALID, f"{name}: it has no time zone; give datetime.now(UTC), say", field=name
        )
    return round(at.timestamp() * 1000)


def validate(value: bytes | str, now: int | None = None) -> AnyEvent:
    """Reads the value of a record exactly as the server does.

    Args:
        value: UTF-8 JSON.
        now: the clock in milliseconds since the epoch; else this machine's.

    Raises:
        InvalidEvent: what is wrong.
    """
    given = value.encode() if isinstance(value, str) else value
    try:
        return decode(given, now_ms() if now is None else now)
    except EventError as error:
        raise InvalidEvent.of(error) from None


def prepare(event: Sendable) -> Prepared:
    """Judges an event that is about to be sent.

    Raises:
        InvalidEvent: it is none, or only an operator may send it.
    """
    if isinstance(event, Event):
        return event.prepared
    value = _encoded(event)
    try:
        return _prepared(value, decode(value, now_ms()))
    except EventError as error:
        whole, open_fields = _with_stand_ins(value)
        if not open_fields:
            raise _invalid(error, value) from None
    try:
        return _prepared(value, decode(whole, now_ms()), open_fields)
    except EventError as error:
        raise _invalid(error, value) from None


def _invalid(error: EventError, value: bytes) -> InvalidEvent:
    """What the contract says of it, and under which other name a field is that is missing."""
    of_contract = InvalidEvent.of(error)
    told = "; ".join(
        hint for hint in _misnamed(error, value) if hint.split("`")[1] not in (of_contract.cause or "")
    )
    if not told:
        return of_contract
    cause = f"{of_contract.cause}; {told}" if of_contract.cause else told
    return InvalidEvent(error.rejection, of_contract.message, field=of_contract.field, cause=cause)


def _misnamed(error: EventError, value: bytes) -> list[str]:
    try:
        found = from_json(value)
    except ValueError:
        return []
    missing = {name for name in _NAMES if f"{name}: Field required" in error.told}
    own = {own for name, own in _OWN.items() if name in missing}
    return hints(found, missing | own, _NAMES) if isinstance(found, dict) else []


def _encoded(event: Mapping[str, Any] | bytes | str) -> bytes:
    if not isinstance(event, Mapping | bytes | str) and isinstance(event, Iterable):
        raise InvalidEvent(Rejection.INVALID, "event: this takes one event; `send_many` takes several")
    try:
        if isinstance(event, bytes | str):
            return event.encode() if isinstance(event, str) else event
        return encode(event)
    except UnicodeEncodeError:
        raise InvalidEvent(
            Rejection.NOT_JSON, "event: a text in it holds half of a surrogate pair; cut texts at characters"
        ) from None
    except RecursionError:
        raise InvalidEvent(Rejection.NOT_JSON, "event: it is nested too deep") from None
    except (TypeError, ValueError) as error:
        raise InvalidEvent(Rejection.INVALID, f"event: it cannot be written as JSON: {error}") from None


def _prepared(value: bytes, found: AnyEvent, open_fields: tuple[str, ...] = ()) -> Prepared:
    if isinstance(found, UserErased | StepCorrected):
        command = "erase" if isinstance(found, UserErased) else "completions"
        told = f"`{found.type}` is sent by `stepstream {command}` alone"
        raise InvalidEvent(Rejection.NOT_ALLOWED, told, field="type")
    user = None if "mcp_server_user_id" in open_fields else found.mcp_server_user_id
    return Prepared(value, found.type, found.event_id, user, found.happened_at, open_fields)


def _with_stand_ins(value: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The event with something in each field that the HTTP route fills, and which these are.

    Raises:
        InvalidEvent: an id of the producer's own is none.
    """
    try:
        found = from_json(value)
    except ValueError:
        return value, ()
    if not isinstance(found, dict):
        return value, ()
    open_fields = [name for name, own in _OWN.items() if name not in found and own in found]
    for name in open_fields:
        _check_own_id(found[_OWN[name]], _OWN[name])
    if "mcp_server_id" not in found:
        open_fields.append("mcp_server_id")
    return encode(found | dict.fromkeys(open_fields, _STANDS_IN)), tuple(open_fields)


def _check_own_id(given: object, name: str) -> None:
    if not isinstance(given, str):
        raise InvalidEvent(Rejection.INVALID, f"{name}: it is text, in quotes", field=name)
    if not 1 <= len(given) <= MAX_OWN_ID or not given.isprintable():
        told = f"{name}: it is 1 to {MAX_OWN_ID} printable characters"
        raise InvalidEvent(Rejection.INVALID, told, field=name)


def prepare_for_kafka(event: Sendable) -> Prepared:
    """As `prepare`, of an event that Kafka gets: there everything has the platform's ids.

    Raises:
        InvalidEvent: it is none, or leaves a field to the HTTP route.
    """
    prepared = prepare(event)
    require_platform_ids(prepared)
    return prepared


def require_platform_ids(event: Prepared) -> None:
    """Refuses what only the HTTP route can fill.

    Raises:
        InvalidEvent: a field is left to it.
    """
    if event.open_fields:
        name = event.open_fields[0]
        own = f", and not `{_OWN[name]}`" if name in _OWN else ""
        told = f"{name}: through Kafka an event has it{own}; by HTTP it may be left out"
        told += _REGISTERING.get(name, "")
        raise InvalidEvent(Rejection.INVALID, told, field=name)

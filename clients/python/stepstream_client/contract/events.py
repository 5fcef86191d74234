# Written by `make generate` from schemas/events.py.
"""Events of `walkthrough.progress.v1`, and how one becomes raw bytes and is read from them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import to_json

from stepstream_client.contract import causes

TOPIC: Final = "walkthrough.progress.v1"
DEAD_LETTER_SUFFIX: Final = ".dlq"
#: The `ce_source` of the events by which an operator decides about a person, as `stepstream erase` and
#: `stepstream completions` send them; the others are of earlier versions.
OPERATOR_SOURCES: Final = ("stepstream-operator", "/stepstream/erase")

#: The first millisecond of the year 2000 in UTC. Nothing that is counted here is older; seconds taken for
#: milliseconds are: they would be in January 1970, and the earliest completion wins.
MIN_TIME_MS: Final = 946_684_800_000
#: How far ahead of the consumer's clock an event may be, in milliseconds.
MAX_AHEAD_MS: Final = 24 * 60 * 60 * 1000
#: The last millisecond of the year 9999: past it a time has no calendar date in most languages.
MAX_TIME_MS: Final = 253_402_300_799_999
#: Size of `metadata` as compact JSON in UTF-8, in bytes.
MAX_METADATA_BYTES: Final = 8 * 1024
#: How long the text of an error is, at most: it goes into a header of the dead letter.
MAX_MESSAGE: Final = 560


class Rejection(StrEnum):
    """Why an event is refused: the error class that its dead letter carries."""

    EMPTY = "empty-value"
    NOT_JSON = "not-json"
    UNKNOWN_TYPE = "unknown-type"
    INVALID = "invalid-event"
    TOO_EARLY = "too-early"
    IN_THE_FUTURE = "in-the-future"
    NOT_ALLOWED = "not-allowed"
    UNKNOWN_USER = "unknown-user"
    UNKNOWN_WALKTHROUGH = "unknown-walkthrough"
    UNKNOWN_STEP = "unknown-step"
    UNKNOWN_SERVER = "unknown-server"
    UNKNOWN_SESSION = "unknown-session"
    STEP_OF_ANOTHER_WALKTHROUGH = "step-of-another-walkthrough"
    SERVER_OF_ANOTHER_ORGANIZATION = "server-of-another-organization"
    SESSION_OF_ANOTHER_SERVER = "session-of-another-server"
    SESSION_OF_ANOTHER_USER = "session-of-another-user"
    REUSED_EVENT_ID = "reused-event-id"
    REFUSED_BY_DATABASE = "refused-by-database"


class EventError(ValueError):
    """A value that is no event of the contract.

    `rejection` is the class, the text says what to mend, and `fields` where: none, where it is the whole. The
    text is `told` and, after it, the likely `causes`.
    """

    def __init__(self, rejection: Rejection, told: str, *fields: str, causes: Sequence[str] = ()) -> None:
        super().__init__("; ".join((told, *causes))[:MAX_MESSAGE])
        self.rejection = rejection
        self.told = told
        self.fields = fields
        self.causes = tuple(causes)


def encode_metadata(metadata: object) -> str:
    """Metadata as compact JSON text, the form that is measured and stored.

    Raises:
        ValueError: no object, larger than 8 KiB, a NUL character, or a number that JSON text cannot carry.
    """
    if not isinstance(metadata, dict):
        raise ValueError("metadata is a JSON object")  # noqa: TRY004 - pydantic turns ValueErrors into its own
    if not metadata:
        return "{}"
    encoded = to_json(metadata, inf_nan_mode="constants")
    if len(encoded) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata is larger than {MAX_METADATA_BYTES} bytes")
    if b"\\u0000" in encoded and _holds(metadata, _is_nul):
        raise ValueError("metadata holds a NUL character, which PostgreSQL cannot store")
    if (b"Infinity" in encoded or b"NaN" in encoded) and _holds(metadata, _is_not_finite):
        raise ValueError("metadata holds a number that is not finite, or too large for a double")
    return encoded.decode()


def _holds(value: object, problem: Callable[[object], bool]) -> bool:
    """Whether a key or value at any depth has the problem."""
    if isinstance(value, dict):
        return any(_holds(part, problem) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return any(_holds(part, problem) for part in value)
    return problem(value)


def _is_nul(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


# Patterns are written for the engines of all languages: \\u is unknown in Go.
Identifier = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"),
    # In Python and Java, `$` also matches before a newline at the end: their validators would let that pass.
    Field(json_schema_extra={"not": {"type": "string", "pattern": r"[\x00-\x1f\x7f-\x9f]"}}),
]
#: Text for people: more than one line is allowed, other control characters are not.
Reason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"),
    # As above: in Java, `$` also matches before a carriage return at the end.
    Field(json_schema_extra={"not": {"type": "string", "pattern": r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"}}),
]
EventId = Annotated[
    str,
    StringConstraints(
        to_lower=True,
        pattern=r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    ),
    Field(json_schema_extra={"maxLength": 36}),
]
#: Held as compact JSON text: nobody here looks inside, and it is stored as it is.
MetadataText = Annotated[
    str,
    PlainValidator(encode_metadata),
    WithJsonSchema({"type": "object", "additionalProperties": True}),
]


Milliseconds = Annotated[
    int,
    Field(
        strict=True,
        le=MAX_TIME_MS,
        description="Milliseconds since the epoch, written without fraction or exponent; from 2000-01-01 on, "
        "at most 24 hours ahead of the consumer's clock.",
        # Judged by `decode`, which says more than pydantic would.
        json_schema_extra={"minimum": MIN_TIME_MS},
    ),
]
_EVENT_ID: Final = "A UUID, the same in every copy of the event; version 7 is best."
_USER: Final = "Who; also the key of the Kafka record."
_SERVER: Final = "The MCP server that led the person here."
_METADATA: Final = "Free JSON, at most 8 KiB as compact UTF-8, without NUL characters."


class StepCompleted(BaseModel):
    """Somebody completed a step of a walkthrough.

    The event with the smallest `(completed_at, event_id)` is the one that counts for a user and step.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["step-completed"]
    event_id: EventId = Field(description=_EVENT_ID)
    mcp_server_user_id: Identifier = Field(description=_USER)
    walkthrough_id: Identifier
    step_id: Identifier = Field(description="The completed step; it belongs to the walkthrough.")
    mcp_server_id: Identifier = Field(description=_SERVER)
    mcp_server_session_id: Identifier
    completed_at: Milliseconds
    metadata: MetadataText | None = Field(default=None, description=_METADATA)

    @property
    def happened_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.completed_at


class WalkthroughStarted(BaseModel):
    """Somebody opened a walkthrough for the first time.

    The event with the smallest `(started_at, event_id)` is the one that counts for a user and walkthrough.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["walkthrough-started"]
    event_id: EventId = Field(description=_EVENT_ID)
    mcp_server_user_id: Identifier = Field(description=_USER)
    walkthrough_id: Identifier
    mcp_server_id: Identifier = Field(description=_SERVER)
    mcp_server_session_id: Identifier
    started_at: Milliseconds
    metadata: MetadataText | None = Field(default=None, description=_METADATA)

    @property
    def happened_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.started_at


class StepSkipped(BaseModel):
    """Somebody went on without doing a step. It is no completion.

    The event with the smallest `(skipped_at, event_id)` is the one that counts for a user and step. Where the
    step was completed as well, before or after, the completion counts.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["step-skipped"]
    event_id: EventId = Field(description=_EVENT_ID)
    mcp_server_user_id: Identifier = Field(description=_USER)
    walkthrough_id: Identifier
    step_id: Identifier = Field(description="The skipped step; it belongs to the walkthrough.")
    mcp_server_id: Identifier = Field(description=_SERVER)
    mcp_server_session_id: Identifier
    skipped_at: Milliseconds
    reason: Reason | None = Field(default=None, description="Why, in the words of who skipped it.")
    metadata: MetadataText | None = Field(default=None, description=_METADATA)

    @property
    def happened_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.skipped_at


class StepShown(BaseModel):
    """A step was put before somebody.

    Of a user and step the first and the last time count: the events with the smallest and with the largest
    `(shown_at, event_id)`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["step-shown"]
    event_id: EventId = Field(description=_EVENT_ID)
    mcp_server_user_id: Identifier = Field(description=_USER)
    walkthrough_id: Identifier
    step_id: Identifier = Field(description="The step that was shown; it belongs to the walkthrough.")
    mcp_server_id: Identifier = Field(description=_SERVER)
    mcp_server_session_id: Identifier
    shown_at: Milliseconds
    version: Identifier | None = Field(default=None, description="Which version of the step's content.")
    metadata: MetadataText | None = Field(default=None, description=_METADATA + " It is not kept.")

    @property
    def happened_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.shown_at


class UserErased(BaseModel):
    """Somebody asked to be forgotten: no event of theirs counts, whether it came before or comes after.

    Where and in which order it is read makes no difference.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["user-erased"]
    event_id: EventId = Field(description=_EVENT_ID)
    mcp_server_user_id: Identifier = Field(description=_USER)
    erased_at: Milliseconds

    @property
    def happened_at(self) -> int:
        """Milliseconds since the epoch."""
        return self.erased_at


class StepCorrected(BaseModel):
    """An operator decided when somebody completed a step, or that they did not.

    For a user and step the correction with the largest `(corrected_at, event_id)` decides: its
    `completed_at`, if it has one, counts as a completion. No completion up to `covers_until`, the largest of
    all corrections of the user and step, counts. Of what is left the smallest `(completed_at, event_id)`
    counts, as ever.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["step-corrected"]
    event_id: EventId = Field(description=_EVENT_ID)
    mcp_server_user_id: Identifier = Field(description=_USER)
    walkthrough_id: Identifier
    step_id: Identifier = Field(description="The step; it belongs to the walkthrough.")
    mcp_server_id: Identifier = Field(description=_SERVER)
    mcp_server_session_id: Identifier
    corrected_at: Milliseconds
    covers_until: Milliseconds
    completed_at: Milliseconds | None = None

    @property
    def happened_at(self) -> int:
        """When it was decided, in milliseconds since the epoch."""
        return self.corrected_at


AnyEvent: TypeAlias = (
    StepCompleted | WalkthroughStarted | StepSkipped | StepShown | UserErased | StepCorrected
)
#: What is about one step of a walkthrough.
OfStep: TypeAlias = StepCompleted | StepSkipped | StepShown | StepCorrected
Event: TypeAlias = Annotated[AnyEvent, Field(discriminator="type")]
EVENT: Final[TypeAdapter[AnyEvent]] = TypeAdapter(Event)
_TIMES_OF_TYPE: Final = {
    "step-completed": ("completed_at",),
    "walkthrough-started": ("started_at",),
    "step-skipped": ("skipped_at",),
    "step-shown": ("shown_at",),
    "user-erased": ("erased_at",),
    "step-corrected": ("corrected_at", "covers_until", "completed_at"),
}


def encode(event: Mapping[str, object]) -> bytes:
    """An event as the value of a Kafka record, compact JSON in UTF-8; `decode` says whether it is one.

    Raises:
        UnicodeEncodeError: a text holds half of a surrogate pair.
    """
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def decode(value: bytes | None, now_ms: int) -> AnyEvent:
    """Reads the value of a Kafka record.

    Args:
        value: the record's value, UTF-8 JSON; None for a tombstone.
        now_ms: the consumer's clock, milliseconds since the epoch.

    Raises:
        EventError: what is wrong, with its class.
    """
    if not value:
        raise EventError(Rejection.EMPTY, "the record has no value; an event is a JSON object")
    try:
        event = EVENT.validate_json(value)
    except ValidationError as error:
        raise _explain(value, error) from None
    latest = now_ms + MAX_AHEAD_MS
    if not MIN_TIME_MS <= event.happened_at <= latest or event.type == "step-corrected":
        _check_times(event, latest)
    return event


def _check_times(event: AnyEvent, latest: int) -> None:
    for field in _TIMES_OF_TYPE[event.type]:
        at = getattr(event, field)
        if at is None:
            continue
        if (problem := why_too_early(at)) is not None:
            raise EventError(Rejection.TOO_EARLY, f"{field}: {problem}", field)
        if at > latest:
            raise EventError(
                Rejection.IN_THE_FUTURE,
                f"{field}: {at} is more than 24 hours ahead; it is in milliseconds",
                field,
            )


def why_too_early(at: int) -> str | None:
    """What is wrong with a time before `MIN_TIME_MS`, in milliseconds; None where it is not."""
    if at >= MIN_TIME_MS:
        return None
    try:
        date = f"{datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=at):%Y-%m-%d}"
    except OverflowError:
        return "it is before the year 1; no time is before 2000-01-01"
    told = f"{at} milliseconds since the epoch is {date}; no time is before 2000-01-01"
    if MIN_TIME_MS <= at * 1000 <= MAX_TIME_MS:
        meant = datetime.fromtimestamp(at, UTC)
        told += f": are these seconds instead of milliseconds? As seconds it is {meant:%Y-%m-%d}"
    return told


_CLASS_OF_ERROR: Final = {
    "json_invalid": Rejection.NOT_JSON,
    "union_tag_invalid": Rejection.UNKNOWN_TYPE,
}

#: The fields of each type of event.
FIELDS: Final = {
    get_args(model.model_fields["type"].annotation)[0]: tuple(model.model_fields)
    for model in get_args(AnyEvent)
}


def _explain(value: bytes, error: ValidationError) -> EventError:
    """The first problems, by field, and their likely causes, without the values: a dead letter's header is no
    place for content.
    """
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    rejection = _CLASS_OF_ERROR.get(problems[0]["type"], Rejection.INVALID)
    told = []
    for problem in problems[:3]:
        field = _path(problem["loc"]) or "event"
        told.append(f"{field}: {_told(field, problem['type'], problem['msg'])}")
    if len(problems) > 3:
        told.append(f"and {len(problems) - 3} more")
    fields = ("type" if p["type"].startswith("union_tag") else _path(p["loc"]) for p in problems)
    likely = causes.likely(value, problems, FIELDS)
    return EventError(rejection, "; ".join(told), *filter(None, fields), causes=likely)


def _path(place: tuple[int | str, ...]) -> str:
    """The name of a field, behind the event's type; empty where it is the event as a whole."""
    return ".".join(str(part) for part in place[1:])


def _told(field: str, kind: str, message: str) -> str:
    """What is wrong with a field, for people, without its value."""
    if kind == "union_tag_invalid":
        return "its `type` is not one that this contract knows"
    if kind == "union_tag_not_found":
        return "it has no `type`"
    if kind == "string_pattern_mismatch":
        if field == "event_id":
            return "it is no UUID, which is 32 hexadecimal digits with four hyphens"
        return "it holds a control character"
    return message.removeprefix("Value error, ")

"""People and sessions as they come in: each is judged by itself, and no good one is lost for a bad one."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from schemas import Rejection
from schemas.events import MAX_AHEAD_MS, Identifier, why_too_early
from schemas.names import hints
from services.analytics_api.intake.bodies import Item
from services.analytics_api.registering import (
    MOST_OWN_ID,
    OwnSession,
    Servers,
    find_people,
    find_servers,
    known_users,
    own_session_id,
    problem_of_own_id,
    problem_of_session,
    register_people,
    register_sessions,
)
from services.runtime.database import Connection, can_be_stored
from services.runtime.fair import Writing

#: So many people, or sessions, come at once.
MOST_REGISTERED: Final = 1_000
_MOST_TITLE: Final = 500
Given = TypeVar("Given", bound=BaseModel)

#: What else than the class of an event a session, or a person, is refused as.
INVALID_PERSON: Final = "invalid-person"
INVALID_SESSION: Final = "invalid-session"
AMBIGUOUS_SERVER: Final = "ambiguous-server"
SERVER_NOT_ALLOWED: Final = "server-not-allowed"


def _own_id(text: str) -> str:
    if (problem := problem_of_own_id(text)) is not None:
        raise ValueError(problem)
    return text


def _storable(text: str) -> str:
    if not can_be_stored(text):
        raise ValueError("it is no text that can be stored")
    return text


_AWARE: Final = TypeAdapter(AwareDatetime)


def milliseconds(given: object) -> object:
    """A time as RFC 3339 writes it in milliseconds since the epoch; a number stays as it is.

    Raises:
        ValueError: it is a text that is neither.
    """
    if not isinstance(given, str) or given.strip().isdigit():
        return given
    try:
        return round(_AWARE.validate_python(given).timestamp() * 1000)
    except ValidationError:
        raise ValueError("neither milliseconds since the epoch nor an RFC 3339 time with an offset") from None


def _late_enough(at: int) -> int:
    if (problem := why_too_early(at)) is not None:
        raise ValueError(problem)
    return at


#: An id of the producer's own.
OwnId = Annotated[
    str,
    Field(strict=True, json_schema_extra={"minLength": 1, "maxLength": MOST_OWN_ID}),
    AfterValidator(_own_id),
]
_Title = Annotated[str, Field(strict=True, max_length=_MOST_TITLE), AfterValidator(_storable)]
_DISTINCT_ID: Final = "Your own id of a person: 1 to 200 printable characters."


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class GivenPerson(_Given):
    """Somebody to register."""

    distinct_id: OwnId = Field(description=_DISTINCT_ID)


class GivenSession(_Given):
    """A session to register."""

    session_id: OwnId = Field(description="Your own id of the session: 1 to 200 printable characters.")
    server: Annotated[str, AfterValidator(_storable)] | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The server's slug or id; to leave out where the key, or its organization, has one.",
    )
    distinct_id: OwnId | None = Field(
        default=None, description=f"{_DISTINCT_ID} They are known already, unless the key may register."
    )
    mcp_server_user_id: Identifier | None = Field(
        default=None, description="Whose it is, by the id here, in place of `distinct_id`."
    )
    title: _Title | None = None
    started_at: (
        Annotated[
            int,
            Field(strict=True),
            BeforeValidator(milliseconds, json_schema_input_type=int | datetime),
            AfterValidator(_late_enough),
        ]
        | None
    ) = Field(
        default=None,
        description="Milliseconds since the epoch, or RFC 3339 with an offset; from 2000 on, at most 24 "
        "hours ahead; now without it.",
    )

    @model_validator(mode="after")
    def _has_one_person(self) -> Self:
        if self.distinct_id is not None and self.mcp_server_user_id is not None:
            raise ValueError("give distinct_id or mcp_server_user_id, not both")
        return self


class ItemProblem(BaseModel):
    """Why an item was refused."""

    model_config = ConfigDict(validate_by_name=True)

    class_: str = Field(alias="class", description="What kind of problem it is.")
    field: str | None = Field(default=None, description="The field that is wrong, where it is one.")
    message: str = Field(description="What is wrong with it.")


class Result(BaseModel):
    """What became of one item."""

    index: int = Field(description="Which item of the batch it was, from 0.")
    line: int | None = Field(default=None, description="Of NDJSON, its line, from 1.")
    status: Literal["accepted", "refused"]
    error: ItemProblem | None = None


class PersonResult(Result):
    """What became of one person."""

    distinct_id: str | None = None
    mcp_server_user_id: str | None = None
    created: bool | None = Field(default=None, description="False where they were known before.")


class SessionResult(Result):
    """What became of one session."""

    session_id: str | None = None
    mcp_server_session_id: str | None = None
    created: bool | None = Field(default=None, description="False where it was there before.")


class PeopleResults(BaseModel):
    """What became of a batch of people."""

    accepted: int
    refused: int
    results: list[PersonResult]


class SessionsResults(BaseModel):
    """What became of a batch of sessions."""

    accepted: int
    refused: int
    results: list[SessionResult]


class RefusedItemError(Exception):
    """An item that is not taken: its class, the field that is wrong, and what is wrong."""

    def __init__(self, class_: str, field: str | None, message: str) -> None:
        super().__init__(message)
        self.problem = ItemProblem(class_=class_, field=field, message=message)


def _parsed(item: Item, model: type[Given], class_: str) -> Given:
    """An item by its model.

    Raises:
        RefusedItemError: it is none.
    """
    if item.problem is not None:
        raise RefusedItemError(Rejection.NOT_JSON, None, item.problem)
    if not isinstance(item.value, dict):
        raise RefusedItemError(class_, None, "it is no JSON object")
    try:
        return model.model_validate(item.value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        message = str(first["msg"]).removeprefix("Value error, ")
        missing = [field] if field is not None and first["type"] == "missing" else []
        told = [f"{field}: {message}" if field else message, *hints(item.value, missing, model.model_fields)]
        raise RefusedItemError(class_, field, "; ".join(told)) from None


async def take_people(db: Connection, organization: str, items: Sequence[Item]) -> PeopleResults:
    """Registers people, and says of each what became of it."""
    given: dict[int, str] = {}
    refused: dict[int, ItemProblem] = {}
    for item in items:
        try:
            given[item.index] = _parsed(item, GivenPerson, INVALID_PERSON).distinct_id
        except RefusedItemError as error:
            refused[item.index] = error.problem
    found = await register_people(db, organization, given.values())
    new = _News(distinct_id for distinct_id, person in found.items() if person.created)
    results = [
        PersonResult(
            **item.place,
            status="accepted",
            distinct_id=given[item.index],
            mcp_server_user_id=found[given[item.index]].user_id,
            created=new.is_new(given[item.index]),
        )
        if item.index in given
        else PersonResult(**item.place, status="refused", error=refused[item.index])
        for item in items
    ]
    return PeopleResults(accepted=len(given), refused=len(refused), results=results)


class _News:
    """What a batch made: the first item of it made it, and those after found it."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._left = set(ids)

    def is_new(self, id_: str) -> bool:
        """Whether it is new with this item."""
        is_new = id_ in self._left
        self._left.discard(id_)
        return is_new


@dataclass(frozen=True, slots=True)
class _Batch:
    """What a batch of sessions refers to, as it is; it judges each. `allowed` are the servers it may name."""

    organization: str
    allowed: Collection[str] | None
    servers: Servers
    people: Mapping[str, str]
    users: Collection[str]
    now: int

    def judged(self, given: GivenSession) -> OwnSession:
        """The session to register.

        Raises:
            RefusedItemError: it refers to what there is not, or what the key may not name.
        """
        server = _server_of(given, self.servers, self.allowed)
        started_at = self.now if given.started_at is None else given.started_at
        if started_at > self.now + MAX_AHEAD_MS:
            raise RefusedItemError(
                Rejection.IN_THE_FUTURE, "started_at", "started_at is more than 24 hours ahead"
            )
        return OwnSession(
            own_session_id(self.organization, given.session_id),
            self.servers.slugs[server],
            self._user_of(given),
            started_at,
            given.title,
        )

    def _user_of(self, given: GivenSession) -> str | None:
        if given.distinct_id is not None:
            user = self.people.get(given.distinct_id)
            if user is None:
                raise RefusedItemError(
                    Rejection.UNKNOWN_USER,
                    "distinct_id",
                    f"nobody is registered as `{given.distinct_id}`: POST /v1/people registers them",
                )
            return user
        if given.mcp_server_user_id is not None and given.mcp_server_user_id not in self.users:
            raise RefusedItemError(
                Rejection.UNKNOWN_USER,
                "mcp_server_user_id",
                f"there is no user with the id `{given.mcp_server_user_id}`",
            )
        return given.mcp_server_user_id


def _server_of(given: GivenSession, servers: Servers, allowed: Collection[str] | None) -> str:
    """The id of a session's server.

    Raises:
        RefusedItemError: there is none, or the key may not name it.
    """
    server = servers.find(given.server)
    if server is None and given.server is None:
        raise RefusedItemError(
            AMBIGUOUS_SERVER, "server", "name the server: neither the key nor its organization has just one"
        )
    if server is None:
        raise RefusedItemError(
            Rejection.UNKNOWN_SERVER, "server", f"there is no server with the slug or id `{given.server}`"
        )
    if allowed is not None and server not in allowed:
        raise RefusedItemError(
            SERVER_NOT_ALLOWED, "server", f"this key may not name the server `{given.server or server}`"
        )
    return server


_PROBLEMS: Final = {
    Rejection.SESSION_OF_ANOTHER_SERVER: ("server", "the session is at another server"),
    Rejection.SESSION_OF_ANOTHER_USER: ("distinct_id", "the session is another person's"),
}


async def take_sessions(
    db: Connection, organization: str, writing: Writing, items: Sequence[Item], now: int
) -> SessionsResults:
    """Registers sessions, and says of each what became of it; `now` is in milliseconds."""
    given: dict[int, GivenSession] = {}
    refused: dict[int, ItemProblem] = {}
    for item in items:
        try:
            given[item.index] = _parsed(item, GivenSession, INVALID_SESSION)
        except RefusedItemError as error:
            refused[item.index] = error.problem
    sessions = await _judge(db, organization, writing, given, refused, now)
    kept = await register_sessions(db, list(sessions.values()))
    for index, session in sessions.items():
        if (rejection := problem_of_session(session, kept[session.id])) is not None:
            field, message = _PROBLEMS[rejection]
            refused[index] = ItemProblem(class_=rejection, field=field, message=message)
    new = _News(id_ for id_, one in kept.items() if one.created)
    results = [
        SessionResult(**item.place, status="refused", error=refused[item.index])
        if item.index in refused
        else SessionResult(
            **item.place,
            status="accepted",
            session_id=given[item.index].session_id,
            mcp_server_session_id=sessions[item.index].id,
            created=new.is_new(sessions[item.index].id),
        )
        for item in items
    ]
    return SessionsResults(accepted=len(items) - len(refused), refused=len(refused), results=results)


async def _judge(
    db: Connection,
    organization: str,
    writing: Writing,
    given: dict[int, GivenSession],
    refused: dict[int, ItemProblem],
    now: int,
) -> dict[int, OwnSession]:
    """The sessions to register, by index; what is none of these is put among the `refused`."""
    allowed = writing.server_ids
    names = (s.server for s in given.values() if s.server is not None)
    servers = await find_servers(db, organization, names, allowed)
    distinct_ids = {s.distinct_id for s in given.values() if s.distinct_id is not None}
    people: dict[str, str] = {}
    if distinct_ids and writing.may_register:
        registered = await register_people(db, organization, distinct_ids)
        people = {distinct_id: person.user_id for distinct_id, person in registered.items()}
    elif distinct_ids:
        people = await find_people(db, organization, distinct_ids)
    user_ids = {s.mcp_server_user_id for s in given.values() if s.mcp_server_user_id is not None}
    users = await known_users(db, organization, user_ids) if user_ids else set()
    batch = _Batch(organization, allowed, servers, people, users, now)
    sessions: dict[int, OwnSession] = {}
    for index, session in given.items():
        try:
            sessions[index] = batch.judged(session)
        except RefusedItemError as error:
            refused[index] = error.problem
    return sessions

"""What comes in by HTTP: people, sessions and events."""

import sys
import time
from functools import partial
from typing import Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from services.analytics_api.fair import Turn
from services.analytics_api.intake.bodies import (
    JSON,
    MOST_ITEMS,
    NDJSON,
    QUICK_ITEMS,
    Body,
    Item,
    Kind,
    cost_of,
    items_of,
    read,
)
from services.analytics_api.intake.documents import event_schema
from services.analytics_api.intake.registrations import (
    MOST_REGISTERED,
    GivenPerson,
    GivenSession,
    PeopleResults,
    Result,
    SessionsResults,
    take_people,
    take_sessions,
)
from services.analytics_api.keys_and_rates import may_write
from services.analytics_api.problems import ProblemError
from services.analytics_api.routes import Shared, TurnedToWrite, Uses, problems_as
from services.runtime.database import Connection

#: What a request that brings something is answered, beside the verdicts on its items.
PROBLEMS: Final = problems_as(
    (400, "The body is no JSON as a whole, or has no items; nothing was taken"),
    (401, "No key, or none that is good"),
    (403, "The key may read alone"),
    (413, "The body, or what it decompresses to, is too large; nothing was taken"),
    (415, "Neither JSON nor NDJSON, or compressed in a way that is not known"),
    (429, "Too much in too short a time; nothing was taken"),
    (500, "A fault of ours; the log has more under the request id"),
    (501, "Nothing may be written there, as at a replica"),
    (503, "The database is away, or somebody has locked what this needs; to send it again is safe"),
)

# Bodies are bounded by whoever reads them, who says so as a problem.
router = APIRouter(prefix="/v1", responses=PROBLEMS, max_body_size=sys.maxsize)


def answers(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a batch is answered: the same whatever became of its items."""
    return {
        200: {"model": model, "description": "All are accepted."},
        207: {"model": model, "description": "Some are refused; the others are accepted all the same."},
        422: {"model": model, "description": "All are refused."},
    }


def body_of(item: dict[str, Any], name: str) -> dict[str, Any]:
    """A batch of items, of which this is the JSON Schema, in OpenAPI."""
    many = {"type": "array", "items": item, "minItems": 1}
    wrapped = {"type": "object", "properties": {name: many}, "required": [name]}
    lines = {"schema": {"type": "string", "description": "One a line; empty lines are left out."}}
    content = {JSON: {"schema": {"anyOf": [item, many, wrapped]}}, **dict.fromkeys(sorted(NDJSON), lines)}
    return {"requestBody": {"required": True, "content": content}}


async def body_in(request: Request, uses: Shared, turn: Turn) -> Body:
    """The body of a request, as it was sent.

    Raises:
        ProblemError: it is nothing that can be read, or too large; that counts as one against the key's rate.
            Or it is longer than the key may bring now: then it is not read.
    """
    try:
        kind = Kind.of(request.headers)
        length = request.headers.get("content-length", "")
        if length.isdigit():
            uses.keys.check_written(turn.asker, cost_of(int(length)))
        return Body(kind, await read(request.stream()))
    except ProblemError:
        uses.keys.count_written(turn.asker, 1)
        raise


async def items_in(body: Body, uses: Shared, turn: Turn, name: str, most: int) -> list[Item]:
    """The items of a body, counted against their key's rate: by their number, or by the body's length.

    They may take fifty times the memory of the body: whoever waits for a place to write has none yet.

    Raises:
        ProblemError: the body cannot be read, is too large, or is more than the key may bring.
    """
    try:
        make = partial(items_of, body.content, body.kind, name, most)
        items = await turn.made(make, is_quick=body.is_quick)
    except ProblemError:
        uses.keys.add_written(turn.asker, body.cost_if_bad)
        raise
    try:
        uses.keys.count_written(turn.asker, max(len(items), body.cost))
    except ProblemError:
        uses.keys.add_written(turn.asker, body.cost)
        raise
    return items


def answered(results: BaseModel, accepted: int, refused: int) -> Response:
    """The answer that says what became of each item."""
    text = results.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(text, status_of(accepted, refused), {"Cache-Control": "no-store"}, JSON)


def status_of(accepted: int, refused: int) -> int:
    """The status of an answer with so many good items, and bad ones."""
    return 200 if not refused else 207 if accepted else 422


@router.post(
    "/people",
    responses=answers(PeopleResults),
    openapi_extra=body_of(GivenPerson.model_json_schema(), "people"),
)
async def people(request: Request, uses: Uses, turn: TurnedToWrite) -> Response:
    """Registers people by ids of your own, so that events may name them. It is safe to repeat.

    The same id of another organization is another person. Whoever came to one of the organization's servers
    under that tracking id is the one that is meant.
    """
    organization = turn.asker.organization
    body = await body_in(request, uses, turn)
    async with turn.lanes.writing.place(turn.asker):
        items = await items_in(body, uses, turn, "people", MOST_REGISTERED)

        async def take(db: Connection) -> PeopleResults:
            return await take_people(db, organization, items)

        results = await uses.writer.run(take)
    return answered(results, results.accepted, results.refused)


@router.post(
    "/sessions",
    responses=answers(SessionsResults),
    openapi_extra=body_of(GivenSession.model_json_schema(), "sessions"),
)
async def sessions(request: Request, uses: Uses, turn: TurnedToWrite) -> Response:
    """Registers sessions by ids of your own, so that events may name them. It is safe to repeat.

    A session is at one server, and one person's, or nobody's yet; once it is somebody's it stays theirs.
    """
    writing, organization = may_write(turn.asker), turn.asker.organization
    body = await body_in(request, uses, turn)
    async with turn.lanes.writing.place(turn.asker):
        items = await items_in(body, uses, turn, "sessions", MOST_REGISTERED)
        now = int(time.time() * 1000)

        async def take(db: Connection) -> SessionsResults:
            return await take_sessions(db, organization, writing, items, now)

        results = await uses.writer.run(take)
    return answered(results, results.accepted, results.refused)


class EventResult(Result):
    """What became of one event."""

    event_id: str | None = None


class EventsResults(BaseModel):
    """What became of a batch of events."""

    accepted: int
    refused: int
    through: Literal["kafka", "outbox"] | None = Field(
        description="Where the accepted ones are: all in Kafka; or some in the outbox, from which they "
        "follow once Kafka is back."
    )
    results: list[EventResult]


@router.post("/events", responses=answers(EventsResults), openapi_extra=body_of(event_schema(), "events"))
async def events(request: Request, uses: Uses, turn: TurnedToWrite) -> Response:
    """Takes events as they are in Kafka; answered once they are safe. It is safe to repeat, by `event_id`.

    Ids of your own, `distinct_id` and `session_id`, may stand for `mcp_server_user_id` and
    `mcp_server_session_id`; `mcp_server_id` may be left out where the key, or its organization, has just one.
    """
    body = await body_in(request, uses, turn)
    items = partial(items_in, body, uses, turn, "events", MOST_ITEMS)
    is_quick = body.is_quick
    taken = await uses.intake.take(turn, items, is_quick=is_quick)
    told = partial(
        to_json,
        {
            "accepted": taken.accepted,
            "refused": taken.refused,
            "through": taken.through,
            "results": taken.results,
        },
    )
    text = await turn.made(told, is_quick=is_quick and len(taken.results) <= QUICK_ITEMS)
    return Response(text, status_of(taken.accepted, taken.refused), {"Cache-Control": "no-store"}, JSON)

"""What comes in by HTTP: people and sessions."""

import time
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from services.analytics_api.fair import Turn
from services.analytics_api.intake.bodies import JSON, NDJSON, Item, Kind, items_of, read
from services.analytics_api.intake.registrations import (
    MOST_REGISTERED,
    GivenPerson,
    GivenSession,
    PeopleResults,
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

router = APIRouter(prefix="/v1", responses=PROBLEMS)


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


async def items_in(request: Request, uses: Shared, turn: Turn, name: str, most: int) -> list[Item]:
    """What a request brings, counted against its key's rate.

    Raises:
        ProblemError: the body cannot be read, is too large, or is more than the key may bring.
    """
    try:
        kind = Kind.of(request.headers)
        items = items_of(await read(request.stream()), kind, name, most)
    except ProblemError:
        uses.keys.count_written(turn.asker, 1)
        raise
    uses.keys.count_written(turn.asker, len(items))
    return items


def answered(results: BaseModel, accepted: int, refused: int) -> Response:
    """The answer that says what became of each item."""
    status = 200 if not refused else 207 if accepted else 422
    text = results.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(text, status, {"Cache-Control": "no-store"}, JSON)


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
    items = await items_in(request, uses, turn, "people", MOST_REGISTERED)

    async def take(db: Connection) -> PeopleResults:
        return await take_people(db, organization, items)

    async with turn.lanes.writing.place(turn.asker):
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
    items = await items_in(request, uses, turn, "sessions", MOST_REGISTERED)
    now = int(time.time() * 1000)

    async def take(db: Connection) -> SessionsResults:
        return await take_sessions(db, organization, writing, items, now)

    async with turn.lanes.writing.place(turn.asker):
        results = await uses.writer.run(take)
    return answered(results, results.accepted, results.refused)

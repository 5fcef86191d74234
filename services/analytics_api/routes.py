"""The routes under /v1: who asks, what about, and how the answer is written."""

import asyncio
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from services.analytics_api.admission import turn_of
from services.analytics_api.answers import Answers
from services.analytics_api.exports import Export, ExportResponse
from services.analytics_api.fair import Turn
from services.analytics_api.intake.taking import Intake
from services.analytics_api.keys_and_rates import KeysAndRates, may_read, may_write
from services.analytics_api.left_out import HEADER as LEFT_OUT
from services.analytics_api.left_out import left_out
from services.analytics_api.live import Changes, LiveResponse, Stream, Streams
from services.analytics_api.models import (
    Cohort,
    FinishRule,
    FinishRuleQuestion,
    JourneyDetail,
    Journeys,
    JourneysQuestion,
    Overview,
    Problem,
    RefusedEvents,
    RefusedQuestion,
    Session,
)
from services.analytics_api.problems import MEDIA_TYPE as PROBLEM
from services.analytics_api.problems import not_found
from services.analytics_api.questions import QUESTIONS, Answer, Question
from services.analytics_api.store import Context
from services.analytics_api.tables import JSON_LINES, csv_of, json_lines
from services.analytics_api.tables import MEDIA_TYPE as CSV
from services.analytics_api.writing import Writer
from services.runtime.database import Pool, can_be_stored
from services.runtime.fair import Asker


@dataclass(slots=True)
class Shared:
    """What all routes use; the lifespan makes it."""

    answers: Answers
    keys: KeysAndRates
    changes: Changes
    streams: Streams
    writer: Writer
    intake: Intake
    stopping: asyncio.Event

    @property
    def pool(self) -> Pool:
        """Where the figures are read."""
        return self.answers.store.pool


def problems_as(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    """Problems in OpenAPI, by status, each with what it means."""
    return {
        status: {"description": what, "content": {PROBLEM: {"schema": Problem.model_json_schema()}}}
        for status, what in statuses
    }


_COMMON: Final = problems_as(
    (401, "No key, or none that is good"),
    (404, "There is none, or it is another organization's"),
    (422, "A parameter makes no sense"),
    (429, "Too many requests"),
    (500, "A fault of ours; the log has more under the request id"),
    (503, "The database is away, or the question takes too long"),
)
_TABLE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {CSV: {"schema": {"type": "string"}}}, "description": "As JSON, or as CSV."},
    304: {"description": "Nothing has changed since the given ETag."},
}
_LIST: Final[dict[int | str, dict[str, Any]]] = {
    **_TABLE,
    200: {
        "content": {CSV: {"schema": {"type": "string"}}, JSON_LINES: {"schema": {"type": "string"}}},
        "description": "As JSON a page. As CSV, or as a line of JSON for each, all of them, or the page that "
        "`limit` or `after` asks for.",
    },
}

router = APIRouter(prefix="/v1", responses=_COMMON)
_bearer = HTTPBearer(auto_error=False, description="A key of `stepstream keys create`.")


async def shared(request: Request) -> Shared:
    """What the lifespan made."""
    made: Shared = request.app.state.shared
    return made


async def admitted(
    request: Request,
    uses: Annotated[Shared, Depends(shared)],
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Turn:
    """The turn of whoever's key the request has; for each id in its path there can be a row.

    Raises:
        ProblemError: there is no key that is good; or an id is one that the database cannot have.
    """
    turn = await admit(uses, request)
    may_read(turn.asker)
    for name, value in request.path_params.items():
        if not can_be_stored(value):
            raise not_found(name.removesuffix("_id"), value.replace("\0", "\\0"))
    return turn


async def admitted_to_write(
    request: Request,
    uses: Annotated[Shared, Depends(shared)],
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Turn:
    """The turn of whoever's key the request has, which may write; nothing of its body is read before.

    Raises:
        ProblemError: there is no key that is good, or it may read alone.
    """
    turn = await admit(uses, request)
    may_write(turn.asker)
    uses.keys.check_written(turn.asker)
    return turn


async def admit(uses: Shared, request: Request) -> Turn:
    """The turn of a request, which is now of the one whose key it has.

    Raises:
        ProblemError: none that is good.
    """
    turn = turn_of(request.scope)
    await turn.find(partial(uses.keys.admit, request, turn.asker))
    return turn


Uses = Annotated[Shared, Depends(shared)]
Turned = Annotated[Turn, Depends(admitted)]
TurnedToWrite = Annotated[Turn, Depends(admitted_to_write)]
Id = Annotated[str, Path(min_length=1, max_length=64)]


#: What files of each media type are called behind the dot.
_SUFFIXES: Final = {CSV: "csv", JSON_LINES: "ndjson"}


class Reply:
    """How an answer is written: JSON, or a table, with its ETag.

    Args:
        request: what is asked.
        tables: the media types of tables that there are of the answer.
    """

    def __init__(self, request: Request, tables: Collection[str] = (CSV,)) -> None:
        self._request = request
        #: The media type of the table that is wanted; empty for JSON.
        self.table = _wanted(request.headers.get("accept", ""), tables)

    def unchanged(self, *version: str) -> Response | None:
        """304, where the client has what these stand for."""
        tag = self._tag(*version)
        return Response(status_code=304, headers=self._headers(tag)) if self._has(tag) else None

    def of(self, answer: BaseModel, *version: str, following: str | None = None) -> Response:
        """The answer; without a version, its contents beside the freshness are the version."""
        tag = self._tag(*(version or (answer.model_dump_json(exclude={"freshness"}),)))
        if self._has(tag):
            return Response(status_code=304, headers=self._headers(tag))
        headers = self._headers(tag)
        if following is not None:
            query = [(k, v) for k, v in self._request.query_params.multi_items() if k != "after"]
            target = f"{self._request.url.path}?{urlencode([*query, ('after', following)])}"
            headers["Link"] = f'<{target}>; rel="next"'
        if not self.table:
            return Response(answer.model_dump_json(), media_type="application/json", headers=headers)
        if (beside := left_out(answer)) is not None:
            headers[LEFT_OUT] = beside
        if self.table == JSON_LINES and isinstance(answer, Journeys):
            text = json_lines(answer.journeys)
        else:
            text = csv_of(answer)
        return Response(text, media_type=self.table, headers=headers | self._disposition)

    def headers(self, *version: str) -> dict[str, str]:
        """Those of a table that stands for a version."""
        return self._headers(self._tag(*version)) | self._disposition

    @property
    def _disposition(self) -> dict[str, str]:
        name = quote(self._request.url.path.removeprefix("/v1/").replace("/", "-"), safe="")
        return {"Content-Disposition": f'attachment; filename="{name}.{_SUFFIXES[self.table]}"'}

    def _tag(self, *version: str) -> str:
        url = self._request.url
        parts = "\0".join((*version, url.path, url.query, self.table))
        return f'W/"{hashlib.blake2b(parts.encode(), digest_size=12).hexdigest()}"'

    def _has(self, tag: str) -> bool:
        given = [part.strip() for part in self._request.headers.get("if-none-match", "").split(",")]
        return "*" in given or any(part.removeprefix("W/") == tag.removeprefix("W/") for part in given)

    @staticmethod
    def _headers(tag: str) -> dict[str, str]:
        return {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Authorization, Accept"}


def _wanted(accept: str, tables: Collection[str]) -> str:
    """The first media type of a table that is accepted before JSON; empty for JSON."""
    for part in accept.split(","):
        kind = part.split(";")[0].strip().lower()
        if kind in tables:
            return kind
        if kind in {"application/json", "*/*"}:
            return ""
    return ""


async def _about(
    request: Request, uses: Shared, turn: Turn, walkthrough: str, question: BaseModel, answer: Answer
) -> Response:
    """An answer whose figures change with the walkthrough's version, and at midnight."""
    context = await uses.answers.context(turn, walkthrough, getattr(question, "servers", ()))
    context = uses.answers.asked(context, question)
    reply = Reply(request)
    version = _version(uses, context)
    return reply.unchanged(*version) or reply.of(await answer(uses.answers, context, question), *version)


def _version(uses: Shared, context: Context) -> tuple[str, ...]:
    return context.version, str(uses.answers.today), context.walkthrough.model_dump_json()


async def _is_admitted(request: Request, uses: Shared, asker: Asker) -> bool:
    """Whether whoever was let in would be now; in the midst of an answer."""
    text = request.headers["authorization"].split()[-1]
    async with turn_of(request.scope).lanes.keys.place(asker):
        now = await uses.keys.find(text)
    return now is not None and now.may_read and now.organization == asker.organization


@router.get("/organization", response_model=Overview, responses=_TABLE)
async def organization(
    request: Request, uses: Uses, turn: Turned, question: Annotated[Cohort, Query()]
) -> Response:
    """Every walkthrough of the key's organization, by server too."""
    return Reply(request).of(await uses.answers.overview(turn, question))


@router.get("/organization/refused", response_model=RefusedEvents, responses=_TABLE)
async def refused(
    request: Request, uses: Uses, turn: Turned, question: Annotated[RefusedQuestion, Query()]
) -> Response:
    """What of the organization's events was refused, by source and class, and what to do about it.

    Events that name one of its servers or walkthroughs; and those that name nobody, from sources that send
    events of this organization alone.
    """
    return Reply(request).of(await uses.answers.refused(turn, question))


@router.get("/servers/{server_id}", response_model=Overview, responses=_TABLE)
async def server(
    request: Request, uses: Uses, turn: Turned, server_id: Id, question: Annotated[Cohort, Query()]
) -> Response:
    """Every walkthrough that a server offers, or that people began there."""
    return Reply(request).of(await uses.answers.overview(turn, question, server_id))


def _route(name: str, asked: Question) -> None:
    """Adds a question about a walkthrough; its fields are parameters."""
    call = asked.call
    if call is None or asked.path is None:
        return

    async def answer(
        request: Request, uses: Uses, turn: Turned, walkthrough_id: Id, question: BaseModel
    ) -> Response:
        return await _about(request, uses, turn, walkthrough_id, question, call)

    answer.__annotations__["question"] = Annotated[asked.question, Query()]
    router.get(
        f"/walkthroughs/{{walkthrough_id}}{asked.path}",
        name=name.removeprefix("get_"),
        response_model=asked.answer,
        responses=_TABLE,
        description=asked.description,
    )(answer)


for _name, _asked in QUESTIONS.items():
    _route(_name, _asked)


@router.get("/walkthroughs/{walkthrough_id}/finish-rule", response_model=FinishRule)
async def finish_rule(uses: Uses, turn: Turned, walkthrough_id: Id) -> FinishRule:
    """When journeys of a walkthrough count as finished."""
    return await uses.answers.finish_rule(turn, walkthrough_id)


@router.put(
    "/walkthroughs/{walkthrough_id}/finish-rule",
    response_model=FinishRule,
    responses=problems_as((403, "The key may read alone")),
)
async def set_finish_rule(
    uses: Uses, turn: Turned, walkthrough_id: Id, given: FinishRuleQuestion
) -> FinishRule:
    """Sets when journeys of a walkthrough count as finished: figures follow at once, of all journeys.

    The key has to be one of `stepstream keys create --may-edit`.
    """
    return await uses.answers.set_finish_rule(turn, walkthrough_id, given)


@router.get("/walkthroughs/{walkthrough_id}/journeys", response_model=Journeys, responses=_LIST)
async def journeys(
    request: Request,
    uses: Uses,
    turn: Turned,
    walkthrough_id: Id,
    question: Annotated[JourneysQuestion, Query()],
) -> Response:
    """The people behind a figure, the last active first; `Link` and `next` lead to the next page.

    As CSV or JSON lines all of them are answered, by their ids, unless `limit` or `after` asks for a page.
    """
    context = await uses.answers.context(turn, walkthrough_id, question.server)
    context = uses.answers.asked(context, question)
    reply = Reply(request, (CSV, JSON_LINES))
    if reply.table and not _OF_A_PAGE & request.query_params.keys():
        return await _export(request, uses, context, question, reply)
    page = await uses.answers.journeys(context, question)
    return reply.of(page, following=page.next)


#: What asks for a page, where a table would else have all.
_OF_A_PAGE: Final = frozenset({"limit", "after"})


async def _export(
    request: Request, uses: Shared, context: Context, question: JourneysQuestion, reply: Reply
) -> Response:
    """The whole list, which is read while it is sent."""
    version = _version(uses, context)
    if (unchanged := reply.unchanged(*version)) is not None:
        return unchanged
    turn = context.turn
    turn.lanes.exports.check(turn.asker)
    is_admitted = partial(_is_admitted, request, uses, turn.asker)
    export = Export(uses.answers, context, question, reply.table, is_admitted, uses.stopping)
    parts = export.parts(*await export.first())
    share = turn.lanes.exports.held(turn.asker)
    return ExportResponse(share, parts, media_type=reply.table, headers=reply.headers(*version))


@router.get(
    "/walkthroughs/{walkthrough_id}/journeys/{user_id}", response_model=JourneyDetail, responses=_TABLE
)
async def journey(request: Request, uses: Uses, turn: Turned, walkthrough_id: Id, user_id: Id) -> Response:
    """Somebody's journey: what happened in it, in order, with the time between."""
    context = await uses.answers.context(turn, walkthrough_id)
    return Reply(request).of(await uses.answers.journey(context, user_id))


@router.get("/sessions/{session_id}", response_model=Session, responses=_TABLE)
async def session(request: Request, uses: Uses, turn: Turned, session_id: Id) -> Response:
    """A session replayed: its events in order, with the time between."""
    return Reply(request).of(await uses.answers.session(turn, session_id))


@router.get(
    "/walkthroughs/{walkthrough_id}/live",
    response_class=EventSourceResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Events until either side ends it."}
    },
)
async def live(
    request: Request,
    uses: Uses,
    turn: Turned,
    walkthrough_id: Id,
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> Response:
    """Server-sent events: `changed` when figures change, with their version as id; `freshness` when that
    changes; `gone` at the end, when the key is no longer good, or the walkthrough is deleted or belongs to
    another organization.

    Each carries the freshness. Who comes back with `Last-Event-ID` learns of what changed meanwhile.
    """
    context = await uses.answers.context(turn, walkthrough_id)
    asker = turn.asker
    is_admitted = partial(_is_admitted, request, uses, asker)
    stream = Stream(uses.changes, context.id, asker.organization)
    place = uses.streams.place(asker)
    return LiveResponse(
        place,
        stream.events(last_event_id, is_admitted, lambda: place.is_lost or uses.stopping.is_set()),
        ping=15,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def paths() -> Iterator[str]:
    """The paths of all routes, for tests that try each."""
    for route in router.routes:
        yield str(getattr(route, "path", ""))

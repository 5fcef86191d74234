"""The same questions as MCP tools, at /mcp/analytics, for agents of the product team: the same keys, the same
figures, as short tables."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from mcp.server import Server as McpServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import RequestBodyLimitMiddleware
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, Field, ValidationError, create_model
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from services.analytics_api.admission import turn_of
from services.analytics_api.answers import Answers
from services.analytics_api.briefs import Cut, brief_of, cut
from services.analytics_api.fair import Turn
from services.analytics_api.freshness import SERVICE
from services.analytics_api.keys_and_rates import may_read
from services.analytics_api.models import Cohort, JourneysQuestion, Sankey, SankeyQuestion
from services.analytics_api.names import with_steps, with_walkthrough_and_servers
from services.analytics_api.problems import ProblemError, in_short, invalid, of_database, respond
from services.analytics_api.questions import QUESTIONS, OfSession, OfWalkthrough, Question
from services.analytics_api.routes import Shared, admit
from services.analytics_api.schemas import slim_schema
from services.analytics_api.store import Context as WalkthroughContext
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database import can_be_stored
from services.runtime.database_errors import is_away
from services.runtime.mcp import Context, Faults
from services.runtime.telemetry import MCP_CALLS, MCP_SECONDS
from services.runtime.version import VERSION

log = logging.getLogger("stepstream.analytics")
_M = TypeVar("_M", bound=BaseModel)

INSTRUCTIONS: Final = (
    "Figures of walkthroughs: where people go, where they stop, how long steps take, and the people behind "
    "each figure. Begin with get_overview, which gives the ids; then diagnose says what to look at. "
    "get_sankey and get_steps say where people stop; find_journeys and get_journey who they were and what "
    "they did. Walkthroughs, servers and steps "
    "are named by id, or by title. Every answer says how fresh it is, and what it leaves out to stay small: "
    "ask for more with offset, rows to pass over, or max_bytes. Without servers and days it is of all. "
    "Shares are between 0 and 1; days and times are UTC. Who is idle for active_days is dropped. "
    "`segment` takes agent:NAME, agent_version:VERSION, metadata.KEY:VALUE (of a journey's first event) and "
    "did:STEP, each also as not_agent: and so on. Of several agents, versions or values of a key one is "
    "enough; of several steps all have to be done; and all of these have to hold."
)
#: How much of small steps is folded, and then how many positions are drawn, until a Sankey fits.
_SHARES: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_POSITIONS: Final = (50, 40, 30, 25, 20, 16, 13, 10, 8, 7, 6, 5, 4, 3, 2, 1)
#: No row takes fewer bytes, as text and values.
_LEAST_ROW: Final = 40


class AnswerSize(BaseModel):
    """How much a tool answers."""

    max_bytes: int | None = Field(default=None, ge=1_000, le=100_000, description="1000 to 100000.")
    offset: int = Field(default=0, ge=0, le=1_000_000, description="Rows to pass over.")


@dataclass(frozen=True, slots=True)
class _Tool:
    """A question as a tool: about a walkthrough, it takes that one's id, too."""

    name: str
    question: Question
    arguments: type[BaseModel]

    @classmethod
    def of(cls, name: str, question: Question) -> "_Tool":
        about = () if question.call is None else (OfWalkthrough,)
        arguments = create_model(f"{name}_arguments", __base__=(question.question, *about, AnswerSize))
        return cls(name, question, arguments)

    def described(self) -> Tool:
        """As the protocol has it."""
        return Tool(
            name=self.name,
            title=self.question.title,
            description=self.question.description,
            input_schema=slim_schema(self.arguments),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )

    async def call(self, answers: Answers, turn: Turn, given: dict[str, Any], most_bytes: int) -> Cut:
        """The answer to arguments as they came, no larger than they say, or than `most_bytes`.

        Raises:
            ProblemError: they are wrong, or name what there is not.
        """
        given = await with_walkthrough_and_servers(answers.store, turn.asker.organization, given)
        if self.question.call is None:
            arguments = _validated(self.arguments, given)
            if isinstance(arguments, OfSession):
                answer: BaseModel = await answers.session(turn, arguments.mcp_server_session_id)
            else:
                assert isinstance(arguments, Cohort)  # noqa: S101 - there are two
                answer = await answers.overview(turn, arguments)
            return _cut(answer, arguments, most_bytes)
        of = _validated(OfWalkthrough, {"walkthrough_id": given.get("walkthrough_id")})
        servers = [s for name in ("server", "server_a", "server_b") for s in _texts(given.get(name))]
        context = await answers.context(turn, of.walkthrough_id, servers)
        arguments = _validated(self.arguments, with_steps(context, given))
        context = answers.asked(context, arguments)
        if isinstance(arguments, SankeyQuestion):
            return await _sankey(answers, context, arguments, most_bytes)
        if isinstance(arguments, JourneysQuestion):
            return await _journeys(answers, context, arguments, most_bytes)
        return _cut(await self.question.call(answers, context, arguments), arguments, most_bytes)


def _validated(model: type[_M], given: dict[str, Any]) -> _M:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(list(error.errors(include_url=False))) from None


def _texts(given: Any) -> list[str]:
    """Those that the database can be asked for; validation judges the others."""
    if not isinstance(given, list):
        return []
    return [text for text in given if isinstance(text, str) and can_be_stored(text)]


def _most(arguments: Any, most_bytes: int) -> int:
    return int(getattr(arguments, "max_bytes", None) or most_bytes)


def _cut(answer: BaseModel, arguments: Any, most_bytes: int) -> Cut:
    return cut(brief_of(answer), _most(arguments, most_bytes), getattr(arguments, "offset", 0))


async def _sankey(
    answers: Answers, context: WalkthroughContext, asked: SankeyQuestion, most_bytes: int
) -> Cut:
    """The Sankey: as it is asked for, else with small steps folded, and then positions cut, until it fits."""
    most, offset = _most(asked, most_bytes), getattr(asked, "offset", 0)
    if offset or asked.nodes is not None or asked.min_share is not None:
        return _cut(await answers.sankey(context, asked), asked, most_bytes)

    def fits(answer: Sankey) -> bool:
        rows = len(answer.links) + len({(end.node, end.outcome) for end in answer.endings})
        return rows * _LEAST_ROW <= most and cut(brief_of(answer), most).rows == rows

    folded = [asked.model_copy(update={"min_share": share}) for share in _SHARES]
    shorter = [n for n in _POSITIONS if asked.positions is None or n < asked.positions]
    fewer = [folded[-1].model_copy(update={"positions": n}) for n in shorter]
    used, answer = await answers.sankey_that_fits(context, [asked, *folded, *fewer], fits)
    brief = brief_of(answer)
    if used.min_share is not None:
        brief.facts["folded_below_share"] = used.min_share
        brief.facts["for_all"] = "call again with min_share 0"
    if used.positions != asked.positions:
        brief.facts["positions_shown"] = f"the first {used.positions}; what goes on ends as went_on"
    return cut(brief, most)


async def _journeys(
    answers: Answers, context: WalkthroughContext, asked: JourneysQuestion, most_bytes: int
) -> Cut:
    """A page of people that is no longer than what fits, so that the next page begins behind it."""
    answer = await answers.journeys(context, asked)
    found = _cut(answer, asked, most_bytes)
    shown = found.rows + getattr(asked, "offset", 0)
    if 0 < shown < len(answer.journeys):
        answer = await answers.journeys(context, asked.model_copy(update={"limit": shown}))
        found = _cut(answer, asked, most_bytes + 400)  # the cursor takes some
    return found


TOOLS: Final = {name: _Tool.of(name, question) for name, question in QUESTIONS.items() if question.is_tool}


class AnalyticsTools:
    """Answers the protocol's two requests about tools."""

    def __init__(self, uses: Callable[[], Shared], answer_bytes: int) -> None:
        self._uses = uses
        self._answer_bytes = answer_bytes
        self._described = [tool.described() for tool in TOOLS.values()]
        self._schemas = {tool.name: tool.input_schema for tool in self._described}
        self._away = Seldom(log, "calls failed, the database is away", OUTAGE_SECONDS)

    def server(self) -> McpServer[Any]:
        """The MCP server with them."""
        faults = Faults(SERVICE)
        server: McpServer[Any] = McpServer(
            "stepstream-analytics",
            version=VERSION,
            title="Walkthrough analytics",
            instructions=INSTRUCTIONS,
            get_tool_input_schema=self._schemas.get,
            on_list_tools=faults.seen(self.list),
            on_call_tool=faults.seen(self.call),
        )
        server.middleware.append(faults)
        return server

    async def list(self, _: Context, __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=self._described)

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        """Calls one. What the agent can mend is an answer; all else is an error without internals."""
        tool = TOOLS.get(params.name)
        if tool is None:
            raise MCPError(
                INVALID_PARAMS, f"There is no tool of that name here; there are {', '.join(TOOLS)}."
            )
        outcome = "error"
        with MCP_SECONDS.labels(params.name).time():
            try:
                turn = _turn_of(ctx)
                await turn.begin()
                given = dict(params.arguments or {})
                answer = await tool.call(self._uses().answers, turn, given, self._answer_bytes)
                result = CallToolResult(
                    content=[TextContent(type="text", text=answer.text)], structured_content=answer.values
                )
                outcome = "answered"
            except ProblemError as problem:
                outcome = "wrong-arguments" if problem.status < 429 else "refused"
                return _complaint(str(problem))
            except Exception as error:
                if not is_away(error):
                    raise
                self._away.warn(f"{params.name}: {in_short(error)}")
                return _complaint(str(of_database(error)))
            finally:
                MCP_CALLS.labels(params.name, outcome).inc()
        return result


def _turn_of(ctx: Context) -> Turn:
    request = ctx.request
    assert isinstance(request, Request)  # noqa: S101 - over HTTP there is one
    return turn_of(request.scope)


def _complaint(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=message)], is_error=True)


_ONLY_POST: Final = {"Allow": "POST"}


class AnalyticsMcpEndpoint:
    """The ASGI application behind /mcp/analytics: lets in who has a key, and hands over to the SDK.

    What the SDK does with a message takes a turn, too: to read one and say what is wrong with it, or to list
    the tools, takes tens of milliseconds of the event loop.
    """

    def __init__(self, uses: Callable[[], Shared], most_bytes: int, answer_bytes: int) -> None:
        self._uses = uses
        self._manager = StreamableHTTPSessionManager(
            AnalyticsTools(uses, answer_bytes).server(),
            json_response=True,
            stateless=True,
            max_request_body_size=most_bytes,
        )
        self._bounded = RequestBodyLimitMiddleware(self._hand_over, most_bytes)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serves while the block lasts."""
        async with self._manager.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            may_read((await admit(self._uses(), request)).asker)
            if request.method != "POST":  # a stream would be open for ever, and have nothing to tell
                raise ProblemError(405, "Method Not Allowed", "send a POST: there is no stream", _ONLY_POST)
        except ProblemError as problem:
            await respond(problem)(scope, receive, send)
            return
        await self._bounded(scope, receive, send)

    async def _hand_over(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Waits for a place, now that the whole body is there."""
        await turn_of(scope).begin()
        await self._manager.asgi_app(scope, receive, send)

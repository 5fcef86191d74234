"""The same questions as MCP tools, at /mcp/analytics, for agents of the product team: the same keys, the same
answers."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

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
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from services.analytics_api.answers import Answers
from services.analytics_api.door import turn_of
from services.analytics_api.fair import Turn
from services.analytics_api.freshness import SERVICE
from services.analytics_api.models import (
    Cohort,
    CompareQuestion,
    Comparison,
    Endings,
    FlowQuestion,
    Funnel,
    Identifier,
    JourneyDetail,
    Journeys,
    JourneysQuestion,
    Overview,
    Sankey,
    SankeyQuestion,
    Session,
    Steps,
    Summary,
    Trends,
    TrendsQuestion,
)
from services.analytics_api.problems import ProblemError, invalid, of_database, respond, told_shortly
from services.analytics_api.routes import Shared, admit
from services.analytics_api.store import Context as WalkthroughContext
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database_errors import is_away
from services.runtime.mcp import Context, Faults
from services.runtime.telemetry import MCP_CALLS, MCP_SECONDS

log = logging.getLogger("stepstream.analytics")

INSTRUCTIONS: Final = (
    "Figures of walkthroughs: where people go, where they stop, how long steps take, and the people behind "
    "each figure. Begin with get_overview, which gives the ids. get_sankey and get_steps say where people "
    "stop; find_journeys and get_journey who they were and what they did. Every answer says how fresh it is: "
    "figures are exact where freshness.current is true. Shares are between 0 and 1, durations in "
    "milliseconds, days are UTC days."
)

_Call: TypeAlias = Callable[[Answers, Turn, Any], Awaitable[BaseModel]]


class _OfWalkthrough(BaseModel):
    walkthrough_id: Identifier = Field(description="Id of the walkthrough, from get_overview.")


class GetOverview(Cohort):
    """Arguments of get_overview."""


class GetSummary(Cohort, _OfWalkthrough):
    """Arguments of get_summary."""


class GetSankey(SankeyQuestion, _OfWalkthrough):
    """Arguments of get_sankey."""


class GetFunnel(Cohort, _OfWalkthrough):
    """Arguments of get_funnel."""


class GetSteps(Cohort, _OfWalkthrough):
    """Arguments of get_steps."""


class GetEndings(FlowQuestion, _OfWalkthrough):
    """Arguments of get_endings."""


class GetTrends(TrendsQuestion, _OfWalkthrough):
    """Arguments of get_trends."""


class CompareCohorts(CompareQuestion, _OfWalkthrough):
    """Arguments of compare."""


class FindJourneys(JourneysQuestion, _OfWalkthrough):
    """Arguments of find_journeys."""


class GetJourney(_OfWalkthrough):
    """Arguments of get_journey."""

    mcp_server_user_id: Identifier = Field(description="Id of the person, from find_journeys.")


class GetSession(BaseModel):
    """Arguments of get_session."""

    mcp_server_session_id: Identifier = Field(description="Id of the session, from get_journey.")


@dataclass(frozen=True, slots=True)
class _Tool:
    title: str
    description: str
    arguments: type[BaseModel]
    answer: type[BaseModel]
    call: _Call

    def described(self, name: str) -> Tool:
        """As the protocol has it."""
        schema = self.arguments.model_json_schema()
        for unwanted in ("title", "description"):
            schema.pop(unwanted, None)
        return Tool(
            name=name,
            title=self.title,
            description=self.description,
            input_schema=schema,
            output_schema=self.answer.model_json_schema(mode="serialization"),
            annotations=ToolAnnotations(
                title=self.title,
                read_only_hint=True,
                destructive_hint=False,
                idempotent_hint=True,
                open_world_hint=False,
            ),
        )


def _about(answer: Callable[[Answers, Any, Any], Awaitable[BaseModel]]) -> _Call:
    """A question about a walkthrough of the organization."""

    async def call(answers: Answers, turn: Turn, question: Any) -> BaseModel:
        servers = getattr(question, "servers", ())
        context = await answers.context(turn, question.walkthrough_id, servers)
        return await answer(answers, context, question)

    return call


async def _overview(answers: Answers, turn: Turn, question: GetOverview) -> BaseModel:
    return await answers.overview(turn, question)


async def _session(answers: Answers, turn: Turn, question: GetSession) -> BaseModel:
    return await answers.session(turn, question.mcp_server_session_id)


async def _journey(answers: Answers, context: WalkthroughContext, question: GetJourney) -> BaseModel:
    return await answers.journey(context, question.mcp_server_user_id)


TOOLS: Final[dict[str, _Tool]] = {
    "get_overview": _Tool(
        "Overview of all walkthroughs",
        "Every walkthrough of the organization, over all servers and by server: started, finished, "
        "completion rate, average progress, last activity. Gives the ids for the other tools.",
        GetOverview,
        Overview,
        _overview,
    ),
    "get_summary": _Tool(
        "A walkthrough in a few figures",
        "Completion rate, time to completion (median, 90th percentile), steps per session, how many resume "
        "or come back.",
        GetSummary,
        Summary,
        _about(Answers.summary),
    ),
    "get_sankey": _Tool(
        "Where people go and where they stop",
        "The flow graph: nodes (position, step), links between them and endings by outcome. Can start or end "
        "at a step, leave steps out, and fold small ones.",
        GetSankey,
        Sankey,
        _about(Answers.sankey),
    ),
    "get_funnel": _Tool(
        "How many get how far",
        "The steps in display order, with how many people did each and all before it.",
        GetFunnel,
        Funnel,
        _about(Answers.funnel),
    ),
    "get_steps": _Tool(
        "What became of each step",
        "By step: reached, completed, dropped here, and mean, median and 90th percentile of the time before "
        "it. The step with the most dropped_here is where most people stop.",
        GetSteps,
        Steps,
        _about(Answers.steps),
    ),
    "get_endings": _Tool(
        "How journeys end",
        "How many finished, are in progress or dropped, and after which step.",
        GetEndings,
        Endings,
        _about(Answers.endings),
    ),
    "get_trends": _Tool(
        "Figures over time",
        "By day or week: started, finished, completion rate, people active.",
        GetTrends,
        Trends,
        _about(Answers.trends),
    ),
    "compare": _Tool(
        "Compare two servers or periods",
        "The same walkthrough over cohorts A and B: completion, every link and drop-off side by side, with "
        "the difference and whether it is more than chance.",
        CompareCohorts,
        Comparison,
        _about(Answers.compare),
    ),
    "find_journeys": _Tool(
        "The people behind a figure",
        "Journeys that took a link, came through a node, ended somewhere, or wait at a step; the last active "
        "first, in pages.",
        FindJourneys,
        Journeys,
        _about(Answers.journeys),
    ),
    "get_journey": _Tool(
        "What somebody did",
        "A person's journey in a walkthrough: every event in order, with the time between.",
        GetJourney,
        JourneyDetail,
        _about(_journey),
    ),
    "get_session": _Tool(
        "Replay a session",
        "The events of a session in order, with the time between.",
        GetSession,
        Session,
        _session,
    ),
}


class AnalyticsTools:
    """Answers the protocol's two requests about tools."""

    def __init__(self, uses: Callable[[], Shared]) -> None:
        self._uses = uses
        self._described = [tool.described(name) for name, tool in TOOLS.items()]
        self._schemas = {tool.name: tool.input_schema for tool in self._described}
        self._away = Seldom(log, "calls failed, the database is away", OUTAGE_SECONDS)

    def server(self) -> McpServer[Any]:
        """The MCP server with them."""
        faults = Faults(SERVICE)
        server: McpServer[Any] = McpServer(
            "stepstream-analytics",
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
                question = _question(tool, params)
                turn = _turn_of(ctx)
                await turn.begin()
                answer = await tool.call(self._uses().answers, turn, question)
                result = CallToolResult(
                    content=[TextContent(type="text", text=answer.model_dump_json())],
                    structured_content=answer.model_dump(mode="json"),
                )
                outcome = "answered"
            except ProblemError as problem:
                outcome = "wrong-arguments" if problem.status < 429 else "refused"
                return _complaint(str(problem))
            except Exception as error:
                if not is_away(error):
                    raise
                self._away.tell(f"{params.name}: {told_shortly(error)}")
                return _complaint(str(of_database(error)))
            finally:
                MCP_CALLS.labels(params.name, outcome).inc()
        return result


def _question(tool: _Tool, params: CallToolRequestParams) -> BaseModel:
    try:
        return tool.arguments.model_validate(params.arguments or {})
    except ValidationError as error:
        raise invalid(list(error.errors(include_url=False))) from None


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

    def __init__(self, uses: Callable[[], Shared], most_bytes: int) -> None:
        self._uses = uses
        self._manager = StreamableHTTPSessionManager(
            AnalyticsTools(uses).server(),
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
            await admit(self._uses(), request)
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

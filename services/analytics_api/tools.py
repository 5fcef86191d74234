"""The same questions as MCP tools, at /mcp/analytics, for agents of the product team: the same keys, the same
answers."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

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
from pydantic import BaseModel, ValidationError, create_model
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from services.analytics_api.admission import turn_of
from services.analytics_api.answers import Answers
from services.analytics_api.fair import Turn
from services.analytics_api.freshness import SERVICE
from services.analytics_api.problems import ProblemError, in_short, invalid, of_database, respond
from services.analytics_api.questions import QUESTIONS, OfSession, OfWalkthrough, Question
from services.analytics_api.routes import Shared, admit
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database_errors import is_away
from services.runtime.mcp import VERSION, Context, Faults
from services.runtime.telemetry import MCP_CALLS, MCP_SECONDS

log = logging.getLogger("stepstream.analytics")

INSTRUCTIONS: Final = (
    "Figures of walkthroughs: where people go, where they stop, how long steps take, and the people behind "
    "each figure. Begin with get_overview, which gives the ids. get_sankey and get_steps say where people "
    "stop; find_journeys and get_journey who they were and what they did. Every answer says how fresh it is: "
    "figures are exact where freshness.current is true. Shares are between 0 and 1, durations in "
    "milliseconds, days are UTC days."
)


@dataclass(frozen=True, slots=True)
class _Tool:
    """A question as a tool: about a walkthrough, it takes that one's id, too."""

    name: str
    question: Question
    arguments: type[BaseModel]

    @classmethod
    def of(cls, name: str, question: Question) -> "_Tool":
        if question.call is None:
            return cls(name, question, question.question)
        arguments = create_model(f"{name}_arguments", __base__=(question.question, OfWalkthrough))
        return cls(name, question, arguments)

    def described(self) -> Tool:
        """As the protocol has it."""
        schema = self.arguments.model_json_schema()
        for unwanted in ("title", "description"):
            schema.pop(unwanted, None)
        return Tool(
            name=self.name,
            title=self.question.title,
            description=self.question.description,
            input_schema=schema,
            output_schema=self.question.answer.model_json_schema(mode="serialization"),
            annotations=ToolAnnotations(
                title=self.question.title,
                read_only_hint=True,
                destructive_hint=False,
                idempotent_hint=True,
                open_world_hint=False,
            ),
        )

    async def call(self, answers: Answers, turn: Turn, arguments: Any) -> BaseModel:
        """The answer; `arguments` are of the model that it takes."""
        if self.question.call is not None:
            context = await answers.context(turn, arguments.walkthrough_id, getattr(arguments, "servers", ()))
            return await self.question.call(answers, context, arguments)
        if isinstance(arguments, OfSession):
            return await answers.session(turn, arguments.mcp_server_session_id)
        return await answers.overview(turn, arguments)


TOOLS: Final = {name: _Tool.of(name, question) for name, question in QUESTIONS.items()}


class AnalyticsTools:
    """Answers the protocol's two requests about tools."""

    def __init__(self, uses: Callable[[], Shared]) -> None:
        self._uses = uses
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
                arguments = _arguments(tool, params)
                turn = _turn_of(ctx)
                await turn.begin()
                answer = await tool.call(self._uses().answers, turn, arguments)
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
                self._away.warn(f"{params.name}: {in_short(error)}")
                return _complaint(str(of_database(error)))
            finally:
                MCP_CALLS.labels(params.name, outcome).inc()
        return result


def _arguments(tool: _Tool, params: CallToolRequestParams) -> BaseModel:
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

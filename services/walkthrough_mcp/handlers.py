"""The two tools: what they are called, what an agent is told of them, and what a call answers."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

from mcp.server import Server as McpServer
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database import Pool
from services.runtime.database_errors import is_away
from services.runtime.mcp import VERSION, Context, Faults, exchange_of
from services.runtime.telemetry import MCP_CALLS, MCP_SECONDS, MCP_UNDER_WAY
from services.walkthrough_mcp import store
from services.walkthrough_mcp.guide import CallEffect, CallOutcome, Offer, advance, start
from services.walkthrough_mcp.people import Caller, problem_of_tracking_id
from services.walkthrough_mcp.prose import Guidance, guidance, text
from services.walkthrough_mcp.turns import BusyError, CrowdedError, Places, Turns

log = logging.getLogger("stepstream.mcp")
SERVICE = "walkthrough-mcp"

INSTRUCTIONS: Final = (
    "This server leads a person through walkthroughs, one step at a time. Call start_walkthrough when they "
    "want to begin, go on, or see what there is. Lead them through the step that you get: introduce it, show "
    "what is meant for them, do your part. Only when they have really done it, call get_next_step with the "
    "step's id. Never skip ahead, and never invent steps."
)


class StartWalkthrough(BaseModel):
    """Arguments of start_walkthrough."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(
        default=None,
        max_length=500,
        description="Title or id of the walkthrough. Leave it out to take the only one, or to see all.",
    )
    restart: bool = Field(
        default=False,
        description="True begins again from the first step. Only when the person asks for it.",
    )


class GetNextStep(BaseModel):
    """Arguments of get_next_step."""

    model_config = ConfigDict(extra="forbid")

    current_step_id: str | None = Field(
        default=None,
        max_length=200,
        description="Id of the step that the person has just done, as it was given to you. With it a "
        "repeated call never skips a step.",
    )


class _AsVisitor(BaseModel):
    visitor: str | None = Field(
        default=None,
        max_length=200,
        description="The visitor id from an earlier answer: how this person is recognised. Leave it out only "
        "where this person never got one.",
    )


class StartWalkthroughAsVisitor(_AsVisitor, StartWalkthrough):
    """Arguments of start_walkthrough where nothing else tells people apart for good."""


class GetNextStepAsVisitor(_AsVisitor, GetNextStep):
    """Arguments of get_next_step where nothing else tells people apart for good."""


def _tool(name: str, title: str, description: str, arguments: type[BaseModel], *, idempotent: bool) -> Tool:
    schema = arguments.model_json_schema()
    for unwanted in ("title", "description"):
        schema.pop(unwanted, None)
    return Tool(
        name=name,
        title=title,
        description=description,
        input_schema=schema,
        output_schema=Guidance.model_json_schema(),
        annotations=ToolAnnotations(
            title=title,
            read_only_hint=False,
            destructive_hint=False,
            idempotent_hint=idempotent,
            open_world_hint=False,
        ),
    )


def _tools(start_arguments: type[BaseModel], next_arguments: type[BaseModel]) -> list[Tool]:
    return [
        _tool(
            "start_walkthrough",
            "Start or resume a walkthrough",
            "Starts a walkthrough, or goes on where the person left it, and returns the step to lead them "
            "through. With several on offer and no name it lists them instead. Safe to repeat.",
            start_arguments,
            idempotent=True,
        ),
        _tool(
            "get_next_step",
            "Complete the current step and get the next",
            "Marks the current step as done and returns the next one. Call it only when the person has "
            "really done the step, once for each step, with the step's id as current_step_id.",
            next_arguments,
            idempotent=False,
        ),
    ]


_TOOLS: Final = _tools(StartWalkthrough, GetNextStep)
_TOOLS_IN_SESSIONS: Final = _tools(StartWalkthroughAsVisitor, GetNextStepAsVisitor)


def _tools_for_visitors() -> list[Tool]:
    """Where not even a session says who calls, a next step needs the id: agents fill in what is required.

    A call without is answered all the same, with what to do.
    """
    begin, go_on = _TOOLS_IN_SESSIONS
    schema = {**go_on.input_schema, "required": ["visitor"]}
    return [begin, go_on.model_copy(update={"input_schema": schema})]


_TOOLS_FOR_VISITORS: Final = _tools_for_visitors()

_SCHEMAS: Final = {tool.name: tool.input_schema for tool in _TOOLS_FOR_VISITORS}

_AWAY: Final = "The walkthroughs cannot be reached right now. Try the same call again in a moment."
_BUSY: Final = (
    "Other calls for this person, or other work on what they need, are still under way. Wait for them, or a "
    "moment, and try the same call again."
)


#: Learns of a call of a visitor.
CountVisitor: TypeAlias = Callable[[Caller], Awaitable[None]]


class _WrongArgumentsError(Exception):
    """What an agent sent, and can mend."""


def build_mcp_server(
    pool: Callable[[], Pool],
    caller_of: Callable[[Context], Caller],
    count_visitor: CountVisitor | None = None,
    places: Places | None = None,
    *,
    together_ms: int,
) -> McpServer[Any]:
    """The MCP server with its tools; who calls is found out for each request.

    `count_visitor` learns of each call of somebody whose visitor id is in the arguments, and may refuse it.
    `places` are where calls of many servers take turns. The answer to a call that names no step waits
    `together_ms` for others of the same moment.
    """
    tools = WalkthroughTools(pool, caller_of, count_visitor, places, together_ms)
    faults = Faults(SERVICE)
    server: McpServer[Any] = McpServer(
        "stepstream",
        version=VERSION,
        title="Walkthroughs",
        instructions=INSTRUCTIONS,
        # Known without asking: the SDK would list the tools for every call, to check headers against them.
        get_tool_input_schema=_SCHEMAS.get,
        on_list_tools=faults.seen(tools.list),
        on_call_tool=faults.seen(tools.call),
    )
    server.middleware.append(faults)
    return server


class WalkthroughTools:
    """Answers the protocol's two requests about tools."""

    def __init__(
        self,
        pool: Callable[[], Pool],
        caller_of: Callable[[Context], Caller],
        count_visitor: CountVisitor | None,
        places: Places | None,
        together_ms: int,
    ) -> None:
        self._pool = pool
        self._caller_of = caller_of
        self._count_visitor = count_visitor
        self._turns = Turns(store.WAITING)
        self._places = places
        self._together_ms = together_ms
        self._away = Seldom(log, "calls failed, the database is away", OUTAGE_SECONDS)

    async def list(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """The tools, for this caller."""
        caller = self._caller_of(ctx)
        if not caller.server.tools_enabled:
            return ListToolsResult(tools=[])
        if not caller.is_anonymous:
            return ListToolsResult(tools=_TOOLS)
        return ListToolsResult(tools=_TOOLS_IN_SESSIONS if caller.transport_session else _TOOLS_FOR_VISITORS)

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        """Calls a tool. What the agent can mend is an answer; all else is an error without internals."""
        name = params.name if params.name in _ARGUMENTS else "unknown"
        outcome = "error"
        with MCP_SECONDS.labels(name).time(), MCP_UNDER_WAY.track_inprogress():
            try:
                answer = await self._call(self._caller_of(ctx), params, exchange_of(SERVICE, ctx).arrived)
                result = CallToolResult(
                    content=[TextContent(type="text", text=text(answer))],
                    structured_content=answer.model_dump(mode="json"),
                )
                outcome = answer.outcome.value
            except _WrongArgumentsError as error:
                outcome = "wrong-arguments"
                return _complaint(str(error))
            except store.UnknownVisitorError:
                outcome = "wrong-arguments"
                return _complaint(
                    "visitor: nobody has this id. Pass the one from an earlier answer exactly, or leave it "
                    "out to begin as a new person."
                )
            except store.SignsInElsewhereError:
                raise MCPError(
                    INVALID_PARAMS,
                    "This person signs in; their tracking id alone does not open their progress.",
                ) from None
            except CrowdedError as error:
                outcome = "crowded"
                raise MCPError(INTERNAL_ERROR, str(error), {"reason": "busy"}) from None
            except BusyError:
                outcome = "busy"
                raise MCPError(INTERNAL_ERROR, _BUSY, {"reason": "busy"}) from None
            finally:
                MCP_CALLS.labels(name, outcome).inc()
        return result

    async def _call(self, caller: Caller, params: CallToolRequestParams, arrived: float) -> Guidance:
        if params.name not in _ARGUMENTS:
            raise MCPError(INVALID_PARAMS, f"There is no tool of that name here; there are {_NAMES}.")
        arguments = _arguments(caller, params)
        if not caller.server.tools_enabled:
            return guidance(CallEffect(CallOutcome.NOTHING_OFFERED), (), None)
        caller = _as_visitor(caller, getattr(arguments, "visitor", None))
        if caller.must_exist and self._count_visitor is not None:
            await self._count_visitor(caller)
        given = store.Call(caller, _decision(arguments), arrived, self._together_ms)
        try:
            done = await store.call(self._pool(), given, self._turns, self._places)
        except BusyError:
            raise
        except Exception as error:
            if not is_away(error):
                raise
            self._away.warn(type(error).__name__)
            raise MCPError(INTERNAL_ERROR, _AWAY, {"reason": "temporarily_unavailable"}) from None
        is_unknown = done.is_new and caller.is_anonymous
        return guidance(done.move, done.offers, done.content, done.visitor, is_unknown=is_unknown)


_ARGUMENTS: Final[dict[str, tuple[type[BaseModel], type[BaseModel]]]] = {
    "start_walkthrough": (StartWalkthrough, StartWalkthroughAsVisitor),
    "get_next_step": (GetNextStep, GetNextStepAsVisitor),
}
_NAMES: Final = " and ".join(_ARGUMENTS)


def _arguments(caller: Caller, params: CallToolRequestParams) -> BaseModel:
    try:
        return _ARGUMENTS[params.name][caller.is_anonymous].model_validate(params.arguments or {})
    except ValidationError as error:
        raise _WrongArgumentsError(_explain(params.name, error)) from None


def _decision(arguments: BaseModel) -> store.Decide:
    def decide(offers: tuple[Offer, ...], saw_current: bool) -> CallEffect:
        if isinstance(arguments, StartWalkthrough):
            return start(offers, arguments.name, restart=arguments.restart)
        assert isinstance(arguments, GetNextStep)  # noqa: S101 - there are two tools
        return advance(offers, arguments.current_step_id, saw_current=saw_current)

    return decide


def _as_visitor(caller: Caller, visitor: str | None) -> Caller:
    if visitor is None:
        return caller
    if problem_of_tracking_id(visitor):
        raise store.UnknownVisitorError
    return replace(caller, tracking_id=visitor, must_exist=True)


def _complaint(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=message)], is_error=True)


def _explain(tool: str, error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    told = "; ".join(f"{'.'.join(str(p) for p in e['loc']) or 'arguments'}: {e['msg']}" for e in problems[:5])
    return f"{tool} was not called, its arguments are wrong. {told}. Mend them and call it again."

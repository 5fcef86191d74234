"""The tools, and prompts: what they are called, what an agent is told of them, and what a call answers."""

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
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database import Pool
from services.runtime.database_errors import is_away
from services.runtime.mcp import Context, Faults, exchange_of
from services.runtime.telemetry import MCP_CALLS, MCP_SECONDS, MCP_UNDER_WAY
from services.runtime.version import VERSION
from services.walkthrough_mcp import store
from services.walkthrough_mcp.guide import (
    CallEffect,
    CallOutcome,
    Offer,
    advance,
    look_up,
    outline,
    skip,
    start,
)
from services.walkthrough_mcp.introduction import INSTRUCTIONS, Introduction
from services.walkthrough_mcp.offers import AWAY, BUSY, Offers
from services.walkthrough_mcp.people import Caller, Client, problem_of_tracking_id
from services.walkthrough_mcp.prompts import page, prompt
from services.walkthrough_mcp.prose import Guidance, guidance, text
from services.walkthrough_mcp.stateless import CLIENT
from services.walkthrough_mcp.turns import BusyError, CrowdedError, Places, Turns

log = logging.getLogger("stepstream.mcp")
SERVICE = "walkthrough-mcp"


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


class SkipStep(BaseModel):
    """Arguments of skip_step."""

    model_config = ConfigDict(extra="forbid")

    step_id: str = Field(min_length=1, max_length=200, description="Id of the step that is current now.")
    reason: str | None = Field(
        default=None, max_length=500, description="Why, in the person's words, if they said so."
    )
    insists: bool = Field(
        default=False,
        description="True only when the person was told that the step is not optional, and still wants to go "
        "on without it.",
    )


class GetOutline(BaseModel):
    """Arguments of get_outline."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(
        default=None,
        max_length=500,
        description="Title or id of the walkthrough. Leave it out for the one under way.",
    )


class ShowStep(BaseModel):
    """Arguments of show_step."""

    model_config = ConfigDict(extra="forbid")

    step_id: str = Field(
        min_length=1, max_length=500, description="Id of the step, or its title in the walkthrough under way."
    )
    part: int = Field(default=1, ge=1, le=1_000_000, description="Which part of a long step, from 1.")


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


class SkipStepAsVisitor(_AsVisitor, SkipStep):
    """Arguments of skip_step where nothing else tells people apart for good."""


class GetOutlineAsVisitor(_AsVisitor, GetOutline):
    """Arguments of get_outline where nothing else tells people apart for good."""


class ShowStepAsVisitor(_AsVisitor, ShowStep):
    """Arguments of show_step where nothing else tells people apart for good."""


def _tool(
    name: str,
    title: str,
    description: str,
    arguments: type[BaseModel],
    *,
    idempotent: bool,
    read_only: bool = False,
    shows_schema: bool = False,
) -> Tool:
    """A tool; one of them shows the schema of what all answer, which a list has to tell only once."""
    schema = arguments.model_json_schema()
    for unwanted in ("title", "description"):
        schema.pop(unwanted, None)
    return Tool(
        name=name,
        title=title,
        description=description,
        input_schema=schema,
        output_schema=Guidance.model_json_schema() if shows_schema else None,
        annotations=ToolAnnotations(
            title=title,
            read_only_hint=read_only,
            destructive_hint=False,
            idempotent_hint=idempotent,
            open_world_hint=False,
        ),
    )


def _tools(*, as_visitor: bool) -> list[Tool]:
    start_arguments, next_arguments, skip_arguments, outline_arguments, step_arguments = (
        _ARGUMENTS[name][as_visitor] for name in _ARGUMENTS
    )
    return [
        _tool(
            "start_walkthrough",
            "Start or resume a walkthrough",
            "Starts a walkthrough, or goes on where the person left it, and returns the step to lead them "
            "through. With several on offer and no name it lists them instead. Safe to repeat.",
            start_arguments,
            idempotent=True,
            shows_schema=True,
        ),
        _tool(
            "get_next_step",
            "Complete the current step and get the next",
            "Marks the current step as done and returns the next one. Call it only when the person has "
            "really done the step, once for each step, with the step's id as current_step_id. It answers as "
            "start_walkthrough does.",
            next_arguments,
            idempotent=False,
        ),
        _tool(
            "skip_step",
            "Go on without the current step",
            "Goes on to the next step without doing the current one, which is noted as skipped, not as done. "
            "Only when the person does not want to do it. Never call get_next_step for what was not done.",
            skip_arguments,
            idempotent=True,
        ),
        _tool(
            "get_outline",
            "See all steps and where the person is",
            "Lists the steps of a walkthrough: which are done, which one is current, which are to come. "
            "Changes nothing.",
            outline_arguments,
            idempotent=True,
            read_only=True,
        ),
        _tool(
            "show_step",
            "Read a step again",
            "Returns the content of a step, also of one that is done, or the next part of a long one. "
            "Completes nothing, and the current step stays current.",
            step_arguments,
            idempotent=True,
            read_only=True,
        ),
    ]


_ARGUMENTS: Final[dict[str, tuple[type[BaseModel], type[BaseModel]]]] = {
    "start_walkthrough": (StartWalkthrough, StartWalkthroughAsVisitor),
    "get_next_step": (GetNextStep, GetNextStepAsVisitor),
    "skip_step": (SkipStep, SkipStepAsVisitor),
    "get_outline": (GetOutline, GetOutlineAsVisitor),
    "show_step": (ShowStep, ShowStepAsVisitor),
}
_NAMES: Final = ", ".join(_ARGUMENTS)


_TOOLS: Final = _tools(as_visitor=False)
_TOOLS_IN_SESSIONS: Final = _tools(as_visitor=True)


def _tools_for_visitors() -> list[Tool]:
    """Where not even a session says who calls, a next step needs the id: agents fill in what is required.

    A call without is answered all the same, with what to do.
    """
    begin, go_on, leave_out, *look = _TOOLS_IN_SESSIONS
    needing = [
        tool.model_copy(
            update={
                "input_schema": {
                    **tool.input_schema,
                    "required": [*tool.input_schema.get("required", []), "visitor"],
                }
            }
        )
        for tool in (go_on, leave_out)
    ]
    return [begin, *needing, *look]


_TOOLS_FOR_VISITORS: Final = _tools_for_visitors()

#: Those with arguments that may come as headers: there is none.
_SCHEMAS: Final = {
    tool.name: tool.input_schema
    for tool in _TOOLS_FOR_VISITORS
    if any("x-mcp-header" in argument for argument in tool.input_schema["properties"].values())
}

#: Learns of a call of a visitor, or of somebody new.
CountVisitor: TypeAlias = Callable[[Caller], Awaitable[None]]


class _WrongArgumentsError(Exception):
    """What an agent sent, and can mend."""


def build_mcp_server(
    pool: Callable[[], Pool],
    caller_of: Callable[[Context], Caller],
    count_visitor: CountVisitor | None = None,
    places: Places | None = None,
    *,
    count_new: CountVisitor | None = None,
    together_ms: int,
    content_bytes: int,
) -> McpServer[Any]:
    """The MCP server with its tools and prompts; who calls, and where, is found out for each request.

    `count_visitor` learns of each call of somebody whose visitor id is in the arguments, and may
    refuse it; `count_new` of each that makes somebody new.
    `places` are where calls of many servers take turns. The answer to a call that names no step waits
    `together_ms` for others of the same moment. An answer holds `content_bytes` of a step's content.
    """
    offers = Offers(pool, places)
    prompts = WalkthroughPrompts(caller_of, offers)
    tools = WalkthroughTools(pool, caller_of, count_visitor, offers, together_ms, content_bytes, count_new)
    faults = Faults(SERVICE)
    server: McpServer[Any] = McpServer(
        "stepstream",
        version=VERSION,
        title="Walkthroughs",
        instructions=INSTRUCTIONS,
        # Known without asking: the SDK would list the tools for every call, to check headers against them,
        # and search the schema for arguments that have one.
        get_tool_input_schema=_SCHEMAS.get,
        on_list_tools=faults.seen(tools.list),
        on_call_tool=faults.seen(tools.call),
        on_list_prompts=faults.seen(prompts.list),
        on_get_prompt=faults.seen(prompts.get),
    )
    server.middleware += [faults, Introduction(caller_of, offers, SERVICE)]
    return server


class WalkthroughTools:
    """Answers the protocol's two requests about tools."""

    def __init__(
        self,
        pool: Callable[[], Pool],
        caller_of: Callable[[Context], Caller],
        count_visitor: CountVisitor | None,
        offers: Offers,
        together_ms: int,
        content_bytes: int,
        count_new: CountVisitor | None,
    ) -> None:
        self._pool = pool
        self._caller_of = caller_of
        self._count_visitor = count_visitor
        self._turns = Turns(store.WAITING)
        self._offers = offers
        self._together_ms = together_ms
        self._content_bytes = content_bytes
        self._count_new = count_new
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
                arrived = exchange_of(SERVICE, ctx).arrived
                answer = await self._call(self._caller_of(ctx), params, arrived, client_of(ctx))
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
                raise MCPError(INTERNAL_ERROR, BUSY, {"reason": "busy"}) from None
            finally:
                MCP_CALLS.labels(name, outcome).inc()
        return result

    async def _call(
        self, caller: Caller, params: CallToolRequestParams, arrived: float, client: Client | None
    ) -> Guidance:
        if params.name not in _ARGUMENTS:
            raise MCPError(INVALID_PARAMS, f"There is no tool of that name here; there are {_NAMES}.")
        arguments = _arguments(caller, params)
        if not caller.server.tools_enabled:
            return guidance(
                CallEffect(CallOutcome.NOTHING_OFFERED), (), None, content_bytes=self._content_bytes
            )
        caller = _as_visitor(caller, getattr(arguments, "visitor", None))
        if caller.must_exist and self._count_visitor is not None:
            await self._count_visitor(caller)
        admit = _once(self._count_new, caller)
        given = store.Call(
            caller,
            _decision(arguments),
            arrived,
            self._together_ms,
            admit,
            self._offers.cache,
            client=client,
        )
        try:
            done = await store.call(self._pool(), given, self._turns, self._offers.places)
        except BusyError:
            raise
        except Exception as error:
            if not is_away(error):
                raise
            self._away.warn(type(error).__name__)
            raise MCPError(INTERNAL_ERROR, AWAY, {"reason": "temporarily_unavailable"}) from None
        is_unknown = done.is_new and caller.is_anonymous
        return guidance(
            done.move,
            done.offers,
            done.content,
            done.visitor,
            content_bytes=self._content_bytes,
            part=getattr(arguments, "part", 1),
            is_unknown=is_unknown,
        )


class WalkthroughPrompts:
    """Answers the protocol's two requests about prompts."""

    def __init__(self, caller_of: Callable[[Context], Caller], offers: Offers) -> None:
        self._caller_of = caller_of
        self._offers = offers

    async def list(self, ctx: Context, params: PaginatedRequestParams | None) -> ListPromptsResult:
        """A page of the prompts, one for each walkthrough on offer."""
        offers = await self._offers.at(self._caller_of(ctx))
        try:
            return page(offers, params.cursor if params else None)
        except ValueError:
            raise MCPError(INVALID_PARAMS, "There is no such cursor: list the prompts anew.") from None

    async def get(self, ctx: Context, params: GetPromptRequestParams) -> GetPromptResult:
        """What a prompt tells the model."""
        try:
            return prompt(await self._offers.at(self._caller_of(ctx)), params.name)
        except KeyError:
            raise MCPError(INVALID_PARAMS, "There is no prompt of that name: prompts/list has all.") from None


def client_of(ctx: Context) -> Client | None:
    """What the agent calls itself: in the call, at the beginning of its session, or as an HTTP client."""
    told = ctx.session.client_params
    if told is not None:
        return Client.named(told.client_info.name, told.client_info.version)
    request = ctx.request
    if not isinstance(request, Request):
        return None
    kept: Client | None = request.scope.get(CLIENT)
    return kept or Client.of_user_agent(request.headers.get("user-agent", ""))


def _arguments(caller: Caller, params: CallToolRequestParams) -> BaseModel:
    try:
        return _ARGUMENTS[params.name][caller.is_anonymous].model_validate(params.arguments or {})
    except ValidationError as error:
        raise _WrongArgumentsError(_explain(params.name, error)) from None


def _decision(arguments: BaseModel) -> store.Decide:
    def decide(offers: tuple[Offer, ...], saw_current: bool) -> CallEffect:
        if isinstance(arguments, StartWalkthrough):
            return start(offers, arguments.name, restart=arguments.restart)
        if isinstance(arguments, GetOutline):
            return outline(offers, arguments.name)
        if isinstance(arguments, ShowStep):
            return look_up(offers, arguments.step_id)
        if isinstance(arguments, SkipStep):
            return skip(offers, arguments.step_id, _printable(arguments.reason), insists=arguments.insists)
        assert isinstance(arguments, GetNextStep)  # noqa: S101 - there are five tools
        return advance(offers, arguments.current_step_id, saw_current=saw_current)

    return decide


def _printable(reason: str | None) -> str | None:
    """What a person said on one line, without what the contract does not allow."""
    line = " ".join("".join(c if c.isprintable() else " " for c in reason or "").split())
    return line or None


def _once(count: CountVisitor | None, caller: Caller) -> Callable[[], Awaitable[None]] | None:
    """Counts a caller at the first of several tries."""
    if count is None:
        return None
    is_counted = False

    async def admit() -> None:
        nonlocal is_counted
        if not is_counted:
            await count(caller)
            is_counted = True

    return admit


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

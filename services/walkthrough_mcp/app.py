"""Wiring of walkthrough-mcp: over HTTP for all servers, or over stdio for one."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Any

from mcp.server import Server as McpServer
from mcp.server.stdio import stdio_server
from starlette.applications import Starlette
from starlette.types import ASGIApp, Scope

from services.runtime.database import Pool, keep_as_it_is, opened_pool
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.http import (
    Answered,
    Failure,
    failure_as_text,
    for_this_machine,
    leave_unanswered,
)
from services.runtime.http_layers import Paced, Shared
from services.runtime.mcp import failure_as_rpc
from services.runtime.migrate import check_migrated, watching_schema
from services.runtime.process import Process
from services.runtime.refusals import Refusals
from services.runtime.settings import Settings
from services.runtime.tokens import IssuerAwayError, TokenRefusedError
from services.walkthrough_mcp import store
from services.walkthrough_mcp.ending import Ending
from services.walkthrough_mcp.handlers import SERVICE, build_mcp_server
from services.walkthrough_mcp.origins import shared_with_pages
from services.walkthrough_mcp.people import Caller, Server, new_id, problem_of_tracking_id
from services.walkthrough_mcp.rates import Refusal, check_rates
from services.walkthrough_mcp.routes import McpEndpoint, identity_of
from services.walkthrough_mcp.turns import BusyError


class McpProcess(Process[McpEndpoint]):
    """The service, ready to run."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[McpEndpoint]:
        """The pool, and the endpoint with its sessions."""
        async with _opened(self.settings, self.refusals) as pool:
            endpoint = McpEndpoint(self.settings, lambda: pool)
            async with watching_schema(pool, self.refusals), endpoint.run():
                yield endpoint

    def application(self) -> ASGIApp:
        """What people's agents talk to; the lifespan adds the endpoint's routes.

        Raises:
            ConfigurationError: a rate is no rate.
        """
        check_rates(self.settings)

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with self.running() as endpoint, self.beside(ending.watch):
                app.router.routes += endpoint.routes()
                yield

        routes = for_this_machine(self.health_routes())
        app = Starlette(routes=routes, exception_handlers={Exception: leave_unanswered}, lifespan=lifespan)
        shared = Shared(app, SERVICE, self.settings.http_address_connections)
        with_pages = shared_with_pages(self.settings)

        def answer_failure(scope: Scope, failure: Failure) -> ASGIApp:
            return with_pages(_answer_failure(scope, failure))

        ending = Ending(Paced(with_pages(shared)), self.stopping)
        return Answered(ending, SERVICE, answer_failure)


def build(settings: Settings) -> McpProcess:
    """The service, ready to run."""
    return McpProcess(SERVICE, settings)


def _answer_failure(scope: Scope, failure: Failure) -> ASGIApp:
    is_health = scope["path"].startswith(("/health", "/metrics"))
    return (failure_as_text if is_health else failure_as_rpc)(scope, failure)


@contextlib.asynccontextmanager
async def _opened(settings: Settings, refusals: Refusals | None = None) -> AsyncIterator[Pool]:
    async with opened_pool(
        settings.model_copy(update={"database_pool_size": settings.mcp_database_pool_size}),
        setup=store.prepare,
        server_settings=store.SERVER_SETTINGS,
        reset=keep_as_it_is,
        command_timeout=store.WAIT_SECONDS,
        refusals=refusals,
        keep_statements=True,
    ) as pool:
        await check_migrated(pool)
        yield pool


async def run_stdio(settings: Settings, slug: str, tracking_id: str | None) -> int:
    """Serves one person on one server over standard input and output, until the input ends.

    Raises:
        UsageError: there is no such server, or it does not tell people apart in this way.
        StepstreamError: the access token is not good.
    """
    async with _opened(settings) as pool:
        try:
            server = await store.find_server(pool, slug)
        except BusyError as error:
            raise StepstreamError("somebody has locked the table mcp_servers: try again later") from error
        if server is None:
            raise UsageError(f"there is no MCP server with the slug `{slug}`")
        caller = await _caller_over_stdio(settings, pool, server, tracking_id)
        mcp = build_mcp_server(
            lambda: pool,
            lambda _: caller,
            together_ms=settings.mcp_together_ms,
            content_bytes=settings.mcp_content_bytes,
        )
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await _serve_stdio(mcp)
    return 0


async def _serve_stdio(mcp: McpServer[Any]) -> None:
    """Serves until the input ends.

    Raises:
        OSError: the output cannot be written; a client that went away is a BrokenPipeError.
    """
    try:
        async with stdio_server() as (incoming, outgoing):
            await mcp.run(incoming, outgoing, mcp.create_initialization_options())
    except ExceptionGroup as errors:
        of_output, others = errors.split(OSError)
        if of_output is None or others is not None:
            raise
        raise _first(of_output) from None


def _first(errors: ExceptionGroup[OSError]) -> OSError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


async def _caller_over_stdio(
    settings: Settings, pool: Pool, server: Server, tracking_id: str | None
) -> Caller:
    """Who it is: by the token in the environment, as the protocol has it for stdio, or the tracking id."""
    if not server.signs_in:
        if tracking_id is not None and (problem := problem_of_tracking_id(tracking_id)):
            raise UsageError(f"--tracking-id: {problem}")
        # Without a tracking id the process is a session, of somebody who gets an id to come back with.
        session = None if tracking_id else new_id("mss_", 20)
        return Caller(server, tracking_id=tracking_id, transport_session=session)
    if tracking_id is not None:
        raise UsageError(f"people sign in at `{server.slug}`: leave --tracking-id out")
    token = settings.mcp_access_token.get_secret_value()
    if not token:
        raise UsageError(
            f"people sign in at `{server.slug}`: put a token for it into STEPSTREAM_MCP_ACCESS_TOKEN"
        )
    try:
        verified = await McpEndpoint(settings, lambda: pool).verifier(server).verify_token(token)
    except TokenRefusedError as error:
        raise StepstreamError(
            f"the token in STEPSTREAM_MCP_ACCESS_TOKEN is not good for `{server.slug}`. {error}"
        ) from None
    except (IssuerAwayError, Refusal) as error:
        raise StepstreamError(str(error)) from error
    return Caller(server, identity=identity_of(verified))

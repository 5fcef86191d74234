"""Wiring of analytics-api: the API, the MCP tools, the dashboard."""

import asyncio
import contextlib
import functools
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.analytics_api import problems
from services.analytics_api.admission import Admission
from services.analytics_api.answers import Answers
from services.analytics_api.fair import Lanes
from services.analytics_api.freshness import SERVICE, FreshnessWatch
from services.analytics_api.intake.routes import router as intake_router
from services.analytics_api.intake.taking import Intake
from services.analytics_api.keys_and_rates import KeysAndRates
from services.analytics_api.left_out import HEADER as LEFT_OUT
from services.analytics_api.live import Changes, Streams
from services.analytics_api.pages import dashboard_routes
from services.analytics_api.routes import Shared, router
from services.analytics_api.sign_in import METADATA_PATH, PATH
from services.analytics_api.store import Store, server_of, server_settings
from services.analytics_api.tools import AnalyticsMcpEndpoint
from services.analytics_api.writing import opened_writer
from services.runtime import http_layers
from services.runtime.database import Connection, Pool, Setup, keep_as_it_is, opened_pool
from services.runtime.faults import route_of
from services.runtime.http import (
    REQUEST_ID,
    Answered,
    AnswerFailure,
    Failure,
    failure_as_text,
    for_this_machine,
)
from services.runtime.mcp import failure_as_rpc
from services.runtime.migrate import check_migrated, watching_schema
from services.runtime.process import Process
from services.runtime.refusals import Refusals
from services.runtime.settings import Settings
from services.runtime.telemetry import API_REQUESTS, API_SECONDS

VERSION = "1"
_DESCRIPTION = (
    "Where people go in walkthroughs, where they stop and how long it takes. Send an API key of your "
    "organization as `Authorization: Bearer KEY`; tables come as CSV with `Accept: text/csv`."
)


#: Of what is sent under /v1: a finish rule of three thousand steps.
_MOST_BODY: Final = 1_000_000
#: Compressing keeps everybody waiting: the fastest level takes a third of the time of the best one.
_COMPRESSION: Final = 1
#: How long a thread that computes keeps the event loop from going on, each time that it wants to.
_SWITCH_SECONDS: Final = 0.0005


class AnalyticsProcess(Process[Shared]):
    """The service, ready to run."""

    def __init__(self, service: str, settings: Settings) -> None:
        super().__init__(service, settings)
        self.keys = KeysAndRates(settings, lambda: self.handler.answers.store)
        self.streams = Streams(settings)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Shared]:
        """The pool, what watches how fresh the figures are, and what tells of changes."""
        settings = self.settings
        servers = _Servers()
        async with _opened_pool(settings, servers.meet, self.refusals) as pool:
            await check_migrated(pool)
            store = Store(pool)
            freshness = FreshnessWatch(settings, functools.partial(store.marks, settings.topic))
            servers.watch(freshness)
            answers = Answers(store, freshness, settings.topic, settings.api_sample_people)
            changes = Changes(answers)
            async with (
                freshness.running(),
                changes.running(),
                watching_schema(pool, self.refusals),
                opened_writer(settings, self.refusals) as writer,
            ):
                intake = Intake(settings, writer)
                async with intake.sender.running(self):
                    yield Shared(answers, self.keys, changes, self.streams, writer, intake, self.stopping)

    def application(self) -> ASGIApp:
        """The API, its MCP tools, and the dashboard."""
        settings = self.settings
        app = describe()
        lanes = Lanes(settings)
        entrance = AnalyticsMcpEndpoint(
            lambda: self.handler, settings.mcp_max_request_bytes, settings.api_answer_bytes
        )

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with self.running() as app.state.shared, entrance.running():
                yield

        async def openapi(_: Request) -> Response:
            return JSONResponse(app.openapi())

        app.router.lifespan_context = lifespan
        app.router.routes += [
            Route("/v1/openapi.json", openapi),
            Route(PATH, endpoint=entrance),
            Route(METADATA_PATH, self.keys.sign_in.describe),
            *for_this_machine(self.health_routes()),
            *dashboard_routes(),
        ]
        problems.install(app)
        app.add_middleware(GZipMiddleware, minimum_size=1_000, compresslevel=_COMPRESSION)
        shared_with = _other_origins(settings)

        def answer_failure(scope: Scope, failure: Failure) -> ASGIApp:
            return shared_with(_answer_failure(scope["path"])(scope, failure))

        measured = Measured(shared_with(Admission(app, self.keys, lanes, self.streams)))
        return Answered(
            http_layers.Shared(measured, SERVICE, settings.http_address_connections), SERVICE, answer_failure
        )


def build(settings: Settings) -> AnalyticsProcess:
    """The service, ready to run: the only one of its process."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    return AnalyticsProcess(SERVICE, settings)


def describe() -> FastAPI:
    """The application with the routes of the API alone: what its OpenAPI document tells of."""
    app = FastAPI(
        title="Stepstream analytics",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        max_body_size=_MOST_BODY,
        redirect_slashes=False,  # to where the Host header says, and a key would go along
    )
    app.include_router(router)
    app.include_router(intake_router)
    return app


def _other_origins(settings: Settings) -> Callable[[ASGIApp], ASGIApp]:
    """A layer that lets the pages of other origins read what is answered, if any may."""
    origins = settings.names(settings.api_allowed_origins)

    def shared_with(app: ASGIApp) -> ASGIApp:
        if not origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=[
                *("Authorization", "Accept", "Content-Type", "Content-Encoding"),
                *("If-None-Match", "Last-Event-ID"),
            ],
            expose_headers=["ETag", "Link", "Retry-After", LEFT_OUT, REQUEST_ID],
        )

    return shared_with


def _answer_failure(path: str) -> AnswerFailure:
    """How a failure is answered there."""
    if path.startswith("/v1/"):
        return problems.failure_as_problem
    return failure_as_rpc if path == "/mcp/analytics" else failure_as_text


def _opened_pool(
    settings: Settings, meet: Setup, refusals: Refusals
) -> contextlib.AbstractAsyncContextManager[Pool]:
    url = settings.api_database_url
    return opened_pool(
        settings.model_copy(
            update={
                "database_pool_size": settings.api_database_pool_size,
                "database_url": url if url.get_secret_value() else settings.database_url,
            }
        ),
        meet,
        server_settings=server_settings(settings.api_statement_seconds, settings.api_lock_seconds),
        reset=keep_as_it_is,
        command_timeout=settings.api_statement_seconds + 5,
        refusals=refusals,
    )


class _Servers:
    """Which servers connections lead to: told to the watch, also of those that were opened before it."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._watch: FreshnessWatch | None = None

    async def meet(self, connection: Connection) -> None:
        """A new connection."""
        server = await server_of(connection)
        if self._watch is None:
            self._first.append(server)
        else:
            self._watch.met(server)

    def watch(self, watch: FreshnessWatch) -> None:
        """From now on the watch is told."""
        self._watch = watch
        for server in self._first:
            watch.met(server)


class Measured:
    """Counts requests and how long each took to begin to answer, by route and status."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        def count() -> None:
            route = route_of(scope)
            API_REQUESTS.labels(route, str(status)).inc()
            API_SECONDS.labels(route).observe(time.perf_counter() - began)

        async def measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                count()
            await send(message)

        try:
            await self._app(scope, receive, measured)
        except (Exception, asyncio.CancelledError) as error:
            if not status:  # further out it is answered so
                status = 500 if isinstance(error, Exception) else 503
                count()
            raise

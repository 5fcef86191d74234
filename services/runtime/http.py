"""The HTTP side of a service: health and metrics as routes, and what becomes of a request that fails."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.database import Pool
from services.runtime.faults import Exchange
from services.runtime.migrate import pending
from services.runtime.telemetry import HTTP_ERRORS

#: The header with the id of the request, in every answer.
REQUEST_ID: Final = "X-Request-Id"
#: In the scope of a request: tells whether much of its body has yet to come.
IS_LEFT: Final = "stepstream.is_left"
#: Tells a client that it need not send the rest.
_CLOSE: Final = (b"connection", b"close")
#: In every answer: browsers take it for what it says it is.
_NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gets an answer of the outermost layer: a fault of ours, or the service ends."""

    request_id: str
    is_ending: bool = False

    @property
    def status(self) -> int:
        return 503 if self.is_ending else 500

    @property
    def headers(self) -> dict[str, str]:
        """What the answer tells beside its body."""
        return {"Retry-After": "2"} if self.is_ending else {}

    @property
    def detail(self) -> str:
        """What a person reads."""
        if self.is_ending:
            return "the service ends before the request was answered; ask again in a moment"
        return f"this is a fault of ours; the log has more under the request id {self.request_id}"


#: Makes the answer to a request that failed, from its scope.
AnswerFailure: TypeAlias = Callable[[Scope, Failure], ASGIApp]


#: What a proxy puts into a request.
_FORWARDED: Final = frozenset(
    {b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
)


def health_routes(
    problem_of_life: Callable[[], str | None],
    problem_of_readiness: Callable[[], Awaitable[str | None]],
    remark: Callable[[], str | None] = lambda: None,
) -> list[BaseRoute]:
    """`/health/live`, `/health/ready` and `/metrics`; a problem is a line of text, and answers 503.

    A remark is what is wrong with a service that is ready all the same: it answers 200, else no new release
    could be rolled out that mends it.
    """

    async def live(_: Request) -> Response:
        return _answer(problem_of_life(), "alive")

    async def ready(_: Request) -> Response:
        but = remark()
        return _answer(await problem_of_readiness(), f"ready, but {but}" if but else "ready")

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", metrics)]


def for_this_machine(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """The routes for callers from loopback that came through no proxy; to others there are none."""
    return [_OfThisMachine(route.path, route.endpoint) for route in routes if isinstance(route, Route)]


class _OfThisMachine(Route):
    """A route that others do not find."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether it is the route of a request."""
        match, found = super().matches(scope)
        if match is Match.NONE or _is_of_this_machine(scope):
            return match, found
        return Match.NONE, {}


def _is_of_this_machine(scope: Scope) -> bool:
    client = scope.get("client")
    if not client or any(name in _FORWARDED for name, _ in scope.get("headers", ())):
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def health_application(service: str, routes: Sequence[BaseRoute]) -> ASGIApp:
    """What a port for health and metrics alone serves."""
    app = Starlette(routes=routes, exception_handlers={Exception: leave_unanswered})
    return Answered(app, service)


def _answer(problem: str | None, well: str) -> Response:
    return PlainTextResponse(f"{problem or well}\n", 503 if problem else 200)


async def problem_of_database(pool: Pool) -> str | None:
    """What keeps the database from being used: it is away, or migrations are pending."""
    try:
        async with asyncio.timeout(5), pool.acquire() as connection:
            if missing := await pending(connection):
                return f"migrations are pending: {', '.join(missing)}"
    except Exception as error:  # noqa: BLE001 - any failure of the check means: not ready
        return f"database: {type(error).__name__}"
    return None


# --- requests that fail ----------------------------------------------------------------------------------


def failure_as_text(_: Scope, failure: Failure) -> ASGIApp:
    """A failure as a line of text."""
    return PlainTextResponse(f"{failure.detail}\n", failure.status, failure.headers)


class _Nothing(Response):
    """Answers nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends nothing."""


async def leave_unanswered(_: Request, __: Exception) -> Response:
    """A handler of exceptions for Starlette, which would answer by itself: `Answered` does, further out."""
    return _Nothing()


class EndingError(Exception):
    """The service ends before a request has come whole."""


class BrokenOffError(Exception):
    """An answer that has begun cannot go on, and the log says why: its client sees that there is no end."""


class Answered:
    """The outermost layer of a service's HTTP port: no request fails unseen.

    Each request gets an id of ours, which its answer shows as `X-Request-Id`. What fails is written to the
    log with its traceback, counted, and answered with 500 where nothing was sent yet. A client that went away
    is no fault of ours, nor a request that is cancelled, or given up, because the service ends: it gets 503.

    Args:
        app: what answers.
        service: its name.
        answer_failure: makes the answer to a request that failed.
    """

    def __init__(self, app: ASGIApp, service: str, answer_failure: AnswerFailure = failure_as_text) -> None:
        self._app = app
        self._service = service
        self._answer_failure = answer_failure
        HTTP_ERRORS.labels(service)  # there from the start, so that the first increase is seen as one

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.begin(self._service, scope)
        wire = _Wire(receive, send, exchange.id, scope.get(IS_LEFT, _nothing_is_left))
        try:
            await self._app(scope, wire.receive, wire.send)
        except EndingError:
            await self._answer(scope, wire, Failure(exchange.id, is_ending=True))
            return
        except BrokenOffError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told here and nowhere else
            if not _is_disconnect(error):
                exchange.fail("a request failed", error)
                await self._answer(scope, wire, Failure(exchange.id))
            return
        except asyncio.CancelledError:
            await self._answer(scope, wire, Failure(exchange.id, is_ending=True))
            raise
        if wire.is_gone or (wire.is_finished and wire.status != 500):
            return
        if not exchange.failed:
            exchange.fail("a request was answered with 500" if wire.is_finished else "an answer has no end")
        await self._answer(scope, wire, Failure(exchange.id))

    async def _answer(self, scope: Scope, wire: "_Wire", failure: Failure) -> None:
        if wire.status is None:
            await self._answer_failure(scope, failure)(scope, wire.receive, wire.send)


class _Wire:
    """What passes between client and application: how far the answer is, and whether the client left."""

    def __init__(self, receive: Receive, send: Send, request_id: str, is_left: Callable[[], bool]) -> None:
        self._is_left = is_left
        self._receive = receive
        self._send = send
        self._header = (REQUEST_ID.lower().encode(), request_id.encode())
        self.status: int | None = None
        self.is_finished = False
        self.is_gone = False

    async def receive(self) -> Message:
        """The next message of the client."""
        message = await self._receive()
        self.is_gone = self.is_gone or message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        """Passes a message of the answer on, at once."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), self._header, _NO_SNIFFING]
            if self._is_left():  # to take it, and throw it away, costs everybody else
                headers.append(_CLOSE)
            message = {**message, "headers": headers}
        else:
            self.is_finished = not message.get("more_body", False)
        await self._send(message)


def _nothing_is_left() -> bool:
    return False


def _is_disconnect(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(_is_disconnect(e) for e in error.exceptions)
    return isinstance(error, ClientDisconnect)

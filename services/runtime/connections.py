"""The connections of an HTTP port: how long a client may take, and how many may be open.

uvicorn bounds neither. A connection is closed when its client does not send the rest of a request in time,
sends no next one, or takes nothing of its answer. A stream that is open, or an answer that is being made, may
take as long as it likes.
"""

import asyncio
import logging
import resource
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from services.runtime.bounds import Seldom, client_of, client_of_scope, trusted_proxies
from services.runtime.settings import Settings
from services.runtime.telemetry import HTTP_CLOSED

log = logging.getLogger("stepstream.connections")

#: The largest head of a request, and what may follow a body that is no body; parsers take any.
_HEAD_BYTES: Final = 65_536
#: So many requests of a connection may wait for the answer to the one before.
_AHEAD: Final = 10
#: What a client has to take of its answer, in bytes a second, while it is looked at.
_LEAST_RATE: Final = 512
#: Files beside connections: pools, Kafka, logs, the port of health.
_OTHER_FILES: Final = 256
#: How many refusals go out in a round of the event loop.
_REFUSALS_IN_A_ROUND: Final = 2
#: The connections of a port for health and metrics alone.
_OF_HEALTH: Final = 100

#: What a connection waits for: the rest of a head, the rest of a body, the next request.
Part: TypeAlias = Literal["head", "body", "idle"]
#: The part, of which request, and whether uvicorn has no timer for it.
_State: TypeAlias = tuple[Part, int, bool]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the clients of a port may take, and how many connections it has.

    `of_address` is the most of one address; None where every client may come from the same.
    """

    seconds: dict[Part, float]
    write_seconds: float
    total: int
    of_address: int | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits of a public port."""
        return cls(
            {
                "head": settings.http_head_seconds,
                "body": settings.http_body_seconds,
                "idle": settings.http_idle_seconds,
            },
            settings.http_write_seconds,
            _possible(settings.http_connections),
            settings.http_address_connections,
        )

    @classmethod
    def of_health(cls, settings: Settings) -> Self:
        """The limits of a port that has health and metrics alone."""
        limits = cls.of(settings)
        return cls(limits.seconds, limits.write_seconds, _OF_HEALTH, None)


def _possible(connections: int) -> int:
    """The connections for which there are files; the limit of the process is raised where it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            log.warning(
                "at most %d connections and not %d: the process may open %d files",
                max(1, soft - _OTHER_FILES),
                connections,
                soft,
            )
            return max(1, soft - _OTHER_FILES)
    return connections


class Connections:
    """The open connections of a port.

    When there is no room for a new one, a connection that waits for its client goes: of the address that has
    most of these, the one that has waited longest. It waits for a request, or for its answer to be read.
    Streams that are read, and answers that are being made, stay; but where nobody waits, the newest
    connection of the address that has most goes for an address that has fewer. Where each address has one,
    the one whose client has sent nothing for longest goes for an address that has none, if that is longer
    than a connection may be idle.

    Args:
        service: whose port it is.
        limits: its limits.
        is_proxy: tells the addresses that speak for many clients; `of_address` is not for them.
    """

    def __init__(self, service: str, limits: Limits, is_proxy: Callable[[str], bool]) -> None:
        self.limits = limits
        self._service = service
        self._is_proxy = is_proxy
        self._open: dict[str, dict[Connection, None]] = {}
        self._count = 0
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._seldom = Seldom(log, "connections were closed")
        for reason in ("head", "head-size", "body", "ahead", "write", "full", "address"):
            HTTP_CLOSED.labels(service, reason)  # there from the start, so that the first increase is seen

    def protocol(self, **options: Any) -> "Connection":
        """The protocol of a new connection, for uvicorn."""
        return Connection(self, **options)

    def count(self) -> int:
        return self._count

    def enter(self, connection: "Connection") -> bool:
        """Counts a new connection; False if there is no room for it."""
        address, bound = connection.address, self.limits.of_address
        connection.is_of_proxy = connection.client is not None and self._is_proxy(connection.client[0])
        has_room = True
        if bound is not None and len(self._open.get(address, ())) >= bound and not connection.is_of_proxy:
            has_room = self._make_room("address", address, self._waiting.get(address))
        elif self._count >= self.limits.total:
            greediest = max(self._waiting.values(), key=len, default=None)
            in_use = self._newest_of_greediest(address) or self._idlest(address)
            has_room = self._make_room("full", address, greediest or in_use)
        if has_room:
            self._open.setdefault(address, {})[connection] = None
            self._count += 1
        return has_room

    def _newest_of_greediest(self, newcomer: str) -> "dict[Connection, None] | None":
        """What goes for a newcomer where nobody waits; a proxy speaks for many, so it is never greedy."""
        known = (of for of in self._open.values() if not next(iter(of)).is_of_proxy)
        most = max(known, key=len, default=None)
        if most is None or len(most) <= len(self._open.get(newcomer, ())) + 1:
            return None
        return {next(reversed(most)): None}

    def _idlest(self, newcomer: str) -> "dict[Connection, None] | None":
        """What goes for a newcomer where no address has more than one."""
        known = (next(iter(of)) for of in self._open.values())
        idlest = min(
            (one for one in known if not one.is_of_proxy), key=lambda one: one.heard_at, default=None
        )
        if newcomer in self._open or idlest is None or not idlest.is_idle_for(self.limits.seconds["idle"]):
            return None
        return {idlest: None}

    def _make_room(self, reason: str, address: str, waiting: "dict[Connection, None] | None") -> bool:
        victim = next(iter(waiting), None) if waiting else None
        self.tell(reason, victim.address if victim else address)
        if victim is not None:
            self.leave(victim)
            victim.end()
        return victim is not None

    def leave(self, connection: "Connection") -> None:
        """Forgets a connection that is counted."""
        if not connection.is_counted:
            return
        connection.is_counted = False
        self.serves(connection)
        self._count -= 1
        of_address = self._open[connection.address]
        del of_address[connection]
        if not of_address:
            del self._open[connection.address]

    def waits(self, connection: "Connection") -> None:
        """The connection waits for its client."""
        if connection.is_counted:
            self._waiting.setdefault(connection.address, {})[connection] = None

    def serves(self, connection: "Connection") -> None:
        """The connection has a request to answer."""
        waiting = self._waiting.get(connection.address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[connection.address]

    def tell(self, reason: str, address: str) -> None:
        """Counts and logs a connection that is closed before its client wants it."""
        HTTP_CLOSED.labels(self._service, reason).inc()
        self._seldom.tell(f"{address} ({reason})")


class _TooManyError(Exception):
    """A client sends more requests than may wait."""


class Connection(HttpToolsProtocol):
    """A connection whose client may take so long, and no longer.

    The timers cost a request that comes in one piece nothing: they begin where something is missing after
    what has come was read.
    """

    def __init__(self, connections: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.address = ""
        self.is_counted = False
        self.is_of_proxy = False
        #: When its client sent something, by the loop's clock.
        self.heard_at = self.loop.time()
        self._connections = connections
        self._part: Part | None = "head"
        self._requests = 0
        self._head_bytes = 0
        self._timed: _State | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread = 0
        self._write_timer: asyncio.TimerHandle | None = None
        #: What is being answered; `cycle` is the last request that came, which may have to wait for it.
        self._answering: RequestResponseCycle | None = None

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Lets it in, if there is room."""
        super().connection_made(transport)
        self.address = client_of(self.client[0]) if self.client else ""
        self.is_counted = self._connections.enter(self)
        if self.is_counted:
            self._watch()
        else:
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it, and tells whoever answers, which uvicorn does for the last request alone."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._connections.leave(self)

    def is_idle_for(self, seconds: float) -> bool:
        """Whether its client has sent nothing for so long."""
        return self.loop.time() - self.heard_at >= seconds

    def end(self) -> None:
        """Closes it at once, whatever its client has yet to read or send."""
        self.transport.abort()

    def _refuse(self, status: int) -> None:
        """Closes it, and says why, where an answer is not on its way."""
        is_answering = (
            self._answering is not None and self._answering.response_started and not self._is_answered
        )
        if not is_answering and not self.transport.get_write_buffer_size():
            self.transport.write(_REFUSALS[status])
            if not self.transport.get_write_buffer_size():
                self.transport.close()
                return
        self.transport.abort()

    # --- what comes in ---

    def data_received(self, data: bytes) -> None:
        """Reads what came, and watches for what is missing."""
        self.heard_at = self.loop.time()
        if self._part is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        is_missing = self._part is not None and not self.transport.is_closing()
        if is_missing and self._head_bytes > _HEAD_BYTES:
            self._connections.tell("head-size", self.address)
            self._refuse(431)
        self._watch()

    def on_message_begin(self) -> None:
        """A head begins.

        Raises:
            _TooManyError: as many wait already as may. It ends the reading, in the midst of what came.
        """
        if len(self.pipeline) >= _AHEAD:
            raise _TooManyError
        super().on_message_begin()
        self._part = "head"
        self._requests += 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those behind a body are for nobody."""
        if self._part == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._part = "body"
        self._head_bytes = 0
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle

    def on_body(self, body: bytes) -> None:
        """A part of a body, which is bounded by whoever reads it; what surrounds it is counted anew."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is made; the next request, if one waits, is answered."""
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is not None:
            self._answering = following
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, or too much of it."""
        if len(self.pipeline) >= _AHEAD:
            self._connections.tell("ahead", self.address)
            self.end()
        else:
            self._refuse(400)

    @property
    def _is_answered(self) -> bool:
        return self.cycle is not None and bool(self.cycle.response_complete) and not self.pipeline

    def _missing(self) -> _State | None:
        """What of the client is missing."""
        if self._part is None and not self._is_answered:
            return None
        part = self._part or "idle"
        return part, self._requests, part != "idle" or self.timeout_keep_alive_task is None

    def _watch(self) -> None:
        if self.transport.is_closing():
            self._watch_writing()
            return
        missing = self._missing()
        if missing == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = missing
        # Anew each time, so that those that have waited longest come first.
        self._connections.serves(self)
        if missing is not None or self.flow.write_paused:
            self._connections.waits(self)
        if missing is not None and missing[2]:
            self._give_up_later(missing[0])

    def _give_up_later(self, part: Part) -> None:
        seconds = self._connections.limits.seconds[part]
        self._timer = self.loop.call_later(seconds, self._give_up, part)

    def _give_up(self, part: Part) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is we who do not read
            self._give_up_later(part)
        elif part == "idle" or not self._requests:
            self.timeout_keep_alive_handler()
        else:
            self._connections.tell(part, self.address)
            self._refuse(408)

    def timeout_keep_alive_handler(self) -> None:
        """Closes it, for its client wants nothing more; it may read what is there."""
        super().timeout_keep_alive_handler()
        self._watch_writing()

    # --- what goes out ---

    def pause_writing(self) -> None:
        """The client has yet to read much."""
        super().pause_writing()
        self._connections.waits(self)
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = sys.maxsize
        if self._timed is None:
            self._connections.serves(self)

    def _watch_writing(self) -> None:
        if self._write_timer is None and self.transport.get_write_buffer_size():
            self._unread = self.transport.get_write_buffer_size()
            self._look_at_writing_later()

    def _look_at_writing_later(self) -> None:
        seconds = self._connections.limits.write_seconds
        self._write_timer = self.loop.call_later(seconds, self._look_at_writing)

    def _look_at_writing(self) -> None:
        """Closes it when its client has read too little of what waits since the look before."""
        self._write_timer = None
        unread = self.transport.get_write_buffer_size()
        if not unread:
            return
        least = int(_LEAST_RATE * self._connections.limits.write_seconds)
        if unread > max(0, self._unread - least):
            self._connections.tell("write", self.address)
            self.transport.abort()
            return
        self._unread = unread
        self._look_at_writing_later()


def _refusal(line: str) -> bytes:
    return (
        f"HTTP/1.1 {line}\r\ncontent-length: 0\r\nconnection: close\r\nretry-after: 5\r\n"
        "x-content-type-options: nosniff\r\n\r\n"
    ).encode()


_REFUSALS: Final = {
    400: _refusal("400 Bad Request"),
    408: _refusal("408 Request Timeout"),
    431: _refusal("431 Request Header Fields Too Large"),
    503: _refusal("503 Service Unavailable"),
}


class Shared:
    """A layer that bounds the requests under way of each client behind a trusted proxy.

    There all have one address, so what bounds the connections of an address cannot tell them apart.

    Args:
        app: what answers.
        service: its name.
        of_address: the most requests under way of a client.
    """

    def __init__(self, app: ASGIApp, service: str, of_address: int) -> None:
        self._app = app
        self._service = service
        self._most = of_address
        self._is_proxy = trusted_proxies()
        self._under_way: Counter[str] = Counter()
        self._seldom = Seldom(log, "requests were refused, too many are under way")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope.get("client") or self._is_proxy(scope["client"][0]):
            await self._app(scope, receive, send)
            return
        client = client_of_scope(scope)
        if self._under_way[client] >= self._most:
            HTTP_CLOSED.labels(self._service, "address").inc()
            self._seldom.tell(client)
            refusal = PlainTextResponse("too many requests of this address are under way\n", 429, _LATER)
            await refusal(scope, receive, send)
            return
        self._under_way[client] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]


_LATER: Final = {"Retry-After": "5"}


class Paced:
    """A layer that lets two refusals go out in a round of the event loop, however many there are.

    Whoever sends over and over what is refused waits for the answers; what everybody else asks for goes on in
    between, where each of its steps would wait for all of those.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._places = asyncio.Semaphore(_REFUSALS_IN_A_ROUND)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def paced(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                async with self._places:
                    await asyncio.sleep(0)
            await send(message)  # without the place, for the client may not read

        await self._app(scope, receive, paced if scope["type"] == "http" else send)

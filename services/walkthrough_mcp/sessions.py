"""Sessions, of the protocols that have them: how many there are, and what clients do to their own."""

import json
import logging
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from anyio import BrokenResourceError, ClosedResourceError
from mcp.server.streamable_http_manager import DEFAULT_SESSION_IDLE_TIMEOUT
from mcp.server.transport_security import RequestBodyLimitMiddleware
from mcp_types import INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.bounds import Seldom, client_of_scope
from services.runtime.telemetry import MCP_SESSIONS, MCP_SESSIONS_ENDED

log = logging.getLogger("stepstream.mcp")

#: What a client does before it uses a session: it says that it is initialized.
_GREETINGS: Final = 1
#: How many of an address may have been opened a moment ago and wait to be used, and how long that is.
_FEW: Final = 10
_NEW_SECONDS: Final = 10.0
_HEADER: Final = b"mcp-session-id"
_VERSION: Final = b"mcp-protocol-version"
_LAST_EVENT: Final = b"last-event-id"
#: What a message of a session may be, in bytes and in JSON values: a session keeps the last one, and what its
#: client said of itself, and 60 KB of `{}` take 1.5 MB as objects of Python.
_MOST_BYTES: Final = 32_768
_MOST_VALUES: Final = 1_000
_VALUES: Final = re.compile(rb"[\[{,:]")
#: What the SDK answers with 500 to a request whose place was taken by another one with the same id.
_DISPLACED: Final = "Session terminated before the request completed"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most sessions: in all, at one server, of one address."""

    total: int
    server: int
    address: int


@dataclass(slots=True, eq=False)
class Session:
    """A session that is open, in the words of the request that opened it."""

    id: bytes
    server: str
    address: str
    path: str
    user: Any
    used_at: float
    requests: int = 0

    @property
    def is_used(self) -> bool:
        """Whether its client did more than open it."""
        return self.requests > _GREETINGS


@dataclass(slots=True, eq=False)
class Held:
    """The sessions of one address at one server, longest without a request first."""

    server: str
    address: str
    unused: OrderedDict[bytes, Session] = field(default_factory=OrderedDict)
    used: OrderedDict[bytes, Session] = field(default_factory=OrderedDict)


class Ledger:
    """The sessions that are open, and which of them goes when there are too many.

    Those that were opened and never used go first: of the address that has most of them, the oldest. Then,
    of the address that has most, the used one without a request for longest; where several have as many, of
    all of these. A few that an address opened a moment ago go last: their clients are about to use them.
    It does no I/O, and the time is passed in.

    Args:
        bounds: how many there may be.
        idle_seconds: how long a session lives without a request.
    """

    def __init__(self, bounds: Bounds, idle_seconds: float) -> None:
        self._bounds = bounds
        self._idle_seconds = idle_seconds
        self._open: dict[bytes, Session] = {}
        self._held: dict[tuple[str, str], Held] = {}
        self._of_server: Counter[str] = Counter()
        self._of_address: Counter[str] = Counter()
        self._unused_of: Counter[str] = Counter()

    def __contains__(self, session: bytes) -> bool:
        return session in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(self, session: Session) -> None:
        key = (session.server, session.address)
        held = self._held.setdefault(key, Held(*key))
        self._open[session.id] = held.unused[session.id] = session
        self._of_server[session.server] += 1
        self._of_address[session.address] += 1
        self._unused_of[session.address] += 1

    def use(self, id_: bytes, now: float) -> None:
        """A session has a request."""
        session = self._open.get(id_)
        if session is None:
            return
        held, was_used = self._held[session.server, session.address], session.is_used
        session.requests += 1
        if session.is_used and not was_used:
            del held.unused[id_]
            _take_one(self._unused_of, session.address)
            held.used[id_] = session
        self.touch(id_, now)

    def touch(self, id_: bytes, now: float) -> None:
        """A session begins to be idle anew."""
        if (session := self._open.get(id_)) is not None:
            held = self._held[session.server, session.address]
            session.used_at = now
            (held.used if session.is_used else held.unused).move_to_end(id_)

    def remove(self, id_: bytes) -> None:
        session = self._open.pop(id_, None)
        if session is None:
            return
        key = (session.server, session.address)
        held = self._held[key]
        if session.is_used:
            del held.used[id_]
        else:
            del held.unused[id_]
            _take_one(self._unused_of, session.address)
        if not held.used and not held.unused:
            del self._held[key]
        _take_one(self._of_server, session.server)
        _take_one(self._of_address, session.address)

    def forget_idle(self, now: float, running: Container[bytes]) -> None:
        """Removes sessions without a request for so long that they have ended by themselves.

        `running` are those with a request that has no answer yet, or an open stream.
        """
        until = now - self._idle_seconds
        over = [
            session.id
            for held in self._held.values()
            for queue in (held.unused, held.used)
            for session in _head(queue, until)
            if session.id not in running
        ]
        for id_ in over:
            self.remove(id_)

    def excess(self, newest: Session) -> tuple[str, Session] | None:
        """The bound that the newest session breaks, and the session that goes for it, which is another."""
        address, server = newest.address, newest.server
        if self._of_address[address] > self._bounds.address:
            among = [held for held in self._held.values() if held.address == address]
            return "address", self._first_to_go(among, newest)
        if self._of_server[server] > self._bounds.server:
            among = [held for held in self._held.values() if held.server == server]
            return "server", self._first_to_go(among, newest)
        if len(self._open) > self._bounds.total:
            return "total", self._first_to_go(self._held.values(), newest)
        return None

    def _first_to_go(self, among: Iterable[Held], newest: Session) -> Session:
        _, session = max(
            (candidate for held in among for candidate in self._candidates(held, newest)),
            key=lambda candidate: candidate[0],
        )
        return session

    def _candidates(self, held: Held, newest: Session) -> Iterable[tuple[tuple[float, ...], Session]]:
        """One that was never used, and one that was, each with how much it is the one to go."""
        unused = next(iter(held.unused.values()), newest)
        if unused is not newest:
            many = self._unused_of[held.address]
            is_new = many <= _FEW and newest.used_at - unused.used_at < _NEW_SECONDS
            yield (0 if is_new else 2, many, len(held.unused), -unused.used_at), unused
        if held.used:
            used = next(iter(held.used.values()))
            yield (1, self._of_address[held.address], len(held.used), -used.used_at), used


def _take_one(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _head(queue: OrderedDict[bytes, Session], until: float) -> Iterable[Session]:
    for session in queue.values():
        if session.used_at > until:
            return
        yield session


class Light:
    """The layer around the SDK's application that refuses large messages in the protocols with sessions."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bounded = RequestBodyLimitMiddleware(self._pass_on, _MOST_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        version = _first(scope, _VERSION)
        has_none = version is not None and version.decode("latin-1") not in HANDSHAKE_PROTOCOL_VERSIONS
        await (self._app if has_none else self._bounded)(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: Message | None = await receive()  # with the whole body
        assert first is not None  # noqa: S101 - it is taken once, below
        if sum(1 for _ in _VALUES.finditer(first.get("body", b""))) > _MOST_VALUES:
            refusal = _refused(413, f"A message of a session has at most {_MOST_VALUES:,} values.")
            await refusal(scope, receive, send)
            return

        async def replay() -> Message:
            nonlocal first
            if first is None:
                return await receive()
            message, first = first, None
            return message

        await self._app(scope, replay, send)


class Sessions:
    """The layer around the SDK's application: makes room, and sees what a client does to its own session.

    The SDK refuses everybody when there are too many sessions. Here one goes for each that comes.

    The SDK answers 500 to a request whose session the client deletes meanwhile, and to one that shares its
    JSON-RPC id with a later one. These get 404, as the protocol has it for a session that is gone, and 400.

    Nothing of a stream is kept. A client that would resume one gets a stream from now on: the SDK would not
    answer at all.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._ledger = Ledger(bounds, DEFAULT_SESSION_IDLE_TIMEOUT)
        self._seldom = Seldom(log, "sessions were ended to make room")
        for bound in ("address", "server", "total"):
            MCP_SESSIONS_ENDED.labels(
                bound
            )  # there from the start, so that the first increase is seen as one
        MCP_SESSIONS.set_function(lambda: len(self._ledger))
        self._running: Counter[bytes] = Counter()
        self._deleted: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = _named_in(scope)
        if session is None:
            await self._open(scope, receive, send)
            return
        if scope["method"] == "POST":
            self._ledger.use(session, time.monotonic())
        self._running[session] += 1
        if scope["method"] == "DELETE":
            self._deleted.add(session)
        headers = [(name, value) for name, value in scope["headers"] if name != _LAST_EVENT]
        try:
            told = self._telling_of(session, scope, receive, send)
            await self._app({**scope, "headers": headers}, receive, told)
        except (ClosedResourceError, BrokenResourceError):  # of the session, after the SDK has answered
            if session not in self._deleted:
                raise
        finally:
            self._running[session] -= 1
            self._ledger.touch(session, time.monotonic())
            if not self._running[session]:
                del self._running[session]
                self._deleted.discard(session)

    def __contains__(self, session: bytes) -> bool:
        return session in self._ledger

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a request that opens a session, in the protocols that have them."""
        opened: bytes | None = None

        async def watched(message: Message) -> None:
            nonlocal opened
            if message["type"] == "http.response.start" and message["status"] < 400:
                opened = dict(message.get("headers", ())).get(_HEADER)
                if opened is not None:
                    await self._make_room_for(_session_of(opened, scope))
            await send(message)

        await self._app(scope, receive, watched)

    async def _make_room_for(self, newest: Session) -> None:
        self._ledger.forget_idle(newest.used_at, self._running)
        self._ledger.add(newest)
        while (excess := self._ledger.excess(newest)) is not None:
            bound, session = excess
            self._ledger.remove(session.id)
            MCP_SESSIONS_ENDED.labels(bound).inc()
            self._seldom.warn(f"{session.address} at {session.server} ({bound})")
            await self._end(session)

    async def _end(self, session: Session) -> None:
        """Ends a session as its client would: with a request that deletes it."""
        scope: Scope = {
            "type": "http",
            "method": "DELETE",
            "path": session.path,
            "query_string": b"",
            "headers": [(_HEADER, session.id), (b"host", b"127.0.0.1:0")],
            "user": session.user,
        }

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_: Message) -> None: ...

        await self(scope, receive, send)

    def _telling_of(self, session: bytes, scope: Scope, receive: Receive, send: Send) -> Send:
        """Sends what the SDK answers, but for a 500 that is the client's doing."""
        held: Message | None = None
        is_deleting = scope["method"] == "DELETE"

        async def told(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] == 500:
                held = message
            elif message["type"] == "http.response.start" and message["status"] == 200 and is_deleting:
                self._ledger.remove(session)  # the SDK has found that it is the client's own
                await send(message)
            elif held is None:
                await send(message)
            elif (refusal := self._refusal(session, message.get("body", b""))) is not None:
                await refusal(scope, receive, send)
            else:
                await send(held)
                await send(message)
                held = None

        return told

    def _refusal(self, session: bytes, body: bytes) -> JSONResponse | None:
        if session in self._deleted:
            return _refused(404, "The session was deleted before the request was answered.")
        if _DISPLACED in _message_of(body):
            return _refused(400, "The session has a later request with the same id, which took its place.")
        return None


def _named_in(scope: Scope) -> bytes | None:
    """The session that a request names: of several the first, which is the one that the SDK takes."""
    return _first(scope, _HEADER)


def _first(scope: Scope, header: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == header), None)


def _session_of(id_: bytes, scope: Scope) -> Session:
    server = str(scope.get("path_params", {}).get("slug", ""))
    return Session(id_, server, client_of_scope(scope), scope["path"], scope.get("user"), time.monotonic())


def _refused(status: int, message: str) -> JSONResponse:
    error = {"code": INVALID_REQUEST, "message": message}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, status)


def _message_of(body: bytes) -> str:
    try:
        answer: Mapping[str, Any] = json.loads(body)
        return str(answer["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return ""

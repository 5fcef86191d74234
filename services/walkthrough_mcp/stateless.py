"""Sessions of people who are known by a token or a tracking id: a name in the records, no state here."""

import json
import re
import uuid
from typing import Any, Final

from cachetools import LRUCache
from mcp_types import INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.walkthrough_mcp.people import Client

SESSION: Final = b"mcp-session-id"
_VERSION: Final = b"mcp-protocol-version"
_OURS: Final = re.compile(rb"[0-9a-f]{32}")
#: What the agent of a request called itself when it opened the session, by this name in the request's scope.
CLIENT: Final = "stepstream.client"
#: Of so many sessions that is kept.
_MOST_CLIENTS: Final = 10_000


def session_named_in(scope: Scope) -> str | None:
    """The session that a request names, if it is an id as we give them; whoever gave it out."""
    named = _header(scope, SESSION)
    return named.decode() if named is not None and _OURS.fullmatch(named) else None


class Stateless:
    """The layer around the SDK's application that keeps no sessions: gives older clients one all the same.

    A client that opens a session gets an id, and sends it along from then on. Nothing is kept of it here that
    matters: who calls is known by the request itself, so any process takes any of them, before and after a
    restart; what the agent calls itself is known where the session was opened alone. There is no stream that
    the server could send something of its own into; a client that asks for it gets 405, as the protocol has
    it.

    Args:
        app: what answers; it gets bodies in one piece.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._clients: LRUCache[bytes, Client] = LRUCache(_MOST_CLIENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        version = _header(scope, _VERSION)
        if version is not None and version.decode("latin-1") not in HANDSHAKE_PROTOCOL_VERSIONS:
            await self._app(scope, receive, send)
        elif scope["method"] != "POST":
            error = {
                "code": INVALID_REQUEST,
                "message": "There is no stream, and nothing to end: send a POST.",
            }
            body = {"jsonrpc": "2.0", "id": None, "error": error}
            await JSONResponse(body, 405, {"Allow": "POST"})(scope, receive, send)
        else:
            await self._post(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        first: Message | None = await receive()
        assert first is not None  # noqa: S101 - it is taken once, below
        session = _header(scope, SESSION)
        opening = _initialize(first.get("body", b"")) if session is None else None
        if session is not None:
            scope[CLIENT] = self._clients.get(session)

        async def replay() -> Message:
            nonlocal first
            if first is None:
                return await receive()
            message, first = first, None
            return message

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                header = (SESSION, uuid.uuid4().hex.encode())
                if client := _client_in(opening):
                    self._clients[header[1]] = client
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, replay, send if opening is None else named)


def _initialize(body: bytes) -> dict[str, Any] | None:
    """The request that opens a session, if it is one."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) and message.get("method") == "initialize" else None


def _client_in(opening: dict[str, Any] | None) -> Client | None:
    """What the agent calls itself, if it says so as it should: an error is answered with 200, too."""
    params = (opening or {}).get("params")
    info = params.get("clientInfo") if isinstance(params, dict) else None
    if not isinstance(info, dict):
        return None
    return Client.named(str(info.get("name", "")), str(info.get("version", "")))


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for header, value in scope["headers"] if header == name), None)

"""Sessions of people who are known by a token or a tracking id: a name in the records, no state here."""

import json
import re
import uuid
from typing import Final

from mcp_types import INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION: Final = b"mcp-session-id"
_VERSION: Final = b"mcp-protocol-version"
_OURS: Final = re.compile(rb"[0-9a-f]{32}")


def session_named_in(scope: Scope) -> str | None:
    """The session that a request names, if it is an id as we give them; whoever gave it out."""
    named = _header(scope, SESSION)
    return named.decode() if named is not None and _OURS.fullmatch(named) else None


class Stateless:
    """The layer around the SDK's application that keeps no sessions: gives older clients one all the same.

    A client that opens a session gets an id, and sends it along from then on. Nothing is kept of it here: who
    calls is known by the request itself, so any process takes any of them, before and after a restart. There
    is no stream that the server could send something of its own into; a client that asks for it gets 405, as
    the protocol has it.

    Args:
        app: what answers; it gets bodies in one piece.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
        opens = _header(scope, SESSION) is None and _is_initialize(first.get("body", b""))

        async def replay() -> Message:
            nonlocal first
            if first is None:
                return await receive()
            message, first = first, None
            return message

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                header = (SESSION, uuid.uuid4().hex.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, replay, named if opens else send)


def _is_initialize(body: bytes) -> bool:
    try:
        message = json.loads(body)
    except ValueError:
        return False
    return isinstance(message, dict) and message.get("method") == "initialize"


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for header, value in scope["headers"] if header == name), None)

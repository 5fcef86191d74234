"""Sessions, of the protocols that have them: what a client does to its own is no fault of the server."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from anyio import BrokenResourceError, ClosedResourceError
from mcp_types import INVALID_REQUEST
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER: Final = b"mcp-session-id"
#: What the SDK answers with 500 to a request whose place was taken by another one with the same id.
_DISPLACED: Final = "Session terminated before the request completed"


class Sessions:
    """The layer around the SDK's application: what a client does to its own session is no fault of ours.

    The SDK answers 500 to a request whose session the client deletes meanwhile, and to one that shares its
    JSON-RPC id with a later one. These get 404, as the protocol has it for a session that is gone, and 400.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._running: Counter[bytes] = Counter()
        self._deleted: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        session: bytes | None = dict(scope["headers"]).get(_HEADER)
        if session is None:
            await self._app(scope, receive, send)
            return
        self._running[session] += 1
        if scope["method"] == "DELETE":
            self._deleted.add(session)
        try:
            await self._app(scope, receive, self._telling_of(session, scope, receive, send))
        except (ClosedResourceError, BrokenResourceError):  # of the session, after the SDK has answered
            if session not in self._deleted:
                raise
        finally:
            self._running[session] -= 1
            if not self._running[session]:
                del self._running[session]
                self._deleted.discard(session)

    def _telling_of(self, session: bytes, scope: Scope, receive: Receive, send: Send) -> Send:
        """Sends what the SDK answers, but for a 500 that is the client's doing."""
        held: Message | None = None

        async def told(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and message["status"] == 500:
                held = message
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


def _refused(status: int, message: str) -> JSONResponse:
    error = {"code": INVALID_REQUEST, "message": message}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, status)


def _message_of(body: bytes) -> str:
    try:
        answer: Mapping[str, Any] = json.loads(body)
        return str(answer["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return ""

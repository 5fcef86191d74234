"""What the SDK answers with 500 in a session: the client's doing, or a fault of ours."""

import json
from typing import Any

import pytest
from anyio import ClosedResourceError
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from services.walkthrough_mcp.sessions import Bounds, Sessions

ENDED = {
    "jsonrpc": "2.0",
    "id": None,
    "error": {"code": -32603, "message": "Session terminated before the request completed"},
}
BROKEN = {"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "Error handling POST request"}}


async def answered(
    body: Any,
    status: int = 500,
    *,
    deleted: bool = False,
    session: bool = True,
    then: Exception | None = None,
) -> tuple[int, Any]:
    """What a client gets for what the SDK answers."""
    sent: list[Message] = []
    headers = [(b"mcp-session-id", b"one")] if session else []

    async def sdk(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            if deleted:
                await sessions({"type": "http", "method": "DELETE", "headers": headers}, receive, discard)
            await JSONResponse(body, status)(scope, receive, send)
            if then is not None:
                raise then

    async def discard(_: Message) -> None: ...

    async def keep(message: Message) -> None:
        sent.append(message)

    sessions = Sessions(sdk, Bounds(10, 10, 10))
    await sessions({"type": "http", "method": "POST", "path": "/", "headers": headers}, None, keep)  # type: ignore[arg-type]
    assert not sessions._running
    assert not sessions._deleted
    start, *parts = sent
    return start["status"], json.loads(b"".join(part["body"] for part in parts))


@pytest.mark.parametrize("body", [ENDED, BROKEN])
async def test_a_session_that_was_deleted_meanwhile_is_gone(body: Any) -> None:
    status, answer = await answered(body, deleted=True)
    assert (status, answer["error"]["code"]) == (404, -32600)


async def test_a_request_whose_id_another_one_has_is_the_client_s_mistake() -> None:
    status, answer = await answered(ENDED)
    assert (status, answer["error"]["code"]) == (400, -32600)


@pytest.mark.parametrize("body", [BROKEN, ["of another form"], {"error": "x"}])
async def test_any_other_500_stays_one(body: Any) -> None:
    assert await answered(body) == (500, body)
    assert await answered(ENDED, session=False) == (500, ENDED)


async def test_what_is_answered_well_passes_though_the_session_is_deleted_meanwhile() -> None:
    assert await answered({"result": {}}, 200, deleted=True) == (200, {"result": {}})


async def test_a_stream_that_is_closed_after_the_answer_fails_nothing_where_the_session_was_deleted() -> None:
    status, _ = await answered(BROKEN, deleted=True, then=ClosedResourceError())
    assert status == 404
    with pytest.raises(ClosedResourceError):
        await answered(BROKEN, then=ClosedResourceError())


async def test_of_two_sessions_in_a_request_the_first_one_counts_as_it_does_for_the_sdk() -> None:
    names = iter((b"own", b"other"))

    async def sdk(scope: Scope, receive: Receive, send: Send) -> None:
        opened = {"mcp-session-id": next(names).decode()} if scope["method"] == "POST" else {}
        await JSONResponse({}, headers=opened)(scope, receive, send)

    async def discard(_: Message) -> None: ...

    async def ask(method: str, *sessions_named: bytes) -> None:
        headers = [(b"mcp-session-id", name) for name in sessions_named]
        scope = {"type": "http", "method": method, "path": "/", "headers": headers}
        await sessions(scope, None, discard)  # type: ignore[arg-type]

    sessions = Sessions(sdk, Bounds(10, 10, 10))
    await ask("POST")
    await ask("POST")
    await ask("DELETE", b"own", b"other")
    assert b"own" not in sessions
    assert b"other" in sessions

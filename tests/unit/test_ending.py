"""When the service ends, nothing waits for a client: streams end, what has not come whole is given up."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from services.runtime.http import EndingError
from services.walkthrough_mcp.ending import Ending

PART: Message = {"type": "http.request", "body": b"{", "more_body": True}
WHOLE: Message = {"type": "http.request", "body": b"{}", "more_body": False}


class Client:
    """Sends these messages, and then nothing more."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.sent: list[Message] = []
        self.waits = asyncio.Event()
        self.over = asyncio.Event()

    async def receive(self) -> Message:
        if self.messages:
            return self.messages.pop(0)
        self.waits.set()
        return await asyncio.Future()

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def ended(client: Client, method: str, app: object) -> None:
    """Runs a request, and ends the service as soon as it waits for the client."""
    stopping = asyncio.Event()
    layer = Ending(app, stopping)  # type: ignore[arg-type]
    watch = asyncio.create_task(layer.watch())
    request = asyncio.create_task(layer({"type": "http", "method": method}, client.receive, client.send))
    await client.waits.wait()
    stopping.set()
    await watch
    client.over.set()
    await request


async def read(scope: Scope, receive: Receive, _: Send) -> None:
    await Request(scope | {"headers": []}, receive).body()


async def test_a_request_that_has_not_come_whole_is_given_up() -> None:
    with pytest.raises(EndingError):
        await ended(Client(PART), "POST", read)


async def test_a_stream_ends_politely() -> None:
    async def stream(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        while (await receive())["type"] != "http.disconnect":
            pass

    client = Client(WHOLE)
    await ended(client, "GET", stream)
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_call_that_is_under_way_is_not_told_that_its_client_left() -> None:
    client = Client(WHOLE)

    async def call(_: Scope, receive: Receive, __: Send) -> None:
        await receive()
        gone = asyncio.ensure_future(receive())
        await client.over.wait()
        assert not gone.done()
        gone.cancel()

    await ended(client, "POST", call)

"""Layers of an HTTP port: what a client behind a proxy may have under way, and how fast refusals go out."""

import asyncio
import logging
from collections import Counter
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.bounds import Seldom, client_of_scope, trusted_proxies
from services.runtime.telemetry import HTTP_CLOSED

log = logging.getLogger("stepstream.connections")

#: How many refusals go out in a round of the event loop.
_REFUSALS_IN_A_ROUND: Final = 2
_LATER: Final = {"Retry-After": "5"}


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
            self._seldom.warn(client)
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

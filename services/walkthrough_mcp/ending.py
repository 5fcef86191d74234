"""What waits for its client when the service ends: streams, and requests that have not come whole."""

import asyncio
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.runtime.http import EndingError

_GONE: Final[Message] = {"type": "http.disconnect"}


class Ending:
    """A layer that lets nobody hold up the end of the service who gets, or sends, nothing more.

    A stream of the server's own ends then, politely; a request whose body has not come gets 503. Calls that
    are under way go on, for as long as the server lets them.

    Args:
        app: what answers.
        stopping: is set when the service ends.
    """

    def __init__(self, app: ASGIApp, stopping: asyncio.Event) -> None:
        self._app = app
        self._stopping = stopping
        self._waits: set[asyncio.Timeout] = set()

    async def watch(self) -> None:
        """Waits for the end, and tells all that wait for their clients."""
        await self._stopping.wait()
        for wait in self._waits:
            wait.reschedule(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on.

        Raises:
            EndingError: the service ends, and the request has not come whole.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_stream = scope["method"] == "GET"
        is_whole = is_open = False

        async def heard() -> Message:
            nonlocal is_whole
            if is_whole and not is_stream:
                return await receive()
            message = await self._until_the_end(receive)
            if message is _GONE and not is_whole:
                raise EndingError
            is_whole = is_whole or not message.get("more_body", False)
            return message

        async def told(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        await self._app(scope, heard, told)
        if is_open and self._stopping.is_set():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_the_end(self, receive: Receive) -> Message:
        """The next message of the client, or that it is gone, when the service ends."""
        try:
            async with asyncio.timeout(0 if self._stopping.is_set() else None) as wait:
                self._waits.add(wait)
                try:
                    return await receive()
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            return _GONE

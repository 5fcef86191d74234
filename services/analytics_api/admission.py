"""Who comes into the API: what is over its share is refused here, before it costs more than its headers.

What passes has a turn (`fair.Turn`) until its answer begins: so routing, checking the key, computing and
compressing are done for a few requests at once, in the order of `fair.Lane`, however many come. What needs no
key, and every refusal, waits in the lane `public`, where addresses take turns.
"""

import asyncio
import contextlib
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.analytics_api.fair import Lanes, Turn
from services.analytics_api.keys_and_rates import KeysAndRates, is_for_writing
from services.analytics_api.live import Streams
from services.analytics_api.problems import ProblemError, of_database, respond, unanswerable
from services.runtime.bounds import client_of_scope
from services.runtime.database_errors import DATABASE_ERRORS, is_away
from services.runtime.fair import Asker

_TURN: Final = "stepstream.turn"
_PUBLIC: Final = "/v1/openapi.json"
#: No question has so many parameters: to read them, and to tell what is wrong, keeps others waiting.
_MOST_PARAMETERS: Final = 1_500
_OF_HEALTH: Final = frozenset({"/health/live", "/health/ready", "/metrics"})


def turn_of(scope: Scope) -> Turn:
    """The turn of a request that was let in."""
    turn: Turn = scope[_TURN]
    return turn


class Admission:
    """Lets requests in; those of health and metrics go past it."""

    def __init__(self, app: ASGIApp, keys: KeysAndRates, lanes: Lanes, streams: Streams) -> None:
        self._app = app
        self._keys = keys
        self._lanes = lanes
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        path = scope.get("path", "")
        if scope["type"] != "http" or path in _OF_HEALTH:
            await self._app(scope, receive, send)
            return
        async with contextlib.AsyncExitStack() as stack:

            async def send_and_end(message: Message) -> None:
                if message["type"] == "http.response.start":  # how fast the client reads is its own affair
                    await stack.aclose()
                await send(message)

            if not path.startswith(("/v1/", "/mcp/")) or path == _PUBLIC:
                await self._take_turn(stack, scope)
                await self._app(scope, receive, send_and_end)
                return
            try:
                scope[_TURN] = await self._admit(stack, Request(scope))
            except ProblemError as problem:
                await self._take_turn(stack, scope)
                await respond(problem)(scope, receive, send_and_end)
                return
            except DATABASE_ERRORS as error:  # the ids of keys cannot be read
                if not is_away(error):
                    raise
                await respond(of_database(error))(scope, receive, send)
                return
            await self._app(scope, receive, send_and_end)

    async def _take_turn(self, stack: contextlib.AsyncExitStack, scope: Scope) -> None:
        """Waits for a place among those of what needs no key, refusals too."""
        await stack.enter_async_context(self._lanes.public.place(Asker.stranger(client_of_scope(scope))))
        await asyncio.sleep(0)  # lets the tasks that wait see that the place is taken

    async def _admit(self, stack: contextlib.AsyncExitStack, request: Request) -> Turn:
        """The turn of a request with a key; it ends with `stack`.

        By its headers alone: rates, number of parameters, streams and questions of its asker. A request
        without a body begins its turn here; one with a body does once that has come.

        Raises:
            ProblemError: there is no key, or one of these is too much.
        """
        asker = await self._keys.arrive(request)
        if request.scope.get("query_string", b"").count(b"&") >= _MOST_PARAMETERS:
            raise unanswerable(f"there are more than {_MOST_PARAMETERS:,} parameters", "query")
        if request.url.path.endswith("/live"):
            self._streams.check(asker)
        has_known_id = not asker.key and self._lanes.is_crowded and await self._keys.knows_id(request)
        turn = await stack.enter_async_context(
            self._lanes.turn(asker, has_known_id=has_known_id, writes=is_for_writing(request))
        )
        if request.method in ("GET", "HEAD"):  # nobody keeps a place while a body comes
            await turn.begin()
        return turn

"""What the MCP servers share: their version, and faults of ours as errors of JSON-RPC.

Such an error shows the id under which the log has more.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Scope

from services.runtime.faults import Exchange
from services.runtime.http import Failure

Context: TypeAlias = ServerRequestContext[Any, Any]
Params = TypeVar("Params")
Result = TypeVar("Result")
Handler: TypeAlias = Callable[[Context, Params], Awaitable[Result]]

_MESSAGE: Final = (
    "The call failed on the server's side. Nothing that you send differently will help. "
    "The server's log has more under the request id {}."
)
_REASON: Final = "internal_error"
_ENDING: Final = "The server ends before the call was answered. Try the same call again in a moment."
_LONG: Final = 8


def failure_as_rpc(_: Scope, failure: Failure) -> ASGIApp:
    """A failure outside the SDK, as an error of JSON-RPC, so that clients hand the message on."""
    message = _ENDING if failure.is_ending else _MESSAGE.format(failure.request_id)
    reason = "temporarily_unavailable" if failure.is_ending else _REASON
    error = {"code": INTERNAL_ERROR, "message": message, "data": _data(failure.request_id, reason)}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, failure.status, failure.headers)


def _data(request_id: str, reason: str = _REASON) -> dict[str, str]:
    return {"reason": reason, "request_id": request_id}


class Faults:
    """Sees to it that no fault of ours passes the SDK unseen.

    The SDK takes a pydantic error of a handler for one of the client's, tells clients of the older protocols
    what an exception says, and knows nothing of request ids. So a server's handlers go through `seen`, and
    the instance is one of the server's middleware, for what the SDK itself does with a handler's result.
    """

    def __init__(self, service: str) -> None:
        self._service = service

    def seen(self, handler: Handler[Params, Result]) -> Handler[Params, Result]:
        """The handler; what it raises is a fault of ours, but for errors of the protocol."""

        async def call(ctx: Context, params: Params) -> Result:
            try:
                return await handler(ctx, params)
            except MCPError:
                raise
            except Exception as error:  # noqa: BLE001 - the SDK would hide it
                raise self._fault(ctx, error) from None

        return call

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        try:
            return await call_next(ctx)
        except MCPError as error:
            # Internal errors of ours say their reason; of the SDK's own, its log has the traceback.
            if error.code == INTERNAL_ERROR and error.data is None:
                raise self._fault(ctx, None) from None
            raise
        except ValidationError:  # of what the client sent: handlers' own are faults already
            raise
        except Exception as error:  # noqa: BLE001 - the SDK would hide it
            raise self._fault(ctx, error) from None

    def _fault(self, ctx: Context, error: Exception | None) -> MCPError:
        exchange = exchange_of(self._service, ctx)
        exchange.secrets = _long_arguments(ctx)
        exchange.fail("a call failed", error, call=ctx.method)
        return MCPError(INTERNAL_ERROR, _MESSAGE.format(exchange.id), _data(exchange.id))


def exchange_of(service: str, ctx: Context) -> Exchange:
    """The exchange that a call belongs to; over stdio it begins now."""
    request = ctx.request
    return Exchange.of(service, request.scope if isinstance(request, Request) else None)


def _long_arguments(ctx: Context) -> tuple[str, ...]:
    """What of a call may be an id that nobody should guess; shorter texts are words."""
    arguments = (ctx.params or {}).get("arguments")
    values = arguments.values() if isinstance(arguments, Mapping) else ()
    return tuple(v for v in values if isinstance(v, str) and len(v) >= _LONG)

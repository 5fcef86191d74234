"""Which hosts and origins requests may name, and the pages of which others may read the answers (CORS)."""

from collections.abc import Callable
from typing import Final

from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from services.runtime.http import REQUEST_ID
from services.runtime.settings import Settings

#: What is answered to the pages of others: agents' calls, and how to sign in; neither health nor metrics.
_SHARED: Final = ("/mcp/", "/.well-known/")
#: What clients of either generation of the protocol send.
_REQUEST_HEADERS: Final = (
    "Accept",
    "Authorization",
    "Content-Type",
    "Last-Event-ID",
    "Mcp-Method",
    "Mcp-Name",
    "Mcp-Protocol-Version",
    "Mcp-Session-Id",
)
#: What they have to read of an answer.
_ANSWER_HEADERS: Final = (
    "Mcp-Protocol-Version",
    "Mcp-Session-Id",
    "Retry-After",
    "WWW-Authenticate",
    REQUEST_ID,
)


def transport_security(settings: Settings) -> TransportSecuritySettings:
    """Which Host and Origin headers are taken: the public address, loopback, and what the settings name.

    A page of somebody else's whose name resolves to this machine (DNS rebinding) sends its own name. Origins
    whose pages may read the answers may call, of course.
    """
    public = AnyHttpUrl(settings.public_url)
    host = f"{public.host}:{public.port}"
    bare = [str(public.host)] if public.port in {80, 443} else []
    loopback = ["127.0.0.1", "localhost", "[::1]"]
    hosts = [host, *bare, *settings.names(settings.mcp_allowed_hosts), *(f"{name}:*" for name in loopback)]
    origins = [
        *(f"{public.scheme}://{name}" for name in (host, *bare)),
        *settings.names(settings.mcp_allowed_origins),
        *settings.names(settings.mcp_cors_origins),
        *(f"http://{name}:*" for name in loopback),
    ]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def shared_with_pages(settings: Settings) -> Callable[[ASGIApp], ASGIApp]:
    """A layer that answers preflights, and lets the pages of some origins read the answers, if any may."""

    origins = settings.names(settings.mcp_cors_origins)

    def shared(app: ASGIApp) -> ASGIApp:
        if not origins:
            return app
        with_headers = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
        )

        async def layer(scope: Scope, receive: Receive, send: Send) -> None:
            is_shared = scope["type"] == "http" and scope["path"].startswith(_SHARED)
            await (with_headers if is_shared else app)(scope, receive, send)

        return layer

    return shared

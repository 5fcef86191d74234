"""What an MCP server that asks for tokens says: its metadata, and where a client is sent to sign in."""

from mcp.server.auth.handlers.metadata import ProtectedResourceMetadataHandler
from mcp.server.auth.routes import build_resource_metadata_url
from mcp.shared.auth import ProtectedResourceMetadata
from pydantic import AnyHttpUrl
from starlette.requests import Request
from starlette.responses import Response


class _Metadata(ProtectedResourceMetadata):
    """Protected resource metadata (RFC 9728) whose addresses are sent as they are written.

    Clients compare them letter by letter with the issuer's own metadata and with what tokens are for; a URL
    of pydantic's writes them anew, with a slash behind the host for instance.
    """

    resource: str  # type: ignore[assignment]
    authorization_servers: list[str]  # type: ignore[assignment]


async def describe(request: Request, resource: str, issuer: str, scopes: list[str], name: str) -> Response:
    """The metadata of a resource: which issuer gives out tokens for it, and for which scopes to ask."""
    metadata = _Metadata(
        resource=resource,
        authorization_servers=[issuer],
        scopes_supported=scopes or None,
        resource_name=name,
    )
    return await ProtectedResourceMetadataHandler(metadata).handle(request)


def challenge(resource: str, scopes: list[str], refused: str | None) -> str:
    """The `WWW-Authenticate` of a 401 (RFC 6750, section 3; RFC 9728, section 5.1).

    Args:
        resource: the address that tokens are for.
        scopes: which to ask for.
        refused: why a token is not good; who sent none gets no code of an error.
    """
    told = {
        "error": "invalid_token" if refused else None,
        "error_description": refused,
        "scope": " ".join(scopes),
        "resource_metadata": build_resource_metadata_url(AnyHttpUrl(resource)),
    }
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in told.items() if value)

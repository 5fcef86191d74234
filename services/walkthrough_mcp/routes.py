"""What comes in over HTTP: which server, who, whether they may, and how often; then the SDK takes over."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Final

from cachetools import TTLCache
from mcp.server.auth.handlers.metadata import ProtectedResourceMetadataHandler
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import build_resource_metadata_url
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp.shared.auth import ProtectedResourceMetadata
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import AnyHttpUrl
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from services.runtime.bounds import OUTAGE_SECONDS, Seldom, client_of_scope
from services.runtime.database import Pool, can_be_stored
from services.runtime.database_errors import is_away
from services.runtime.fair import Asker
from services.runtime.mcp import Context
from services.runtime.settings import Settings
from services.runtime.telemetry import MCP_REFUSED
from services.walkthrough_mcp import store
from services.walkthrough_mcp.handlers import build_mcp_server
from services.walkthrough_mcp.people import Caller, Identity, Server, problem_of_tracking_id
from services.walkthrough_mcp.rates import Rates, Refusal
from services.walkthrough_mcp.sessions import Bounds, Light, Sessions
from services.walkthrough_mcp.stateless import Stateless, session_named_in
from services.walkthrough_mcp.tokens import (
    IssuerAwayError,
    Issuers,
    TokenRefusedError,
    Verifier,
    problem_of_issuer,
)
from services.walkthrough_mcp.turns import BusyError, CrowdedError, Places

log = logging.getLogger("stepstream.mcp")
_CALLER = "stepstream.caller"
#: Between two lines about the same server, and about how many servers that is known.
_TOLD_SECONDS: Final = 60
_MOST_TOLD: Final = 10_000
#: For how long a server is known to exist.
_KNOWN_SECONDS: Final = 60
_NO_ISSUER: Final = (
    "People sign in at this server, and no issuer is set for it: its operator has to name one."
)
_TRY_AGAIN = "The walkthroughs cannot be reached right now. Try the same call again in a moment."


class SignIn(ProtectedResourceMetadata):
    """Protected resource metadata (RFC 9728) whose addresses are sent as they are written.

    Clients compare them letter by letter with the issuer's own metadata and with what tokens are for; a URL
    of pydantic's writes them anew, with a slash behind the host for instance.
    """

    resource: str  # type: ignore[assignment]
    authorization_servers: list[str]  # type: ignore[assignment]


def transport_security(settings: Settings) -> TransportSecuritySettings:
    """Which Host and Origin headers are taken: the public address, loopback, and what the settings name.

    A page of somebody else's whose name resolves to this machine (DNS rebinding) sends its own name.
    """
    public = AnyHttpUrl(settings.public_url)
    host = f"{public.host}:{public.port}"
    bare = [str(public.host)] if public.port in {80, 443} else []
    loopback = ["127.0.0.1", "localhost", "[::1]"]
    hosts = [host, *bare, *settings.names(settings.mcp_allowed_hosts), *(f"{name}:*" for name in loopback)]
    origins = [
        *(f"{public.scheme}://{name}" for name in (host, *bare)),
        *settings.names(settings.mcp_allowed_origins),
        *(f"http://{name}:*" for name in loopback),
    ]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def caller_of(ctx: Context) -> Caller:
    """Who makes a request: what was found out at its HTTP request, and the transport's session."""
    request = ctx.request
    assert isinstance(request, Request)  # noqa: S101 - over HTTP there is one
    caller: Caller = request.scope[_CALLER]
    if ctx.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS:
        return caller
    if not caller.is_anonymous:
        return replace(caller, transport_session=session_named_in(request.scope))
    # The SDK has matched the header with a session that it made for this principal.
    return replace(caller, transport_session=request.headers.get("mcp-session-id"))


class McpEndpoint:
    """The ASGI application behind `/mcp/…`: lets in who may, and hands over to the SDK."""

    def __init__(self, settings: Settings, pool: Callable[[], Pool]) -> None:
        self._settings = settings
        self._pool = pool
        self._rates = Rates(settings)
        self._issuers = Issuers()
        self._unverified = Seldom(log, "tokens cannot be verified")
        self._away = Seldom(log, "requests failed, the database is away", OUTAGE_SECONDS)
        #: Servers whose sign-in is not set up, of which the log has a line.
        self._told: TTLCache[str, bool] = TTLCache(_MOST_TOLD, _TOLD_SECONDS)
        places = self._places = Places(settings, store.WAIT_SECONDS)
        security = transport_security(settings)
        self._security = TransportSecurityMiddleware(security)
        server = build_mcp_server(
            pool, caller_of, self._count_visitor, places, together_ms=settings.mcp_together_ms
        )
        self._manager, self._manager_of_known = (
            StreamableHTTPSessionManager(
                server,
                json_response=True,
                stateless=stateless,
                security_settings=security,
                max_request_body_size=settings.mcp_max_request_bytes,
                # `Sessions` makes room before that; those that are being opened come on top.
                max_sessions=settings.mcp_sessions + settings.http_connections,
            )
            for stateless in (False, True)
        )
        #: For whom nothing but the session, or a `visitor` id, says who it is.
        self._sessions = Sessions(
            Light(self._manager.asgi_app),
            Bounds(settings.mcp_sessions, settings.mcp_server_sessions, settings.mcp_address_sessions),
        )
        #: For whom a token or a tracking id does.
        self._stateless = Light(Stateless(self._manager_of_known.asgi_app))
        #: Servers that were found a moment ago, by slug.
        self._known: TTLCache[str, Asker] = TTLCache(_MOST_TOLD, _KNOWN_SECONDS)

    @property
    def pool(self) -> Pool:
        """The database with walkthroughs and progress."""
        return self._pool()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serves sessions while the block lasts."""
        async with self._manager.run(), self._manager_of_known.run():
            yield

    def routes(self) -> list[BaseRoute]:
        """One route for servers that tell people apart, one with the tracking id; and how to sign in."""
        return [
            Route("/mcp/{slug}", endpoint=self),
            Route("/mcp/{slug}/{tracking_id:path}", endpoint=self),
            Route("/.well-known/oauth-protected-resource/mcp/{slug}", endpoint=self.describe_sign_in),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            if (wrong := await self._security.validate_request(request)) is not None:
                MCP_REFUSED.labels("host-or-origin").inc()
                await wrong(scope, receive, send)
                return
            address = client_of_scope(scope)
            await self._rates.check_address(address)
            server = await self._find_server(request.path_params["slug"], address)
            tracking_id = request.path_params.get("tracking_id") or None
            if server.signs_in:
                await self._enter_signed_in(server, tracking_id, scope, receive, send)
            else:
                await self._enter(server, tracking_id, scope, receive, send)
        except Refusal as refusal:
            MCP_REFUSED.labels(refusal.reason).inc()
            await refusal.response()(scope, receive, send)

    async def describe_sign_in(self, request: Request) -> Response:
        """Protected resource metadata (RFC 9728): which issuer gives out tokens for a server."""
        try:
            address = client_of_scope(request.scope)
            await self._rates.check_address(address)
            server = await self._find_server(request.path_params["slug"], address)
            if not server.signs_in:
                raise Refusal(404, "not_found", "Nobody signs in at this server; connect without a token.")
            if not self._written_issuer(server):
                self._tell_not_set_up(server, "has no issuer")
                raise Refusal(404, "no_issuer", _NO_ISSUER)
            issuer = self._issuer(server)
        except Refusal as refusal:
            MCP_REFUSED.labels(refusal.reason).inc()
            return refusal.response()
        metadata = SignIn(
            resource=self.resource(server),
            authorization_servers=[issuer],
            scopes_supported=self._settings.scopes_at(server.slug) or None,
            resource_name=server.name,
        )
        return await ProtectedResourceMetadataHandler(metadata).handle(request)

    def resource(self, server: Server) -> str:
        """The address of a server: the audience that its tokens must have."""
        return f"{self._settings.public_url.rstrip('/')}/mcp/{server.slug}"

    async def _find_server(self, slug: str, address: str) -> Server:
        if slug not in self._known:  # who asks for others too often finds those that exist all the same
            await self._rates.check_failures(address)
        server = None
        if can_be_stored(slug):
            try:
                async with self._place(slug, address):
                    server = await store.find_server(self._pool(), slug)
            except CrowdedError as error:
                raise Refusal(429, "busy", str(error), 2) from None
            except BusyError:
                raise Refusal(503, "busy", _TRY_AGAIN, 2) from None
            except Exception as error:
                if not is_away(error):
                    raise
                self._away.warn(type(error).__name__)
                raise Refusal(503, "temporarily_unavailable", _TRY_AGAIN, 2) from None
        if server is None:
            self._known.pop(slug, None)
            await self._rates.fail(address)
            raise Refusal(404, "not_found", "There is no MCP server at this address.")
        self._known[slug] = server.asker
        return server

    def _place(self, slug: str, address: str) -> contextlib.AbstractAsyncContextManager[None]:
        """A place to look for a server: its own turn, or where nobody found it lately that of the address."""
        asker = self._known.get(slug)
        if asker is None:
            return self._places.place_of_stranger(slug, address)
        return self._places.place(asker, address)

    def _written_issuer(self, server: Server) -> str:
        """The issuer as somebody wrote it, or nothing."""
        return server.oauth_issuer_url or self._settings.oauth_issuer

    def _issuer(self, server: Server) -> str:
        issuer = self._written_issuer(server)
        if issuer and (problem := problem_of_issuer(issuer)) is None:
            return issuer
        self._tell_not_set_up(server, f"its issuer is not good ({problem})" if issuer else "has no issuer")
        raise Refusal(503, "temporarily_unavailable", "Sign-in is not set up for this server.")

    def _tell_not_set_up(self, server: Server, problem: str) -> None:
        """Writes to the log, once in a while, that nobody can sign in at a server."""
        if server.slug not in self._told:
            self._told[server.slug] = True
            log.error(
                "server %s needs sign-in (%s) and %s: set its oauth_issuer_url, or STEPSTREAM_OAUTH_ISSUER "
                "for all",
                server.slug,
                server.auth_type,
                problem,
            )

    def verifier(self, server: Server) -> Verifier:
        """What verifies the tokens of a server."""
        return Verifier(self._issuers, self._issuer(server), self.resource(server), server)

    async def _enter_signed_in(
        self, server: Server, tracking_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if tracking_id is not None:
            raise Refusal(
                404,
                "not_found",
                f"People sign in at this server: connect to /mcp/{server.slug} with a token.",
            )
        verifier = self.verifier(server)
        token = _bearer_token(Request(scope))
        if token is None:
            await self._challenge(server, None)(scope, receive, send)
            return
        try:
            verified = await verifier.verify_token(token)
        except TokenRefusedError as error:
            await self._challenge(server, error)(scope, receive, send)
            return
        except IssuerAwayError as error:
            self._unverified.warn(f"{server.slug} ({error})")
            raise Refusal(
                503, "temporarily_unavailable", "Tokens cannot be verified right now. Try again.", 5
            ) from None
        who = identity_of(verified)
        await self._rates.check_person(server.slug, who.issuer, who.subject)
        scope[_CALLER] = Caller(server, identity=who, address=client_of_scope(scope))
        scope["user"] = AuthenticatedUser(verified)
        await self._stateless(scope, receive, send)

    def _challenge(self, server: Server, refused: TokenRefusedError | None) -> Response:
        """Where and how to sign in (RFC 6750, section 3; RFC 9728, section 5.1), and why a token is refused.

        Who sent no token gets no code of an error.
        """
        why = f"The token is not good for this server. {refused}" if refused else "People sign in here."
        told = {
            "error": "invalid_token" if refused else None,
            "error_description": why if refused else None,
            "scope": " ".join(self._settings.scopes_at(server.slug)),
            "resource_metadata": build_resource_metadata_url(AnyHttpUrl(self.resource(server))),
        }
        parameters = ", ".join(f'{name}="{value}"' for name, value in told.items() if value)
        return JSONResponse(
            {"error": "invalid_token", "error_description": why},
            status_code=401,
            headers={"WWW-Authenticate": f"Bearer {parameters}"},
        )

    async def _enter(
        self, server: Server, tracking_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        request = Request(scope)
        if tracking_id is not None and (problem := problem_of_tracking_id(tracking_id)):
            raise Refusal(404, "not_found", f"This is no address of a person: {problem}.")
        if tracking_id is not None:
            await self._rates.check_person(server.slug, tracking_id)
            scope[_CALLER] = Caller(server, tracking_id=tracking_id, address=client_of_scope(scope))
            await self._stateless(scope, receive, send)
            return
        session = request.headers.get("mcp-session-id")
        if session is not None:
            # Those that ended count for themselves too: after a restart all of an address come with theirs.
            # Who makes ids up gets 404, as often as an address may call; what can be none of ours counts
            # together.
            is_session = session.encode("latin-1") in self._sessions or session_named_in(scope) is not None
            await self._rates.check_person(
                server.slug, session if is_session else f"at {client_of_scope(scope)}"
            )
        # Nothing says yet who anybody else is, and many share an address. A `visitor` is counted later.
        scope[_CALLER] = Caller(server, address=client_of_scope(scope))
        # The SDK lets only the principal that opened a session use it: here all of a server.
        token = AccessToken(token="", client_id=server.slug, scopes=[])
        scope["user"] = AuthenticatedUser(token)
        await self._sessions(scope, receive, send)

    async def _count_visitor(self, caller: Caller) -> None:
        """Counts a call of somebody whose id is in its arguments.

        Raises:
            MCPError: there were too many.
        """
        assert caller.tracking_id is not None  # noqa: S101 - it is the visitor id
        try:
            await self._rates.check_person(caller.server.slug, caller.tracking_id)
        except Refusal as refusal:
            MCP_REFUSED.labels(refusal.reason).inc()
            raise MCPError(INVALID_REQUEST, str(refusal), {"reason": refusal.reason}) from None


def _bearer_token(request: Request) -> str | None:
    """The token of a request (RFC 6750, section 2.1), or nothing."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def identity_of(token: AccessToken) -> Identity:
    """Who a verified token is of."""
    claims: dict[str, Any] = token.claims or {}
    email = claims.get("email")
    has_email = isinstance(email, str) and can_be_stored(email)
    assert token.subject is not None  # noqa: S101 - the verifier requires it
    return Identity(str(claims["iss"]), token.subject, email if has_email else None)

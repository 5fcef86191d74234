"""What comes in over HTTP: which server, who, whether they may, and how often; then the SDK takes over."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from cachetools import TTLCache
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecurityMiddleware
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from services.runtime import protected_resource
from services.runtime.bounds import OUTAGE_SECONDS, Seldom, client_of_scope
from services.runtime.database import Pool, can_be_stored
from services.runtime.database_errors import is_away
from services.runtime.fair import Asker
from services.runtime.mcp import Context
from services.runtime.settings import Settings
from services.runtime.telemetry import MCP_REFUSED
from services.runtime.tokens import (
    IssuerAwayError,
    Issuers,
    TokenRefusedError,
    Verifier,
    problem_of_issuer,
)
from services.walkthrough_mcp import store
from services.walkthrough_mcp.handlers import build_mcp_server
from services.walkthrough_mcp.offers import AWAY, BUSY
from services.walkthrough_mcp.origins import transport_security
from services.walkthrough_mcp.people import Caller, Identity, Server, problem_of_tracking_id
from services.walkthrough_mcp.rates import Rates, Refusal
from services.walkthrough_mcp.sessions import Bounds, Light, Sessions
from services.walkthrough_mcp.snapshots import Names, Snapshot
from services.walkthrough_mcp.stateless import Stateless, session_named_in
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
            pool,
            caller_of,
            self._count_visitor,
            places,
            count_new=self._count_new,
            together_ms=settings.mcp_together_ms,
            content_bytes=settings.mcp_content_bytes,
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
            *(
                Route(f"/.well-known/oauth-protected-resource/mcp/{{slug}}{end}", self.describe_sign_in)
                for end in ("", "/")
            ),
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
            tracking_id = _tracking_id(request)
            server, snapshot = await self._find_server(_names(request, tracking_id), address)
            caller = Caller(server, address=address, snapshot=snapshot)
            if server.signs_in:
                await self._enter_signed_in(caller, tracking_id, scope, receive, send)
            else:
                await self._enter(caller, tracking_id, scope, receive, send)
        except Refusal as refusal:
            MCP_REFUSED.labels(refusal.reason).inc()
            await refusal.response()(scope, receive, send)

    async def describe_sign_in(self, request: Request) -> Response:
        """Protected resource metadata (RFC 9728): which issuer gives out tokens for a server."""
        try:
            address = client_of_scope(request.scope)
            await self._rates.check_address(address)
            server, _ = await self._find_server(Names(request.path_params["slug"]), address)
            if not server.signs_in:
                raise Refusal(404, "not_found", "Nobody signs in at this server; connect without a token.")
            if not self._written_issuer(server):
                self._tell_not_set_up(server, "has no issuer")
                raise Refusal(404, "no_issuer", _NO_ISSUER)
            issuer = self._issuer(server)
        except Refusal as refusal:
            MCP_REFUSED.labels(refusal.reason).inc()
            return refusal.response()
        scopes = self._settings.scopes_at(server.slug)
        return await protected_resource.describe(request, self.resource(server), issuer, scopes, server.name)

    def resource(self, server: Server) -> str:
        """The address of a server: the audience that its tokens must have."""
        return f"{self._settings.public_url.rstrip('/')}/mcp/{server.slug}"

    async def _find_server(self, names: Names, address: str) -> tuple[Server, Snapshot | None]:
        slug = names.slug
        if slug not in self._known:  # who asks for others too often finds those that exist all the same
            await self._rates.check_failures(address)
        found = None
        if can_be_stored(slug):
            try:
                async with self._place(slug, address):
                    found = await store.enter(self._pool(), names)
            except CrowdedError as error:
                raise Refusal(429, "busy", str(error), 2) from None
            except BusyError:
                raise Refusal(503, "busy", BUSY, 2) from None
            except Exception as error:
                if not is_away(error):
                    raise
                self._away.warn(type(error).__name__)
                raise Refusal(503, "temporarily_unavailable", AWAY, 2) from None
        if found is None:
            self._known.pop(slug, None)
            await self._rates.fail(address)
            raise Refusal(404, "not_found", "There is no MCP server at this address.")
        self._known[slug] = found[0].asker
        return found

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
        return Verifier(self._issuers, self._issuer(server), self.resource(server), server.slug)

    async def _enter_signed_in(
        self, caller: Caller, tracking_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        server = caller.server
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
        scope[_CALLER] = replace(caller, identity=who)
        scope["user"] = AuthenticatedUser(verified)
        await self._stateless(scope, receive, send)

    def _challenge(self, server: Server, refused: TokenRefusedError | None) -> Response:
        """Where and how to sign in (RFC 6750, section 3; RFC 9728, section 5.1), and why a token is refused.

        Who sent no token gets no code of an error.
        """
        why = f"The token is not good for this server. {refused}" if refused else "People sign in here."
        told = protected_resource.challenge(
            self.resource(server), self._settings.scopes_at(server.slug), why if refused else None
        )
        return JSONResponse(
            {"error": "invalid_token", "error_description": why},
            status_code=401,
            headers={"WWW-Authenticate": told},
        )

    async def _enter(
        self, caller: Caller, tracking_id: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        request, server = Request(scope), caller.server
        if tracking_id is not None and (problem := problem_of_tracking_id(tracking_id)):
            raise Refusal(404, "not_found", f"This is no address of a person: {problem}.")
        if tracking_id is not None:
            await self._rates.check_person(server.slug, tracking_id)
            scope[_CALLER] = replace(caller, tracking_id=tracking_id)
            await self._stateless(scope, receive, send)
            return
        session = request.headers.get("mcp-session-id")
        if session is not None:
            # Those that ended count for themselves too: after a restart all of an address come with theirs.
            # Who makes ids up gets 404, as often as an address may call; what can be none of ours counts
            # together.
            is_session = session.encode("latin-1") in self._sessions or session_named_in(scope) is not None
            await self._rates.check_person(server.slug, session if is_session else f"at {caller.address}")
        # Nothing says yet who anybody else is, and many share an address. A `visitor` is counted later.
        scope[_CALLER] = caller
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
        with _as_errors():
            await self._rates.check_person(caller.server.slug, caller.tracking_id)

    async def _count_new(self, caller: Caller) -> None:
        """Counts a person who is new.

        Raises:
            MCPError: there were too many.
        """
        with _as_errors():
            await self._rates.check_new_person(
                caller.server.slug, None if caller.identity else caller.address
            )


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    """Makes a refusal an error of JSON-RPC: a tool runs already."""
    try:
        yield
    except Refusal as refusal:
        MCP_REFUSED.labels(refusal.reason).inc()
        data = {"reason": refusal.reason, "retry_after": refusal.retry_after}
        raise MCPError(INVALID_REQUEST, str(refusal), data) from None


def _tracking_id(request: Request) -> str | None:
    """The tracking id in a path, or nothing. A slash at the end, as people add one, is no part of it."""
    tracking_id = str(request.path_params.get("tracking_id", ""))
    if request.scope.get("raw_path", b"").endswith(b"/"):  # one that belongs to it is written as %2F
        tracking_id = tracking_id.removesuffix("/")
    return tracking_id or None


def _names(request: Request, tracking_id: str | None) -> Names:
    """What a request says of who calls before anybody has looked at it."""
    version = request.headers.get("mcp-protocol-version")
    has_session = version is None or version in HANDSHAKE_PROTOCOL_VERSIONS
    return Names(
        request.path_params["slug"],
        tracking_id if tracking_id is None or problem_of_tracking_id(tracking_id) is None else None,
        session=session_named_in(request.scope) if has_session else None,
    )


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

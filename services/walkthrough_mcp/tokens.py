"""Bearer tokens: JWTs signed by a key of the issuer, for this server, not expired."""

import asyncio
import logging
from typing import Any, Final

import httpx2
import jwt
from cachetools import TTLCache
from mcp.server.auth.provider import AccessToken

from services.runtime.database import can_be_stored
from services.walkthrough_mcp.people import Server

log = logging.getLogger("stepstream.mcp")

#: Signatures that only the issuer can make; never a shared secret, never none.
ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
#: How far clocks may differ, in seconds.
LEEWAY_SECONDS: Final = 30
_TIMEOUT_SECONDS: Final = 5.0
#: How long an issuer that could not be reached is left alone, and of how many that is known.
_AWAY_SECONDS: Final = 2.0
_MOST_AWAY: Final = 1_000
_MAX_METADATA_BYTES: Final = 256 * 1024
#: What an index of PostgreSQL takes, with the issuer beside it.
_MAX_SUBJECT_BYTES: Final = 1000


class IssuerAwayError(Exception):
    """The issuer's keys cannot be had right now: nobody can tell whether a token is good."""


def problem_of_issuer(text: str) -> str | None:
    """Why a text can be no issuer: in words that do not repeat it, for it may hold a password."""
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL:
        return "it is no URL"
    if url.scheme not in {"https", "http"} or not url.host:
        return "it is no URL that begins with https:// or http://"
    if url.userinfo:
        return "it holds a user or a password, which everybody would be shown"
    if url.port is not None and not 0 < url.port < 65_536:
        return "its port is none"
    return None


class Issuers:
    """The signing keys of issuers, found through their metadata and kept for a while."""

    def __init__(self) -> None:
        self._keys: dict[str, jwt.PyJWKClient] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        #: Issuers that could not be reached a moment ago, and why: nobody asks them again so soon.
        self._away: TTLCache[str, str] = TTLCache(_MOST_AWAY, _AWAY_SECONDS)

    async def key(self, issuer: str, token: str) -> Any:
        """The key that the token names.

        Raises:
            IssuerAwayError: the issuer, or its keys, cannot be reached.
            jwt.PyJWTError: the token is none, or names no key of the issuer.
        """
        jwt.get_unverified_header(token)  # what is no token is no reason to ask the issuer
        # One at a time: an issuer that hangs holds up its own tokens, and one thread.
        async with self._locks.setdefault(issuer, asyncio.Lock()):
            if (reason := self._away.get(issuer)) is not None:
                raise IssuerAwayError(reason)
            try:
                if issuer not in self._keys:
                    uri = await _find_jwks(issuer)
                    self._keys[issuer] = jwt.PyJWKClient(uri, lifespan=600, timeout=_TIMEOUT_SECONDS)
                signing = await asyncio.to_thread(self._keys[issuer].get_signing_key_from_jwt, token)
            except (jwt.PyJWKClientConnectionError, IssuerAwayError) as error:
                self._away[issuer] = str(error)
                raise IssuerAwayError(str(error)) from error
        return signing.key


async def _find_jwks(issuer: str) -> str:
    """The address of an issuer's keys, from its metadata (RFC 8414, then OpenID Connect Discovery)."""
    url = httpx2.URL(issuer)
    path = url.path.rstrip("/")
    places = (
        url.copy_with(path=f"/.well-known/oauth-authorization-server{path}"),
        url.copy_with(path=f"{path}/.well-known/openid-configuration"),
    )
    reason = "no metadata"
    async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, follow_redirects=False) as client:
        for place in places:
            try:
                answer = await client.get(place)
                metadata = answer.json() if answer.status_code == 200 else None
            except (httpx2.HTTPError, ValueError) as error:
                reason = type(error).__name__
                continue
            if not isinstance(metadata, dict) or len(answer.content) > _MAX_METADATA_BYTES:
                continue
            if str(metadata.get("issuer", "")).rstrip("/") != issuer.rstrip("/"):
                reason = "its metadata names another issuer"
                continue
            if isinstance(uri := metadata.get("jwks_uri"), str):
                return uri
    raise IssuerAwayError(f"the keys of {issuer} cannot be found: {reason}")


def _can_be_subject(text: str) -> bool:
    return can_be_stored(text) and len(text.encode()) <= _MAX_SUBJECT_BYTES


class Verifier:
    """Verifies the tokens of one server: the SDK's token verifier.

    `resource` is the server's address, which the token must have as an audience (RFC 8707, RFC 9068), so
    that a token for one server opens no other.
    """

    def __init__(self, issuers: Issuers, issuer: str, resource: str, server: Server) -> None:
        self._issuers = issuers
        self._issuer = issuer
        self._resource = resource
        self._server = server

    async def verify_token(self, token: str) -> AccessToken | None:
        """Who the token is of; None when it is not good.

        Raises:
            IssuerAwayError: that cannot be told right now.
        """
        try:
            key = await self._issuers.key(self._issuer, token)
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=[self._resource, self._resource + "/"],
                issuer=[self._issuer.rstrip("/"), self._issuer.rstrip("/") + "/"],
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            if not _can_be_subject(str(claims["sub"])):
                raise jwt.InvalidTokenError("no row can have this sub")
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.info("a token for %s was refused: %s", self._server.slug, type(error).__name__)
            return None
        client = str(claims.get("client_id") or claims.get("azp") or "")
        return AccessToken(
            token="",  # nobody needs it any more, so it is in no log and no core dump
            client_id=f"{self._server.slug} {client}",
            scopes=str(claims.get("scope", "")).split(),
            expires_at=int(claims["exp"]) + LEEWAY_SECONDS,
            resource=self._resource,
            subject=str(claims["sub"]),
            claims={"iss": self._issuer.rstrip("/"), "email": claims.get("email")},
        )

"""Bearer tokens: JWTs signed by a key of the issuer, for this address, not expired."""

import asyncio
import functools
import json
import logging
import ssl
import time
import unicodedata
from typing import Any, Final

import httpx2
import jwt
from cachetools import TTLCache
from mcp.server.auth.provider import AccessToken

from services.runtime.bounds import Seldom

log = logging.getLogger("stepstream.mcp")

#: Signatures that only the issuer can make; never a shared secret, never none.
ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
#: How far clocks may differ, in seconds.
LEEWAY_SECONDS: Final = 30
#: How long an issuer may take for an answer, from its first byte to its last.
_TIMEOUT_SECONDS: Final = 5.0
#: How long its keys are good, and how long after they were read a token may not have them read again.
_KEYS_SECONDS: Final = 600.0
_LOOK_AGAIN_SECONDS: Final = 30.0
#: How long an issuer that could not be reached is left alone, and of how many that is known.
_AWAY_SECONDS: Final = 2.0
_MOST_AWAY: Final = 1_000
_MAX_BYTES: Final = 256 * 1024
#: What is raised where keys cannot be read, whatever stands in their place.
_NO_KEYS: Final = (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, jwt.PyJWTError)
#: What an index of PostgreSQL takes, with the issuer beside it.
_MAX_SUBJECT_BYTES: Final = 1000
#: Categories of Unicode that are in no subject: control characters, and halves of surrogate pairs.
_NO_CHARACTERS: Final = frozenset({"Cc", "Cs"})
#: Why a token is refused whose signature is good, and any other.
_REFUSALS: Final[dict[type[Exception], str]] = {
    jwt.ExpiredSignatureError: "It has expired.",
    jwt.ImmatureSignatureError: "It is not valid yet.",
    jwt.InvalidAudienceError: "It is for another address than this one: its aud is not this server.",
    jwt.InvalidIssuerError: "Its iss is not the issuer of this server.",
    jwt.exceptions.InvalidSubjectError: "Its sub is no text.",
}
_NO_TOKEN: Final = "It is no JWT that the server's issuer signed."  # noqa: S105 - a sentence


class TokenRefusedError(Exception):
    """A token is not good; the message is a sentence that says why, and repeats nothing of the token."""


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


class _Keys:
    """The signing keys of an issuer, as they were read."""

    def __init__(self, uri: str, keys: dict[str, Any]) -> None:
        self.uri = uri
        self._read_at = time.monotonic()
        self._keys = keys

    def find(self, name: Any) -> Any:
        """The key of that name, as long as these are good."""
        is_known = isinstance(name, str) and self._age < _KEYS_SECONDS
        return self._keys.get(name) if is_known else None

    @property
    def is_new(self) -> bool:
        """Whether a key that is not among them is none of the issuer's."""
        return self._age < _LOOK_AGAIN_SECONDS

    @property
    def _age(self) -> float:
        return time.monotonic() - self._read_at


class Issuers:
    """The signing keys of issuers, found through their metadata and kept for a while.

    No thread waits for an issuer: there are few, and one that drips its answer would keep it.
    """

    def __init__(self) -> None:
        self._keys: dict[str, _Keys] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        #: Issuers that could not be reached a moment ago, and why: nobody asks them again so soon.
        self._away: TTLCache[str, str] = TTLCache(_MOST_AWAY, _AWAY_SECONDS)
        #: Anybody can send any number of tokens that are none: a line for each would fill the log.
        self.refused = Seldom(log, "tokens were refused")

    async def key(self, issuer: str, token: str) -> Any:
        """The key that the token names.

        Raises:
            IssuerAwayError: the issuer, or its keys, cannot be reached.
            jwt.PyJWTError: the token is none, or names no key of the issuer.
        """
        name = jwt.get_unverified_header(token).get("kid")  # what is no token is no reason to ask the issuer
        if (key := self._find(issuer, name)) is not None:
            return key
        # One at a time: an issuer that hangs holds up its own tokens, and those alone whose key is not known.
        async with self._locks.setdefault(issuer, asyncio.Lock()):
            if (key := self._find(issuer, name)) is not None:
                return key
            if (reason := self._away.get(issuer)) is not None:
                raise IssuerAwayError(reason)
            known = self._keys.get(issuer)
            if known is None or not known.is_new:
                try:
                    self._keys[issuer] = await _look_for(issuer, name, known.uri if known else None)
                except IssuerAwayError as error:
                    self._away[issuer] = str(error)
                    raise
        if (key := self._find(issuer, name)) is None:
            raise jwt.InvalidKeyError("the issuer has no key of that name")
        return key

    def _find(self, issuer: str, name: Any) -> Any:
        known = self._keys.get(issuer)
        return known.find(name) if known else None


async def _look_for(issuer: str, name: Any, uri: str | None) -> _Keys:
    """The issuer's keys, from where they were before, and from where its metadata says they are now.

    Where they are is looked up anew when the key of that name is not there: issuers move their keys.

    Raises:
        IssuerAwayError: they cannot be had.
    """
    if uri is None:
        return await _keys_at(await _find_jwks(issuer))
    try:
        before = await _keys_at(uri)
    except IssuerAwayError as error:
        now = await _find_jwks(issuer)
        if now == uri:
            raise error from None
        return await _keys_at(now)
    if before.find(name) is not None:
        return before
    try:
        now = await _find_jwks(issuer)
        return before if now == uri else await _keys_at(now)
    except IssuerAwayError:
        return before


async def _keys_at(uri: str) -> _Keys:
    return _Keys(uri, await _read_keys(uri))


async def _read_keys(uri: str) -> dict[str, Any]:
    """The keys at an address, by name.

    Raises:
        IssuerAwayError: they cannot be had, or there is none to verify with.
    """
    try:
        given = (await _read(uri)).get("keys")
    except _NO_KEYS as error:
        raise IssuerAwayError(f"its keys cannot be read: {type(error).__name__}") from error
    keys = {}
    for one in given if isinstance(given, list) else []:
        if (key := _key_to_verify_with(one)) is not None:
            keys[one["kid"]] = key
    if not keys:
        raise IssuerAwayError("its keys cannot be read: there is none with a name to verify signatures with")
    return keys


def _key_to_verify_with(given: Any) -> Any:
    """The public key that a JWK is, if it is one for signatures and has a name; secrets are none."""
    if not isinstance(given, dict) or not isinstance(name := given.get("kid"), str) or not name:
        return None
    if (use := given.get("use")) is not None and use != "sig":
        return None
    try:
        key = jwt.PyJWK.from_dict(given).key
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None
    return key if hasattr(key, "verify") else None


async def _find_jwks(issuer: str) -> str:
    """The address of an issuer's keys, from its metadata (RFC 8414, then OpenID Connect Discovery)."""
    url = httpx2.URL(issuer)
    path = url.path.rstrip("/")
    places = (
        url.copy_with(path=f"/.well-known/oauth-authorization-server{path}"),
        url.copy_with(path=f"{path}/.well-known/openid-configuration"),
    )
    reasons: list[str] = []
    for place in places:
        try:
            metadata = await _read(place)
        except (httpx2.HTTPError, OSError, ValueError) as error:
            reasons.append(type(error).__name__)
            continue
        named, uri = str(metadata.get("issuer", "")), metadata.get("jwks_uri")
        if named != issuer:  # character by character (RFC 8414, section 3.3)
            is_near = named.rstrip("/") == issuer.rstrip("/")
            which = ", which differs by a slash at the end" if is_near else ""
            reasons.append(f"its metadata names another issuer{which}")
        elif not isinstance(uri, str):
            reasons.append("its metadata names no keys")
        elif url.scheme == "https" and not uri.lower().startswith("https://"):
            # Else whoever runs an issuer has us ask any plain HTTP service of the network that we are in.
            reasons.append("its metadata names keys without TLS")
        else:
            return uri
    raise IssuerAwayError(f"the keys of {issuer} cannot be found: {'; '.join(dict.fromkeys(reasons))}")


@functools.cache
def _tls() -> ssl.SSLContext:
    """The authorities that are trusted, read once: that takes longer than a request."""
    return httpx2.create_ssl_context()


async def _read(url: httpx2.URL | str) -> dict[str, Any]:
    """The object at an address: in time, whatever pace it comes at, and no more than may be.

    Raises:
        httpx2.HTTPError: there is no good answer.
        TimeoutError: it took too long.
        ValueError: it is no object, too large, or nested too deeply.
    """
    read = bytearray()
    async with (
        asyncio.timeout(_TIMEOUT_SECONDS),
        httpx2.AsyncClient(
            verify=_tls(),
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=False,
            headers={"accept-encoding": "identity"},
        ) as client,
        client.stream("GET", url) as answer,
    ):
        if answer.status_code != 200:
            raise httpx2.HTTPError(f"status {answer.status_code}")
        async for part in answer.aiter_raw():  # as it came: what is compressed may be of any size
            read += part
            if len(read) > _MAX_BYTES:
                raise ValueError("it is too large")
    try:
        found = json.loads(read)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no object")  # noqa: TRY004 - as what is no JSON at all
    return found


def _name_of_issuer(issuer: str) -> str:
    """Under which name an issuer's people are kept: without a slash at the end.

    So they are in the database since both spellings were taken for one issuer. It confuses nobody: both have
    their metadata at the same place, which names one of them, and the tokens of the other are refused.
    """
    return issuer.rstrip("/")


def _problem_of_subject(subject: str) -> str | None:
    """Why a text can be nobody's subject."""
    if not subject.strip():
        return "Its sub is empty."
    if any(unicodedata.category(character) in _NO_CHARACTERS for character in subject):
        return "Its sub holds control characters."
    is_long = len(subject.encode()) > _MAX_SUBJECT_BYTES
    return f"Its sub is longer than {_MAX_SUBJECT_BYTES} bytes." if is_long else None


def _why_refused(error: Exception) -> str:
    """Why a token is refused, in a sentence for who sent it and for the log."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"It has no {error.claim}."
    return next((why for kind, why in _REFUSALS.items() if isinstance(error, kind)), _NO_TOKEN)


class Verifier:
    """Verifies the tokens of one server.

    `resource` is the server's address, which the token must have as an audience (RFC 8707, RFC 9068), so
    that a token for one server opens no other. `name` is the server's in the log.
    """

    def __init__(self, issuers: Issuers, issuer: str, resource: str, name: str) -> None:
        self._issuers = issuers
        self._issuer = issuer
        self._resource = resource
        self._name = name

    async def verify_token(self, token: str) -> AccessToken:
        """Who the token is of.

        Raises:
            TokenRefusedError: it is not good.
            IssuerAwayError: that cannot be told right now.
        """
        claims = await self.claims(token)
        client = str(claims.get("client_id") or claims.get("azp") or "")
        return AccessToken(
            token="",  # nobody needs it any more, so it is in no log and no core dump
            client_id=f"{self._name} {client}",
            scopes=str(claims.get("scope", "")).split(),
            expires_at=int(claims["exp"]) + LEEWAY_SECONDS,
            resource=self._resource,
            subject=claims["sub"],
            claims={"iss": _name_of_issuer(self._issuer), "email": claims.get("email")},
        )

    async def claims(self, token: str) -> dict[str, Any]:
        """What the token says.

        Raises:
            TokenRefusedError: it is not good.
            IssuerAwayError: that cannot be told right now.
        """
        try:
            return await self._claims_of(token)
        except TokenRefusedError as error:
            self._issuers.refused.warn(f"{self._name} ({error})")
            raise

    async def _claims_of(self, token: str) -> dict[str, Any]:
        try:
            key = await self._issuers.key(self._issuer, token)
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=[self._resource, self._resource + "/"],
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise TokenRefusedError(_why_refused(error)) from None
        if (problem := _problem_of_subject(claims["sub"])) is not None:
            raise TokenRefusedError(problem)
        return claims

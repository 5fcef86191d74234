"""Agents of analysts sign in at /mcp/analytics: with a token, in which a claim names the organization."""

import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from services.analytics_api.problems import ProblemError, respond
from services.runtime import protected_resource
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database import can_be_stored
from services.runtime.errors import ConfigurationError
from services.runtime.fair import Asker
from services.runtime.settings import Settings
from services.runtime.tokens import (
    IssuerAwayError,
    Issuers,
    TokenRefusedError,
    Verifier,
    problem_of_issuer,
)

log = logging.getLogger("stepstream.analytics")
PATH: Final = "/mcp/analytics"
METADATA_PATH: Final = f"/.well-known/oauth-protected-resource{PATH}"
#: No id of an organization is longer.
_MOST_ID: Final = 64

#: Whether there is an organization of that id.
Exists = Callable[[str], Awaitable[bool]]


class SignIn:
    """Tells whose agent a token is.

    Args:
        settings: the issuer, and the claim that names the organization.
        exists: whether there is an organization of an id.

    Raises:
        ConfigurationError: the issuer is none.
    """

    def __init__(self, settings: Settings, exists: Exists) -> None:
        self._issuer = settings.api_oauth_issuer
        if self._issuer and (problem := problem_of_issuer(self._issuer)) is not None:
            raise ConfigurationError(f"STEPSTREAM_API_OAUTH_ISSUER: {problem}")
        self._resource = settings.api_public_url.rstrip("/") + PATH
        self._scopes = settings.api_oauth_scopes.split()
        self._claim = settings.api_oauth_organization_claim
        self._exists = exists
        self._verifier = Verifier(Issuers(), self._issuer, self._resource, "analytics")
        self._away = Seldom(log, "tokens could not be verified", OUTAGE_SECONDS)

    def takes(self, request: Request, text: str) -> bool:
        """Whether what a request has as its key is a token."""
        return self.is_at(request) and text.count(".") == 2

    def is_at(self, request: Request) -> bool:
        """Whether whoever makes a request may sign in."""
        return bool(self._issuer) and request.url.path == PATH

    def challenge(self, refused: str | None) -> ProblemError:
        """That a key or a token is needed, and where to sign in; `refused` is why what came is not good."""
        told = protected_resource.challenge(self._resource, self._scopes, refused)
        detail = refused or "sign in, or send an API key: `Authorization: Bearer KEY`"
        return ProblemError(
            401, "No key" if refused is None else "No good token", detail, {"WWW-Authenticate": told}
        )

    async def describe(self, request: Request) -> Response:
        """Where to sign in (RFC 9728)."""
        if not self._issuer:
            return respond(
                ProblemError(404, "Not found", "nobody signs in here: agents come with an API key")
            )
        return await protected_resource.describe(
            request, self._resource, self._issuer, self._scopes, "Walkthrough analytics"
        )

    async def asker(self, token: str) -> Asker:
        """Who asks: the person, and the organization that the token's claim names.

        Raises:
            ProblemError: the token is not good, or names no organization that there is.
        """
        try:
            claims = await self._verifier.claims(token)
        except TokenRefusedError as error:
            raise self.challenge(f"The token is not good here. {error}") from None
        except IssuerAwayError as error:
            self._away.warn(str(error))
            raise ProblemError(
                503, "Issuer away", "tokens cannot be verified right now: try again", {"Retry-After": "5"}
            ) from None
        organization = self._organization(claims)
        if not await self._exists(organization):
            raise self._forbidden(
                f"the claim `{self._claim}` of the token names no organization that there is"
            )
        who = hashlib.sha256(f"{self._issuer}\0{claims['sub']}".encode()).hexdigest()[:32]
        return Asker(f"token {who}", organization)

    def _organization(self, claims: dict[str, Any]) -> str:
        named = claims.get(self._claim)
        if isinstance(named, list) and len(named) == 1:
            (named,) = named
        if isinstance(named, list):
            raise self._forbidden(
                f"the claim `{self._claim}` of the token names {len(named)} organizations: ask for a "
                "token of one"
            )
        if not isinstance(named, str) or not 0 < len(named) <= _MOST_ID or not can_be_stored(named):
            raise self._forbidden(f"the token has no claim `{self._claim}` with the id of an organization")
        return named

    @staticmethod
    def _forbidden(why: str) -> ProblemError:
        return ProblemError(403, "No organization", why)

"""Who calls: decided by how the server tells people apart, before any tool runs."""

import secrets
from dataclasses import dataclass

from services.runtime.fair import Asker

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True, slots=True)
class Server:
    """An MCP server of the platform. Without sign-in, people are told apart by tracking id or session."""

    id: str
    organization_id: str
    slug: str
    name: str
    auth_type: str
    oauth_issuer_url: str | None
    tools_enabled: bool

    @property
    def signs_in(self) -> bool:
        """Whether people prove who they are with a token; every kind but `none` does."""
        return self.auth_type != "none"

    @property
    def asker(self) -> Asker:
        """Who it is where calls take turns."""
        return Asker(self.id, self.organization_id)


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who has signed in: a subject of an issuer."""

    issuer: str
    subject: str
    email: str | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """On which server somebody calls, and what is known of who it is.

    `identity` (signed in) says who, else `tracking_id` (in the path, or given back as `visitor`), else
    `transport_session` (of the protocols with sessions). With none of them a first call makes a new anonymous
    person, who gets a tracking id to come back with.
    """

    server: Server
    identity: Identity | None = None
    tracking_id: str | None = None
    transport_session: str | None = None
    #: A `visitor` has been at this server; a tracking id in the path may be new, or of all servers.
    must_exist: bool = False
    #: Where the call comes from; empty over stdio.
    address: str = ""

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing outside the calls says for good who it is: sessions end, `visitor` ids do not."""
        return self.identity is None and (self.tracking_id is None or self.must_exist)


def new_id(prefix: str, length: int) -> str:
    """An id as the platform makes them: a prefix and random letters and digits."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_tracking_id() -> str:
    """A tracking id that nobody can guess."""
    return "visitor_" + secrets.token_urlsafe(24)


def problem_of_tracking_id(text: str) -> str | None:
    """Why a text can be no tracking id."""
    if not 1 <= len(text) <= 200:
        return "a tracking id has 1 to 200 characters"
    if not text.isprintable():
        return "a tracking id holds no control characters"
    return None

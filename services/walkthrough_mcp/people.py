"""Who calls: decided by how the server tells people apart, before any tool runs."""

import secrets
from dataclasses import dataclass, field
from typing import NamedTuple

from services.runtime.fair import Asker
from services.runtime.titles import one_line
from services.walkthrough_mcp.snapshots import Snapshot

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@dataclass(frozen=True, slots=True)
class Server:
    """An MCP server of the platform. Without sign-in, people are told apart by tracking id or session.

    `product` is what its walkthroughs are about: a platform, or a tool.
    """

    id: str
    organization_id: str
    slug: str
    name: str
    product: str
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


#: Of a client's name and of its version, in characters.
_CLIENT = 100


class Client(NamedTuple):
    """What an agent calls itself. Nobody has checked it."""

    name: str
    version: str | None

    @classmethod
    def named(cls, name: str, version: str = "") -> "Client | None":
        """A client by what it told: on one line, cut at so many characters. None where nothing is left."""
        name, version = (one_line(_printable(text[:1_000]), _CLIENT) for text in (name, version))
        return cls(name, version or None) if name else None

    @classmethod
    def of_user_agent(cls, header: str) -> "Client | None":
        """By the first product of a User-Agent header (RFC 9110), for agents that tell nothing else."""
        name, _, version = header.strip().partition(" ")[0].partition("/")
        return cls.named(name, version)


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
    #: What was seen when the server was looked for. Over stdio each call looks by itself.
    snapshot: Snapshot | None = field(default=None, compare=False, repr=False)

    @property
    def is_anonymous(self) -> bool:
        """Whether nothing outside the calls says for good who it is: sessions end, `visitor` ids do not."""
        return self.identity is None and (self.tracking_id is None or self.must_exist)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


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
    if "\ufffd" in text:  # what stands for bytes that are no UTF-8, whichever these were
        return "a tracking id is UTF-8"
    return None

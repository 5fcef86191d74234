"""Who asks: the API key of an organization, and how often it may."""

import hashlib
import hmac
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Final

import limits
from cachetools import LRUCache
from starlette.requests import Request

from services.analytics_api.fair import Rates
from services.analytics_api.problems import ProblemError
from services.analytics_api.sign_in import SignIn
from services.analytics_api.store import Store
from services.runtime.api_keys import hash_of, parts_of
from services.runtime.bounds import client_of_scope
from services.runtime.database import can_be_stored
from services.runtime.errors import ConfigurationError
from services.runtime.fair import Asker, Writing
from services.runtime.settings import Settings

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="stepstream"'}
_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
#: What a key that does not exist is compared with, so that it takes as long as one that does.
_NOBODY: Final = bytes(32)
#: So many keys that were good lately are known.
_MOST_GOOD: Final = 20_000
#: So many ids of keys are read, the newest, and not again before so many seconds.
_MOST_IDS: Final = 50_000
_IDS_SECONDS: Final = 5.0


def _rate(name: str, text: str) -> limits.RateLimitItem | None:
    try:
        return limits.parse(text) if text else None
    except ValueError as error:
        raise ConfigurationError(
            f"STEPSTREAM_{name.upper()}: `{text}` is no rate; 600/minute is one"
        ) from error


_NOTHING_TAKEN: Final = "nothing was taken: wait, then send it again"
#: Where something comes in.
WRITING_PATHS: Final = frozenset({"/v1/people", "/v1/sessions", "/v1/events"})


def is_for_writing(request: Request) -> bool:
    """Whether a request brings something in, so that what it brings is counted, and not the request."""
    return request.method == "POST" and request.url.path in WRITING_PATHS


def denied(detail: str) -> ProblemError:
    """Without a key that is good there are no data."""
    return ProblemError(401, "No key", detail, _CHALLENGE)


class KeysAndRates:
    """Checks keys and rates; rates are counted in this process.

    A key that was good lately is looked up each time, so that it is refused as soon as it is revoked, but
    only while its rate allows it. Any other key costs its address one of a few look-ups. When those are used
    up, a key is looked up only where its id is that of some key: whoever guesses shuts out nobody who comes
    from the same address, a proxy's say.
    """

    def __init__(self, settings: Settings, store: Callable[[], Store]) -> None:
        self._store = store
        self.sign_in = SignIn(settings, lambda organization: store().has_organization(organization))
        self._rates = Rates()
        self._key_rate = _rate("api_key_rate", settings.api_key_rate)
        self._organization_rate = _rate("api_organization_rate", settings.api_organization_rate)
        self._write_rate = _rate("api_write_rate", settings.api_write_rate)
        self._failure_rate = _rate("api_failure_rate", settings.api_failure_rate)
        self._good: LRUCache[bytes, Asker] = LRUCache(_MOST_GOOD)
        self._ids: set[str] = set()
        self._ids_at = -math.inf

    async def arrive(self, request: Request) -> Asker:
        """Who comes, from the headers alone: an asker whose key was good lately, or else an address.

        Raises:
            ProblemError: there is no key, it was used too often, or too many unknown ones come from there.
        """
        address = client_of_scope(request.scope)
        authorization = request.headers.get("authorization")
        if not authorization:
            if self.sign_in.is_at(request):
                raise self.sign_in.challenge(None)
            raise denied("send an API key: `Authorization: Bearer KEY`. `stepstream keys create` makes one")
        text = _text(authorization)
        known = self._good.get(_digest(text))
        if known is None:
            await self._admit_stranger(text, address)
            return Asker.stranger(address)
        if not is_for_writing(request):
            self._check_asker(known)
        return known

    async def knows_id(self, request: Request) -> bool:
        """Whether the id in a request's key is that of some key."""
        parts = _parts(_text(request.headers["authorization"]))
        return parts is not None and parts[0] in await self._known_ids()

    async def admit(self, request: Request, who: Asker) -> Asker:
        """Whose key, or token, a request has; `who` is what `arrive` said.

        Raises:
            ProblemError: the key is not good, or it was used too often.
        """
        text = _text(request.headers["authorization"])
        asker = await (self._of_token(text) if self.sign_in.takes(request, text) else self.find(text))
        if asker is None and self.sign_in.is_at(request):
            raise self.sign_in.challenge("This is no token, and no API key that is good.")
        if asker is None:
            raise denied("this API key is not good: it is mistyped, expired or revoked")
        if asker != who and not is_for_writing(request):
            self._check_asker(asker)
        return asker

    def check_written(self, asker: Asker, cost: int = 1) -> None:
        """Looks whether so much more may come in now; so that a body is not read for nothing.

        Raises:
            ProblemError: as `count_written`.
        """
        for rate, *name in self._written_by(asker):
            if (left := self._rates.left(rate, time.monotonic(), *name, cost=cost)) is not None:
                raise _too_many(rate, left, "events, people and sessions", _NOTHING_TAKEN)

    def _written_by(self, asker: Asker) -> Iterator[tuple[limits.RateLimitItem, str, str, str]]:
        """The rates that hold for what an asker writes, each with whose it is."""
        if self._write_rate is not None:
            yield self._write_rate, "written", "key", asker.key
            yield _twice(self._write_rate), "written", "organization", asker.organization

    def count_written(self, asker: Asker, items: int) -> None:
        """Counts what came in with one request: events, people or sessions, or by its length; 1 at least.

        What comes in uses up no rate of questions.

        Raises:
            ProblemError: that is more than the key, or its organization, may send; nothing is counted.
        """
        cost = max(1, items)
        self.check_written(asker, cost)
        self.add_written(asker, cost)

    def add_written(self, asker: Asker, cost: int) -> None:
        """Counts what was read for nothing, though it be more than may come in."""
        for rate, *name in self._written_by(asker):
            self._rates.add(rate, time.monotonic(), *name, cost=max(1, cost))

    async def _of_token(self, text: str) -> Asker:
        try:
            asker = await self.sign_in.asker(text)
        except ProblemError as problem:
            if problem.status != 503:  # it may be good: only nobody can tell right now
                self._good.pop(_digest(text), None)
            raise
        self._good[_digest(text)] = asker
        return asker

    async def find(self, text: str) -> Asker | None:
        """Who has the key of that text, if it is good."""
        parts = _parts(text)
        if parts is None:
            return None
        identifier, secret = parts
        stored = await self._store().key(identifier)
        is_right = hmac.compare_digest(hash_of(secret), stored.hash if stored else _NOBODY)
        if stored is None or not is_right or not stored.is_valid:
            self._good.pop(_digest(text), None)
            return None
        asker = stored.asker(identifier)
        self._good[_digest(text)] = asker
        return asker

    async def _admit_stranger(self, text: str, network: str) -> None:
        """Lets a key be looked up that nobody has used lately."""
        left = self._left(self._failure_rate, "address", network)
        if left is None:
            return
        parts = _parts(text)
        if parts is None or parts[0] not in await self._known_ids():
            raise _too_many(self._failure_rate, left)
        self._check(self._failure_rate, "id", network, parts[0])

    async def _known_ids(self) -> set[str]:
        if time.monotonic() - self._ids_at >= _IDS_SECONDS:
            self._ids_at = time.monotonic()  # others go on with what was known
            self._ids = await self._store().key_ids(_MOST_IDS)
        return self._ids

    def _check_asker(self, asker: Asker) -> None:
        self._check(self._key_rate, "key", asker.key)
        self._check(self._organization_rate, "organization", asker.organization)

    def _check(self, rate: limits.RateLimitItem | None, *name: str) -> None:
        if (left := self._left(rate, *name)) is not None:
            raise _too_many(rate, left)

    def _left(self, rate: limits.RateLimitItem | None, *name: str) -> float | None:
        """How many seconds to wait, where that is more often than it may."""
        return None if rate is None else self._rates.hit(rate, time.monotonic(), *name)


def _twice(rate: limits.RateLimitItem) -> limits.RateLimitItem:
    return type(rate)(2 * rate.amount, rate.multiples, rate.namespace)


def may_read(asker: Asker) -> Asker:
    """The asker, who may read.

    Raises:
        ProblemError: its key may write alone.
    """
    if not asker.may_read:
        raise ProblemError(
            403, "Not allowed", "this key may write alone: use one of `stepstream keys create`, or --may-read"
        )
    return asker


def may_write(asker: Asker) -> Writing:
    """What an asker may write.

    Raises:
        ProblemError: its key may read alone.
    """
    if asker.writing is None:
        raise ProblemError(
            403, "Not allowed", "this key may read alone: use one of `stepstream keys create --may-write`"
        )
    return asker.writing


def _too_many(
    rate: limits.RateLimitItem | None,
    left: float,
    what: str = "requests",
    then: str = "wait, then ask again",
) -> ProblemError:
    reason = (
        f"more than {rate.amount:,} {what} in {rate.get_expiry()} seconds" if rate else f"too many {what}"
    )
    return ProblemError(
        429,
        "Too many requests",
        f"{reason}: {then}",
        {"Retry-After": str(max(1, math.ceil(left)))},
    )


def _text(authorization: str) -> str:
    """The key in a header; empty where there is none."""
    match = _BEARER.fullmatch(authorization)
    return match[1] if match else ""


def _parts(text: str) -> tuple[str, str] | None:
    return parts_of(text) if text.isascii() and can_be_stored(text) else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

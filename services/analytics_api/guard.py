"""Who asks: the API key of an organization, and how often it may."""

import hmac
import re
from typing import Final

import limits
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter

from services.analytics_api.problems import ProblemError
from services.analytics_api.store import Key, Store
from services.runtime.api_keys import hash_of, parts_of
from services.runtime.database import can_be_stored
from services.runtime.errors import ConfigurationError
from services.runtime.settings import Settings

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="stepstream"'}
_BEARER: Final = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
#: What a key that does not exist is compared with, so that it takes as long as one that does.
_NOBODY: Final = bytes(32)


def _rate(name: str, text: str) -> limits.RateLimitItem | None:
    try:
        return limits.parse(text) if text else None
    except ValueError as error:
        raise ConfigurationError(
            f"STEPSTREAM_{name.upper()}: `{text}` is no rate; 600/minute is one"
        ) from error


def denied(detail: str) -> ProblemError:
    """Without a key that is good there are no data."""
    return ProblemError(401, "No key", detail, _CHALLENGE)


class Guard:
    """Checks keys and rates; rates are counted in this process."""

    def __init__(self, settings: Settings) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._key_rate = _rate("api_key_rate", settings.api_key_rate)
        self._failure_rate = _rate("api_failure_rate", settings.api_failure_rate)

    async def admit(self, store: Store, authorization: str | None, address: str) -> Key:
        """Whose key it is.

        Raises:
            ProblemError: there is no key, or it is not good, or it was used too often.
        """
        if not authorization:
            raise denied("send an API key: `Authorization: Bearer KEY`. `stepstream keys create` makes one")
        match = _BEARER.fullmatch(authorization)
        key = await self.find(store, match[1]) if match else None
        if key is None:
            # A good key is let in whoever else comes from that address, a proxy's say.
            await self._check(self._failure_rate, "address", address)
            raise denied("this API key is not good: it is mistyped, expired or revoked")
        await self._check(self._key_rate, "key", key.id)
        return key

    async def find(self, store: Store, text: str) -> Key | None:
        """The key of that text, if it is good."""
        parts = parts_of(text)
        if parts is None or not text.isascii() or not can_be_stored(text):
            return None
        identifier, secret = parts
        stored = await store.key(identifier)
        is_right = hmac.compare_digest(hash_of(secret), stored.hash if stored else _NOBODY)
        if stored is None or not is_right or not stored.is_valid:
            return None
        return Key(identifier, stored.organization_id)

    async def _check(self, rate: limits.RateLimitItem | None, *key: str) -> None:
        if rate is not None and not await self._limiter.hit(rate, *key):
            raise ProblemError(
                429,
                "Too many requests",
                f"more than {rate.amount} requests in {rate.get_expiry()} seconds: wait, then ask again",
                {"Retry-After": str(rate.get_expiry())},
            )

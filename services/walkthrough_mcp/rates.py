"""How often an address, and a person, may call, how many new people come, and how a request is refused."""

from typing import Final

import limits
from limits.aio.strategies import FixedWindowRateLimiter
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST
from starlette.responses import JSONResponse, Response

from services.runtime.counters import BoundedStorage
from services.runtime.errors import ConfigurationError
from services.runtime.settings import Settings

#: The most addresses, and people, whose requests are counted.
_MOST_COUNTED: Final = 100_000
_NEW: Final = "new people"
_RATES: Final = (
    "mcp_address_rate",
    "mcp_person_rate",
    "mcp_failure_rate",
    "mcp_new_people_rate",
    "mcp_new_people_address_rate",
    "mcp_new_people_server_rate",
)


class Refusal(Exception):  # noqa: N818 - an answer, and no fault of ours
    """A request that is answered before a tool runs: an HTTP status, a reason, and what to do."""

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    def response(self) -> Response:
        """The answer: its body is a JSON-RPC error, so that clients hand the message on."""
        error = {
            "code": INTERNAL_ERROR if self.status >= 500 else INVALID_REQUEST,
            "message": str(self),
            "data": {"reason": self.reason},
        }
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        body = {"jsonrpc": "2.0", "id": None, "error": error}
        return JSONResponse(body, status_code=self.status, headers=headers)


class Rates:
    """How often an address, and a person, may call: counted in this process.

    Each kind has counters of its own: many people are no way to have an address forgotten.
    """

    def __init__(self, settings: Settings) -> None:
        self._address = _Rate("address", settings.mcp_address_rate)
        self._person = _Rate("person", settings.mcp_person_rate)
        self._failure = _Rate("failure", settings.mcp_failure_rate)
        self._new_of_address_at_server = _Rate("new", settings.mcp_new_people_rate, _NEW)
        self._new_of_address = _Rate("new of address", settings.mcp_new_people_address_rate, _NEW)
        self._new_at_server = _Rate("new at server", settings.mcp_new_people_server_rate, _NEW)

    async def check_address(self, address: str) -> None:
        """Counts a request of an address.

        Raises:
            Refusal: there were too many.
        """
        await self._address.hit(address)

    async def check_person(self, *who: str) -> None:
        """Counts a request of a person.

        Raises:
            Refusal: there were too many.
        """
        await self._person.hit(*who)

    async def check_new_person(self, server: str, address: str | None) -> None:
        """Counts a person whom nobody knows yet; of those who have signed in no address.

        Those whom one bound refuses count for none that comes after it: who has one address fills what all
        addresses share at a server no further than that address may.

        Raises:
            Refusal: there were too many.
        """
        if address is not None:
            await self._new_of_address_at_server.hit(address, server)
            await self._new_of_address.hit(address)
        await self._new_at_server.hit(server)

    async def fail(self, address: str) -> None:
        """Counts a request of an address for something that there is not."""
        await self._failure.count(address)

    async def check_failures(self, address: str) -> None:
        """Looks whether an address asked too often for what there is not.

        Raises:
            Refusal: it did.
        """
        await self._failure.check(address)


class _Rate:
    """One rate, with its counters; empty is no limit."""

    def __init__(self, name: str, rate: str, what: str = "requests") -> None:
        self._name = name
        self._what = what
        self._limit = limits.parse(rate) if rate else None
        self._limiter = FixedWindowRateLimiter(BoundedStorage(_MOST_COUNTED))

    async def hit(self, *key: str) -> None:
        """Counts one.

        Raises:
            Refusal: there were too many.
        """
        if self._limit is not None and not await self._limiter.hit(self._limit, self._name, *key):
            raise _too_many(self._limit, self._what)

    async def count(self, *key: str) -> None:
        """Counts one, and refuses nobody."""
        if self._limit is not None:
            await self._limiter.hit(self._limit, self._name, *key)

    async def check(self, *key: str) -> None:
        """Looks, and counts nothing.

        Raises:
            Refusal: there were too many.
        """
        if self._limit is not None and not await self._limiter.test(self._limit, self._name, *key):
            raise _too_many(self._limit, self._what)


def _too_many(limit: limits.RateLimitItem, what: str) -> Refusal:
    return Refusal(
        429,
        "too_many_requests",
        f"More than {limit.amount} {what} in {limit.get_expiry()} seconds. Wait, then go on.",
        retry_after=limit.get_expiry(),
    )


def check_rates(settings: Settings) -> None:
    """Looks whether the rates can be read.

    Raises:
        ConfigurationError: names the setting.
    """
    for name in _RATES:
        value = getattr(settings, name)
        try:
            _ = limits.parse(value) if value else None
        except ValueError:
            raise ConfigurationError(
                f"STEPSTREAM_{name.upper()}: `{value}` is no rate; one looks like 120/minute"
            ) from None

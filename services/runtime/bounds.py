"""What keeps one client from taking it all: who a client is, bounded counters, few log lines."""

import asyncio
import functools
import ipaddress
import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from cachetools import TLRUCache
from limits.aio.storage import Storage
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

#: Between two log lines of the same kind, and how many clients one names.
_QUIET_SECONDS: Final = 60.0
#: The same, of what everybody meets while the database is away.
OUTAGE_SECONDS: Final = 1.0
_NAMED: Final = 5
#: How many clients are counted for a log line; of more, the others are counted together.
_COUNTED: Final = 1_000
#: What uvicorn trusts where nothing is set.
_LOOPBACK: Final = "127.0.0.1,::1"


def client_of(host: str) -> str:
    """The client that an address stands for: itself, or the /64 that IPv6 gives to one subscriber."""
    return _client_of(host[:64])  # a proxy may name something of any length, and it is kept


@functools.lru_cache(maxsize=4_096)
def _client_of(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def client_of_scope(scope: Scope) -> str:
    """The client of a request; behind a trusted proxy, the one that it names."""
    client = scope.get("client")
    return client_of(client[0]) if client else ""


def trusted_proxies() -> Callable[[str], bool]:
    """Tells the addresses whose `X-Forwarded-For` is believed: uvicorn's FORWARDED_ALLOW_IPS."""

    async def nothing(_: Scope, __: Receive, ___: Send) -> None: ...

    app: ASGIApp = nothing
    trusted = ProxyHeadersMiddleware(
        app,  # type: ignore[arg-type]
        os.environ.get("FORWARDED_ALLOW_IPS", _LOOPBACK),
    ).trusted_hosts
    return trusted.__contains__


class BoundedStorage(Storage):
    """Counters of `limits` in this process, at most so many; of more, those used longest ago go.

    The library's own storage has no bound, and looks at every counter at every request.

    Args:
        most: how many counters are kept.
    """

    STORAGE_SCHEME = None

    def __init__(self, most: int) -> None:
        super().__init__()
        self._counts: TLRUCache[str, list[float]] = TLRUCache(
            most, ttu=lambda _, count, __: count[1], timer=time.time
        )

    @property
    def base_exceptions(self) -> type[Exception]:
        """What may be wrong with the storage: nothing."""
        return ValueError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Counts; returns the count."""
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = [0, time.time() + expiry]
        count[0] += amount
        return int(count[0])

    async def get(self, key: str) -> int:
        """The count."""
        count = self._counts.get(key)
        return int(count[0]) if count is not None else 0

    async def get_expiry(self, key: str) -> float:
        """When the counter ends."""
        count = self._counts.get(key)
        return count[1] if count is not None else time.time()

    async def check(self) -> bool:
        """It is always there."""
        return True

    async def reset(self) -> int:
        """Forgets every counter; returns how many there were."""
        many = len(self._counts)
        self._counts.clear()
        return many

    async def clear(self, key: str) -> None:
        """Forgets a counter."""
        self._counts.pop(key, None)


class Seldom:
    """A warning that is logged at once, then at most once in a while, with counts.

    Args:
        log: where.
        what: how the line begins.
        quiet_seconds: how long that while is.
    """

    def __init__(self, log: logging.Logger, what: str, quiet_seconds: float = _QUIET_SECONDS) -> None:
        self._log = log
        self._what = what
        self._quiet_seconds = quiet_seconds
        self._counts: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, who: str) -> None:
        """Counts something that a client did or met."""
        self._counts[who if who in self._counts or len(self._counts) < _COUNTED else "others"] += 1
        if self._timer is None:
            self._write()

    def _write(self) -> None:
        self._timer = None
        if not self._counts:
            return
        named = self._counts.most_common(_NAMED)
        more = len(self._counts) - len(named)
        told = ", ".join(f"{who}: {many:,}" for who, many in named) + (f", {more:,} more" if more else "")
        self._log.warning("%s: %s", self._what, told)
        self._counts.clear()
        self._timer = asyncio.get_running_loop().call_later(self._quiet_seconds, self._write)

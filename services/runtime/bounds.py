"""What keeps one client from taking it all: who a client is, and few log lines."""

import asyncio
import functools
import ipaddress
import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

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


def client_of_scope(scope: "Scope") -> str:
    """The client of a request; behind a trusted proxy, the one that it names."""
    client = scope.get("client")
    return client_of(client[0]) if client else ""


def trusted_proxies() -> Callable[[str], bool]:
    """Tells the addresses whose `X-Forwarded-For` is believed: uvicorn's FORWARDED_ALLOW_IPS."""
    # Here, because commands use this module too, and serve nothing.
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    async def nothing(_: "Scope", __: "Receive", ___: "Send") -> None: ...

    app: ASGIApp = nothing
    trusted = ProxyHeadersMiddleware(
        app,  # type: ignore[arg-type]
        os.environ.get("FORWARDED_ALLOW_IPS", _LOOPBACK),
    ).trusted_hosts
    return trusted.__contains__


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

    def warn(self, who: str) -> None:
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
        names = ", ".join(f"{who}: {many:,}" for who, many in named) + (f", {more:,} more" if more else "")
        self._log.warning("%s: %s", self._what, names)
        self._counts.clear()
        self._timer = asyncio.get_running_loop().call_later(self._quiet_seconds, self._write)

"""The connections of an HTTP port: how long a client may take, and how many may be open.

uvicorn bounds neither. A connection is closed when its client does not send the rest of a request in time,
sends no next one, or takes nothing of its answer. A stream that is open, or an answer that is being made, may
take as long as it likes.
"""

import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self, TypeAlias

from services.runtime.bounds import Seldom
from services.runtime.settings import Settings
from services.runtime.telemetry import HTTP_CLOSED

log = logging.getLogger("stepstream.connections")

#: Files beside connections: pools, Kafka, logs, the port of health.
_OTHER_FILES: Final = 256
#: The connections of a port for health and metrics alone.
_OF_HEALTH: Final = 100

#: What a connection waits for: the rest of a head, the rest of a body, the next request.
Part: TypeAlias = Literal["head", "body", "idle"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the clients of a port may take, and how many connections it has.

    `of_address` is the most of one address; None where every client may come from the same.
    """

    seconds: dict[Part, float]
    write_seconds: float
    total: int
    of_address: int | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits of a public port."""
        return cls(
            {
                "head": settings.http_head_seconds,
                "body": settings.http_body_seconds,
                "idle": settings.http_idle_seconds,
            },
            settings.http_write_seconds,
            _possible(settings.http_connections),
            settings.http_address_connections,
        )

    @classmethod
    def of_health(cls, settings: Settings) -> Self:
        """The limits of a port that has health and metrics alone."""
        limits = cls.of(settings)
        return cls(limits.seconds, limits.write_seconds, _OF_HEALTH, None)


def _possible(connections: int) -> int:
    """The connections for which there are files; the limit of the process is raised where it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            log.warning(
                "at most %d connections and not %d: the process may open %d files",
                max(1, soft - _OTHER_FILES),
                connections,
                soft,
            )
            return max(1, soft - _OTHER_FILES)
    return connections


class Connection(Protocol):
    """What is known of an open connection; `client` is its peer's address and port."""

    address: str
    client: tuple[str, int] | None
    is_counted: bool
    is_of_proxy: bool
    #: When its client sent something, by the loop's clock.
    heard_at: float

    def is_idle_for(self, seconds: float) -> bool:
        """Whether its client has sent nothing for so long."""

    def end(self) -> None:
        """Closes it at once, whatever its client has yet to read or send."""


class Connections:
    """The open connections of a port.

    When there is no room for a new one, a connection that waits for its client goes: of the address that has
    most of these, the one that has waited longest. It waits for a request, or for its answer to be read.
    Streams that are read, and answers that are being made, stay; but where nobody waits, the newest
    connection of the address that has most goes for an address that has fewer. Where each address has one,
    the one whose client has sent nothing for longest goes for an address that has none, if that is longer
    than a connection may be idle.

    Args:
        service: whose port it is.
        limits: its limits.
        is_proxy: tells the addresses that speak for many clients; `of_address` is not for them.
    """

    def __init__(self, service: str, limits: Limits, is_proxy: Callable[[str], bool]) -> None:
        self.limits = limits
        self._service = service
        self._is_proxy = is_proxy
        self._open: dict[str, dict[Connection, None]] = {}
        self._count = 0
        self._waiting: dict[str, dict[Connection, None]] = {}
        self._seldom = Seldom(log, "connections were closed")
        for reason in ("head", "head-size", "body", "ahead", "write", "full", "address"):
            HTTP_CLOSED.labels(service, reason)  # there from the start, so that the first increase is seen

    def count(self) -> int:
        return self._count

    def enter(self, connection: Connection) -> bool:
        """Counts a new connection; False if there is no room for it."""
        address, bound = connection.address, self.limits.of_address
        connection.is_of_proxy = connection.client is not None and self._is_proxy(connection.client[0])
        has_room = True
        if bound is not None and len(self._open.get(address, ())) >= bound and not connection.is_of_proxy:
            has_room = self._make_room("address", address, self._waiting.get(address))
        elif self._count >= self.limits.total:
            greediest = max(self._waiting.values(), key=len, default=None)
            in_use = self._newest_of_greediest(address) or self._idlest(address)
            has_room = self._make_room("full", address, greediest or in_use)
        if has_room:
            self._open.setdefault(address, {})[connection] = None
            self._count += 1
        return has_room

    def _newest_of_greediest(self, newcomer: str) -> dict[Connection, None] | None:
        """What goes for a newcomer where nobody waits; a proxy speaks for many, so it is never greedy."""
        known = (of for of in self._open.values() if not next(iter(of)).is_of_proxy)
        most = max(known, key=len, default=None)
        if most is None or len(most) <= len(self._open.get(newcomer, ())) + 1:
            return None
        return {next(reversed(most)): None}

    def _idlest(self, newcomer: str) -> dict[Connection, None] | None:
        """What goes for a newcomer where no address has more than one."""
        known = (next(iter(of)) for of in self._open.values())
        idlest = min(
            (one for one in known if not one.is_of_proxy), key=lambda one: one.heard_at, default=None
        )
        if newcomer in self._open or idlest is None or not idlest.is_idle_for(self.limits.seconds["idle"]):
            return None
        return {idlest: None}

    def _make_room(self, reason: str, address: str, waiting: dict[Connection, None] | None) -> bool:
        victim = next(iter(waiting), None) if waiting else None
        self.report(reason, victim.address if victim else address)
        if victim is not None:
            self.leave(victim)
            victim.end()
        return victim is not None

    def leave(self, connection: Connection) -> None:
        """Forgets a connection that is counted."""
        if not connection.is_counted:
            return
        connection.is_counted = False
        self.serves(connection)
        self._count -= 1
        of_address = self._open[connection.address]
        del of_address[connection]
        if not of_address:
            del self._open[connection.address]

    def waits(self, connection: Connection) -> None:
        """The connection waits for its client."""
        if connection.is_counted:
            self._waiting.setdefault(connection.address, {})[connection] = None

    def serves(self, connection: Connection) -> None:
        """The connection has a request to answer."""
        waiting = self._waiting.get(connection.address)
        if waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[connection.address]

    def report(self, reason: str, address: str) -> None:
        """Counts and logs a connection that is closed before its client wants it."""
        HTTP_CLOSED.labels(self._service, reason).inc()
        self._seldom.warn(f"{address} ({reason})")

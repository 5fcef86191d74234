"""Calls take turns: those of one person, and those of all at the connections to the database.

Few calls of a person wait, and so many of a server and of an organization. Who waits has no connection.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field

from services.runtime.fair import Asker, Lane, Share
from services.runtime.settings import Settings
from services.runtime.telemetry import MCP_WAITING, MCP_WAITING_SECONDS


class BusyError(Exception):
    """Too many calls wait already, or one has waited for too long."""


class CrowdedError(BusyError):
    """A server, its organization, or an address at a server has as many calls here as it may."""

    def __init__(self, whose: str, most: int) -> None:
        super().__init__(
            f"As many calls of {whose} run or wait as may at once ({most}). Wait a moment, then try the same "
            "call again."
        )


class Places:
    """Who has one of the connections of this process next: organizations take turns, then servers of one.

    So a call waits for about one call of each other server, however many of one wait. One address has at most
    a quarter of what a server may have, so that it shuts nobody else out there. Who asks for a server that
    nobody has found lately has one place together with all others who do: addresses take turns.

    Args:
        settings: how many connections there are, and how many calls of an organization.
        seconds: how long a call waits for a place.
    """

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._seconds = seconds
        self._calls = Lane(
            settings.mcp_database_pool_size,
            None,
            MCP_WAITING.labels("calls"),
            MCP_WAITING_SECONDS.labels("calls"),
            Share(settings.mcp_organization_calls, _crowded),
        )
        self._most_of_address = max(2, settings.mcp_organization_calls // 8)
        self._of_address: Counter[tuple[Asker, str]] = Counter()
        self._strangers = Lane(
            1, None, MCP_WAITING.labels("strangers"), MCP_WAITING_SECONDS.labels("strangers")
        )

    @contextlib.asynccontextmanager
    async def place(self, asker: Asker, address: str) -> AsyncIterator[None]:
        """A call at a server that is known has a place while the block lasts. Over stdio there is no address.

        Raises:
            CrowdedError: too many calls of the server, of its organization, or from the address at the
                server have one or wait.
            BusyError: no place was free in time.
        """
        of = asker, address
        if address and self._of_address[of] >= self._most_of_address:
            raise CrowdedError("this address at this server", self._most_of_address)
        self._of_address[of] += 1
        try:
            await self._enter(self._calls, asker)
            try:
                yield
            finally:
                self._calls.leave(asker)
        finally:
            self._of_address[of] -= 1
            if not self._of_address[of]:
                del self._of_address[of]

    @contextlib.asynccontextmanager
    async def place_of_stranger(self, slug: str, address: str) -> AsyncIterator[None]:
        """A look for a server that may not exist has a place while the block lasts.

        Raises:
            BusyError: no place was free in time.
        """
        asker = Asker(slug, address)
        await self._enter(self._strangers, asker)
        try:
            yield
        finally:
            self._strangers.leave(asker)

    async def _enter(self, lane: Lane, asker: Asker) -> None:
        try:
            await lane.enter(asker, self._seconds)
        except TimeoutError:
            raise BusyError from None


def _crowded(is_of_server: bool, most: int) -> CrowdedError:
    return CrowdedError("this server" if is_of_server else "this server's organization", most)


@dataclass(slots=True)
class _Queue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: int = 0


class Turns:
    """Lets the calls of each person through one by one, in the order in which they came.

    Calls in other processes are kept apart by the row of the person.

    Args:
        waiting: how many calls of a person may wait, beside the one that goes on.
    """

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting
        self._queues: dict[Hashable, _Queue] = {}

    @contextlib.asynccontextmanager
    async def turn(self, person: Hashable, seconds: float) -> AsyncIterator[bool]:
        """The block runs when it is this call's turn; learns whether another call was before it.

        Raises:
            BusyError: too many wait, or the turn does not come within `seconds`.
        """
        queue = self._queues.setdefault(person, _Queue())
        if queue.calls > self._waiting:
            raise BusyError
        has_waited = queue.calls > 0
        queue.calls += 1
        try:
            if not has_waited:
                await queue.lock.acquire()
            else:
                try:
                    async with asyncio.timeout(seconds):
                        await queue.lock.acquire()
                except TimeoutError:
                    raise BusyError from None
            try:
                yield has_waited
            finally:
                queue.lock.release()
        finally:
            queue.calls -= 1
            if not queue.calls:
                del self._queues[person]

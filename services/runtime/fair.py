"""Fair between tenants: who has the next place, and who has as much as it may.

`Line` decides and is pure. A `Lane` is a line in which somebody waits for a place.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from prometheus_client import Gauge, Histogram

Item = TypeVar("Item")
#: Makes the error for whoever has its share: whether it is that of a key alone, and how many that is.
Refuse: TypeAlias = Callable[[bool, int], Exception]


@dataclass(frozen=True, slots=True)
class Share:
    """How many of something an organization has at most; one key of it has half."""

    most: int
    refuse: Refuse

    def check(self, of_organization: int, of_key: int) -> None:
        """Lets one more be had, or raises what `refuse` makes."""
        most_of_key = max(1, self.most // 2)
        if of_organization >= self.most:
            raise self.refuse(False, self.most)
        if of_key >= most_of_key:
            raise self.refuse(True, most_of_key)


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a key, or a server, of an organization.

    Before a key is known to be good, the address that it comes from stands for the organization: many may
    come from there, so it takes turns but has no share.
    """

    key: str
    organization: str

    @classmethod
    def stranger(cls, address: str) -> "Asker":
        """Whoever comes from an address."""
        return cls("", address)


class Line(Generic[Item]):
    """Who runs and who waits.

    A place that is free goes to the organization with the fewest places, and of those to the one that has
    waited longest for its last; then to its key by the same rule; then to who came first. So one alone has
    all places, and anybody else waits for no more than what runs.

    Args:
        places: how many run at once.
        most_each: how many of one organization do.
    """

    def __init__(self, places: int, most_each: int | None = None) -> None:
        self._places = places
        self._most_each = places if most_each is None else most_each
        self._running: Counter[Asker] = Counter()
        self._of: Counter[str] = Counter()
        self._waiting: dict[str, OrderedDict[str, deque[Item]]] = {}
        self._served: dict[str, int] = {}
        self._turns = 0

    @property
    def running(self) -> int:
        """How many run."""
        return self._of.total()

    def known(self, asker: Asker) -> tuple[int, int]:
        """How many of an organization, and of a key, run or wait."""
        waiting = self._waiting.get(asker.organization, OrderedDict())
        return (
            self._of[asker.organization] + sum(map(len, waiting.values())),
            self._running[asker] + len(waiting.get(asker.key, ())),
        )

    def join(self, asker: Asker, item: Item) -> None:
        """Waits; `take` says when it is its turn."""
        keys = self._waiting.setdefault(asker.organization, OrderedDict())
        keys.setdefault(asker.key, deque()).append(item)

    def leave(self, asker: Asker, item: Item) -> None:
        """Waits no more."""
        with contextlib.suppress(ValueError, KeyError):
            self._waiting[asker.organization][asker.key].remove(item)
        self._forget(asker)

    def take(self) -> tuple[Asker, Item] | None:
        """Who runs now, if there is a place and somebody waits who may have it."""
        if self.running >= self._places:
            return None
        able = [o for o in self._waiting if self._of[o] < self._most_each]
        if not able:
            return None
        organization = min(able, key=lambda o: (self._of[o], self._served.get(o, 0)))
        keys = self._waiting[organization]
        key = min(keys, key=lambda k: self._running[Asker(k, organization)])  # a key that was served is last
        keys.move_to_end(key)
        asker, item = Asker(key, organization), keys[key].popleft()
        self._turns += 1
        self._served[organization] = self._turns
        self._running[asker] += 1
        self._of[organization] += 1
        self._forget(asker)
        return asker, item

    def done(self, asker: Asker) -> None:
        """Runs no more."""
        self._running[asker] -= 1
        self._of[asker.organization] -= 1
        self._forget(asker)

    def _forget(self, asker: Asker) -> None:
        """What is not needed: nothing is kept of who neither runs nor waits."""
        keys = self._waiting.get(asker.organization)
        if keys is not None and not keys.get(asker.key):
            keys.pop(asker.key, None)
            if not keys:
                del self._waiting[asker.organization]
        if not self._running[asker]:
            del self._running[asker]
        if not self._of[asker.organization]:
            del self._of[asker.organization]
            if asker.organization not in self._waiting:
                self._served.pop(asker.organization, None)


class Lane:
    """A line in which questions wait.

    Args:
        places: how many have a place at once.
        most_each: how many of one organization have; None is all.
        waiting: how many wait.
        seconds: how long those waited that had to.
        share: how many of one organization have a place or wait; None is any number, where something else
            bounds them.
    """

    def __init__(
        self,
        places: int,
        most_each: int | None,
        waiting: Gauge,
        seconds: Histogram,
        share: Share | None = None,
    ) -> None:
        self._line: Line[asyncio.Future[None]] = Line(places, most_each)
        self._waiting = waiting
        self._seconds = seconds
        self._share = share

    @contextlib.asynccontextmanager
    async def place(self, asker: Asker) -> AsyncIterator[None]:
        """Has a place while the block lasts.

        Raises:
            Exception: what `share` makes, where too many wait already.
        """
        await self.enter(asker)
        try:
            yield
        finally:
            self.leave(asker)

    async def enter(self, asker: Asker, seconds: float | None = None) -> None:
        """Waits for a place; who has one leaves it again.

        Raises:
            Exception: what `share` makes, where too many wait already.
            TimeoutError: there was none within `seconds`.
        """
        if self._share is not None:
            self._share.check(*self._line.known(asker))
        turn = asyncio.get_running_loop().create_future()
        self._line.join(asker, turn)
        self._go_on()
        if turn.done():
            return
        began = time.perf_counter()
        self._waiting.inc()
        try:
            async with asyncio.timeout(seconds):
                await turn
        except (asyncio.CancelledError, TimeoutError):
            if turn.done() and not turn.cancelled():
                self.leave(asker)
            else:
                self._line.leave(asker, turn)
            raise
        finally:
            self._waiting.dec()
            self._seconds.observe(time.perf_counter() - began)

    def leave(self, asker: Asker) -> None:
        """Gives the place to whoever is next."""
        self._line.done(asker)
        self._go_on()

    def _go_on(self) -> None:
        while (taken := self._line.take()) is not None:
            asker, turn = taken
            if turn.cancelled():
                self._line.done(asker)
            else:
                turn.set_result(None)

"""Fair between tenants: who has the next place, and who has as much as it may.

`Line` decides and is pure. A `Lane` is a line in which somebody waits for a place.
"""

import asyncio
import contextlib
import heapq
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from prometheus_client import Gauge, Histogram

Item = TypeVar("Item", bound=Hashable)
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
class Writing:
    """What a key may write: events under `source`, of these types, that name these servers; None is each.

    With `may_register`, people and sessions that its events name and nobody knows are registered.
    """

    source: str
    types: frozenset[str] | None = None
    server_ids: frozenset[str] | None = None
    may_register: bool = False


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a key, or a server, of an organization.

    Before a key is known to be good, the address that it comes from stands for the organization: many may
    come from there, so it takes turns but has no share. `may_read` is of keys that open figures, `may_edit`
    of those that may set finish rules, and `writing` of those that write: None may not. Who it is depends on
    none of these.
    """

    key: str
    organization: str
    may_edit: bool = field(default=False, compare=False)
    may_read: bool = field(default=True, compare=False)
    writing: Writing | None = field(default=None, compare=False)

    @classmethod
    def stranger(cls, address: str) -> "Asker":
        """Whoever comes from an address."""
        return cls("", address)


class _First:
    """Which of many names has the smallest rank, while ranks change.

    A heap; what is out of date in it goes when it comes to the top, or when it is most of the heap.
    """

    def __init__(self) -> None:
        self._ranks: dict[str, tuple[int, ...]] = {}
        self._heap: list[tuple[tuple[int, ...], str]] = []

    def put(self, name: str, *rank: int) -> None:
        """Gives a name a rank, that of no other name."""
        if self._ranks.get(name) == rank:
            return
        self._ranks[name] = rank
        heapq.heappush(self._heap, (rank, name))
        if len(self._heap) > 2 * len(self._ranks) + 10:
            self._heap = [(rank, name) for name, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def drop(self, name: str) -> None:
        """Has the name no more."""
        self._ranks.pop(name, None)

    def get(self) -> str | None:
        """The name with the smallest rank; None where there is none."""
        while self._heap and self._ranks.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None


class _Waiting(Generic[Item]):
    """Who waits of an organization, by key, and which key is next."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.keys: dict[str, OrderedDict[Item, None]] = {}
        #: The turn at which a key began to wait, or was last served.
        self.turns: dict[str, int] = {}
        self.first = _First()
        self.count = 0


class Line(Generic[Item]):
    """Who runs and who waits.

    A place that is free goes to the organization with the fewest places, and of those to the one that has
    waited longest for its last; then to its key by the same rule; then to who came first. So one alone has
    all places, and anybody else waits for no more than what runs. What any of this costs grows with the
    logarithm of how many wait.

    Args:
        places: how many run at once.
        most_each: how many of one organization do.
    """

    def __init__(self, places: int, most_each: int | None = None) -> None:
        self._places = places
        self._most_each = places if most_each is None else most_each
        self._running: Counter[Asker] = Counter()
        self._of: Counter[str] = Counter()
        self._waiting: dict[str, _Waiting[Item]] = {}
        self._first = _First()
        self._served: dict[str, int] = {}
        self._turns = 0
        self.running = 0

    def known(self, asker: Asker) -> tuple[int, int]:
        """How many of an organization, and of a key, run or wait."""
        waiting = self._waiting.get(asker.organization)
        of_organization, of_key = self._of[asker.organization], self._running[asker]
        if waiting is None:
            return of_organization, of_key
        return of_organization + waiting.count, of_key + len(waiting.keys.get(asker.key, ()))

    def pass_by(self, asker: Asker) -> bool:
        """Runs now, where a place is free and nobody waits; else says that it has to wait."""
        organization = asker.organization
        if self._waiting or self.running >= self._places or self._of[organization] >= self._most_each:
            return False
        self._turns += 1
        self._served[organization] = self._turns
        self._running[asker] += 1
        self._of[organization] += 1
        self.running += 1
        return True

    def join(self, asker: Asker, item: Item) -> None:
        """Waits; `take` says when it is its turn."""
        self._turns += 1
        waiting = self._waiting.setdefault(asker.organization, _Waiting(self._turns))
        waiting.keys.setdefault(asker.key, OrderedDict())[item] = None
        waiting.turns.setdefault(asker.key, self._turns)
        waiting.count += 1
        self._rank(asker)

    def leave(self, asker: Asker, item: Item) -> None:
        """Waits no more."""
        waiting = self._waiting.get(asker.organization)
        if waiting is not None and item in waiting.keys.get(asker.key, ()):
            del waiting.keys[asker.key][item]
            waiting.count -= 1
        self._rank(asker)

    def take(self) -> tuple[Asker, Item] | None:
        """Who runs now, if there is a place and somebody waits who may have it."""
        organization = self._first.get() if self.running < self._places else None
        if organization is None or self._of[organization] >= self._most_each:  # the others have as many
            return None
        waiting = self._waiting[organization]
        key = waiting.first.get()
        assert key is not None  # noqa: S101 - whoever is nowhere in a line has none
        asker, (item, _) = Asker(key, organization), waiting.keys[key].popitem(last=False)
        waiting.count -= 1
        self._turns += 1
        self._served[organization] = waiting.turns[key] = self._turns
        self._running[asker] += 1
        self._of[organization] += 1
        self.running += 1
        self._rank(asker)
        return asker, item

    def done(self, asker: Asker) -> None:
        """Runs no more."""
        self._running[asker] -= 1
        self._of[asker.organization] -= 1
        self.running -= 1
        self._rank(asker)

    def _rank(self, asker: Asker) -> None:
        """Puts a key, and its organization, where they are in line; nothing is kept of who is in none."""
        key, organization = asker.key, asker.organization
        running, of_organization = self._running[asker], self._of[organization]
        waiting = self._waiting.get(organization)
        if waiting is not None and waiting.keys.get(key):
            waiting.first.put(key, running, waiting.turns[key])
        elif waiting is not None:
            waiting.first.drop(key)
            waiting.keys.pop(key, None)
            waiting.turns.pop(key, None)
        if waiting is not None and waiting.keys:
            self._first.put(organization, of_organization, self._served.get(organization, 0), waiting.since)
        else:
            self._first.drop(organization)
            self._waiting.pop(organization, None)
            if not of_organization:
                self._served.pop(organization, None)
        if not running:
            del self._running[asker]
        if not of_organization:
            del self._of[organization]


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
    async def place(self, asker: Asker, *, goes_on: bool = False) -> AsyncIterator[None]:
        """Has a place while the block lasts.

        Raises:
            Exception: as `enter`.
        """
        await self.enter(asker, goes_on=goes_on)
        try:
            yield
        finally:
            self.leave(asker)

    async def enter(self, asker: Asker, seconds: float | None = None, *, goes_on: bool = False) -> None:
        """Waits for a place; who has one leaves it again.

        Raises:
            Exception: what `share` makes, where too many wait already; not where one `goes_on` whose answer
                has begun, which something else bounds.
            TimeoutError: there was none within `seconds`.
        """
        if self._share is not None and not goes_on:
            self._share.check(*self._line.known(asker))
        if self._line.pass_by(asker):
            return
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

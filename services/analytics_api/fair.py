"""Fair between organizations, and between the keys of one: who is answered next, and who has to come back.

`Line` decides and is pure. A `Lane` is a line in which questions wait for a place; a `Turn` is one question's
way through the lanes.
"""

import asyncio
import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from cachetools import LRUCache
from limits import RateLimitItem

from services.analytics_api.problems import ProblemError
from services.runtime.settings import Settings
from services.runtime.telemetry import API_CROWDED, API_WAITING, API_WAITING_SECONDS

#: Questions of all organizations together that a process has in hand, in shares of one organization.
_SHARES: Final = 10
#: Of as many of strangers, those that are kept for ids of keys that exist.
_RESERVED_SHARES: Final = 2
#: Connections that no question takes: for the keys of strangers and of live streams, for their figures,
#: freshness and health.
_OTHER_CONNECTIONS: Final = 5
#: So many requests that need no key are answered at once: compressing one keeps everybody else waiting.
_PUBLIC_PLACES: Final = 2
#: Rates are counted for so many keys, organizations and addresses, those seen last.
_MOST_COUNTED: Final = 20_000
_RETRY: Final = {"Retry-After": "2"}

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: a key of an organization.

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
        name: what it is called in metrics.
        places: how many have a place at once.
        most_each: how many of one organization have.
        most_known: how many of one organization have a place or wait, half of them for one key; None is any
            number, where something else bounds them.
    """

    def __init__(
        self, name: str, places: int, most_each: int | None = None, most_known: int | None = None
    ) -> None:
        self._name = name
        self._line: Line[asyncio.Future[None]] = Line(places, most_each)
        self._most_known = most_known

    @contextlib.asynccontextmanager
    async def place(self, asker: Asker) -> AsyncIterator[None]:
        """Has a place while the block lasts.

        Raises:
            ProblemError: too many of that organization, or with that key, wait already.
        """
        await self.enter(asker)
        try:
            yield
        finally:
            self.leave(asker)

    async def enter(self, asker: Asker) -> None:
        """Waits for a place; who has one leaves it again."""
        if self._most_known is not None:
            _check_share(self._name, self._line.known(asker), self._most_known)
        turn = asyncio.get_running_loop().create_future()
        self._line.join(asker, turn)
        self._go_on()
        if turn.done():
            return
        began = time.perf_counter()
        API_WAITING.labels(self._name).inc()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(asker)
            else:
                self._line.leave(asker, turn)
            raise
        finally:
            API_WAITING.labels(self._name).dec()
            API_WAITING_SECONDS.labels(self._name).observe(time.perf_counter() - began)

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


class Lanes:
    """The lanes of a process, and the questions in it.

    Small reads and large ones have lanes of their own, so that none of the former waits for one of the
    latter. Half of the small lane is closed to any one organization.
    """

    def __init__(self, settings: Settings) -> None:
        connections = settings.api_database_pool_size - _OTHER_CONNECTIONS
        large = max(1, min(settings.api_large_reads, connections - 1))
        small = max(1, connections - large)
        self.large = Lane("large", large, most_known=settings.api_organization_large_reads)
        self.small = Lane("small", small, most_each=max(1, small // 2))
        # Python computes one thing at a time, however many threads there are.
        self.computing = Lane("computing", 1)
        #: What is asked without a key: the dashboard's files, the API's description, refusals.
        self.public = Lane("public", _PUBLIC_PLACES)
        #: Keys that nobody has used lately: they come from any number of addresses, and may not be good.
        self.strangers = Lane("strangers", 1)
        #: Streams that look whether their keys are still good: many may at the same moment.
        self.keys = Lane("keys", 1)
        self._asked = Shares("questions", settings.api_organization_questions)
        #: Those of strangers are counted apart: whoever has many addresses shuts out nobody with a good key.
        self._strangers = Shares("questions", settings.api_organization_questions)
        self._most = settings.api_organization_questions * _SHARES
        self._most_unknown = settings.api_organization_questions * (_SHARES - _RESERVED_SHARES)

    @property
    def is_crowded(self) -> bool:
        """Whether strangers have all places but those that are reserved for ids of keys that exist."""
        return self._strangers.total >= self._most_unknown

    @contextlib.asynccontextmanager
    async def turn(self, asker: Asker, *, is_of_a_key: bool = False) -> AsyncIterator["Turn"]:
        """A question, from its beginning to its answer.

        A stranger's `is_of_a_key` where the id in it is that of some key: such have places of their own.

        Raises:
            ProblemError: the organization, its key, or everybody together asks too much at once; for a
                stranger, all strangers together.
        """
        asked = self._asked if asker.key else self._strangers
        if asked.total >= (self._most if asker.key or is_of_a_key else self._most_unknown):
            API_CROWDED.labels("questions").inc()
            raise ProblemError(503, "Too many questions", "too many questions wait; ask again soon", _RETRY)
        with asked.held(asker):
            turn = Turn(self, asker)
            try:
                yield turn
            finally:
                turn.end()


class Turn:
    """A question on its way: it has a place in the small lane, unless it waits for something large.

    A stranger's has one among strangers, until its key is found.
    """

    def __init__(self, lanes: Lanes, asker: Asker) -> None:
        self.lanes = lanes
        self.asker = asker
        self._place: tuple[Lane, Asker] | None = None

    async def begin(self) -> None:
        """Waits for a place, unless it has one."""
        if self._place is not None:
            return
        lane, asker = self.lanes.small if self.asker.key else self.lanes.strangers, self.asker
        await lane.enter(asker)
        self._place = lane, asker

    def end(self) -> None:
        """Leaves its place."""
        if self._place is not None:
            lane, asker = self._place
            self._place = None
            lane.leave(asker)

    async def find(self, look: Callable[[], Awaitable[Asker]]) -> None:
        """Becomes the question of whoever it is found to be of; a stranger has a place during the look."""
        had_place, is_stranger = self._place is not None, not self.asker.key
        if is_stranger:
            await self.begin()
        self.asker = await look()
        if is_stranger:
            self.end()
            if had_place:
                await self.begin()

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Has no place while the block lasts."""
        self.end()
        yield
        await self.begin()


class Shares:
    """How many of something an organization holds, and at most half as many with one key."""

    def __init__(self, name: str, most_each: int) -> None:
        self._name = name
        self._most_each = most_each
        self._held: Counter[Asker] = Counter()
        self._of: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._of.total()

    @contextlib.contextmanager
    def held(self, asker: Asker) -> Iterator[None]:
        """Holds one while the block lasts.

        Raises:
            ProblemError: the organization, or its key, holds its share already.
        """
        if asker.key:
            _check_share(self._name, (self._of[asker.organization], self._held[asker]), self._most_each)
        self._held[asker] += 1
        self._of[asker.organization] += 1
        try:
            yield
        finally:
            self._held[asker] -= 1
            self._of[asker.organization] -= 1
            if not self._held[asker]:
                del self._held[asker]
            if not self._of[asker.organization]:
                del self._of[asker.organization]


#: What each lane and share is of, for people.
_OF: Final = {
    "questions": "questions",
    "large": "questions that read many journeys",
    "streams": "live streams",
}


def _check_share(name: str, known: tuple[int, int], most: int) -> None:
    of_organization, of_key = known
    most_of_key = max(1, most // 2)
    if of_organization >= most:
        whose, most_of_those = "your organization", most
    elif of_key >= most_of_key:
        whose, most_of_those = "this API key", most_of_key
    else:
        return
    API_CROWDED.labels(name).inc()
    what = _OF[name]
    retry = {"Retry-After": "30"} if name == "streams" else _RETRY
    raise ProblemError(
        429, f"Too many {what}", f"{whose} has {most_of_those} {what} at once: wait for one to end", retry
    )


class Rates:
    """Counts in fixed windows, each of which begins with the first count; of the last many names alone."""

    def __init__(self, most: int = _MOST_COUNTED) -> None:
        self._counts: LRUCache[Hashable, tuple[float, int]] = LRUCache(most)

    def hit(self, rate: RateLimitItem, now: float, *name: str) -> float | None:
        """Counts one; or, where that is more than the rate, how many seconds are left of the window."""
        seconds = float(rate.get_expiry())
        key = (rate, *name)
        until, count = self._counts.get(key, (0.0, 0))
        if now >= until:
            until, count = now + seconds, 0
        if count >= rate.amount:
            return until - now
        self._counts[key] = until, count + 1
        return None


Kept = TypeVar("Kept")


class SharedCache(Generic[Kept]):
    """What was read lately, of all organizations.

    When it is full, the organization that keeps the most loses what it has not used for longest: nobody
    pushes out what somebody else keeps, unless that one has more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._of: dict[str, OrderedDict[Hashable, tuple[Kept, int]]] = {}
        self._sizes: Counter[str] = Counter()

    def get(self, organization: str, key: Hashable) -> Kept | None:
        kept = self._of.get(organization)
        if kept is None or key not in kept:
            return None
        kept.move_to_end(key)
        return kept[key][0]

    def put(self, organization: str, key: Hashable, value: Kept, size: int = 1) -> None:
        """Keeps it, unless it is larger than all that may be kept."""
        if size > self._most:
            return
        kept = self._of.setdefault(organization, OrderedDict())
        if (old := kept.pop(key, None)) is not None:
            self._count(organization, -old[1])
        kept[key] = value, size
        self._count(organization, size)
        while self._size > self._most:
            most = max(self._sizes, key=lambda o: self._sizes[o])
            _, (_, lost) = self._of[most].popitem(last=False)
            self._count(most, -lost)
            if not self._of[most]:
                del self._of[most], self._sizes[most]

    def _count(self, organization: str, more: int) -> None:
        self._size += more
        self._sizes[organization] += more

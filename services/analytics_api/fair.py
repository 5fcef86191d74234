"""Fair between organizations, and between the keys of one: who is answered next, and who has to come back.

A `Turn` is one question's way through the lanes.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from functools import partial
from typing import Final, Generic, TypeVar

from cachetools import LRUCache
from limits import RateLimitItem

from services.analytics_api.problems import ProblemError
from services.runtime import fair
from services.runtime.fair import Asker, Share
from services.runtime.settings import Settings
from services.runtime.telemetry import API_CROWDED, API_WAITING, API_WAITING_SECONDS

#: Questions of all organizations together that a process has in hand, in shares of one organization.
_SHARES: Final = 10
#: The same, of batches that come in: each may have half a megabyte.
_WRITING_SHARES: Final = 4
#: Of as many of strangers, those that are kept for ids of keys that exist.
_RESERVED_SHARES: Final = 2
#: So many an organization has in hand also where all others have all places: it is in turn before them.
_ALWAYS: Final = 4
#: Connections that no question takes: for the keys of strangers and of live streams, for their figures,
#: freshness and health.
_OTHER_CONNECTIONS: Final = 5
#: So many requests that need no key are answered at once: compressing one keeps everybody else waiting.
_PUBLIC_PLACES: Final = 2
#: Rates are counted for so many keys, organizations and addresses, those seen last.
_MOST_COUNTED: Final = 20_000
_RETRY: Final = {"Retry-After": "2"}

Made = TypeVar("Made")

#: What each lane and share is of, for people.
_OF: Final = {
    "questions": "questions",
    "large": "questions that read many journeys",
    "streams": "live streams",
    "exports": "exports",
    "writes": "batches",
}


def writers(settings: Settings) -> int:
    """How many connections there are for writing."""
    return settings.api_write_database_pool_size


class Lane(fair.Lane):
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
        share = None if most_known is None else _share(name, most_known)
        super().__init__(places, most_each, API_WAITING.labels(name), API_WAITING_SECONDS.labels(name), share)


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
        #: What bodies that came in say: their items are read for one at a time.
        self.reading = Lane("reading", 1)
        #: What writes: it has connections of its own, of which half are closed to any one organization.
        self.writing = Lane("writing", writers(settings), most_each=max(1, writers(settings) // 2))
        #: Keys that nobody has used lately: they come from any number of addresses, and may not be good.
        self.strangers = Lane("strangers", 1)
        #: Streams that look whether their keys are still good: many may at the same moment.
        self.keys = Lane("keys", 1)
        #: Exports, each from its first page to its last.
        self.exports = Shares("exports", settings.api_organization_exports)
        self._asked = Shares("questions", settings.api_organization_questions)
        #: What writes takes no question's place, and its body is in memory.
        self._writing = Shares("writes", settings.api_organization_writes)
        self._most_writing = settings.api_organization_writes * _WRITING_SHARES
        #: Those of strangers are counted apart: whoever has many addresses shuts out nobody with a good key.
        self._strangers = Shares("questions", settings.api_organization_questions)
        self._most = settings.api_organization_questions * _SHARES
        self._most_unknown = settings.api_organization_questions * (_SHARES - _RESERVED_SHARES)

    @property
    def is_crowded(self) -> bool:
        """Whether strangers have all places but those that are reserved for ids of keys that exist."""
        return self._strangers.total >= self._most_unknown

    @contextlib.asynccontextmanager
    async def turn(
        self, asker: Asker, *, has_known_id: bool = False, writes: bool = False
    ) -> AsyncIterator["Turn"]:
        """A question, from its beginning to its answer; or, where it `writes`, a batch that comes in.

        With `has_known_id`, a stranger whose key has the id of some key: such have places of their own.

        Raises:
            ProblemError: the organization, its key, or everybody together asks too much at once; for a
                stranger, all strangers together. An organization that asks little is let in all the same.
        """
        with contextlib.ExitStack() as share:
            share.enter_context(self.held(asker, has_known_id=has_known_id, writes=writes))
            turn = Turn(self, asker, share, writes=writes)
            try:
                yield turn
            finally:
                turn.end()

    def held(
        self, asker: Asker, *, has_known_id: bool = False, writes: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """One of the questions, or batches, that an asker has in hand; while the block lasts.

        Raises:
            ProblemError: as `turn`; where it is the share of the asker, as the block begins.
        """
        asked = (self._writing if writes else self._asked) if asker.key else self._strangers
        most = self._most if asker.key or has_known_id else self._most_unknown
        if writes and asker.key:
            most = self._most_writing
        if asked.total >= most and not (asker.key and asked.of(asker.organization) < _ALWAYS):
            API_CROWDED.labels("writes" if writes else "questions").inc()
            what = "batches" if writes else "questions"
            raise ProblemError(503, f"Too many {what}", f"too many {what} wait; come again soon", _RETRY)
        return asked.held(asker)


class Turn:
    """A question on its way: it has a place in the small lane, unless it waits for something large.

    A stranger's has one among strangers, until its key is found.
    """

    def __init__(
        self, lanes: Lanes, asker: Asker, share: contextlib.ExitStack, *, writes: bool = False
    ) -> None:
        self.lanes = lanes
        self.asker = asker
        #: Holds what is counted of whoever asks.
        self._share = share
        self._writes = writes
        #: Whether its answer has begun: then it waits where another would be refused.
        self.goes_on = False
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

    async def find(self, find: Callable[[], Awaitable[Asker]]) -> None:
        """Becomes the question of whoever it is found to be of; a stranger has a place during the look.

        Raises:
            ProblemError: whoever that is asks too much at once.
        """
        had_place, is_stranger = self._place is not None, not self.asker.key
        if is_stranger:
            await self.begin()
        self.asker = await find()
        if is_stranger:
            self.end()
            self._count_anew()
            if had_place:
                await self.begin()

    def _count_anew(self) -> None:
        """Is counted among the questions of its asker, and no more among those of strangers."""
        own = self.lanes.held(self.asker, writes=self._writes)
        with contextlib.ExitStack() as share:
            share.enter_context(own)
            self._share.close()
            self._share.push(share.pop_all())

    async def made(self, make: Callable[[], Made], *, is_quick: bool) -> Made:
        """What `make` makes of what came in, for one at a time; unless it `is_quick`, beside the event loop.

        So others wait for one that is quick at most, each time that the event loop goes round.
        """
        async with self.lanes.reading.place(self.asker):
            if not is_quick:
                return await asyncio.to_thread(make)
            made = make()
            await asyncio.sleep(0)
            return made

    @contextlib.asynccontextmanager
    async def again(self) -> AsyncIterator[None]:
        """Has a place for another part of an answer that has begun, while the block lasts."""
        self.goes_on = True
        await self.begin()
        try:
            yield
        finally:
            self.end()

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Has no place while the block lasts."""
        self.end()
        yield
        await self.begin()


class Shares:
    """How many of something an organization holds, and at most half as many with one key."""

    def __init__(self, name: str, most_each: int) -> None:
        self._share = _share(name, most_each)
        self._held: Counter[Asker] = Counter()
        self._of: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._of.total()

    def of(self, organization: str) -> int:
        """How many an organization holds."""
        return self._of[organization]

    def check(self, asker: Asker) -> None:
        """Looks whether one more may be held.

        Raises:
            ProblemError: the organization, or its key, holds its share already.
        """
        if asker.key:
            self._share.check(self._of[asker.organization], self._held[asker])

    @contextlib.contextmanager
    def held(self, asker: Asker) -> Iterator[None]:
        """Holds one while the block lasts.

        Raises:
            ProblemError: the organization, or its key, holds its share already.
        """
        self.check(asker)
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


def _share(name: str, most: int) -> Share:
    return Share(most, partial(_refusal, name))


def _refusal(name: str, is_of_key: bool, most: int) -> ProblemError:
    API_CROWDED.labels(name).inc()
    whose = "this API key" if is_of_key else "your organization"
    what = _OF[name]
    retry = {"Retry-After": "30"} if name == "streams" else _RETRY
    return ProblemError(
        429, f"Too many {what}", f"{whose} has {most} {what} at once: wait for one to end", retry
    )


class Rates:
    """Counts in fixed windows, each of which begins with the first count; of the last many names alone."""

    def __init__(self, most: int = _MOST_COUNTED) -> None:
        self._counts: LRUCache[Hashable, tuple[float, int]] = LRUCache(most)

    def hit(self, rate: RateLimitItem, now: float, *name: str, cost: int = 1) -> float | None:
        """Counts `cost`; or, where that is more than the rate, how many seconds are left of the window."""
        left = self.left(rate, now, *name, cost=cost)
        if left is None:
            self.add(rate, now, *name, cost=cost)
        return left

    def add(self, rate: RateLimitItem, now: float, *name: str, cost: int) -> None:
        """Counts `cost`, though it be more than the rate."""
        until, count = self._window(rate, now, name)
        self._counts[(rate, *name)] = until, count + cost

    def left(self, rate: RateLimitItem, now: float, *name: str, cost: int = 1) -> float | None:
        """How many seconds to wait until `cost` may be counted; None is now.

        What costs more than the whole rate has a window to itself.
        """
        until, count = self._window(rate, now, name)
        is_too_much = count + cost > rate.amount and (count or not rate.amount)
        return until - now if is_too_much else None

    def _window(self, rate: RateLimitItem, now: float, name: tuple[str, ...]) -> tuple[float, int]:
        """When the window ends, and what is counted in it."""
        until, count = self._counts.get((rate, *name), (0.0, 0))
        return (now + float(rate.get_expiry()), 0) if now >= until else (until, count)


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

"""Live streams: a walkthrough's figures changed, or how fresh they are.

An event's id is the version that it tells of, and a stream begins with the version as it is unless the client
has it (`Last-Event-ID`). So whoever comes back after a cut learns of what changed in between: there is
no history to replay, since each version holds all that came before.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from services.analytics_api.answers import Answers
from services.analytics_api.fair import Shares
from services.analytics_api.freshness import SERVICE, Backlog
from services.analytics_api.models import Freshness
from services.analytics_api.problems import ProblemError
from services.analytics_api.store import Change
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database_errors import is_away, may_pass
from services.runtime.fair import Asker
from services.runtime.faults import Beside
from services.runtime.settings import Settings
from services.runtime.tasks import beside
from services.runtime.telemetry import API_CROWDED, API_LIVE

log = logging.getLogger("stepstream.analytics")

#: Between two looks at the change numbers of all watched walkthroughs: one query for everybody. A look works
#: through a pooler and on a read replica, where notifications of PostgreSQL do not arrive.
_EVERY_SECONDS: Final = 0.5
_FRESHNESS_SECONDS: Final = 2.0
#: Between two looks at whether the key is still good.
_KEY_SECONDS: Final = 15.0


class Changes:
    """What version each watched walkthrough is at."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._faults = Beside(SERVICE, "live streams wait")
        self.unchecked = Seldom(log, "live streams wait, keys cannot be checked", OUTAGE_SECONDS)
        self._watched: Counter[str] = Counter()
        #: Of each that the last look was for, whose it is and how it is; None where it is gone.
        self._known: dict[str, tuple[str, Freshness] | None] = {}
        self._updated = asyncio.Condition()
        self._somebody = asyncio.Event()

    @contextlib.contextmanager
    def watching(self, walkthrough: str) -> Iterator[None]:
        """Looks at a walkthrough while the block lasts."""
        self._watched[walkthrough] += 1
        self._somebody.set()
        API_LIVE.inc()
        try:
            yield
        finally:
            API_LIVE.dec()
            self._watched[walkthrough] -= 1
            if not self._watched[walkthrough]:
                del self._watched[walkthrough]
                self._known.pop(walkthrough, None)

    async def next(self, walkthrough: str, organization: str) -> Freshness | None:
        """How it is at the next look that is for it, too; None where the organization has no such one."""
        async with self._updated:
            await self._updated.wait()
            while walkthrough not in self._known:  # it was not yet watched when that look began
                await self._updated.wait()
            known = self._known[walkthrough]
            return known[1] if known is not None and known[0] == organization else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks while the block lasts, and somebody watches."""
        async with beside(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            if not self._watched:
                self._somebody.clear()
                await self._somebody.wait()
            try:
                backlog = await self._answers.read_backlog()
                watched = list(self._watched)
                found = await self._answers.store.changes(watched)
                self._known = {w: self._known_of(w, backlog, found.get(w)) for w in watched}
            except Exception as error:  # noqa: BLE001 - streams stay open, and go on when it is over
                if may_pass(error):
                    log.warning("live streams wait: %s", type(error).__name__)
                else:
                    self._faults.fail(error)
                await asyncio.sleep(_EVERY_SECONDS * 4)
                continue
            self._faults.go_on()
            async with self._updated:
                self._updated.notify_all()
            await asyncio.sleep(_EVERY_SECONDS)

    def _known_of(
        self, walkthrough: str, backlog: Backlog, change: Change | None
    ) -> tuple[str, Freshness] | None:
        if change is None:
            return None
        fresh = self._answers.fresh_of(
            change.organization, walkthrough, backlog, change.newest, change.version
        )
        return change.organization, fresh


class Place:
    """A place for a stream, had while the block lasts; one that is lost is another organization's."""

    def __init__(self, streams: "Streams", asker: Asker) -> None:
        self.asker = asker
        self.is_lost = False
        self.share = contextlib.ExitStack()
        self._streams = streams

    def __enter__(self) -> "Place":
        """Takes it.

        Raises:
            ProblemError: as `Streams.take`.
        """
        self._streams.take(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._streams.give_back(self)


class Streams:
    """The places for streams: so many in all, and a share for each organization and each key.

    Where all are taken, an organization that has two fewer than another, or more, gets one of that: its
    oldest, of the key that has most. So a new one gets a stream however many the others have, and those who
    have as many as each other take none away.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.api_streams
        self._shares = Shares("streams", settings.api_organization_streams)
        self._places: dict[str, list[Place]] = {}

    def place(self, asker: Asker) -> Place:
        """A place, to be taken when the stream begins."""
        return Place(self, asker)

    def check(self, asker: Asker) -> None:
        """Refuses a stream for which there is no place, before anything is read for it.

        Raises:
            ProblemError: all are taken, or those of the organization or the key.
        """
        self._shares.check(asker)
        self._room_for(asker)

    def take(self, place: Place) -> None:
        """Has a place, if need be another's.

        Raises:
            ProblemError: all are taken, or those of the organization or the key.
        """
        self._shares.check(place.asker)
        if (lost := self._room_for(place.asker)) is not None:
            API_CROWDED.labels("streams").inc()
            lost.is_lost = True
            self.give_back(lost)
        place.share.enter_context(self._shares.held(place.asker))
        self._places.setdefault(place.asker.organization, []).append(place)

    def give_back(self, place: Place) -> None:
        """Has it no longer; that of one that was lost is another's already."""
        places = self._places.get(place.asker.organization, [])
        if place in places:
            places.remove(place)
            place.share.close()
            if not places:
                del self._places[place.asker.organization]

    def _room_for(self, asker: Asker) -> Place | None:
        """The place that somebody has to lose, if any."""
        if self._shares.total < self._most:
            return None
        richest = max(self._places.values(), key=len)
        if len(richest) < len(self._places.get(asker.organization, ())) + 2:
            API_CROWDED.labels("streams").inc()
            raise ProblemError(
                503, "Too many live streams", "ask again later, or ask without one", {"Retry-After": "30"}
            )
        keys = Counter(place.asker for place in richest)
        return next(place for place in richest if keys[place.asker] == max(keys.values()))


class LiveResponse(EventSourceResponse):
    """A stream, which has a place from before its first byte to its end."""

    def __init__(self, place: Place, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


class Stream:
    """The events of one client."""

    def __init__(self, changes: Changes, walkthrough: str, organization: str) -> None:
        self._changes = changes
        self._walkthrough = walkthrough
        self._organization = organization

    async def events(
        self, last_id: str | None, is_admitted: Callable[[], Awaitable[bool]], is_over: Callable[[], bool]
    ) -> AsyncIterator[ServerSentEvent]:
        """Until the key is no longer good, the organization has no such walkthrough, or `is_over`."""
        seen, sent = last_id, None
        clock = asyncio.get_running_loop().time
        freshness_at, key_at = clock(), clock() + _KEY_SECONDS
        with self._changes.watching(self._walkthrough):
            while not is_over():
                fresh = await self._changes.next(self._walkthrough, self._organization)
                is_good: bool | None = True
                if fresh is not None and clock() >= key_at:
                    is_good = await self._checked(is_admitted)
                    if is_good is None:  # nothing is told until it is known
                        continue
                    key_at = clock() + _KEY_SECONDS
                if fresh is None or not is_good:
                    yield ServerSentEvent(event="gone", data="{}")
                    return
                if fresh.version != seen:
                    seen, sent, freshness_at = fresh.version, _notable(fresh), clock()
                    yield ServerSentEvent(event="changed", id=seen, data=fresh.model_dump_json())
                elif clock() - freshness_at >= _FRESHNESS_SECONDS and _notable(fresh) != sent:
                    sent, freshness_at = _notable(fresh), clock()
                    yield ServerSentEvent(event="freshness", data=fresh.model_dump_json())

    async def _checked(self, is_admitted: Callable[[], Awaitable[bool]]) -> bool | None:
        """Whether the key is still good; None while the database cannot say."""
        try:
            return await is_admitted()
        except Exception as error:
            if not is_away(error):
                raise
            self._changes.unchecked.warn(type(error).__name__)
            return None


def _notable(fresh: Freshness) -> Freshness:
    """What is worth an event: not the time of the look alone."""
    return fresh.model_copy(update={"looked_at": None})

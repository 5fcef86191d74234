"""How fresh the figures are: looked at beside the requests, so that none of them waits for Kafka."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aiokafka.errors import KafkaError

from services.analytics_api.models import Freshness, GroupFreshness
from services.consumers.agreement import Agreement, Stored, agreement
from services.consumers.lag import AGGREGATOR, RECORDER, read_groups_with
from services.consumers.reader import reader
from services.consumers.topic import describe_log, high_watermarks
from services.runtime.database_errors import may_pass
from services.runtime.errors import StepstreamError
from services.runtime.faults import Beside
from services.runtime.kafka import admin_client
from services.runtime.settings import Settings
from services.runtime.tasks import beside

log = logging.getLogger("stepstream.analytics")
SERVICE: Final = "analytics-api"

#: Between two looks while somebody asks, and how long after the last question there are more.
_EVERY_SECONDS = 1.0
_ASKED_SECONDS = 30.0
#: How long a look may take, how long a question waits for the first one, and how long one stays good while
#: the next takes its time.
_CHECK_SECONDS = 10.0
_WAIT_SECONDS = 3.0
_GOOD_SECONDS = 15.0
_ANOTHER = "the database is another server since the last look"


class Newest(NamedTuple):
    """The times of the newest events of a walkthrough: of what is counted, and of the recorded steps."""

    counted_at: int | None = None
    recorded_at: int | None = None


class Held(NamedTuple):
    """What of a walkthrough waits for rows that somebody else has locked: it holds up no other."""

    walkthrough: str
    organization: str
    journeys: int = 0
    events: int = 0


class Marks(NamedTuple):
    """How many journeys wait to be counted again.

    And whether that is the answer of a standby: its figures and marks may be older than what the consumers
    have committed. `stored` is where the services are, as the database has it. `held` is what waits for a
    lock: its journeys are not among those `waiting`.
    """

    waiting: int
    on_replica: bool
    stored: Stored
    held: Sequence[Held] = ()

    def of(self, organization: str, walkthrough: str | None = None) -> tuple[int, int]:
        """The journeys, and the events, of an organization, or of one walkthrough, that wait for a lock."""
        held = [
            h
            for h in self.held
            if h.organization == organization and (walkthrough is None or h.walkthrough == walkthrough)
        ]
        return sum(h.journeys for h in held), sum(h.events for h in held)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waited at a moment: events of the topic and marks, None with a problem where not known.

    `at` is from before the look, in seconds since the epoch.
    """

    agreement: Agreement | None = None
    marks: Marks | None = None
    problem: str | None = None
    at: float | None = None
    #: Whether what is read now comes from the server that was looked at.
    holds: Callable[[], bool] = lambda: True

    def freshness(
        self,
        newest: Newest,
        organization: str,
        walkthrough: str | None = None,
        version: str | None = None,
    ) -> Freshness:
        """How fresh figures are that were read after the look, by their newest events and version.

        They are of a walkthrough, or of all of an organization.
        """
        locked, events = (0, 0) if self.marks is None else self.marks.of(organization, walkthrough)
        lags: Mapping[str, int] = {}
        current, problem = None, self.problem
        if not self.holds():
            problem = _ANOTHER
        elif self.agreement is not None and self.marks is not None:
            lags = self.agreement.lags
            if self.marks.on_replica:
                problem = "the figures come from a replica of the database, which may be behind"
            else:
                waits = self.marks.waiting or events or locked
                current = self.agreement.is_current and not waits
                problem = "; ".join(self.agreement.problems) or self._held_back() or _describe_locked(locked)
        return Freshness(
            version=version,
            newest_event_at=newest.counted_at,
            groups=[
                GroupFreshness(group=RECORDER, lag=lags.get(RECORDER), newest_event_at=newest.recorded_at),
                GroupFreshness(group=AGGREGATOR, lag=lags.get(AGGREGATOR), newest_event_at=newest.counted_at),
            ],
            marks=None if self.marks is None else self.marks.waiting + locked,
            events_waiting=None if self.marks is None else events,
            looked_at=None if self.at is None else int(self.at * 1000),
            current=current,
            problem=problem,
        )

    def _held_back(self) -> str | None:
        if self.agreement is None or not self.agreement.held_back:
            return None
        return "a producer's open transaction holds back what came after it began"


def _describe_locked(journeys: int) -> str | None:
    return f"{journeys} journeys wait to be counted: somebody has locked their counts" if journeys else None


class FreshnessWatch:
    """Looks again and again while somebody asks.

    Args:
        settings: where Kafka is, and the names of the groups.
        marks: counts the journeys that wait to be counted again.
    """

    def __init__(self, settings: Settings, marks: Callable[[], Awaitable[Marks]]) -> None:
        self._settings = settings
        self._marks = marks
        self._faults = Beside(SERVICE, "cannot tell how fresh figures are")
        self._last = Backlog(problem="nothing was looked at yet")
        self._asked_at = 0.0
        self._asked = asyncio.Event()
        self._updated = asyncio.Event()
        #: The server that connections lead to, and how often that has changed.
        self._server = ""
        self._servers = 0

    @property
    def is_watching(self) -> bool:
        """Whether it looks now and then; else at the next question."""
        return self._updated.is_set()

    async def read_backlog(self) -> Backlog:
        """The last look, of a second ago; waits for one where nobody has asked for a while."""
        self._asked_at = time.monotonic()
        self._asked.set()
        if not self.is_watching:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._updated.wait(), _WAIT_SECONDS)
        last = self._last
        if last.at is not None and time.time() - last.at >= _GOOD_SECONDS:
            return Backlog(problem="the last look is too long ago", at=last.at)
        return last

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks while the block lasts: once at first, so that the first question does not wait."""
        self._asked_at = time.monotonic()
        self._asked.set()
        async with beside(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            try:
                await self._poll()
            except (KafkaError, StepstreamError, OSError, TimeoutError) as error:
                self._know(Backlog(problem=f"Kafka: {error or type(error).__name__}"))
                await asyncio.sleep(_EVERY_SECONDS)
            except Exception as error:  # noqa: BLE001 - figures are answered without it
                if may_pass(error):
                    log.warning("cannot tell how fresh figures are: %s", type(error).__name__)
                else:
                    self._faults.fail(error)
                self._know(Backlog(problem=type(error).__name__))
                await asyncio.sleep(_EVERY_SECONDS)
            # Looked at anew: somebody may have asked while the clients closed.
            if not self._is_asked():
                self._asked.clear()
                self._updated.clear()

    def _is_asked(self) -> bool:
        return time.monotonic() - self._asked_at < _ASKED_SECONDS

    async def _poll(self) -> None:
        """With the same clients, once at least, until nobody asks any more."""
        async with admin_client(self._settings) as admin, reader(self._settings) as consumer:
            while True:
                at = time.time()
                async with asyncio.timeout(_CHECK_SECONDS):
                    servers = self._servers
                    client, topic = consumer._client, self._settings.topic  # noqa: SLF001
                    topic_log = await describe_log(client, topic)
                    watermarks = await high_watermarks(client, topic, topic_log)
                    groups = await read_groups_with(admin, consumer, self._settings)
                    # Then the database: it is never behind what is committed, unless it went back.
                    marks = await self._marks()
                seen = agreement(groups, topic_log, marks.stored, watermarks)
                self._know(Backlog(seen, marks, at=at, holds=functools.partial(self._is_still, servers)))
                self._faults.go_on()
                await asyncio.sleep(_EVERY_SECONDS)
                if not self._is_asked():
                    return

    def met(self, server: str) -> None:
        """A new connection leads to this server: after another one, what was looked at says nothing of it."""
        if self._server not in {"", server}:
            self._servers += 1
        self._server = server

    def _is_still(self, servers: int) -> bool:
        return servers == self._servers

    def _know(self, backlog: Backlog) -> None:
        self._last = backlog
        self._updated.set()

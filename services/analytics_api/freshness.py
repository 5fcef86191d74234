"""How fresh the figures are: looked at beside the requests, so that none of them waits for Kafka."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from aiokafka.errors import KafkaError

from services.analytics_api.models import Freshness, GroupFreshness
from services.analytics_api.store import Newest, Store
from services.runtime.errors import StepstreamError
from services.runtime.kafka import admin_client
from services.runtime.lag import AGGREGATOR, RECORDER, Group, look_with, reader
from services.runtime.settings import Settings
from services.runtime.tasks import beside

log = logging.getLogger("stepstream.analytics")

#: Between two looks while somebody asks, and how long after the last question there are more.
_EVERY_SECONDS = 1.0
_ASKED_SECONDS = 30.0
#: How long a look may take, and how long one stays good.
_LOOK_SECONDS = 10.0
_GOOD_SECONDS = 15.0


class FreshnessWatch:
    """What is known of the consumers' lag and of the marks, and when it was looked at."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._groups: list[Group] | None = None
        self._marks: int | None = None
        self._looked_at: float | None = None
        self._problem: str | None = "nothing was looked at yet"
        self._asked_at = 0.0
        self._asked = asyncio.Event()
        self._looked = asyncio.Event()

    async def now(self, newest: Newest, version: str | None = None) -> Freshness:
        """How fresh figures are, by their newest events and version; waits for the first look alone."""
        self._asked_at = time.monotonic()
        self._asked.set()
        if not self._is_good():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._looked.wait(), 3)
        good = self._is_good()
        groups = self._groups if good else None
        lags = {g.service: g.lag for g in groups} if groups is not None else {}
        marks = self._marks if good else None
        current = None
        if groups is not None and marks is not None:
            current = not any(lags.values()) and marks == 0
        return Freshness(
            version=version,
            newest_event_at=newest.counted_at,
            groups=[
                GroupFreshness(group=RECORDER, lag=lags.get(RECORDER), newest_event_at=newest.recorded_at),
                GroupFreshness(group=AGGREGATOR, lag=lags.get(AGGREGATOR), newest_event_at=newest.counted_at),
            ],
            marks=marks,
            looked_at=None if self._looked_at is None else int(self._looked_at * 1000),
            current=current,
            problem=None if current is not None else self._problem or "the last look is too long ago",
        )

    def _is_good(self) -> bool:
        return self._looked_at is not None and time.time() - self._looked_at < _GOOD_SECONDS

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
                await self._look_again_and_again()
            except (KafkaError, StepstreamError, OSError, TimeoutError) as error:
                self._know(None, None, f"Kafka: {error or type(error).__name__}")
                await asyncio.sleep(_EVERY_SECONDS)
            except Exception as error:  # noqa: BLE001 - figures are answered without it
                log.warning("cannot tell how fresh figures are: %s: %s", type(error).__name__, error)
                self._know(None, None, f"{type(error).__name__}")
                await asyncio.sleep(_EVERY_SECONDS)

    async def _look_again_and_again(self) -> None:
        """With the same clients, until nobody asks any more."""
        async with admin_client(self._settings) as admin, reader(self._settings) as consumer:
            while time.monotonic() - self._asked_at < _ASKED_SECONDS:
                at = time.time()
                async with asyncio.timeout(_LOOK_SECONDS):
                    groups = await look_with(admin, consumer, self._settings)
                    marks = await self._store.marks()
                self._know(groups, marks, None, at)
                await asyncio.sleep(_EVERY_SECONDS)
        self._asked.clear()
        self._looked.clear()

    def _know(
        self, groups: list[Group] | None, marks: int | None, problem: str | None, at: float | None = None
    ) -> None:
        self._groups, self._marks, self._problem = groups, marks, problem
        self._looked_at = at
        self._looked.set()

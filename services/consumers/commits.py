"""Offsets that are in the database, committed to Kafka beside the batches: there it is a copy for tools."""

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from aiokafka import TopicPartition

from services.consumers.handling import BatchHandler, Interrupted
from services.consumers.stored_positions import Advance
from services.runtime.crashpoints import crash_point
from services.runtime.kafka import commit_offsets, kafka_may_return
from services.runtime.retrying import retrying
from services.runtime.telemetry import PHASE_SECONDS

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

#: The least time between two commits: behind batches of few events each would take as much as a batch.
_EVERY_SECONDS: Final = 0.05
#: How long the last one may take.
_FINISH_SECONDS: Final = 4.0
_CRASH_POINTS: Final = {
    "completion-recorder": "recorder.offsets-committed",
    "sankey-aggregator": "aggregator.offsets-committed",
}


class Commits:
    """The commits of a shell, one at a time.

    While Kafka is away they are tried again and again. What they cover is in the database: should the process
    end before, it is read again, and changes nothing.
    """

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        self._due: dict[TopicPartition, tuple[int, str]] = {}
        self._at_once = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def soon(self, advance: Advance) -> None:
        """Commits these offsets, or later ones of their partitions, in the background."""
        words = self._shell.keeper.commit_metadata(advance)
        self._due |= {tp: (offset, words.get(tp, "")) for tp, offset in advance.offsets.items()}
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._commit_due())

    async def finish(self) -> None:
        """Waits until all are committed, a bounded time; then forgets what is not."""
        if (task := self._task) is not None and not task.done():
            self._at_once.set()
            await asyncio.wait({task}, timeout=_FINISH_SECONDS)
            self._at_once.clear()
            task.cancel()
        self._due.clear()

    async def _commit_due(self) -> None:
        shell = self._shell
        try:
            while self._due:
                began = time.monotonic()
                due, self._due = self._due, {}
                with PHASE_SECONDS.labels(shell.service, "commit").time():
                    async for attempt in retrying(shell.service, shell.rest, kafka_may_return):
                        with attempt:
                            await commit_offsets(
                                shell.consumer,
                                {tp: offset for tp, (offset, _) in due.items()},
                                shell.settings.commit_timeout_seconds,
                                {tp: words for tp, (_, words) in due.items()},
                            )
                crash_point(_CRASH_POINTS[shell.service])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY_SECONDS - (time.monotonic() - began)):
                        await self._at_once.wait()
        except Interrupted:
            self._due.clear()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing would be committed any more
            shell.fail(error)

"""The calls of one person take turns, and few of them wait; nobody who waits holds a connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field


class BusyError(Exception):
    """Too many calls of this person wait already, or one has waited for too long."""


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
    async def turn(self, person: Hashable, seconds: float) -> AsyncIterator[None]:
        """The block runs when it is this call's turn.

        Raises:
            BusyError: too many wait, or the turn does not come within `seconds`.
        """
        queue = self._queues.setdefault(person, _Queue())
        if queue.calls > self._waiting:
            raise BusyError
        queue.calls += 1
        try:
            try:
                async with asyncio.timeout(seconds):
                    await queue.lock.acquire()
            except TimeoutError:
                raise BusyError from None
            try:
                yield
            finally:
                queue.lock.release()
        finally:
            queue.calls -= 1
            if not queue.calls:
                del self._queues[person]

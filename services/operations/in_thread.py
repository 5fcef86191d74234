"""Reading what may wait, a pipe say, while the event loop goes on."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")
#: So many are read ahead.
_AHEAD: Final = 5_000


async def in_thread(items: Iterable[_T]) -> AsyncGenerator[list[_T]]:
    """What there is by now of the items, again and again; a thread reads them, and none waits for its end.

    An error of theirs is raised here, after what came before it.
    """
    reading = _Reading(items)
    threading.Thread(target=reading.run, daemon=True, name="reading").start()
    try:
        while True:
            await reading.there.wait()
            some = reading.take()
            if some:
                yield some
            elif reading.is_done:
                break
        if reading.problem is not None:
            raise reading.problem
    finally:
        reading.stop()


class _Reading(Generic[_T]):
    """What a thread has read, and nobody has taken yet."""

    def __init__(self, items: Iterable[_T]) -> None:
        self.there = asyncio.Event()
        self.problem: Exception | None = None
        self.is_done = False
        self._items = items
        self._loop = asyncio.get_running_loop()
        self._read: list[_T] = []
        self._changed = threading.Condition()
        self._is_stopped = False

    def run(self) -> None:
        """Reads all of them, in the thread."""
        problem: Exception | None = None
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._read) < _AHEAD or self._is_stopped)
                    if self._is_stopped:
                        return
                    self._read.append(item)
                    if len(self._read) == 1:
                        self._loop.call_soon_threadsafe(self.there.set)
        except Exception as error:  # noqa: BLE001 - raised where they are read
            problem = error
        with self._changed:
            self.problem, self.is_done = problem, True
            if not self._is_stopped:
                self._loop.call_soon_threadsafe(self.there.set)

    def take(self) -> list[_T]:
        """What was read since; where that is nothing, and more may come, `there` says when it has."""
        with self._changed:
            some, self._read = self._read, []
            if not self.is_done:
                self.there.clear()
            self._changed.notify()
        return some

    def stop(self) -> None:
        """Lets the thread end, once it has read what it waits for."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

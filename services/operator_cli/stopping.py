"""Commands that somebody may end in the middle, and that say then what they have done."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Final

from services.operator_cli import interrupts
from services.runtime.errors import StepstreamError, StoppedError

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def nothing_begun() -> Iterator[None]:
    """In this block a command prepares, and has neither sent nor changed anything: SIGINT ends it at once."""
    is_told = threading.current_thread() is threading.main_thread()  # others get no signals
    if is_told:
        interrupts.begin()
    try:
        yield
    finally:
        if is_told:
            interrupts.end()


def run_until_stopped(work: Coroutine[Any, Any, None]) -> StepstreamError | None:
    """Runs it to its end, or until SIGINT or SIGTERM cancels it; returns what has ended it early.

    A second signal does what it does by itself: it ends the process.
    """
    try:
        number = asyncio.run(_until_stopped(work))
    except StepstreamError as error:
        return error
    return None if number is None else StoppedError(f"ended by {number.name}", number)


async def _until_stopped(work: Coroutine[Any, Any, None]) -> signal.Signals | None:
    task = asyncio.ensure_future(work)
    came: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        came.append(number)
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
        task.cancel()

    if threading.current_thread() is threading.main_thread():  # others get no signals
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop, number)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return came[0] if came else None

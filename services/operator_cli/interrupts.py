"""Ctrl-C where nothing has begun: a line and an exit code, and no exception in the midst of an import.

It imports next to nothing: the sooner it is there, the better.
"""

import os
import signal

INTERRUPTED = 130


def end_at_once(*_: object) -> None:
    """Ends the process by a line. Not by an exception: that would be raised wherever the program is."""
    try:
        os.write(2, b"interrupted: nothing was sent or changed\n")
    finally:
        os._exit(INTERRUPTED)


def begin() -> None:
    """Until a command runs, SIGINT ends the process at once; where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def end() -> None:
    """From here on SIGINT is a `KeyboardInterrupt` again: a command may have something to clean up."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)

"""Files that a person names, and standard input."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from services.runtime.errors import UsageError


@contextmanager
def open_lines(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """A file, or standard input for `-`, and its size in bytes where that is known.

    Raises:
        UsageError: it cannot be read.
    """
    if file == "-":
        yield sys.stdin.buffer, None
        return
    path = Path(file)
    try:
        with path.open("rb") as lines:
            yield lines, path.stat().st_size
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{file}: {error.strerror}") from None


@contextmanager
def open_unbuffered(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """As `open_lines`, for a thread that nobody waits for: Python cannot end while one waits in `sys.stdin`.

    Raises:
        UsageError: it cannot be read.
    """
    number = _number_of_standard_input() if file == "-" else None
    if number is None:
        with open_lines(file) as opened:
            yield opened
        return
    with open(number, "rb", buffering=0, closefd=False) as raw:
        yield cast("BinaryIO", raw), None


def _number_of_standard_input() -> int | None:
    try:
        return sys.stdin.fileno()
    except (OSError, ValueError):  # somebody has put something else in its place
        return None

"""Files that a person names, and standard input."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from services.runtime.errors import UsageError

Given = TypeVar("Given")


def reading(file: str | Path, read: Callable[[], Given]) -> Given:
    """What `read` returns, where the file can be read.

    Raises:
        UsageError: it cannot.
    """
    try:
        return read()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror or error}") from None


def lines_of(stream: BinaryIO, file: str | Path, most: int) -> Iterator[bytes]:
    """The lines of a file; of one that is longer no more than `most` + 1 bytes are read at a time.

    Raises:
        UsageError: it cannot be read.
    """
    while line := reading(file, lambda: stream.readline(most + 1)):
        yield line


def read_whole(file: Path, most: int) -> bytes:
    """What a file holds.

    Raises:
        UsageError: it cannot be read, or is longer than `most` bytes.
    """
    with reading(file, lambda: file.open("rb")) as opened:
        content = reading(file, lambda: opened.read(most + 1))
    if len(content) > most:
        raise UsageError(f"{file}: it has more than {most:,} bytes")
    return content


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
    with reading(file, lambda: path.open("rb")) as lines:
        yield lines, path.stat().st_size


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

"""Files that a person names, and standard input."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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

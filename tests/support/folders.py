"""Where servers of tests keep their data: in memory, where there is enough of it."""

import functools
import shutil
import tempfile
from pathlib import Path

#: Where Linux has memory as files. In containers it is often too small.
_MEMORY = Path("/dev/shm")
_ENOUGH = 4 << 30


@functools.cache
def _where() -> str | None:
    """None is where temporary files are else."""
    try:
        free = shutil.disk_usage(_MEMORY).free
    except OSError:
        return None
    return str(_MEMORY) if free >= _ENOUGH else None


def server_folder(prefix: str) -> Path:
    """A new folder for a server's data, with a short path: some put sockets there.

    A database for each test is three hundred files, and making them on a disk costs ten times what it costs in memory.
    """
    return Path(tempfile.mkdtemp(prefix=prefix, dir=_where()))

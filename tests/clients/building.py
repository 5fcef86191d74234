"""How programs of others are built: once, from what a lock file says."""

import functools
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
Command = Sequence[str | Path]


@functools.cache
def built() -> Path:
    """Where programs are built; it ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="clients-")
    _folders.append(folder)
    return Path(folder.name)


_folders: list[tempfile.TemporaryDirectory[str]] = []


def run(*command: str | Path, folder: Path, path: str = "", **variables: str) -> None:
    """Runs a command in a folder; `path` is looked through before PATH for it and what it starts."""
    search = os.pathsep.join(filter(None, (path, os.environ["PATH"])))
    env = os.environ | {"PATH": search} | variables
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def packages(folder: Path, path: str = "", **variables: str) -> None:
    """Installs what a folder's package-lock.json says, once for all workers."""
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    with FileLock(folder / ".installing"):
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            run("npm", "ci", "--no-progress", folder=folder, path=path, **variables)


def go_binary(folder: Path, program: str) -> Path:
    """Builds a program of a module in Go."""
    binary = built() / f"{folder.parent.name}-{program}"
    run("go", "build", "-o", binary, f"./{program}", folder=folder)
    return binary

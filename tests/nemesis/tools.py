"""What some faults need of the machine: a compiler, a library of Debian's, the right to mount."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.nemesis.servers import SmallDisk

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepstream-nemesis"

_SLOW_FSYNC = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void wait_a_little(void) {
  const char *name = getenv("SLOW_FSYNC_FILE");
  FILE *file = name ? fopen(name, "r") : NULL;
  int milliseconds = 0;
  if (file == NULL) return;
  if (fscanf(file, "%d", &milliseconds) == 1 && milliseconds > 0) usleep(milliseconds * 1000);
  fclose(file);
}

int fsync(int descriptor) {
  int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
  wait_a_little();
  return real(descriptor);
}

int fdatasync(int descriptor) {
  int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
  wait_a_little();
  return real(descriptor);
}
"""


class Missing(Exception):  # noqa: N818 - no error: the fault is skipped
    """What a fault needs is not to be had here; the message says why."""


@functools.cache
def slow_fsync() -> Path:
    """A library that makes fsync wait for as many milliseconds as a file says, which SLOW_FSYNC_FILE names."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Missing("no C compiler (cc)")
    CACHE.mkdir(parents=True, exist_ok=True)
    source, library = CACHE / "slow_fsync.c", CACHE / "slow_fsync.so"
    source.write_text(_SLOW_FSYNC)
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], capture_output=True, check=False
    )
    if made.returncode:
        raise Missing("the C compiler makes no shared library")
    return library


@functools.cache
def faketime() -> Path:
    """libfaketime: installed, or unpacked from Debian's package."""
    known = [Path("/usr/lib"), CACHE / "usr" / "lib"]
    found = _find(known)
    if found is None and shutil.which("apt-get") and shutil.which("dpkg"):
        _unpack("libfaketime")
        found = _find(known)
    if found is None:
        raise Missing("no libfaketime, and no Debian package of it")
    return found


def _find(folders: list[Path]) -> Path | None:
    found = (f for folder in folders for f in sorted(folder.glob("*/faketime/libfaketime.so.1")))
    return next(found, None)


def _unpack(package: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nemesis-") as name:
        for command in ([], ["apt-get", "update", "-qq"]):
            if command:
                subprocess.run(command, capture_output=True, check=False, timeout=120)
            done = subprocess.run(
                ["apt-get", "download", "-qq", package],
                cwd=name,
                capture_output=True,
                check=False,
                timeout=120,
            )
            if done.returncode == 0:
                break
        for file in Path(name).glob("*.deb"):
            subprocess.run(["dpkg", "-x", file, CACHE], capture_output=True, check=False)


@functools.cache
def mounting() -> None:
    """The right to mount a file system in memory."""
    if not SmallDisk.may_be_made():
        raise Missing("no right to mount")

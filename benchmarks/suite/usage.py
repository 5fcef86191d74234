"""Processor time and memory of processes, as Linux counts them."""

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg


def _stats() -> dict[int, list[str]]:
    """Of each process what its `stat` says behind its name."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(stat.parent.name)] = stat.read_text().rpartition(")")[2].split()
    return found


def cpu_seconds(*of: int) -> float:
    """What these processes, and those they have started, have had of the processor so far."""
    stats = _stats()
    ticks = sum(sum(map(int, f[11:15])) for pid, f in stats.items() if pid in of)
    ticks += sum(sum(map(int, f[11:13])) for f in stats.values() if int(f[1]) in of)
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib(of: int) -> float:
    """The most memory that a process, or one that it has started, has had resident (VmHWM)."""
    family = [of, *(pid for pid, fields in _stats().items() if int(fields[1]) == of)]
    return max(_peak_kib(pid) for pid in family) / 1024


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


async def postmaster(db: asyncpg.Connection) -> int:
    """The process of PostgreSQL that has started all its others."""
    backend = await db.fetchval("select pg_backend_pid()")
    return int(Path(f"/proc/{backend}/stat").read_text().rpartition(")")[2].split()[1])


@dataclass
class Meter:
    """What some processes use from now on; `of` are the servers: PostgreSQL and Kafka."""

    pids: Iterable[int]
    of: dict[str, int]
    before: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.pids = tuple(self.pids)
        self.before = self._seconds()

    def _seconds(self) -> dict[str, float]:
        found = {name: cpu_seconds(pid) for name, pid in self.of.items()}
        return found | ({"service": cpu_seconds(*self.pids)} if self.pids else {})

    def values(self, events: int) -> dict[str, float]:
        """Microseconds of the processor an event, and the most memory of one process."""
        now = self._seconds()
        used = {f"{name}_us": (now[name] - was) / events * 1e6 for name, was in self.before.items()}
        return used | ({"memory_mib": max(map(peak_mib, self.pids))} if self.pids else {})

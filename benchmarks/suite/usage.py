"""Processor time and memory of processes, as Linux counts them."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg


def cpu_seconds(*of: int) -> float:
    """What these processes, and those they have started, have had of the processor so far."""

    def fields(stat: Path) -> list[str]:
        try:
            return stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return []

    stats = [(int(s.parent.name), fields(s)) for s in Path("/proc").glob("[0-9]*/stat")]
    ticks = sum(sum(map(int, f[11:15])) for pid, f in stats if f and pid in of)
    ticks += sum(sum(map(int, f[11:13])) for _, f in stats if f and int(f[1]) in of)
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


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

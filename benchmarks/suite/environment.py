"""What a run was made on: enough to know which figures may be put beside each other."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from services.devstack.kafka import VERSION

_LIBRARIES = ("aiokafka", "asyncpg", "faststream", "numpy", "pydantic", "uvloop")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def load() -> list[float]:
    """The load average of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


async def describe(database_url: str, folder: Path) -> dict[str, Any]:
    """The machine, the programs' versions, and every setting that is not the default."""
    db = await asyncpg.connect(database_url)
    postgres = await db.fetchval("show server_version")
    settings = await db.fetch(
        "select name, setting || coalesce(' ' || unit, '') as value from pg_settings"
        " where source = 'command line' and name not in ('port', 'data_directory') order by name"
    )
    await db.close()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": postgres,
        "kafka": VERSION,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "commit": _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "load_at_start": load(),
        "settings": {
            "stepstream": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith("STEPSTREAM_")
                and not any(word in name for word in ("PASSWORD", "URL", "FILE", "SERVERS", "SECRETS"))
            },
            "postgresql": {row["name"]: row["value"] for row in settings},
            "kafka": _properties(folder / "kafka" / "server.properties"),
        },
    }


def _properties(file: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in file.read_text().splitlines())
    own = ("listeners", "voters", "log.dirs", "node.id")
    return {name: value for name, _, value in pairs if not name.endswith(own)}

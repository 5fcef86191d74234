"""The process around a service: how it ends."""

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from services.runtime.process import Process
from services.runtime.settings import Settings

SETTINGS = Settings(
    kafka_bootstrap_servers="127.0.0.1:1",
    database_url="postgresql://127.0.0.1:1/none",
    drain_timeout_seconds=0.1,
)


class Nothing(Process[Any]):
    def opened(self) -> Any:
        raise NotImplementedError

    def application(self) -> Any:
        raise NotImplementedError


async def test_all_that_is_in_hand_shares_the_time_to_drain() -> None:
    """Whoever ends second does not begin to wait anew: the end would come too late to be a polite one."""
    process = Nothing("test", SETTINGS)
    async with process.beside(asyncio.Event().wait), process.beside(asyncio.Event().wait):
        assert process.seconds_to_drain == 0.1
    assert process.seconds_to_drain == 0


def test_which_release_runs_is_told_by_metrics_and_by_the_command_line() -> None:
    """As pyproject.toml says it, which is the one place where it stands."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    Nothing("test", SETTINGS)
    told = re.findall(r"^stepstream_build_info(.*) 1.0$", generate_latest().decode(), re.MULTILINE)
    assert told == [f'{{version="{project["version"]}"}}']
    done = subprocess.run([sys.executable, "-m", "stepstream", "--version"], check=True, capture_output=True)
    assert done.stdout.decode() == f"stepstream {project['version']}\n"

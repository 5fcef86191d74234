"""One stack for the whole run, started by the controlling process; a database and topics for each test."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from services.devstack import processes
from tests.support.folders import server_folder
from tests.support.stacks import Stack, start_stack
from tests.support.world import World, make_template

# The formats of `jsonschema` that no schema of ours uses: to import them builds a parser, for most of a second.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# Hypothesis' own is 200 ms for an example, which a busy machine does not keep.
settings.register_profile("stepstream", deadline=None)
settings.load_profile("stepstream")

_ADDRESSES = "STEPSTREAM_TEST_ADDRESSES"
_running: dict[str, Stack] = {}

#: Files whose tests run in one worker, one after another: they share what is dear to start or to fill.
#: (`xdist_group` would say it, but has no effect with pytest 9.2.)
_TOGETHER = {
    "test_kafka_away.py": "brokers",
    "test_security.py": "secure",
    "test_rotation.py": "strict",
    "test_readme.py": "embedded stack",
    "test_embedded_stack.py": "embedded stack",
    "test_analytics.py": "analytics",
    "test_dashboard.py": "dashboard",
    "test_nemesis.py": "nemesis",
    "test_unreadable_batches.py": "unreadable",
}


class _FilesTogether(LoadScopeScheduling):
    """Gives the tests of some files to one worker, and every other test to whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return _TOGETHER.get(Path(nodeid.split("::", maxsplit=1)[0]).name, nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _FilesTogether(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Starts the stack before workers are, unless only unit tests are asked for."""
    if hasattr(config, "workerinput"):
        # Between looking for a free port and listening there, another worker could take it.
        worker = int(config.workerinput["workerid"].removeprefix("gw"))
        processes.PORTS = processes.PORTS[worker % 8 :: 8]
        return
    if _ADDRESSES in os.environ or config.option.collectonly:
        return
    if config.args and all("unit" in Path(argument.split("::")[0]).parts for argument in config.args):
        return
    stack = start_stack(os.environ.get("STEPSTREAM_TEST_STACK", "embedded"))
    _running["stack"] = stack
    os.environ[_ADDRESSES] = f"{stack.kafka} {stack.database}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if stack := _running.pop("stack", None):
        stack.stop()


def pytest_report_header(config: pytest.Config) -> str:
    return f"stack: {os.environ.get('STEPSTREAM_TEST_STACK', 'embedded')} {os.environ.get(_ADDRESSES, '')}"


@pytest.fixture(scope="session")
def addresses() -> tuple[str, str]:
    """Kafka and PostgreSQL of this run."""
    kafka, database = os.environ[_ADDRESSES].split()
    return kafka, database


@pytest.fixture(scope="session")
def template(addresses: tuple[str, str]) -> str:
    """A migrated database that others are copies of."""
    return make_template(addresses[1])


@pytest.fixture
async def world(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """A migrated database, the topics, and what tests do with them; all gone afterwards."""
    made = await World.make(*addresses, template)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path: some servers put sockets there."""
    folder = server_folder("st-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)

"""One stack for the whole run, started by the controlling process; a database and topics for each test."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.stacks import Stack, start_stack
from tests.support.world import World, make_template

_ADDRESSES = "STEPSTREAM_TEST_ADDRESSES"
_running: dict[str, Stack] = {}


def pytest_configure(config: pytest.Config) -> None:
    """Starts the stack before workers are, unless only unit tests are asked for."""
    if hasattr(config, "workerinput") or _ADDRESSES in os.environ or config.option.collectonly:
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
    folder = Path(tempfile.mkdtemp(prefix="st-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)

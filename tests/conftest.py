"""One stack for the whole run, started by the controlling process; a database and topics for each test."""

import gc
import os
import shutil
import sys
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from services.devstack import processes
from tests.support.folders import server_folder
from tests.support.issuer import Issuer
from tests.support.stacks import Stack, start_stack
from tests.support.world import World, make_template

# The formats of `jsonschema` that no schema of ours uses: to import them takes most of a second.
for _unused in ("rfc3987_syntax", "isoduration"):
    sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]

# Hypothesis' own is 200 ms for an example, which a busy machine does not keep.
settings.register_profile("stepstream", deadline=None)
settings.load_profile("stepstream")

_ADDRESSES = "STEPSTREAM_TEST_ADDRESSES"
_running: dict[str, Stack] = {}

#: Files whose tests run in one worker, one after another: they share what is dear to start or to fill.
#: (`xdist_group` would say it, but has no effect with pytest 9.2.)
_TYPESCRIPT = tuple(f"test_typescript_{what}.py" for what in ("failover", "http", "kafka", "package"))
_TOGETHER = {
    "test_kafka_away.py": "brokers",
    "test_client_kafka_away.py": "brokers",
    "test_security.py": "secure",
    "test_rotation.py": "strict",
    "test_readme.py": "embedded stack",
    "test_embedded_stack.py": "embedded stack",
    "test_analytics.py": "analytics",
    "test_diagnosis.py": "statistics",
    "test_dashboard.py": "dashboard",
    "test_nemesis.py": "nemesis",
    "test_unreadable_batches.py": "unreadable",
    "test_agent_walks.py": "walks",
    # They build the same package.
    **dict.fromkeys(_TYPESCRIPT, "typescript"),
    # Tests of a file, where it has others.
    "test_a_tail_that_kafka_lost_is_named_and_what_follows_is_counted": "own broker",
    "test_what_only_the_database_after_a_backup_had_read_is_named_when_kafka_loses_it": "own broker",
    "test_a_tail_that_was_read_since_the_last_look_is_named": "own broker",
}


#: Files left out on other stacks than the embedded one, and why what they prove cannot differ there.
#: Beside them, tests that ask for no stack are left out: they bring servers of their own, or need none.
_ONCE = {
    "test_kafka_away.py": "the brokers are its own",
    "test_client_kafka_away.py": "the brokers are its own",
    "test_unreadable_batches.py": "the broker is its own",
    "test_replica.py": "the database servers are its own",
    "test_operating_page.py": "what commands print",
    "test_mcp_sign_in.py": "HTTP, between client and service",
    "test_mcp_stdio.py": "pipes, between client and service",
    "test_slow_clients.py": "HTTP, between client and service",
    "test_tracing.py": "spans, between service and collector",
    # What is read of the same tables by the same statements.
    "test_analytics.py": "answers over HTTP",
    "test_analytics_live.py": "answers over HTTP",
    "test_analytics_versions.py": "answers over HTTP",
    "test_analytics_segments.py": "answers over HTTP",
    "test_skipped_and_shown_journeys.py": "answers over HTTP",
    "test_versions.py": "answers over HTTP",
    "test_exports.py": "answers over HTTP",
    "test_findings.py": "answers over HTTP",
    "test_finish_rules.py": "answers over HTTP",
    "test_had_time.py": "answers over HTTP",
    "test_fairness.py": "HTTP, between client and service",
    "test_errors_are_seen.py": "what is logged and answered",
    "test_intake.py": "HTTP, between client and service",
    "test_registering.py": "HTTP, between client and service",
    "test_mcp.py": "HTTP, between client and service",
    "test_mcp_at_once.py": "HTTP, between client and service",
    "test_mcp_skips.py": "HTTP, between client and service",
    "test_mcp_introduction.py": "what a server tells of itself",
    "test_mcp_pages.py": "what a server tells of itself",
    "test_mcp_round_trips.py": "statements that are counted",
    "test_catalog.py": "which walkthroughs are offered",
    "test_import_export.py": "files, and rows of the platform's tables",
    "test_commands.py": "what commands print",
    "test_terminals.py": "what commands print",
    "test_long_titles.py": "what commands print",
    "test_check_events.py": "what a command says of events",
    "test_produce.py": "what a command says of files",
    "test_python_package.py": "a package, and who installs it",
    "test_clients_of_sessions.py": "rows of the platform's tables",
}
_left_out = pytest.StashKey[int]()


class _FilesTogether(LoadScopeScheduling):
    """Gives the tests of some files, and some tests, to one worker, and every other test to whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return _TOGETHER.get(Path(file).name) or _TOGETHER.get(test.partition("[")[0], nodeid)


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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without garbage collection, which finds nothing here, and takes a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # what is imported stays, and need not be looked through again
        gc.enable()


def _is_run_once(item: pytest.Item) -> bool:
    return item.path.name in _ONCE or "addresses" not in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out, on other stacks, what the embedded one alone proves."""
    if os.environ.get("STEPSTREAM_TEST_STACK", "embedded") == "embedded":
        return
    once = [item for item in items if _is_run_once(item)]
    items[:] = [item for item in items if not _is_run_once(item)]
    config.hook.pytest_deselected(items=once)
    config.stash[_left_out] = len(once)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tells the controlling process, which collects nothing."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_left_out, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(_left_out, 0):
        terminalreporter.write_line(
            f"{count} tests were left out: they bring servers of their own, or prove what no server changes,"
            " and the embedded stack's run has them (tests/conftest.py says which)"
        )


def pytest_unconfigure(config: pytest.Config) -> None:
    if stack := _running.pop("stack", None):
        stack.stop()


def pytest_report_header(config: pytest.Config) -> str:
    return f"stack: {os.environ.get('STEPSTREAM_TEST_STACK', 'embedded')} {os.environ.get(_ADDRESSES, '')}"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An authorization server."""
    made = Issuer()
    yield made
    made.server.shutdown()


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

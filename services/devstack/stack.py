"""The embedded stack: `up`, `status`, `down`, each for one folder, safe to call at once and again."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError

from aiokafka.errors import KafkaError
from filelock import FileLock
from pydantic import BaseModel, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.devstack.kafka import start_kafka, wait_until_ready
from services.devstack.postgres import create_database, start_postgres, url
from services.devstack.processes import Process, answers, free_port, wait_until_answers

_STATE = "stack.json"


class StackError(Exception):
    """The stack cannot be brought up, is not up, or is only half there."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the stack answers."""

    kafka_bootstrap_servers: str
    database_url: str

    def environment(self) -> dict[str, str]:
        """The settings that lead to this stack."""
        return {
            "STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS": self.kafka_bootstrap_servers,
            "STEPSTREAM_DATABASE_URL": self.database_url,
        }


class _Server(BaseModel):
    port: int
    process: Process

    def runs(self) -> bool:
        return self.process.find() is not None


class _State(BaseModel):
    """What is written down about a stack, so that another process finds it again."""

    kafka: _Server | None = None
    postgres: _Server | None = None
    controller_port: int | None = None

    @classmethod
    def read(cls, folder: Path) -> "_State":
        file = folder / _STATE
        if not file.exists():
            return cls()
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError:
            raise StackError(
                f"{file} cannot be read. `stepstream stack down --purge --dir {folder}` clears it away"
            ) from None

    def write(self, folder: Path) -> None:
        part = folder / f"{_STATE}.part"
        part.write_text(self.model_dump_json(indent=2))
        part.replace(folder / _STATE)

    def addresses(self) -> Addresses:
        assert self.kafka is not None  # noqa: S101 - callers have checked
        assert self.postgres is not None  # noqa: S101
        return Addresses(f"127.0.0.1:{self.kafka.port}", url(self.postgres.port))


#: PostgreSQL accepts connections a moment before it accepts queries.
_patiently = Retrying(
    retry=retry_if_exception_type(CalledProcessError),
    stop=stop_after_delay(30),
    wait=wait_fixed(0.1),
    reraise=True,
)


def up(folder: Path, tell: Callable[[str], None] = lambda _: None) -> Addresses:
    """Starts what does not run yet, on the data that is there, and waits until both servers answer.

    Raises:
        StackError: a server does not start; with the end of its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "stack.lock", timeout=180):
        state = _State.read(folder)
        try:
            _bring_up_postgres(folder, state, tell)
            _bring_up_kafka(folder, state, tell)
        except RuntimeError as error:
            raise StackError(str(error)) from error
        return state.addresses()


def status(folder: Path) -> Addresses:
    """Where the stack of this folder answers.

    Raises:
        StackError: it does not run, or only half of it does.
    """
    folder = folder.resolve()
    state = _State.read(folder) if folder.exists() else _State()
    servers = {"Kafka": state.kafka, "PostgreSQL": state.postgres}
    lost = [name for name, s in servers.items() if s is None or not s.runs() or not answers(s.port)]
    if len(lost) == 2:
        raise StackError(f"no stack runs in {folder}; `stepstream stack up --dir {folder}` starts one")
    if lost:
        raise StackError(
            f"only half of the stack in {folder} runs: {lost[0]} does not answer. "
            f"`stepstream stack up --dir {folder}` starts what is missing, on its data; "
            f"its log is in {folder / lost[0].lower().replace('postgresql', 'postgres')}"
        )
    return state.addresses()


def down(folder: Path, *, purge: bool = False) -> bool:
    """Stops both servers and returns whether one ran; the data stay unless `purge`."""
    folder = folder.resolve()
    if not folder.exists():
        return False
    with FileLock(folder / "stack.lock", timeout=180):
        try:
            state = _State.read(folder)
        except StackError:
            if not purge:
                raise
            state = _State()
        ran = False
        for server in (state.kafka, state.postgres):
            if server is not None and server.runs():
                ran = True
                server.process.stop(seconds=20)
        if purge:
            for part in ("kafka", "postgres"):
                shutil.rmtree(folder / part, ignore_errors=True)
            (folder / _STATE).unlink(missing_ok=True)
    if purge:
        shutil.rmtree(folder, ignore_errors=True)
    return ran


def _bring_up_postgres(folder: Path, state: _State, tell: Callable[[str], None]) -> None:
    there = state.postgres
    if there is not None and there.runs():
        _must_answer("PostgreSQL", there, folder / "postgres" / "postgres.log")
    else:
        tell("starting PostgreSQL")
        port = free_port(there.port if there else None)
        process = start_postgres(folder / "postgres", port)
        state.postgres = _Server(port=port, process=process)
        state.write(folder)
        _must_answer("PostgreSQL", state.postgres, folder / "postgres" / "postgres.log")
    assert state.postgres is not None  # noqa: S101 - just set
    try:
        _patiently(create_database, state.postgres.port)
    except CalledProcessError as error:
        raise RuntimeError(f"PostgreSQL answers, but not to queries: {error.stderr}") from error


def _bring_up_kafka(folder: Path, state: _State, tell: Callable[[str], None]) -> None:
    there = state.kafka
    if there is None or not there.runs():
        tell("starting Kafka (the first time its 43 MB are fetched)")
        port = free_port(there.port if there else None)
        state.controller_port = free_port(state.controller_port)
        process = start_kafka(folder / "kafka", port, state.controller_port)
        there = state.kafka = _Server(port=port, process=process)
        state.write(folder)
    _must_answer("Kafka", there, folder / "kafka" / "kafka.log")
    try:
        wait_until_ready(there.port)
    except KafkaError as error:
        raise RuntimeError(f"Kafka answers, but serves no groups: {error}") from error


def _must_answer(name: str, server: _Server, log: Path) -> None:
    try:
        wait_until_answers(name, server.process, server.port, log, seconds=60)
    except RuntimeError as error:
        if server.runs():
            raise StackError(
                f"{error}\nIt runs (pid {server.process.pid}) without answering: "
                "`stepstream stack down` stops it, its data stay, and `stack up` starts it again"
            ) from None
        raise

"""Starts services and commands as processes by forking one that has imported everything already.

Each is a process of its own, with its own signals, memory and exit code, as `stepstream` makes it; what is saved
is a second of imports for each of some hundred starts. Requests and answers are JSON lines.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "services.operator_cli.app",
    "services.completion_recorder.against_topic",
    "services.completion_recorder.corrections",
    "services.completion_recorder.dead_letters",
    "services.completion_recorder.redriving",
    "services.walkthrough_mcp.exchange",
    "services.analytics_api.keys",
    "services.operations.produce",
    "services.sankey_aggregator.rebuild",
    "services.operations.erase",
    "services.operations.replay",
    "services.operations.status",
    "services.operations.unreadable",
    "services.consumers.gone",
    "services.sankey_aggregator.verify",
    "services.completion_recorder.app",
    "services.sankey_aggregator.app",
    "services.outbox_relay.app",
    "services.walkthrough_mcp.app",
    "services.analytics_api.app",
    "services.runtime.tracing",
    "services.runtime.environment",
    "services.operator_cli.letter_tables",
    "anyio._backends._asyncio",
    "opentelemetry.sdk.trace",
    "rich._emoji_codes",
    "rich.cells",
    "typer.rich_utils",
    "uvicorn.lifespan.off",
    "uvicorn.lifespan.on",
    "uvloop",
)


# --- in the process that forks ---------------------------------------------------------------------------


def build_commands_once() -> Callable[[Any], object]:
    """Keeps the tree of all commands, which `typer` builds anew, in 0.04 s, whenever one is called."""
    import typer.main
    import typer.testing

    build = functools.cache(typer.main.get_command)
    vars(typer.main)["get_command"] = vars(typer.testing)["_get_command"] = build
    return build


def main() -> None:
    """Forks on request, and tells of every child's end."""
    import importlib

    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    build_commands_once()(sys.modules["services.operator_cli.app"].app)
    # Else each child looks through what is imported, at a tenth of a second and a copy of its memory.
    gc.freeze()
    gc.enable()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(reading, selectors.EVENT_READ)
    children: set[int] = set()
    rest = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if reading in ready:
            os.read(reading, 4096)
        if 0 in ready:
            got = os.read(0, 1 << 20)
            if not got:
                break
            *lines, rest = (rest + got).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(line))
                children.add(pid)
                _tell({"pid": pid})
        _tell_ends(children)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tell_ends(children: set[int]) -> None:
    for pid in list(children):
        with contextlib.suppress(ChildProcessError):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                _tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _become(request: dict[str, Any]) -> NoReturn:
    """The child: `stepstream` with these arguments, as if it had just been started."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
        for stream, file in ((1, request["stdout"]), (2, request["stderr"])):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        random.seed()
        sys.argv = ["stepstream", *request["arguments"]]
        from services.operator_cli.app import main as command

        try:
            command()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        # What the interpreter does at its end; `os._exit` leaves it out.
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


# --- in the tests ----------------------------------------------------------------------------------------


class Forked:
    """A child of the zygote, with what tests use of a `Popen`."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self._zygote = zygote
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._zygote.ended.get(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._zygote.changed:
            while (code := self.poll()) is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired("stepstream", timeout or 0)
                self._zygote.changed.wait(left)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Zygote:
    """The process that forks; one for a test run's worker."""

    def __init__(self) -> None:
        self.ended: dict[int, int] = {}
        self.changed = threading.Condition()
        self._born: list[int] = []
        self._one_at_a_time = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._read, daemon=True).start()
        atexit.register(self.close)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self.changed:
                if "pid" in answer:
                    self.ended.pop(answer["pid"], None)
                    self._born.append(answer["pid"])
                else:
                    self.ended[answer["ended"]] = answer["code"]
                self.changed.notify_all()

    def start(
        self,
        arguments: Sequence[str],
        environment: dict[str, str],
        stdout: Path,
        stderr: Path,
        stdin: Path | str = os.devnull,
    ) -> Forked:
        """`stepstream` with these arguments; what it says is added to the files."""
        assert self._process.stdin is not None
        files = {"stdin": str(stdin), "stdout": str(stdout), "stderr": str(stderr)}
        request = {"arguments": arguments, "environment": environment} | files
        with self._one_at_a_time, self.changed:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            while not self._born:
                assert self._process.poll() is None, "the zygote is dead"
                self.changed.wait(1)
            return Forked(self, self._born.pop())

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(10)


@functools.cache
def zygote() -> Zygote:
    """The one of this process, started when it is first asked for."""
    return Zygote()


if __name__ == "__main__":
    main()

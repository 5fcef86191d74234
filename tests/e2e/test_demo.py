"""The demo in a terminal: it ends with the dashboard's address, stays up and live, and ends with Ctrl-C."""

import asyncio
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import psutil
import pytest

from services.devstack import down
from tests.support.world import eventually

pytestmark = pytest.mark.integration


def start(terminal: int, folder: Path) -> subprocess.Popen[bytes]:
    """Starts the demo in a session of its own, whose terminal it is: so Ctrl-C reaches it."""
    command = [sys.executable, "-m", "services.operator_cli", "demo", "--people", "20", "--dir", str(folder)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STEPSTREAM_")}
    return subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=clean | {"COLUMNS": "100"},
    )


class Demo:
    """A demo in a terminal of its own, and what it said there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.terminal, its = pty.openpty()
        self.process = start(its, folder)
        os.close(its)
        self._said = bytearray()
        self._listening = asyncio.create_task(asyncio.to_thread(self._listen))

    def _listen(self) -> None:
        while True:
            try:
                self._said.extend(os.read(self.terminal, 65_536))
            except OSError:  # the other side is gone
                return

    @property
    def said(self) -> str:
        return self._said.decode(errors="replace")

    async def says(self, pattern: str) -> re.Match[str]:
        async def it_is_there() -> re.Match[str] | None:
            assert self.process.poll() is None, self.said
            return re.search(pattern, self.said, re.DOTALL)

        return await eventually(it_is_there, f"it says {pattern}", 150)

    async def ends(self, how: Callable[[psutil.Process], None]) -> int:
        """Ends the demo; returns its exit code, when nothing of it is left."""
        demo = psutil.Process(self.process.pid)
        family = [demo, *demo.children(recursive=True)]
        how(demo)
        code = await asyncio.to_thread(self.process.wait, 60)
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], self.said
        assert not (self.folder / "stack.json").exists()
        return code

    async def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        await asyncio.to_thread(down, self.folder, purge=True)
        await self._listening
        os.close(self.terminal)


@pytest.fixture
async def demo(short_tmp: Path) -> AsyncIterator[Demo]:
    demo = Demo(short_tmp / "d")
    yield demo
    await demo.close()


async def test_in_a_terminal_it_stays_up_until_ctrl_c(demo: Demo) -> None:
    found = await demo.says(r"(http://127\.0\.0\.1:\d+)/#key=(sst_[\w-]+).*Ctrl-C")
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {found[2]}"}) as http:

        async def started() -> int:
            answer = (await http.get(f"{found[1]}/v1/organization")).json()
            return sum(w["started"] for w in answer["walkthroughs"])

        before = await started()
        assert before >= 100

        async def has_grown() -> bool:
            return await started() > before

        await eventually(has_grown, "somebody new comes", 60)
    assert await demo.ends(lambda _: os.write(demo.terminal, b"\x03")) == 0, demo.said
    assert "error" not in demo.said


async def test_ctrl_c_ends_it_while_agents_are_at_work(demo: Demo) -> None:
    await demo.says(r"led by agents .* [1-9]\d*/20")
    assert await demo.ends(lambda _: os.write(demo.terminal, b"\x03")) == 130, demo.said
    assert "error" not in demo.said


async def test_sigterm_leaves_nothing_behind(demo: Demo) -> None:
    await demo.says(r"starting completion-recorder")
    assert await demo.ends(psutil.Process.terminate) == 130, demo.said
    assert "error" not in demo.said

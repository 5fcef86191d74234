"""The demo in a terminal: it ends with the dashboard's address, stays up and live, and ends with Ctrl-C."""

import asyncio
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import httpx2
import psutil
import pytest

from services.devstack import down
from services.devstack.processes import Process
from tests.nemesis.servers import Server
from tests.support.world import eventually

pytestmark = pytest.mark.integration


def start(terminal: int, folder: Path, people: int) -> subprocess.Popen[bytes]:
    """Starts the demo in a session of its own, whose terminal it is: so Ctrl-C reaches it."""
    command = [sys.executable, "-m", "services.operator_cli", "demo", "--dir", str(folder)]
    command += ["--people", str(people)]
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

    def __init__(self, folder: Path, people: int = 20) -> None:
        self.folder = folder
        self.terminal, its = pty.openpty()
        self.process = start(its, folder, people)
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


async def test_whoever_promotes_a_standby_in_its_middle_sees_exact_tables(short_tmp: Path) -> None:
    demo = Demo(short_tmp / "d", people=120)
    standby: Server | None = None
    try:
        await demo.says(r"starting completion-recorder")
        state = json.loads((demo.folder / "stack.json").read_text())["postgres"]
        primary = Server(demo.folder / "postgres")
        primary.port, primary.process = state["port"], Process.model_validate(state["process"])
        standby = await asyncio.to_thread(primary.copy, short_tmp / "standby", primary.port)
        await asyncio.to_thread(standby.start)
        await standby.answers()
        await demo.says(r"led by agents .* [1-9]\d*/120")
        # From here on it hears nothing, and then it is where the other was.
        async with connected(standby) as db:
            await db.execute("alter system set primary_conninfo = ''")
            await db.execute("select pg_reload_conf()")
        await demo.says(r"led by agents .* [3-9]\d/120")
        await asyncio.to_thread(primary.kill)
        assert standby.process is not None
        await asyncio.to_thread(standby.process.stop, 30)
        standby.port = primary.port
        await asyncio.to_thread(standby.start)
        await standby.answers()
        async with connected(standby) as db:
            await db.execute("select pg_promote()")
        await demo.says(r"every cell is equal.*Ctrl-C")
        assert await demo.ends(lambda _: os.write(demo.terminal, b"\x03")) == 0, demo.said
    finally:
        await demo.close()
        if standby is not None:
            await asyncio.to_thread(standby.kill)


@contextlib.asynccontextmanager
async def connected(server: Server) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    db = await asyncpg.connect(server.url())
    yield db
    await db.close()

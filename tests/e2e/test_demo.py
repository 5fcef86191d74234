"""The demo in a terminal: it ends with the dashboard's address, stays up and live, and ends with Ctrl-C."""

import asyncio
import os
import pty
import re
import subprocess
import sys
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


async def test_in_a_terminal_it_stays_up_until_ctrl_c(short_tmp: Path) -> None:
    mine, its = pty.openpty()
    demo = start(its, short_tmp / "d")
    os.close(its)
    said = bytearray()

    def listen() -> None:
        while True:
            try:
                said.extend(os.read(mine, 65_536))
            except OSError:  # the other side is gone
                return

    listening = asyncio.create_task(asyncio.to_thread(listen))
    try:

        async def is_up() -> re.Match[str] | None:
            assert demo.poll() is None, said.decode()
            text = said.decode(errors="replace")
            return (
                re.search(r"(http://127\.0\.0\.1:\d+)/#key=(sst_[\w-]+)", text) if "Ctrl-C" in text else None
            )

        found = await eventually(is_up, "it says where the dashboard is", 150)
        async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {found[2]}"}) as http:

            async def started() -> int:
                answer = (await http.get(f"{found[1]}/v1/organization")).json()
                return sum(w["started"] for w in answer["walkthroughs"])

            before = await started()
            assert before >= 100

            async def has_grown() -> bool:
                return await started() > before

            await eventually(has_grown, "somebody new comes", 60)
        processes = psutil.Process(demo.pid).children(recursive=True)
        os.write(mine, b"\x03")
        assert await asyncio.to_thread(demo.wait, 60) == 0, said.decode()
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert not (short_tmp / "d" / "stack.json").exists()
    finally:
        if demo.poll() is None:
            demo.terminate()
            demo.wait(30)
        await asyncio.to_thread(down, short_tmp / "d", purge=True)
        await listening
        os.close(mine)

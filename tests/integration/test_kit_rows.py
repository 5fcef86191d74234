"""The kit's page leads from nothing to an event that counts, by its own lines."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.generate import EXAMPLES, FOLDER
from tests.support.world import OPERATOR, World, moment

pytestmark = pytest.mark.integration

PAGE = (FOLDER / "README.md").read_text("utf-8")
_BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


def block(begins: str) -> str:
    (found,) = [text for text in _BLOCKS if text.startswith(begins)]
    return str(found)


async def typed(world: World, lines: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Lines of the page as somebody types them in the folder."""
    environment = world.environment(OPERATOR) | more | {"COLUMNS": "200"}
    return await asyncio.to_thread(
        subprocess.run,
        ["bash", "-ec", lines],
        cwd=FOLDER,
        env=environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


async def printed(world: World, lines: str) -> str:
    done = await typed(world, lines)
    assert done.returncode == 0, (lines, done.stderr)
    return done.stdout + done.stderr


def found_in(text: str, pattern: str) -> str:
    (found,) = re.findall(pattern, text)
    return str(found)


async def test_from_nothing_to_an_event_of_ones_own(world: World, tmp_path: Path) -> None:
    lines = block("stepstream organizations create").splitlines()
    assert len(lines) == 6
    await printed(world, lines[0])
    server = found_in(await printed(world, lines[1]), r"its id, which events name as mcp_server_id: (\w+)")
    walkthrough = (await typed(world, lines[2])).stdout.strip()
    step = (await typed(world, lines[3].replace("WALKTHROUGH", walkthrough))).stdout.strip()
    user = found_in(await printed(world, lines[4]), r"u-1\s+(mcpu_\w+)")
    session = found_in(await printed(world, lines[5]), r"s-1\s+(\w+)\s")
    for shown in ("servers list", "servers show acme-docs"):
        assert server in (await typed(world, f"stepstream {shown}")).stdout

    event = {
        "type": "step-completed",
        "event_id": "0192f4c1-7a3e-7cc2-9d55-1b2f3c4d5e6f",
        "mcp_server_user_id": user,
        "walkthrough_id": walkthrough,
        "step_id": step,
        "mcp_server_id": server,
        "mcp_server_session_id": session,
        "completed_at": moment(1),
    }
    (tmp_path / "event.json").write_text(json.dumps(event))
    checked = await typed(world, f"stepstream check-events {tmp_path / 'event.json'}")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    world.start_both()
    await world.produce([event])
    await world.drained()
    assert set(await world.completions()) == {(user, step)}

    api = await world.start_api(organization=await world.db.fetchval("select id from organization"))
    by_http = await typed(world, block("KEY="), API=api.url)
    assert by_http.returncode == 0, by_http.stderr
    answers: list[dict[str, Any]] = [
        json.loads(text) for text in re.findall(r'\{"accepted".*?\]\}', by_http.stdout)
    ]
    assert [answer["accepted"] for answer in answers] == [1, 1]
    assert answers[0]["results"][0]["mcp_server_user_id"] == user
    assert answers[1]["results"][0]["mcp_server_session_id"] == session


async def test_a_mistake_is_told_before_it_is_sent_and_after(world: World) -> None:
    before = await typed(world, block("stepstream check-events examples"))
    assert before.returncode == 3
    assert "are these seconds instead of milliseconds?" in before.stdout
    value = (EXAMPLES / "invalid" / "time-in-seconds.json").read_bytes()
    async with world.producing() as producer:
        await producer.send_and_wait(world.settings.topic, value, headers=[("ce_source", b"/kit")])
    line = block("stepstream check-events --topic").replace("walkthrough.progress.v1", world.settings.topic)
    after = await typed(world, line)
    assert after.returncode == 3
    assert "look at this" in after.stderr
    assert "key" in after.stderr

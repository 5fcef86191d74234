"""The official conformance suite of MCP, against a server with a walkthrough, at the revisions that clients use.

Which checks fail, and why, is in `agents/conformance-REVISION.yml`: the suite fails where another one does, and where
one of these passes.
"""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.agent_catalogue import AGENTS, NODE, need_node, npm_packages
from tests.support.world import World

pytestmark = pytest.mark.integration

SUITE = AGENTS / "node" / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_a_server_conforms_to_a_revision_of_the_protocol(
    world: World, tmp_path: Path, revision: str
) -> None:
    need_node()
    await asyncio.to_thread(npm_packages)
    await world.offer(steps="ab")
    service = await world.start_mcp()
    done = await asyncio.to_thread(
        subprocess.run,
        [
            *(NODE, SUITE, "server", "--url", f"http://127.0.0.1:{service.port}/mcp/srv_1"),
            *("--requirements", revision, "-o", tmp_path),
            *("--expected-failures", AGENTS / f"conformance-{revision}.yml"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = [check for file in tmp_path.glob("*/checks.json") for check in json.loads(file.read_text())]
    assert sum(check["status"] == "SUCCESS" for check in checks) > 20, "the suite ran"

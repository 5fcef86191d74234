"""Real clients of MCP sign in at a real authorization server, from the server's address alone, and call a tool.

    make test-clients

A client whose tools are not on the machine is skipped; with STEPSTREAM_CLIENTS=all it fails.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp.shared.auth import OAuthClientInformationFull

from services.devstack.processes import free_port
from tests.clients.agent_catalogue import (
    AGENT_CLIENTS,
    AGENTS,
    NODE,
    AgentClient,
    need,
    need_node,
    npm_packages,
)
from tests.clients.building import Command
from tests.support.agents import GENERATIONS, agent
from tests.support.sign_in import CALLBACK, Memory, signing_in
from tests.support.world import World

pytestmark = pytest.mark.integration

#: The client that the issuer knows before anybody registers, and none.
KNOWN, UNKNOWN = "known", "-"
SIGN_IN = [client for client in AGENT_CLIENTS if client.signs_in]


@pytest.fixture
async def issuer() -> AsyncIterator[str]:
    """The address of a real authorization server, which refuses clients that ask for no scope."""
    need_node()
    await asyncio.to_thread(npm_packages)
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


@pytest.mark.parametrize("client", [UNKNOWN, KNOWN])
@pytest.mark.parametrize("agent_client", SIGN_IN, ids=str)
async def test_a_client_signs_in_from_the_address_alone(
    world: World, issuer: str, agent_client: AgentClient, client: str
) -> None:
    """It registers itself, or is known to the issuer already."""
    need(agent_client.needs)
    assert agent_client.signs_in is not None
    command = await asyncio.to_thread(agent_client.signs_in)
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

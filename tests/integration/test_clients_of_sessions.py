"""Which agent a session began with, as it calls itself; and what hostile names come to."""

from typing import Any

import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import Implementation

from tests.support.agents import GENERATIONS, post
from tests.support.world import World

pytestmark = pytest.mark.integration


async def clients(world: World) -> dict[str, tuple[str, str | None]]:
    """By the tracking ids of their people."""
    rows = await world.db.fetch(
        "select person.distinct_id, client.name, client.version from mcp_session_clients as client"
        " inner join mcp_server_session as session using (mcp_server_session_id)"
        " inner join mcp_server_user as person on session.mcp_server_user_id = person.id"
    )
    return {row["distinct_id"]: (row["name"], row["version"]) for row in rows}


def start(name: Any, version: Any) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": GENERATIONS[0],
        "io.modelcontextprotocol/clientInfo": {"name": name, "version": version},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "start_walkthrough", "arguments": {}, "_meta": meta}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_session_knows_the_agent_that_it_began_with(world: World, generation: str) -> None:
    await world.offer()
    port = (await world.start_mcp()).port
    for name in ("first", "second"):
        info = Implementation(name=f"{name}-agent", version="1.2.3")
        transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp/srv_1/ann")
        async with Client(transport, mode=generation, cache=None, client_info=info) as client:
            await client.call_tool("start_walkthrough", {})
            await client.call_tool("get_next_step", {})
    names = await world.db.fetch("select name from mcp_session_clients order by name")
    if generation == "legacy":  # where each client opens a session of its own
        assert [row["name"] for row in names] == ["first-agent", "second-agent"]
        return
    assert await clients(world) == {"ann": ("first-agent", "1.2.3")}
    await world.drain_marks()
    api = await world.start_api()
    session = await world.db.fetchval("select mcp_server_session_id from mcp_session_clients")
    shown = await api.get(f"sessions/{session}")
    assert (shown["client"], shown["client_version"]) == ("first-agent", "1.2.3")


async def test_a_client_with_a_session_says_who_it_is_at_its_beginning(world: World) -> None:
    await world.offer()
    port = (await world.start_mcp()).port
    info = Implementation(name="session-agent", version="9")
    transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp/srv_1")
    async with Client(transport, mode="legacy", cache=None, client_info=info) as client:
        await client.call_tool("start_walkthrough", {})
    assert list((await clients(world)).values()) == [("session-agent", "9")]


async def test_names_of_agents_are_kept_short_and_printable(world: World) -> None:
    await world.offer()
    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1"
    told = {
        "nul": (("a\0b\x1b[31m\n", "\u202e1"), ("a b [31m", "1")),
        "long": (("x" * 5_000, "1" * 5_000), ("x" * 99 + "…", "1" * 99 + "…")),
        "none": (("\0 ", "1"), None),
        "empty": (("only", ""), ("only", None)),
    }
    for person, ((name, version), _) in told.items():
        headers = {
            "mcp-protocol-version": GENERATIONS[0],
            "mcp-method": "tools/call",
            "mcp-name": "start_walkthrough",
        }
        answer = await post(f"{url}/{person}", start(name, version), **headers)
        assert answer.status_code == 200, (person, answer.text)
        assert "advanced" in answer.text or "started" in answer.text, answer.text
    assert await clients(world) == {person: kept for person, (_, kept) in told.items() if kept}


async def test_services_of_before_still_write(world: World) -> None:
    """They call the function with two values less, also while this version is deployed beside them."""
    nothing = ", ".join(["null"] * 19)
    assert await world.db.fetchval(f"select outcome from mcp_save('nobody', {nothing})") == "changed"


async def test_what_a_user_agent_says_is_taken_where_nothing_else_is(world: World) -> None:
    await world.offer()
    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1/ann"
    call = {"name": "start_walkthrough", "arguments": {}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = {"mcp-protocol-version": "2025-06-18", "user-agent": "claude-code/2.0.1 (linux)"}
    assert (await post(url, body, **headers)).status_code == 200
    assert await clients(world) == {"ann": ("claude-code", "2.0.1")}


async def test_an_opening_that_makes_no_sense_is_refused_as_it_was(world: World) -> None:
    await world.offer()
    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1/ann"
    for params in ({"clientInfo": "abc"}, [], "x", {"clientInfo": ["x"]}):
        body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        answer = await post(url, body)
        assert answer.status_code < 500, (params, answer.text)
        assert "error" in answer.json()

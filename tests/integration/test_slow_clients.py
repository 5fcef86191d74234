"""Slow, silent and greedy clients of the real services: everybody else is served, and health answers."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from services.devstack.processes import free_port
from tests.support.agents import HELLO, Agent, agent, post
from tests.support.world import API, MCP, PATIENCE, Service, World, eventually, metric

pytestmark = pytest.mark.integration

HALF = b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: "


@contextlib.asynccontextmanager
async def older_agent(url: str, address: str) -> AsyncIterator[Agent]:
    """An agent of the protocol with sessions, at an address of its own."""
    transport = httpx2.AsyncHTTPTransport(local_address=address)
    async with (
        httpx2.AsyncClient(transport=transport, timeout=PATIENCE) as http,
        Client(streamable_http_client(url, http_client=http), mode="legacy", cache=None) as client,
    ):
        yield Agent(client)


def silent(port: int, many: int, address: str = "127.0.0.1") -> list[socket.socket]:
    """Connections that begin a request and say no more."""
    made = []
    for _ in range(many):
        made.append(socket.create_connection(("127.0.0.1", port), 10, (address, 0)))
        made[-1].sendall(HALF)
    return made


async def get(port: int, path: str, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        return await http.get(f"http://127.0.0.1:{port}{path}", headers=headers)


async def at_health(service: Service) -> int:
    """The port of health and metrics, which the log tells beside the public one."""

    async def told() -> int:
        for line in service.log.read_text().splitlines():
            message = str(json.loads(line)["message"])
            if "health and metrics at" in message:
                return int(message.rpartition(":")[2])
        return 0

    return int(await eventually(told, "it says where health is"))


@pytest.mark.parametrize("name", [MCP, API])
async def test_a_thousand_half_requests_keep_nobody_out_and_are_closed(world: World, name: str) -> None:
    await world.offer()
    port = free_port()
    urls = {"public_url": f"http://127.0.0.1:{port}", "api_public_url": f"http://127.0.0.1:{port}"}
    service = world.start(name, port, http_connections=300, http_head_seconds=2, **urls)
    await service.ready()
    health = await at_health(service)
    slow = await asyncio.to_thread(silent, port, 1_100)
    try:
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert (await get(health, path)).status_code == 200
            assert (await get(port, path)).status_code == 200
        assert await metric(service, "stepstream_http_connections") <= 301
        if name == MCP:
            async with agent(f"http://127.0.0.1:{port}/mcp/srv_1/ann", "legacy") as ann:
                assert (await ann.start())["outcome"] == "started"
        else:
            assert (await get(port, "/v1/openapi.json")).status_code == 200

        async def closed() -> bool:
            return await metric(service, "stepstream_http_connections") < 10

        await eventually(closed, "the half requests are closed")
    finally:
        for connection in slow:
            connection.close()
    assert '"connections were closed: 127.0.0.1 (full): 1"' in service.log.read_text()
    assert service.terminate() == 0


@pytest.mark.parametrize("name", [MCP, API])
async def test_who_sends_half_a_body_is_closed_and_that_is_no_fault_of_ours(world: World, name: str) -> None:
    await world.offer()
    port = free_port()
    urls = {"public_url": f"http://127.0.0.1:{port}", "api_public_url": f"http://127.0.0.1:{port}"}
    service = await world.start(name, port, http_body_seconds=0.5, **urls).ready()
    path = "/mcp/srv_1/eve"
    headers = ""
    if name == API:
        path = "/mcp/analytics"
        headers = f"authorization: Bearer {await world.make_key('org')}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{headers}content-type: application/json\r\n"
        'accept: application/json, text/event-stream\r\ncontent-length: 100\r\n\r\n{"jsonrpc"'.encode()
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    assert await metric(service, "stepstream_http_closed_total") == 1
    assert service.terminate() == 0
    assert '"level": "error"' not in service.log.read_text()


async def served_with_a_path(world: World, name: str) -> tuple[Service, str, str]:
    """A service, a path of it that takes messages of MCP, and the headers of one."""
    await world.offer()
    port = free_port()
    urls = {"public_url": f"http://127.0.0.1:{port}", "api_public_url": f"http://127.0.0.1:{port}"}
    service = await world.start(name, port, http_body_seconds=600, **urls).ready()
    headers = "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
    if name == MCP:
        return service, "/mcp/srv_1/eve", headers
    return service, "/mcp/analytics", f"{headers}authorization: Bearer {await world.make_key('org')}\r\n"


@pytest.mark.parametrize("name", [MCP, API])
async def test_a_body_without_end_that_is_refused_is_not_read_on(world: World, name: str) -> None:
    service, path, headers = await served_with_a_path(world, name)
    for length in ("content-length: 1000000000000", "transfer-encoding: chunked"):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{service.port}\r\n{headers}{length}\r\n\r\n".encode()
        )
        answer = asyncio.create_task(reader.read())
        part = b"x" * 2**20
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE):
                while not reader.at_eof():
                    writer.write(b"100000\r\n" + part + b"\r\n" if "chunked" in length else part)
                    await writer.drain()
        with contextlib.suppress(ConnectionError):
            head = await answer
            assert head.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in head.lower()
        writer.close()
    assert service.terminate() == 0
    assert '"level": "error"' not in service.log.read_text()


@pytest.mark.parametrize("name", [MCP, API])
async def test_who_sends_too_much_reads_why_and_goes_on(world: World, name: str) -> None:
    service, path, headers = await served_with_a_path(world, name)
    given = dict(line.split(": ", 1) for line in headers.splitlines())
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{service.port}", headers=given, timeout=PATIENCE
    ) as http:
        for size in (70_000, 300_000, 3_000_000):
            assert (await http.post(path, content=b"x" * size)).status_code == 413
            assert (await http.post(path, content=b"{}")).status_code == 400
    assert service.terminate() == 0


async def test_health_is_for_its_own_port_and_for_this_machine_alone(world: World) -> None:
    await world.offer()
    mcp, api = await world.start_mcp(process=True), await world.start_api(process=True)
    for service in world.services:
        health = await at_health(service)
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert (await get(service.port, path)).status_code == 200
            for proxy in ({"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"}):
                assert (await get(service.port, path, **proxy)).status_code == 404
            assert (await get(health, path)).status_code == 200
        assert (await get(health, "/mcp/srv_1")).status_code == 404
    paths = [
        *((mcp.port, path) for path in ("/health/live", "/nowhere", "/mcp/srv_1", "/mcp/nowhere")),
        *(
            (world.services[1].port, path)
            for path in ("/", "/v1/organization", "/v1/nowhere", "/mcp/analytics")
        ),
        (world.services[1].port, "/assets/nowhere"),
    ]
    for port, path in paths:
        assert (await get(port, path)).headers.get_list("x-content-type-options") == ["nosniff"], path
    assert api.key


async def test_a_flood_of_sessions_ends_its_own_and_leaves_others_alone(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(process=True, mcp_sessions=60, mcp_address_sessions=40)
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with older_agent(url, "127.0.0.2") as ann:
        step = (await ann.start())["step"]["id"]
        opened = [(await post(url, HELLO)).headers["mcp-session-id"] for _ in range(100)]
        assert await metric(service, "stepstream_mcp_sessions") <= 41
        async with older_agent(url, "127.0.0.3") as bob:
            assert (await bob.start())["outcome"] == "started"
        for _ in range(5):
            answer = await ann.next(current_step_id=step)
            step = answer["step"]["id"] if answer["step"] else ""
        assert answer["outcome"] == "finished"
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    oldest = await post(url, listing, **{"mcp-session-id": opened[0]})
    newest = await post(url, listing, **{"mcp-session-id": opened[-1]})
    assert (oldest.status_code, newest.status_code) == (404, 200)
    assert await metric(service, "stepstream_mcp_sessions_ended_total") == 60
    assert "sessions were ended to make room: 127.0.0.1 at srv_1 (address): 1" in service.log.read_text()


async def test_who_asks_for_servers_that_there_are_none_of_is_not_looked_up(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_failure_rate="3/minute")
    url = f"http://127.0.0.1:{service.port}/mcp"
    assert (await post(f"{url}/srv_1/ann", HELLO)).status_code == 200
    codes = [(await post(f"{url}/nowhere-{n}", HELLO)).status_code for n in range(5)]
    assert codes == [404, 404, 404, 429, 429]
    assert (await post(f"{url}/srv_1/ann", HELLO)).status_code == 200, "one that there is stays open"


async def test_session_ids_that_can_be_none_of_ours_are_counted_at_their_address(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_person_rate="3/minute")
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    codes = [(await post(url, HELLO, **{"mcp-session-id": f"x{n}"})).status_code for n in range(5)]
    assert codes == [404, 404, 404, 429, 429]


async def test_ports_that_cannot_be_had_and_those_of_other_services_are_named(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = world.command("run", MCP, "--port", "0", "--health-port", port)
        assert done.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
        assert "choose another --health-port" in done.stderr
    done = await world.invoke("run", "outbox-relay", "--health-port", "1")
    assert done.returncode == 2
    assert "--health-port is for the public ones" in done.stderr

"""Pages of other origins as MCP clients: preflights, headers that they may read, and origins that may not."""

import httpx2
import pytest

from tests.support.agents import HELLO, post
from tests.support.world import PATIENCE, World

pytestmark = pytest.mark.integration

PAGE = "https://page.example"
#: What a client of either generation asks to send.
SENT = "authorization, content-type, mcp-method, mcp-name, mcp-protocol-version, mcp-session-id"


async def preflight(url: str, origin: str, method: str = "POST") -> httpx2.Response:
    asked = {"access-control-request-method": method, "access-control-request-headers": SENT}
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        return await http.options(url, headers={"origin": origin, **asked})


async def test_a_page_of_a_named_origin_may_call_and_read_what_clients_need(world: World) -> None:
    await world.offer()
    await world.db.execute("update mcp_servers set auth_type = 'platform_oauth' where id = 'srv_1'")
    await world.offer("wt_b", "xy", "srv_2")
    service = await world.start_mcp(mcp_cors_origins=f"{PAGE}, https://other.example", oauth_issuer=PAGE)
    base = f"http://127.0.0.1:{service.port}"
    sign_in = f"{base}/.well-known/oauth-protected-resource/mcp/srv_1"
    for url, method in ((f"{base}/mcp/srv_2", "POST"), (f"{base}/mcp/srv_2/ann", "DELETE"), (sign_in, "GET")):
        allowed = await preflight(url, PAGE, method)
        assert allowed.status_code == 200, url
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert method in allowed.headers["access-control-allow-methods"]
        assert (await preflight(url, "https://evil.example", method)).status_code == 400
    opened = await post(f"{base}/mcp/srv_2", HELLO, origin=PAGE)
    refused = await post(f"{base}/mcp/srv_1", HELLO, origin=PAGE)
    missing = await post(f"{base}/mcp/nothing", HELLO, origin=PAGE)
    assert [a.status_code for a in (opened, refused, missing)] == [200, 401, 404]
    for answer, header in (
        (opened, "mcp-session-id"),
        (refused, "www-authenticate"),
        (missing, "x-request-id"),
    ):
        assert header in answer.headers
        assert header in answer.headers["access-control-expose-headers"].lower()
        assert "mcp-protocol-version" in answer.headers["access-control-expose-headers"].lower()
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in answer.headers
    async with httpx2.AsyncClient(headers={"origin": PAGE}, timeout=PATIENCE) as http:
        assert (await http.get(sign_in)).headers["access-control-allow-origin"] == PAGE
        assert (await http.get(f"{sign_in}/")).json()["resource"] == f"{base}/mcp/srv_1"
        assert "access-control-allow-origin" not in (await http.get(f"{base}/health/live")).headers
    evil = await post(f"{base}/mcp/srv_2", HELLO, origin="https://evil.example")
    assert evil.status_code == 403
    assert "access-control-allow-origin" not in evil.headers


async def test_an_origin_that_may_call_may_not_read_and_by_default_none_may(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_allowed_origins=PAGE)
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    for origin in (PAGE, f"http://localhost:{service.port}"):
        answer = await post(url, HELLO, origin=origin)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers
        assert (await preflight(url, origin)).status_code == 405


async def test_a_page_can_read_the_id_of_a_fault(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_cors_origins=PAGE)
    await world.db.execute("alter table mcp_servers rename slug to elsewhere")
    answer = await post(f"http://127.0.0.1:{service.port}/mcp/srv_1", HELLO, origin=PAGE)
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == PAGE

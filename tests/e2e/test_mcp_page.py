"""A page of another origin, in a real browser, that calls an MCP server."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.agents import HELLO
from tests.support.browser import chromium, needs_chromium
from tests.support.world import World

pytestmark = [pytest.mark.integration, needs_chromium]
#: Opens a session and uses it, with the headers of a client; what the page could read, or why it could not.
CLIENT = """async ([url, hello]) => {
  const headers = {"content-type": "application/json", accept: "application/json, text/event-stream"};
  try {
    const opened = await fetch(url, {method: "POST", headers, body: JSON.stringify(hello)});
    const session = {"mcp-session-id": opened.headers.get("mcp-session-id"), "mcp-protocol-version": "2025-11-25"};
    const body = JSON.stringify({jsonrpc: "2.0", id: 2, method: "tools/list"});
    const listed = await fetch(url, {method: "POST", headers: {...headers, ...session}, body});
    return (await listed.json()).result.tools.map(tool => tool.name);
  } catch (error) { return String(error); }
}"""


class Page(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


async def test_a_page_of_a_named_origin_is_a_client_and_that_of_another_is_not(world: World) -> None:
    await world.offer()
    pages = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    origin = f"http://localhost:{pages.server_port}"
    named = await world.start_mcp(mcp_cors_origins=origin)
    other = await world.start_mcp()
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(origin)
        read = [
            await page.evaluate(CLIENT, [f"http://127.0.0.1:{service.port}/mcp/srv_1", HELLO])
            for service in (named, other)
        ]
    pages.shutdown()
    assert "start_walkthrough" in read[0], read
    assert "Failed to fetch" in read[1], read

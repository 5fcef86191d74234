"""Agents: the SDK's own client over real HTTP or stdio, and what its answers say."""

import contextlib
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from jsonschema import Draft202012Validator
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

#: One for all: to load the authorities takes each client 20 ms.
_TLS = ssl.create_default_context()

#: Both generations of the protocol: the newest has no sessions, the one before gives each client an id.
GENERATIONS = ("2026-07-28", "legacy")


#: The first request of a client of the generation with sessions.
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


_check_schema = Draft202012Validator.check_schema
_checked: set[str] = set()


def _check_schema_once(schema: Any, **options: Any) -> None:
    text = json.dumps(schema, sort_keys=True)
    if text not in _checked:
        _check_schema(schema, **options)
        _checked.add(text)


# Each client of the SDK checks the schema of each tool anew: with 200 clients half of what a test does.
Draft202012Validator.check_schema = _check_schema_once


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_may_pass, error.exceptions))
    reason = error.error.data.get("reason") if isinstance(error, MCPError) and error.error.data else None
    return reason in {"busy", "temporarily_unavailable"}


def _tries(*, patient: bool) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_delay(90 if patient else 0),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )


class Agent:
    """A client whose answers are the structured content; `texts` are what it has read.

    One that is patient tries the same call again where it is told to.
    """

    def __init__(self, client: Client, *, patient: bool = False) -> None:
        self.client = client
        self.texts: list[str] = []
        self._tries = _tries(patient=patient)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        result = await self.raw(tool, **arguments)
        assert not result.is_error, self.texts[-1]
        answer: dict[str, Any] = result.structured_content
        return answer

    async def raw(self, tool: str, **arguments: Any) -> CallToolResult:
        result: CallToolResult = await self._tries(self.client.call_tool, tool, arguments)
        self.texts.append("".join(part.text for part in result.content if part.type == "text"))
        return result

    async def start(self, **arguments: Any) -> dict[str, Any]:
        return await self.call("start_walkthrough", **arguments)

    async def next(self, **arguments: Any) -> dict[str, Any]:
        return await self.call("get_next_step", **arguments)


@contextlib.asynccontextmanager
async def agent(
    url: str,
    generation: str = GENERATIONS[0],
    token: str | None = None,
    sign_in: httpx2.Auth | None = None,
    *,
    patient: bool = False,
) -> AsyncIterator[Agent]:
    """An agent that is connected to an MCP server."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, auth=sign_in, timeout=90, verify=_TLS) as http,
        contextlib.AsyncExitStack() as stack,
    ):

        async def connect() -> Client:
            async with contextlib.AsyncExitStack() as trying:
                transport = streamable_http_client(url, http_client=http)
                client = await trying.enter_async_context(Client(transport, mode=generation, cache=None))
                await stack.enter_async_context(trying.pop_all())
                return client

        yield Agent(await _tries(patient=patient)(connect), patient=patient)


async def post(url: str, body: Any, **headers: str) -> httpx2.Response:
    """A bare HTTP request, as no client of the SDK would make it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    plain = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(timeout=90, verify=_TLS) as http:
        return await http.post(url, content=content, headers=plain | headers)


def transitions_of(records: list[list[str]]) -> Counter[tuple[int, str | None, str]]:
    """What the Sankey must show, from what each agent wrote down for itself."""
    counts: Counter[tuple[int, str | None, str]] = Counter()
    for steps in records:
        for i, step in enumerate(steps):
            counts[i, steps[i - 1] if i else None, step] += 1
    return counts


def endings_of(records: list[list[str]]) -> Counter[tuple[int, str | None]]:
    """Where the Sankey must show that they stopped."""
    return Counter((len(steps), steps[-1] if steps else None) for steps in records)

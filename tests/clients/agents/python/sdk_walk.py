"""The Python SDK 2. Argument: `newest` or `sessions`; stdin and stdout as in walk.py."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from walk import Call, Person, lead_all

MODE = {"newest": "2026-07-28", "sessions": "legacy"}[sys.argv[1]]


@contextlib.asynccontextmanager
async def connect(person: Person) -> AsyncIterator[Call]:
    async with (
        httpx2.AsyncClient(headers=person.headers, timeout=30) as http,
        Client(streamable_http_client(person.url, http_client=http), mode=MODE) as client,
    ):

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return (await client.call_tool(tool, arguments)).structured_content

        yield call


asyncio.run(lead_all(connect))

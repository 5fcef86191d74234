"""fastmcp. Argument: `newest` or `sessions`; stdin and stdout as in walk.py."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from walk import Call, Person, lead_all

MODE = {"newest": "2026-07-28", "sessions": "legacy"}[sys.argv[1]]


@contextlib.asynccontextmanager
async def connect(person: Person) -> AsyncIterator[Call]:
    async with Client(StreamableHttpTransport(person.url, headers=person.headers), mode=MODE) as client:

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return (await client.call_tool(tool, arguments)).structured_content

        yield call


asyncio.run(lead_all(connect))

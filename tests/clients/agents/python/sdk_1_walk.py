"""The Python SDK 1. Argument: `sessions`, which is all it knows; stdin and stdout as in walk.py."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from walk import Call, Person, lead_all, patience

assert sys.argv[1] == "sessions"


@contextlib.asynccontextmanager
async def connect(person: Person) -> AsyncIterator[Call]:
    async with (
        streamablehttp_client(person.url, headers=person.headers) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return (await session.call_tool(tool, arguments, patience(person))).structuredContent

        yield call


asyncio.run(lead_all(connect))

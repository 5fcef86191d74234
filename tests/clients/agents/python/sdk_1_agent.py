"""The Python SDK 1. Arguments: address of the server, and the id of a client that is registered, or "-"."""

import asyncio
import sys

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from sign_in_1 import answer, signing_in


async def main(url: str, client_id: str) -> None:
    async with (
        streamablehttp_client(url, auth=await signing_in(url, client_id)) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        answer((await session.call_tool("start_walkthrough", {})).structuredContent)


asyncio.run(main(*sys.argv[1:]))

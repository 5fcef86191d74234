"""LangChain's adapters. Arguments: address of the server, and the id of a client that is registered, or "-"."""

import asyncio
import sys

from langchain_core.messages import ToolCall
from langchain_mcp_adapters.client import MultiServerMCPClient
from sign_in_1 import answer, signing_in


async def main(url: str, client_id: str) -> None:
    sign_in = await signing_in(url, client_id)
    client = MultiServerMCPClient({"server": {"transport": "streamable_http", "url": url, "auth": sign_in}})
    tools = {tool.name: tool for tool in await client.get_tools()}
    asked = ToolCall(name="start_walkthrough", args={}, id="1", type="tool_call")
    answer((await tools["start_walkthrough"].ainvoke(asked)).artifact["structured_content"])


asyncio.run(main(*sys.argv[1:]))

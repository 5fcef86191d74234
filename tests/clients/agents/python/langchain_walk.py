"""LangChain's adapters. Argument: `sessions`, which is all they know; stdin and stdout as in walk.py.

Where each call has a connection of its own it is the adapters that open it: that is their default.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.messages import ToolCall
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from walk import Call, Person, lead_all, patience

assert sys.argv[1] == "sessions"


@contextlib.asynccontextmanager
async def connect(person: Person) -> AsyncIterator[Call]:
    connection = {
        "transport": "streamable_http",
        "url": person.url,
        "headers": person.headers,
        "session_kwargs": {"read_timeout_seconds": patience(person)},
    }
    client = MultiServerMCPClient({"server": connection})
    async with contextlib.AsyncExitStack() as stack:
        if person.habit in {"anew", "loses"}:
            found = await client.get_tools()
        else:
            found = await load_mcp_tools(await stack.enter_async_context(client.session("server")))
        tools = {tool.name: tool for tool in found}

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            asked = ToolCall(name=tool, args=arguments, id="1", type="tool_call")
            message = await tools[tool].ainvoke(asked)
            return message.artifact["structured_content"]

        yield call


asyncio.run(lead_all(connect))

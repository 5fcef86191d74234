"""How programs with the Python SDK 1 sign in: what they keep, and where the issuer sends their person back to."""

import asyncio
import json
import sys
from typing import Any
from urllib.parse import parse_qs

from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken


def say(line: str) -> None:
    """Prints a line now."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def answer(structured: Any) -> None:
    """Prints what a tool answered."""
    say(f"answer {json.dumps(structured)}")


class _Memory(TokenStorage):
    def __init__(self, client: OAuthClientInformationFull | None) -> None:
        self.client = client
        self.tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def signing_in(url: str, client_id: str) -> OAuthClientProvider:
    """The SDK's own sign-in, for the client whose id is given, or "-"."""
    returned: asyncio.Future[tuple[str, str | None]] = asyncio.get_running_loop().create_future()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        given = {name: values[0] for name, values in parse_qs(path.partition("?")[2]).items()}
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        returned.set_result((given["code"], given.get("state")))

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    callback = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/callback"

    async def browse(address: str) -> None:
        say(f"browse {address}")

    async def come_back() -> tuple[str, str | None]:
        async with server:
            return await returned

    about = {"redirect_uris": [callback], "token_endpoint_auth_method": "none"}
    metadata = OAuthClientMetadata.model_validate({"client_name": "agent", **about})
    known = OAuthClientInformationFull.model_validate({"client_id": client_id, **about})
    memory = _Memory(None if client_id == "-" else known)
    return OAuthClientProvider(url, metadata, memory, browse, come_back)

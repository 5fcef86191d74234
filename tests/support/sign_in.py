"""How the official client signs in: what it keeps, and a browser that goes where it is sent."""

from urllib.parse import parse_qsl

import httpx2
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

#: Where the issuer sends a browser back to; nobody listens there.
CALLBACK = "http://127.0.0.1:1/callback"


class Memory:
    """What a client of the SDK keeps: its registration and its tokens."""

    def __init__(self, client: OAuthClientInformationFull | None = None) -> None:
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


def signing_in(url: str, memory: Memory) -> OAuthClientProvider:
    """The SDK's own sign-in, at an issuer whose pages only send the browser on, and back."""
    returned: list[dict[str, str]] = []

    async def browse(address: str) -> None:
        async with httpx2.AsyncClient(follow_redirects=False, timeout=90) as browser:
            while not address.startswith(f"{CALLBACK}?"):
                answer = await browser.get(address)
                address = str(answer.url.join(answer.headers["location"]))
        returned.append(dict(parse_qsl(address.partition("?")[2])))

    async def come_back() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(**returned.pop())

    metadata = OAuthClientMetadata(
        client_name="agent", redirect_uris=[AnyUrl(CALLBACK)], token_endpoint_auth_method="none"
    )
    return OAuthClientProvider(url, metadata, memory, browse, come_back)

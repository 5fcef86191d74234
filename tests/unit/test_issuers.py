"""Whoever sends tokens that are not good makes nobody ask an issuer again and again."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime import tokens
from services.runtime.tokens import IssuerAwayError, Issuers

TOKEN = jwt.encode({"sub": "x"}, "k" * 32, headers={"kid": "one"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The issuers that were asked; none answers."""
    issuers: list[str] = []

    async def away(issuer: str) -> str:
        issuers.append(issuer)
        raise IssuerAwayError("it does not answer")

    monkeypatch.setattr(tokens, "_find_jwks", away)
    return issuers


async def test_an_issuer_that_is_away_is_asked_once_and_later_again(asked: list[str]) -> None:
    issuers = Issuers()
    for _ in range(3):
        with pytest.raises(IssuerAwayError, match="it does not answer"):
            await issuers.key("https://a.example", TOKEN)
    with pytest.raises(IssuerAwayError):
        await issuers.key("https://b.example", TOKEN)
    assert asked == ["https://a.example", "https://b.example"]
    issuers._away.clear()  # its time is over
    with pytest.raises(IssuerAwayError):
        await issuers.key("https://a.example", TOKEN)
    assert len(asked) == 3


async def test_what_is_no_token_asks_nobody(asked: list[str]) -> None:
    with pytest.raises(jwt.DecodeError):
        await Issuers().key("https://a.example", "no token")
    assert asked == []


KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {"keys": [jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True) | {"kid": "one"}]}


class Site:
    """Issuers at one port: `good` answers; `drips` sends its keys a byte at a time, `much` too many, `odd` none.

    `deep` sends brackets without end.
    """

    def __init__(self) -> None:
        self.base = ""
        self.read: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        self.read.append(path)
        who = path.rpartition("/")[2]
        metadata = {"issuer": f"{self.base}/{who}", "jwks_uri": f"{self.base}/keys/{who}"}
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while "/keys/" in path and who in {"drips", "much"}:
                writer.write(b" " * (1 if who == "drips" else 65_536))
                await writer.drain()
                await asyncio.sleep(0.01 if who == "drips" else 0)
            keys = {"keys": ["odd"]} if who == "odd" else KEYS
            answer = json.dumps(keys if "/keys/" in path else metadata)
            writer.write(("[" * 100_000 if "/keys/deep" in path else answer).encode())
            await writer.drain()
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site, "127.0.0.1", 0)
    site.base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield site
    server.close()


async def test_an_issuer_that_drips_its_keys_holds_up_nobody_and_not_for_ever(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_TIMEOUT_SECONDS", 600.0)
    issuers, dripping = Issuers(), f"{site.base}/drips"
    waits = [asyncio.create_task(issuers.key(dripping + slashes, TOKEN)) for slashes in _slashes(40)]
    async with asyncio.timeout(60):
        assert await issuers.key(f"{site.base}/good", TOKEN) == KEY.public_key()
    for wait in waits:
        wait.cancel()
    await asyncio.wait(waits)
    monkeypatch.setattr(tokens, "_TIMEOUT_SECONDS", 0.2)
    async with asyncio.timeout(60):
        with pytest.raises(IssuerAwayError, match="TimeoutError"):
            await issuers.key(dripping, TOKEN)


def _slashes(many: int) -> list[str]:
    """What makes issuers of their own of one address."""
    return ["/" * n for n in range(many)]


@pytest.mark.parametrize(
    ("who", "why"), [("much", "ValueError"), ("odd", "there is none with a name"), ("deep", "ValueError")]
)
async def test_keys_without_end_and_what_are_none_are_the_issuer_s_fault(
    site: Site, who: str, why: str
) -> None:
    with pytest.raises(IssuerAwayError, match=why):
        await Issuers().key(f"{site.base}/{who}", TOKEN)


async def test_a_key_that_is_known_waits_for_nobody_and_one_that_is_not_is_looked_for_seldom(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuers, good = Issuers(), f"{site.base}/good"
    await issuers.key(good, TOKEN)
    other = jwt.encode({"sub": "x"}, "k" * 32, headers={"kid": "two"})
    for _ in range(3):
        with pytest.raises(jwt.PyJWTError):
            await issuers.key(good, other)
    assert len(site.read) == 2
    async with issuers._locks[good], asyncio.timeout(60):  # somebody's token has the issuer asked
        await issuers.key(good, TOKEN)
    monkeypatch.setattr(tokens, "_LOOK_AGAIN_SECONDS", 0.0)
    with pytest.raises(jwt.PyJWTError):
        await issuers.key(good, other)
    assert len(site.read) == 4, "the keys, and where they are now"


PUBLIC: dict[str, Any] = KEYS["keys"][0]
SECRET = jwt.algorithms.ECAlgorithm.to_jwk(KEY, as_dict=True) | {"kid": "one"}
#: What stands in the place of a part of a key that is one.
ODD: dict[str, list[Any]] = {
    "kid": [["one"], {}, 1, None, ""],
    "use": [["sig"], {}, "enc"],
    "alg": ["none", ["ES256"], 5],
    "x": [[], 5, "", "\u00e9"],
    "kty": [["EC"], {}, 1, None],
}
NO_KEYS = [
    SECRET,
    {"kty": "oct", "k": "AAAA", "kid": "one"},
    *({**PUBLIC, name: odd} for name, all_odd in ODD.items() for odd in all_odd),
    [PUBLIC],
    None,
]


@pytest.mark.parametrize("given", NO_KEYS, ids=range(len(NO_KEYS)))
async def test_what_is_no_key_to_verify_with_is_the_issuers_fault_and_harms_no_key_beside_it(
    monkeypatch: pytest.MonkeyPatch, given: object
) -> None:
    read: list[object] = []
    keys: list[object] = [given]

    async def answer(url: object) -> dict[str, object]:
        read.append(url)
        if ".well-known" in str(url):
            return {"issuer": "https://a.example", "jwks_uri": "https://a.example/k"}
        return {"keys": keys}

    monkeypatch.setattr(tokens, "_read", answer)
    issuers = Issuers()
    for _ in range(3):
        with pytest.raises(IssuerAwayError, match="its keys cannot be read"):
            await issuers.key("https://a.example", TOKEN)
    assert len(read) == 2, "nobody asks again and again"
    keys.append(PUBLIC)
    assert await Issuers().key("https://a.example", TOKEN) == KEY.public_key()


@pytest.mark.parametrize(
    ("issuer", "keys", "is_found"),
    [
        ("https://a.example", "https://keys.example/k", True),
        ("https://a.example", "HTTPS://keys.example/k", True),
        ("https://a.example", "http://169.254.169.254/latest", False),
        ("https://a.example", "file:///etc/passwd", False),
        ("https://a.example", "//a.example/k", False),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/k", True),
    ],
)
async def test_an_issuer_with_tls_leads_to_no_keys_without(
    monkeypatch: pytest.MonkeyPatch, issuer: str, keys: str, is_found: bool
) -> None:
    async def read(_: object) -> dict[str, object]:
        return {"issuer": issuer, "jwks_uri": keys}

    monkeypatch.setattr(tokens, "_read", read)
    if is_found:
        assert await tokens._find_jwks(issuer) == keys
        return
    with pytest.raises(IssuerAwayError, match="keys without TLS"):
        await tokens._find_jwks(issuer)

"""Whoever sends tokens that are not good makes nobody ask an issuer again and again."""

import jwt
import pytest

from services.walkthrough_mcp import tokens
from services.walkthrough_mcp.tokens import IssuerAwayError, Issuers

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

"""Servers where people sign in: whose tokens open what, and whose do not."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from mcp.shared.exceptions import MCPError

from tests.support.agents import GENERATIONS, HELLO, agent, post
from tests.support.world import MCP, Service, World

pytestmark = pytest.mark.integration


class Issuer:
    """An authorization server: metadata, keys, and tokens as a test wants them."""

    def __init__(self) -> None:
        self.keys = {"one": rsa.generate_private_key(65537, 2048)}
        self.fetched: list[str] = []
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetched.append(self.path)
                answers = {
                    "/.well-known/oauth-authorization-server": {
                        "issuer": issuer.url,
                        "jwks_uri": f"{issuer.url}/keys",
                    },
                    "/keys": {"keys": [issuer.public(kid) for kid in issuer.keys]},
                }
                body = json.dumps(answers.get(self.path, {})).encode()
                self.send_response(200 if self.path in answers else 404)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def public(self, kid: str) -> dict[str, Any]:
        key = jwt.algorithms.RSAAlgorithm.to_jwk(self.keys[kid].public_key(), as_dict=True)
        return key | {"kid": kid, "alg": "RS256", "use": "sig"}

    def token(self, audience: str, subject: str = "sub-1", kid: str = "one", **other: Any) -> str:
        claims = {"iss": self.url, "sub": subject, "aud": audience, "exp": int(time.time()) + 300} | other
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.keys[kid], algorithm="RS256", headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.server.shutdown()


async def prepare(world: World, issuer: Issuer, **more: Any) -> tuple[Service, str]:
    """A server without auth, and two where people sign in, all with the same walkthrough."""
    for server in ("srv_1", "secure", "other"):
        await world.offer(steps="abc", server=server)
    await world.db.execute(
        "update mcp_servers set auth_type = 'custom_oauth', oauth_issuer_url = $1 where slug = 'secure'",
        issuer.url,
    )
    await world.db.execute("update mcp_servers set auth_type = 'platform_oauth' where slug = 'other'")
    service = await world.start_mcp(oauth_issuer=issuer.url, **more)
    return service, f"http://127.0.0.1:{service.port}/mcp"


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_a_token_says_who_somebody_is(world: World, issuer: Issuer, generation: str) -> None:
    service, base = await prepare(world, issuer, process=True)
    token = issuer.token(f"{base}/secure", email="ann@example.com", client_id="agent")
    async with agent(f"{base}/secure", generation, token) as ann:
        assert (await ann.start())["outcome"] == "started"
        assert (await ann.next(current_step_id="a"))["step"]["id"] == "b"
    renewed = issuer.token(f"{base}/secure", exp=int(time.time()) + 900)
    async with agent(f"{base}/secure", generation, renewed) as ann:
        assert (await ann.start())["step"]["id"] == "b"
    async with agent(f"{base}/secure", generation, issuer.token(f"{base}/secure", "sub-2")) as bob:
        assert (await bob.start())["step"]["id"] == "a"
    users = await world.db.fetch("select * from mcp_server_user order by first_seen_at")
    assert [(u["upstream_sub"], u["email"], u["distinct_id"]) for u in users] == [
        ("sub-1", "ann@example.com", None),
        ("sub-2", None, None),
    ]
    assert token not in service.log.read_text()
    assert "sub-1" not in service.log.read_text()


async def test_the_same_person_at_two_servers_needs_a_token_for_each(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    for_secure = issuer.token(f"{base}/secure")
    async with agent(f"{base}/secure", token=for_secure) as ann:
        await ann.start()
        await ann.next()
    assert (await post(f"{base}/other", HELLO, authorization=f"Bearer {for_secure}")).status_code == 401
    async with agent(f"{base}/other", token=issuer.token(f"{base}/other")) as ann:
        assert (await ann.start())["step"]["id"] == "b", "one person, one progress"
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 1


async def test_the_same_subject_of_another_issuer_is_somebody_else(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    foreign = Issuer()
    await world.db.execute("update mcp_servers set oauth_issuer_url = $1 where slug = 'secure'", foreign.url)
    async with agent(f"{base}/other", token=issuer.token(f"{base}/other")) as ann:
        await ann.start()
        await ann.next()
    async with agent(f"{base}/secure", token=foreign.token(f"{base}/secure")) as impostor:
        assert (await impostor.start())["outcome"] == "started"
    other = f"Bearer {issuer.token(f'{base}/secure')}"
    assert (await post(f"{base}/secure", HELLO, authorization=other)).status_code == 401
    foreign.server.shutdown()


async def test_tokens_that_are_not_good_open_nothing(world: World, issuer: Issuer) -> None:
    service, base = await prepare(world, issuer, process=True)
    audience = f"{base}/secure"
    thief = Issuer()
    now = int(time.time())
    curve = ec.generate_private_key(ec.SECP256R1())
    shared = jwt.encode(
        {"iss": issuer.url, "sub": "sub-1", "aud": audience, "exp": now + 60},
        "x" * 64,
        headers={"kid": "one"},
    )
    unsigned = jwt.encode(
        {"iss": issuer.url, "sub": "sub-1", "aud": audience, "exp": now + 60}, None, algorithm="none"
    )
    bad = {
        "none": None,
        "nonsense": "nonsense",
        "three parts of nonsense": "a.b.c",
        "for another server": issuer.token(f"{base}/other"),
        "for the whole deployment": issuer.token(base),
        "without audience": issuer.token(audience, aud=None),
        "expired": issuer.token(audience, exp=now - 120),
        "without expiry": issuer.token(audience, exp=None),
        "not valid yet": issuer.token(audience, nbf=now + 600),
        "without subject": issuer.token(audience, sub=None),
        "of another issuer": issuer.token(audience, iss="https://evil.example"),
        "signed by somebody else": thief.token(audience, iss=issuer.url),
        "signed with an unknown key": jwt.encode(
            {"iss": issuer.url, "sub": "s", "aud": audience, "exp": now + 60},
            curve,
            algorithm="ES256",
            headers={"kid": "two"},
        ),
        "signed with a shared secret": shared,
        "not signed": unsigned,
    }
    for what, token in bad.items():
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = await post(audience, HELLO, **headers)
        assert answer.status_code == 401, what
        assert "/.well-known/oauth-protected-resource/mcp/secure" in answer.headers["www-authenticate"]
    assert (
        await post(audience, HELLO, authorization=f"Bearer {issuer.token([audience, 'x'])}")
    ).status_code == 200
    log = service.log.read_text()
    assert all(token not in log for token in bad.values() if token and len(token) > 20)
    assert issuer.fetched.count("/keys") <= 2, "unknown keys do not make us ask again and again"
    thief.server.shutdown()


async def test_an_agent_finds_out_where_to_sign_in(world: World, issuer: Issuer) -> None:
    service, base = await prepare(world, issuer)
    well_known = f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp"
    async with httpx2.AsyncClient() as http:
        told = (await http.get(f"{well_known}/secure")).json()
        missing = [(await http.get(f"{well_known}/{slug}")).status_code for slug in ("srv_1", "nothing")]
    assert told["resource"] == f"{base}/secure"
    assert [url.rstrip("/") for url in told["authorization_servers"]] == [issuer.url]
    assert missing == [404, 404]


async def test_a_tracking_id_opens_no_server_where_people_sign_in(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    assert (await post(f"{base}/secure/ann", HELLO)).status_code == 404
    token = issuer.token(f"{base}/secure")
    assert (await post(f"{base}/secure/ann", HELLO, authorization=f"Bearer {token}")).status_code == 404


async def test_a_session_opened_by_one_person_is_closed_to_another(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    ann, bob = (f"Bearer {issuer.token(f'{base}/secure', who)}" for who in ("ann", "bob"))
    session = (await post(f"{base}/secure", HELLO, authorization=ann)).headers["mcp-session-id"]
    ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    headers = {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
    assert (await post(f"{base}/secure", ask, authorization=ann, **headers)).status_code == 200
    assert (await post(f"{base}/secure", ask, authorization=bob, **headers)).status_code == 404
    assert (await post(f"{base}/secure", ask, **headers)).status_code == 401
    elsewhere = f"Bearer {issuer.token(f'{base}/other', 'ann')}"
    assert (await post(f"{base}/other", ask, authorization=elsewhere, **headers)).status_code == 404


async def test_a_new_key_of_the_issuer_is_found(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    issuer.keys["two"] = rsa.generate_private_key(65537, 2048)
    token = issuer.token(f"{base}/secure", kid="two")
    assert (await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")).status_code == 200


async def test_an_issuer_that_is_away_is_no_fault_of_the_token(world: World, issuer: Issuer) -> None:
    service, base = await prepare(world, issuer, process=True)
    await world.db.execute(
        "update mcp_servers set oauth_issuer_url = 'http://127.0.0.1:1' where slug = 'secure'"
    )
    answer = await post(f"{base}/secure", HELLO, authorization=f"Bearer {issuer.token(f'{base}/secure')}")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "127.0.0.1:1" in service.log.read_text()


async def test_over_stdio_the_token_comes_from_the_environment(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    settings = {"oauth_issuer": issuer.url, "public_url": base.removesuffix("/mcp")}
    without = world.command("run", MCP, "--stdio", "secure", **settings)
    assert (without.returncode, "STEPSTREAM_MCP_ACCESS_TOKEN" in without.stderr) == (2, True)
    wrong = issuer.token(f"{base}/other")
    refused = world.command("run", MCP, "--stdio", "secure", mcp_access_token=wrong, **settings)
    assert refused.returncode == 1
    assert "not good" in refused.stderr
    assert wrong not in refused.stderr
    good = world.command(
        "run", MCP, "--stdio", "secure", mcp_access_token=issuer.token(f"{base}/secure"), **settings
    )
    assert good.returncode == 0, good.stderr


async def test_an_anonymous_person_cannot_reach_somebody_who_signed_in(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    async with agent(f"{base}/secure", token=issuer.token(f"{base}/secure")) as ann:
        await ann.start()
    user = await world.db.fetchval("select id from mcp_server_user")
    for guess in (user, "sub-1"):
        async with agent(f"{base}/srv_1/{guess}") as other:
            assert (await other.start())["outcome"] == "started"
    await world.db.execute("update mcp_server_user set distinct_id = 'known' where id = $1", user)
    async with agent(f"{base}/srv_1/known") as other:
        with pytest.raises(MCPError, match="signs in"):
            await other.start()

"""Servers where people sign in: whose tokens open what, and whose do not."""

import json
import time
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from mcp.shared.auth import OAuthClientInformationFull
from mcp.shared.exceptions import MCPError

from services.runtime import tokens
from tests.support.agents import GENERATIONS, HELLO, agent, post
from tests.support.issuer import Issuer
from tests.support.sign_in import CALLBACK, Memory, signing_in
from tests.support.world import MCP, PATIENCE, Service, World, metric

pytestmark = pytest.mark.integration


async def prepare(world: World, issuer: Issuer, **more: Any) -> tuple[Service, str]:
    """A server without auth, and two where people sign in, all with the same walkthrough."""
    for server in ("srv_1", "secure", "other"):
        await world.offer(steps="abc", server=server)
    await world.db.execute(
        "update mcp_servers set auth_type = 'custom_oauth', oauth_issuer_url = $1 where slug = 'secure'",
        issuer.url,
    )
    await world.db.execute("update mcp_servers set auth_type = 'platform_oauth' where slug = 'other'")
    service = await world.start_mcp(**{"oauth_issuer": issuer.url} | more)
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


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_an_email_that_no_row_can_have_is_no_fault(
    world: World, issuer: Issuer, generation: str
) -> None:
    service, base = await prepare(world, issuer, process=True)
    for number, email in enumerate(("a\0b", "\ud800")):
        token = issuer.token(f"{base}/secure", f"sub-{number}", email=email)
        async with agent(f"{base}/secure", generation, token) as ann:
            assert (await ann.start())["outcome"] == "started"
    assert await metric(service, "stepstream_http_errors_total") == 0


async def test_a_sub_that_can_be_nobody_is_refused_with_words(
    world: World, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    _, base = await prepare(world, issuer)
    subjects: dict[Any, str] = {
        "": "Its sub is empty.",
        " \n": "Its sub is empty.",
        "a\0b": "Its sub holds control characters.",
        "a\nb": "Its sub holds control characters.",
        "a\x7fb": "Its sub holds control characters.",
        "a\x85b": "Its sub holds control characters.",
        "\ud800": "Its sub holds control characters.",
        "".join(map(str, range(3000))): "Its sub is longer than 1000 bytes.",
        "é" * 501: "Its sub is longer than 1000 bytes.",
        7: "Its sub is no text.",
    }
    for subject, problem in subjects.items():
        told = f"The token is not good for this server. {problem}"
        token = issuer.token(f"{base}/secure", subject)
        answer = await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")
        assert answer.status_code == 401, problem
        assert answer.json() == {"error": "invalid_token", "error_description": told}
        assert f'error="invalid_token", error_description="{told}"' in answer.headers["www-authenticate"]
    assert "tokens were refused: secure (Its sub is empty.): 1" in caplog.text
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 0


async def test_what_strangers_send_fills_no_log(world: World, issuer: Issuer) -> None:
    service, base = await prepare(world, issuer, process=True)
    version = {"mcp-protocol-version": "2025-11-25"}
    for number in range(20):
        bad = {"authorization": f"Bearer none.{number}"}
        assert (await post(f"{base}/secure", HELLO, **bad)).status_code == 401
    token = {"authorization": f"Bearer {issuer.token(f'{base}/secure')}"}
    opened = await post(f"{base}/secure", HELLO, **token)
    session = token | version | {"mcp-session-id": opened.headers["mcp-session-id"]}
    wrong = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": {}}}
    for _ in range(20):
        assert (await post(f"{base}/secure", wrong, **session)).status_code == 202
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    assert [x["message"] for x in lines if x["level"] != "info"] == [
        "tokens were refused: secure (It is no JWT that the server's issuer signed.): 1"
    ]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://[::1", "no URL"),
        ("http://127.0.0.1:1/\x01", "no URL"),
        ("https://ex.example/a\r\nX-Evil: 1", "no URL"),
        ("not a url", "no URL"),
        ("ftp://x", "no URL that begins with"),
        ("https://", "no URL that begins with"),
        ("http://127.0.0.1:99999/", "port"),
        ("https://user:sekret@127.0.0.1:1/", "password"),
    ],
)
async def test_an_issuer_that_can_be_none_is_a_sign_in_that_is_not_set_up(
    world: World, issuer: Issuer, caplog: pytest.LogCaptureFixture, url: str, problem: str
) -> None:
    """The log says so once in a while, not at every request, and nobody gets to see a password."""
    service, base = await prepare(world, issuer)
    await world.db.execute("update mcp_servers set oauth_issuer_url = $1 where slug = 'secure'", url)
    token = f"Bearer {issuer.token(f'{base}/secure')}"
    metadata = f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp/secure"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        answers = [
            await post(f"{base}/secure", HELLO, authorization=token),
            await http.get(metadata),
            await http.get(metadata),
        ]
    for answer in answers:
        assert answer.status_code == 503
        assert "Sign-in is not set up for this server" in answer.json()["error"]["message"]
        assert "sekret" not in answer.text
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith("server secure needs sign-in (custom_oauth) and its issuer is not good (")
    assert problem in line
    assert "sekret" not in caplog.text


async def test_a_server_without_issuer_has_no_description_of_its_sign_in(
    world: World, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    """Where clients look for the issuer, there is none: that is no fault of a moment."""
    service, base = await prepare(world, issuer, oauth_issuer="")
    metadata = f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        answer = await http.get(f"{metadata}/other")
        assert (await http.get(f"{metadata}/secure")).status_code == 200
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "code": -32600,
        "message": "People sign in at this server, and no issuer is set for it: its operator has to name one.",
        "data": {"reason": "no_issuer"},
    }
    assert (await post(f"{base}/other", HELLO)).status_code == 503
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith("server other needs sign-in (platform_oauth) and has no issuer: ")


SLASHES = pytest.mark.parametrize(("written", "named"), [("", "/"), ("/a/", "/a")])


@SLASHES
async def test_a_token_of_an_issuer_that_differs_by_a_slash_is_refused(
    world: World, issuer: Issuer, written: str, named: str
) -> None:
    """Issuers are compared character by character, as clients do."""
    issuer.url = issuer.origin + written
    _, base = await prepare(world, issuer)
    for iss, status in ((named, 401), (written, 200)):
        token = issuer.token(f"{base}/secure", iss=issuer.origin + iss)
        answer = await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")
        assert answer.status_code == status
        assert ("Its iss is not the issuer of this server" in answer.text) == (status == 401)


@SLASHES
async def test_an_issuer_whose_metadata_writes_it_in_another_way_is_not_believed(
    world: World, issuer: Issuer, caplog: pytest.LogCaptureFixture, written: str, named: str
) -> None:
    issuer.url = issuer.origin + written
    _, base = await prepare(world, issuer)
    token = issuer.token(f"{base}/secure")
    issuer.url = issuer.origin + named
    answer = await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")
    assert answer.status_code == 503
    assert "its metadata names another issuer, which differs by a slash at the end" in caplog.text


async def test_people_of_an_issuer_with_a_slash_stay_who_they_are(world: World, issuer: Issuer) -> None:
    """Identities are kept without the slash: so they were when both spellings were taken."""
    issuer.url = issuer.origin + "/"
    _, base = await prepare(world, issuer)
    async with agent(f"{base}/secure", token=issuer.token(f"{base}/secure")) as ann:
        await ann.start()
    assert await world.db.fetchval("select issuer from mcp_user_identities") == issuer.origin


async def test_clients_learn_which_scopes_to_ask_for(world: World, issuer: Issuer) -> None:
    """Of all servers, and of one alone; where none are set, none are named."""
    service, base = await prepare(
        world, issuer, oauth_scopes="openid steps:read", oauth_server_scopes="secure=steps, nobody="
    )
    for slug, scopes in (("other", ["openid", "steps:read"]), ("secure", ["steps"])):
        async with httpx2.AsyncClient(timeout=PATIENCE) as http:
            told = await http.get(
                f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp/{slug}"
            )
        assert told.json()["scopes_supported"] == scopes
        for headers in ({}, {"authorization": "Bearer none"}):
            challenge = (await post(f"{base}/{slug}", HELLO, **headers)).headers["www-authenticate"]
            assert f'scope="{" ".join(scopes)}"' in challenge
            assert ('error="invalid_token"' in challenge) == bool(headers), "RFC 6750, section 3.1"
    # They are what clients ask for; the server asks tokens for none.
    token = issuer.token(f"{base}/secure")
    assert (await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")).status_code == 200


async def test_a_server_may_have_no_scopes_though_others_have(world: World, issuer: Issuer) -> None:
    service, base = await prepare(world, issuer, oauth_scopes="steps", oauth_server_scopes="secure=")
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        told = await http.get(
            f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp/secure"
        )
    assert "scopes_supported" not in told.json()
    assert "scope=" not in (await post(f"{base}/secure", HELLO)).headers["www-authenticate"]


async def test_how_to_sign_in_is_asked_as_often_as_an_address_may(world: World, issuer: Issuer) -> None:
    service, _ = await prepare(world, issuer, mcp_address_rate="3/minute")
    metadata = f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp/secure"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        answers = [await http.get(metadata) for _ in range(4)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"]


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
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        told = await http.get(f"{well_known}/secure")
        missing = [(await http.get(f"{well_known}/{slug}")).status_code for slug in ("srv_1", "nothing")]
    assert told.json() == {
        "resource": f"{base}/secure",
        "authorization_servers": [issuer.url],
        "bearer_methods_supported": ["header"],
        "resource_name": "secure",
    }
    assert told.headers["cache-control"] == "public, max-age=3600"
    assert missing == [404, 404]


async def test_issuer_and_resource_are_sent_as_they_are_written(world: World, issuer: Issuer) -> None:
    """Clients compare them with what they know, letter by letter."""
    issuer.url = "https://Issuer.example:443"
    service, _ = await prepare(world, issuer, public_url="https://Mcp.example:443")
    well_known = f"http://127.0.0.1:{service.port}/.well-known/oauth-protected-resource/mcp"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        of_all = (await http.get(f"{well_known}/other")).json()
        assert of_all["authorization_servers"] == ["https://Issuer.example:443"]
        assert of_all["resource"] == "https://Mcp.example:443/mcp/other"
        for path in ("", "/", "/tenant", "/tenant/"):
            written = f"https://issuer.example{path}"
            await world.db.execute(
                "update mcp_servers set oauth_issuer_url = $1 where slug = 'secure'", written
            )
            told = (await http.get(f"{well_known}/secure")).json()
            assert told["authorization_servers"] == [written]


async def test_a_token_for_the_resource_that_was_sent_is_good(world: World, issuer: Issuer) -> None:
    service, _ = await prepare(world, issuer, public_url="https://Mcp.example:443")
    here = f"http://127.0.0.1:{service.port}"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        told = (await http.get(f"{here}/.well-known/oauth-protected-resource/mcp/secure")).json()
    token = issuer.token(told["resource"])
    answer = await post(f"{here}/mcp/secure", HELLO, authorization=f"Bearer {token}")
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("path", "generation"),
    [*(("", generation) for generation in GENERATIONS), *((p, GENERATIONS[0]) for p in ("/", "/a", "/a/"))],
)
async def test_the_official_client_signs_in_by_itself(
    world: World, issuer: Issuer, path: str, generation: str
) -> None:
    """From the address alone: it finds the issuer, registers, asks the person, and gets a token."""
    issuer.url = issuer.origin + path
    _, base = await prepare(world, issuer)
    memory = Memory()
    async with agent(f"{base}/secure", generation, sign_in=signing_in(f"{base}/secure", memory)) as ann:
        assert (await ann.start())["outcome"] == "started"
        assert (await ann.next(current_step_id="a"))["step"]["id"] == "b"
    assert memory.client is not None
    assert (memory.client.client_id, memory.client.issuer) == ("client-0", issuer.url)
    async with agent(f"{base}/secure", generation, sign_in=signing_in(f"{base}/secure", memory)) as ann:
        assert (await ann.start())["step"]["id"] == "b"
    assert [path for path in issuer.fetched if path == "/token"] == ["/token"], "the token is kept"
    users = await world.db.fetch("select upstream_sub from mcp_server_user")
    assert [user["upstream_sub"] for user in users] == ["sub-1"]


async def test_the_official_client_signs_in_with_a_registration_of_its_own(
    world: World, issuer: Issuer
) -> None:
    """An operator has registered it: nothing is registered anew."""
    _, base = await prepare(world, issuer)
    known = issuer.register({"redirect_uris": [CALLBACK]})
    memory = Memory(OAuthClientInformationFull.model_validate(known))
    async with agent(f"{base}/secure", sign_in=signing_in(f"{base}/secure", memory)) as ann:
        assert (await ann.start())["outcome"] == "started"
    assert "/register" not in issuer.fetched


async def test_a_tracking_id_opens_no_server_where_people_sign_in(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    assert (await post(f"{base}/secure/ann", HELLO)).status_code == 404
    token = issuer.token(f"{base}/secure")
    assert (await post(f"{base}/secure/ann", HELLO, authorization=f"Bearer {token}")).status_code == 404


async def test_in_a_session_opened_by_one_person_another_is_who_their_token_says(
    world: World, issuer: Issuer
) -> None:
    _, base = await prepare(world, issuer)
    ann, bob = (f"Bearer {issuer.token(f'{base}/secure', who)}" for who in ("ann", "bob"))
    session = (await post(f"{base}/secure", HELLO, authorization=ann)).headers["mcp-session-id"]
    begin = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "start_walkthrough"}}
    headers = {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}
    elsewhere = f"Bearer {issuer.token(f'{base}/other', 'ann')}"
    for server, token, outcome in (
        ("secure", ann, "started"),
        ("secure", bob, "started"),
        ("other", elsewhere, "resumed"),
    ):
        answer = await post(f"{base}/{server}", begin, authorization=token, **headers)
        assert answer.json()["result"]["structuredContent"]["outcome"] == outcome
    assert (await post(f"{base}/secure", begin, **headers)).status_code == 401
    kept = await world.db.fetch("select * from mcp_server_session")
    assert len({(row["mcp_server_user_id"], row["mcp_server_slug"]) for row in kept}) == 3
    assert [row["mcp_server_slug"] for row in kept if row["mcp_server_session_id"] == session] == ["secure"]


async def test_a_new_key_of_the_issuer_is_found(world: World, issuer: Issuer) -> None:
    _, base = await prepare(world, issuer)
    issuer.keys["two"] = rsa.generate_private_key(65537, 2048)
    token = issuer.token(f"{base}/secure", kid="two")
    assert (await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")).status_code == 200


@pytest.mark.parametrize("old", ["gone", "stale"])
async def test_keys_that_the_issuer_moves_are_found(
    world: World, issuer: Issuer, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the old address gone, or with what was there still there: nobody has to restart anything."""
    monkeypatch.setattr(tokens, "_LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "_AWAY_SECONDS", 0.0)
    _, base = await prepare(world, issuer)

    async def status(kid: str) -> int:
        token = issuer.token(f"{base}/secure", kid=kid)
        return (await post(f"{base}/secure", HELLO, authorization=f"Bearer {token}")).status_code

    assert await status("one") == 200
    stale = {"/keys": issuer.documents()["/keys"]} if old == "stale" else {}
    issuer.keys["two"] = rsa.generate_private_key(65537, 2048)
    issuer.move_keys("/keys-of-today", stale)
    assert await status("two") == 200
    assert await status("one") == 200


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

"""People and sessions that organizations register by ids of their own: each once, and nobody sees another's."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx2
import pytest

from services.analytics_api.keys import Grant, revoke
from services.analytics_api.keys import create as make_key
from services.analytics_api.registering import (
    OwnSession,
    find_people,
    find_servers,
    known_users,
    own_session_id,
    register_people,
    register_sessions,
)
from tests.integration.test_locks import locked
from tests.support.agents import agent
from tests.support.proxy import proxied
from tests.support.world import API, PATIENCE, Api, World, completed, eventually

pytestmark = pytest.mark.integration


async def another_organization(world: World, organization: str = "other", server: str = "srv_2") -> None:
    await world.db.execute(
        "insert into organization (id, name, created_at) values ($1, $1, now()) on conflict do nothing",
        organization,
    )
    await world.db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ($1, $2, $1, $1, $1 || '-slug')",
        server,
        organization,
    )


async def test_the_same_id_is_one_person_of_an_organization_and_another_one_of_the_next(world: World) -> None:
    await world.offer()
    await another_organization(world)
    first = await register_people(world.db, "org", ["u-1", "u-2", "u-1"])
    assert [first["u-1"].created, first["u-2"].created] == [True, True]
    again = await register_people(world.db, "org", ["u-2", "u-3"])
    assert (again["u-2"].user_id, again["u-2"].created) == (first["u-2"].user_id, False)
    theirs = await register_people(world.db, "other", ["u-1"])
    assert theirs["u-1"].user_id != first["u-1"].user_id
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 4
    assert await world.db.fetchval("select count(*) from registered_people") == 4
    assert await find_people(world.db, "org", ["u-1", "u-9"]) == {"u-1": first["u-1"].user_id}
    mine, foreign = first["u-1"].user_id, theirs["u-1"].user_id
    assert await known_users(world.db, "org", [mine, foreign, "nobody"]) == {mine}


async def test_who_came_to_a_server_under_the_id_is_meant(world: World) -> None:
    """By the organization whose server it was; to another the id is that of somebody new."""
    await world.offer()
    await another_organization(world)
    await world.people(["ann"])
    await world.db.execute("update mcp_server_user set distinct_id = 'u-1'")
    assert await find_people(world.db, "org", ["u-1"]) == {"u-1": "ann"}
    assert await find_people(world.db, "other", ["u-1"]) == {}
    known = (await register_people(world.db, "org", ["u-1"]))["u-1"]
    assert (known.user_id, known.created) == ("ann", False)
    assert (await register_people(world.db, "other", ["u-1"]))["u-1"].user_id != "ann"
    assert await known_users(world.db, "org", ["ann"]) == {"ann"}
    assert await known_users(world.db, "other", ["ann"]) == set()


async def test_many_at_once_register_the_same_people_and_leave_no_orphan(world: World) -> None:
    await world.offer()
    ids = [f"u-{n}" for n in range(300)]

    async def register(given: Iterable[str]) -> dict[str, str]:
        connection = await asyncpg.connect(world.settings.dsn)
        async with connection.transaction():
            found = await register_people(connection, "org", given)
        await connection.close()
        return {distinct_id: person.user_id for distinct_id, person in found.items()}

    answers = await asyncio.gather(*(register(ids[n:] + ids[:n]) for n in range(0, 300, 50)))
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0].values())) == 300
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 300


async def test_a_session_is_made_once_bound_once_and_kept_where_it_is(world: World) -> None:
    await world.offer()
    await world.people(["ann", "bob"])
    mine = own_session_id("org", "s-1")
    assert mine != own_session_id("other", "s-1")

    async def register(slug: str, user: str | None, session: str = mine) -> Any:
        given = OwnSession(session, slug, user, 1_764_000_000_000, "a title")
        return (await register_sessions(world.db, [given]))[session]

    made = await register("srv_1", None)
    assert (made.user_id, made.created) == (None, True)
    assert not (await register("srv_1", None)).created
    bound = await register("srv_1", "ann")
    assert (bound.user_id, bound.created) == ("ann", False)
    assert (await register("srv_1", "bob")).user_id == "ann"
    row = await world.db.fetchrow("select * from mcp_server_session where mcp_server_session_id = $1", mine)
    assert row is not None
    assert (row["title"], str(row["connection_date"]), row["connection_timestamp"]) == (
        "a title",
        "2025-11-24",
        1_764_000_000_000,
    )


async def test_servers_are_found_by_id_slug_or_because_there_is_one(world: World) -> None:
    await world.offer()
    await another_organization(world)
    servers = await find_servers(world.db, "other", ["srv_2", "srv_1", "srv_2-slug"], None)
    assert [servers.find(name) for name in ("srv_2", "srv_2-slug", "srv_1", None)] == [
        "srv_2",
        "srv_2",
        None,
        "srv_2",
    ]
    await another_organization(world, server="srv_3")
    servers = await find_servers(world.db, "other", [], None)
    assert servers.find(None) is None
    servers = await find_servers(world.db, "other", [], {"srv_3"})
    assert servers.find(None) == "srv_3"


async def post(api: Api, path: str, body: Any, key: str, **headers: str) -> httpx2.Response:
    given = {"Authorization": f"Bearer {key}"} | headers
    if isinstance(body, bytes):
        return await api.http.post(f"/v1/{path}", headers=given, content=body)
    return await api.http.post(f"/v1/{path}", headers=given, json=body)


async def key_of(world: World, grant: Grant, organization: str = "org") -> str:
    return (await make_key(world.db, organization, "writer", None, grant)).text


WRITES = Grant(may_read=False, may_write=True)


async def test_people_come_in_by_http_each_with_a_verdict(world: World) -> None:
    await world.offer()
    api = await world.start_api()
    key = await key_of(world, WRITES)
    one = await post(api, "people", {"distinct_id": "u-1"}, key)
    assert one.status_code == 200
    (result,) = one.json()["results"]
    user = result.pop("mcp_server_user_id")
    assert result == {"index": 0, "status": "accepted", "distinct_id": "u-1", "created": True}
    some = await post(
        api,
        "people",
        {
            "people": [
                {"distinct_id": "u-2"},
                {"distinct_id": ""},
                {"distinct_id": "u-1"},
                {"id": 1},
                7,
                {"distinct_id": "u-2"},
                {"distinct_id": "a\nb"},
                {"distinct_id": 5},
            ]
        },
        key,
    )
    assert some.status_code == 207
    body = some.json()
    assert (body["accepted"], body["refused"]) == (3, 5)
    assert [r["index"] for r in body["results"]] == list(range(8))
    assert [(r["index"], r["created"]) for r in body["results"] if r["status"] == "accepted"] == [
        (0, True),
        (2, False),
        (5, False),
    ]
    assert body["results"][2]["mcp_server_user_id"] == user
    errors = {r["index"]: r["error"] for r in body["results"] if r["status"] == "refused"}
    assert {index: error["field"] for index, error in errors.items()} == {
        1: "distinct_id",
        3: "distinct_id",
        4: None,
        6: "distinct_id",
        7: "distinct_id",
    }
    assert {error["class"] for error in errors.values()} == {"invalid-person"}
    other = (await post(api, "people", [{"user_id": "u-1"}], key)).json()["results"][0]["error"]
    assert other["message"] == "distinct_id: Field required; `user_id` is perhaps distinct_id"
    lines = b'{"distinct_id": "u-3"}\n\n{"distinct_id": \n'
    ndjson = await post(api, "people", lines, key, **{"Content-Type": "application/x-ndjson"})
    assert ndjson.status_code == 207
    assert [(r["index"], r["line"], r["status"]) for r in ndjson.json()["results"]] == [
        (0, 1, "accepted"),
        (1, 3, "refused"),
    ]
    assert ndjson.json()["results"][1]["error"]["class"] == "not-json"
    assert (await post(api, "people", [{"distinct_id": ""}], key)).status_code == 422
    rows = await world.db.fetch("select distinct_id, mcp_server_user_id from registered_people order by 1")
    assert [row["distinct_id"] for row in rows] == ["u-1", "u-2", "u-3"]
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 3


async def test_what_is_no_batch_is_a_problem_and_nothing_is_taken(world: World) -> None:
    await world.offer()
    api = await world.start_api()
    key = await key_of(world, WRITES)
    many = [{"distinct_id": f"u-{n}"} for n in range(1_001)]
    tried: list[tuple[int, Any, dict[str, str]]] = [
        (400, b"{", {"Content-Type": "application/json"}),
        (400, [], {}),
        (400, b"\n\n", {"Content-Type": "application/x-ndjson"}),
        (413, many, {}),
        (413, b'"' + b"x" * 600_000 + b'"', {"Content-Type": "application/json"}),
        (415, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
    ]
    for path in ("people", "sessions"):
        for status, body, headers in tried:
            answer = await post(api, path, body, key, **headers)
            assert (answer.status_code, answer.headers["Content-Type"]) == (
                status,
                "application/problem+json",
            )


async def test_people_who_are_more_than_the_rate_are_told_when_to_come_again(world: World) -> None:
    await world.offer()
    api = await world.start_api(api_write_rate="1000/minute")
    key = await key_of(world, WRITES)
    many = [{"distinct_id": f"u-{n}"} for n in range(1_000)]
    assert (await post(api, "people", many[:900], key)).status_code == 200
    over = await post(api, "people", many[:200], key)
    assert over.status_code == 429
    assert int(over.headers["Retry-After"]) >= 1
    assert (await post(api, "people", many[900:950], key)).status_code == 200, "what is left of the rate"
    assert await world.db.fetchval("select count(*) from registered_people") == 950


async def test_sessions_come_in_by_http_and_another_organizations_are_as_none(world: World) -> None:
    await world.offer()
    await another_organization(world)
    await world.people(["ann", "bob"])
    await world.people(["zoe"], server="srv_2-slug", session="z_")
    api = await world.start_api()
    key, registers = (
        await key_of(world, WRITES),
        await key_of(world, Grant(may_read=False, may_write=True, may_register=True)),
    )
    assert (await post(api, "people", {"distinct_id": "u-1"}, key)).status_code == 200
    batch = [
        {"session_id": "s-1"},
        {
            "session_id": "s-2",
            "server": "srv_1",
            "distinct_id": "u-1",
            "title": "first",
            "started_at": 1_764_000_000_000,
        },
        {"session_id": "s-3", "mcp_server_user_id": "ann"},
        {"session_id": "s-4", "mcp_server_user_id": "zoe"},
        {"session_id": "s-5", "mcp_server_user_id": "nobody"},
        {"session_id": "s-6", "server": "srv_2"},
        {"session_id": "s-7", "server": "srv_9"},
        {"session_id": "s-8", "distinct_id": "u-9"},
        {"session_id": "s-9", "started_at": 5},
        {"session_id": "s-3", "mcp_server_user_id": "bob"},
        {"session_id": "s-1", "mcp_server_user_id": "bob"},
        {"session_id": "s-9", "mcp_server_user_id": "bob", "distinct_id": "u-1"},
    ]
    answer = await post(api, "sessions", batch, key)
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [(r["index"], r["created"]) for r in results if r["status"] == "accepted"] == [
        (0, True),
        (1, True),
        (2, True),
        (10, False),
    ]
    errors = {r["index"]: (r["error"]["class"], r["error"]["field"]) for r in results if "error" in r}
    assert errors == {
        3: ("unknown-user", "mcp_server_user_id"),
        4: ("unknown-user", "mcp_server_user_id"),
        5: ("unknown-server", "server"),
        6: ("unknown-server", "server"),
        7: ("unknown-user", "distinct_id"),
        8: ("invalid-session", "started_at"),
        9: ("session-of-another-user", "distinct_id"),
        11: ("invalid-session", None),
    }
    foreign, absent = results[3]["error"]["message"], results[4]["error"]["message"]
    assert foreign.replace("zoe", "nobody") == absent
    foreign, absent = results[5]["error"]["message"], results[6]["error"]["message"]
    assert foreign.replace("srv_2", "srv_9") == absent
    again = await post(api, "sessions", batch[1], key)
    assert not again.json()["results"][0]["created"]
    first = await post(api, "sessions", {"session_id": "s-8", "distinct_id": "u-9"}, registers)
    assert first.json()["results"][0]["created"]
    rows = await world.db.fetch(
        "select title, mcp_server_slug, connection_timestamp from mcp_server_session"
        " where mcp_server_session_id like 'ses\\_%' order by title"
    )
    assert [row["title"] for row in rows] == ["first", None, None, None]
    assert {row["mcp_server_slug"] for row in rows} == {"srv_1"}
    assert rows[0]["connection_timestamp"] == 1_764_000_000_000
    assert await world.db.fetchval("select count(*) from registered_people") == 2


async def test_a_key_names_no_server_but_its_own_and_means_its_only_one(world: World) -> None:
    await world.offer()
    await another_organization(world, "org", "srv_5")
    api = await world.start_api()
    key = await key_of(world, Grant(may_read=False, may_write=True, servers=("srv_5-slug",)))
    batch = [{"session_id": "s-1"}, {"session_id": "s-2", "server": "srv_1"}]
    results = (await post(api, "sessions", batch, key)).json()["results"]
    assert results[0]["status"] == "accepted"
    assert results[1]["error"]["class"] == "server-not-allowed"
    slugs = await world.db.fetch("select mcp_server_slug from mcp_server_session")
    assert [row["mcp_server_slug"] for row in slugs] == ["srv_5-slug"]
    each = await key_of(world, WRITES)
    (result,) = (await post(api, "sessions", batch[0] | {"session_id": "s-3"}, each)).json()["results"]
    assert result["error"]["class"] == "ambiguous-server"


READS = Grant()
BOTH = Grant(may_write=True)


async def test_a_key_opens_what_it_is_for_and_nothing_else(world: World) -> None:
    """Over every route of the API, and the MCP tools."""
    await world.offer()
    await world.people(["ann"])
    api = await world.start_api()
    keys = {name: await key_of(world, grant) for name, grant in (("r", READS), ("w", WRITES), ("b", BOTH))}
    document = (await api.http.get("/v1/openapi.json")).json()
    tried = 0
    for path, methods in document["paths"].items():
        at = path.format(walkthrough_id="wt_a", server_id="srv_1", user_id="ann", session_id="s_ann")
        for method in methods:
            writes = method == "post"
            for name, key in keys.items():
                response = (
                    await api.http.request(
                        method.upper(),
                        at,
                        headers={"Authorization": f"Bearer {key}", "Range": "bytes=0-0"},
                        json={} if method in ("post", "put") else None,
                        timeout=PATIENCE,
                    )
                    if not at.endswith("/live")
                    else await _live(api, at, key)
                )
                tried += 1
                is_for = name in {"b", "w" if writes else "r"}
                if method == "put":
                    is_for = False  # none of them may edit
                assert (response.status_code == 403) is not is_for, (method, path, name, response.status_code)
    assert tried > 60
    for name, key in keys.items():
        answer = await api.http.post(
            "/mcp/analytics",
            headers={"Authorization": f"Bearer {key}", "Accept": "application/json, text/event-stream"},
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}},
        )
        assert (answer.status_code == 403) is (name == "w"), (name, answer.status_code)


async def _live(api: Api, path: str, key: str) -> httpx2.Response:
    """The beginning of a stream's answer."""
    async with api.http.stream("GET", path, headers={"Authorization": f"Bearer {key}"}) as response:
        return response


async def test_people_and_sessions_are_registered_by_command(world: World, tmp_path: Path) -> None:
    await world.offer()
    await world.db.execute("update organization set slug = 'acme'")
    table = tmp_path / "people.csv"
    table.write_text('\ufeffdistinct_id\nu-1\n\nu-2\n"u,3"\nu-1\n')
    done = world.command("register", "people", str(table), "--organization", "acme")
    assert done.returncode == 0, done.stderr
    assert "4 registered, 3 of them new" in done.stderr
    ids = dict(await world.db.fetch("select distinct_id, mcp_server_user_id from registered_people"))
    assert set(ids) == {"u-1", "u-2", "u,3"}
    assert all(distinct_id in done.stdout and user in done.stdout for distinct_id, user in ids.items())

    for given, more, told in (
        ("distinct_id\nu-1\n", (), ""),
        ("session_id;distinct_id\ns-0;u-2\n", (), "its columns are separated by semicolons"),
        ('session_id;distinct_id\n"s-0";u-2\n', ("--delimiter", ";"), ""),
        ("session_id\tdistinct_id\ns-0\tu-2\n", ("--delimiter", "tab"), ""),
    ):
        kind = "sessions" if "session_id" in given else "people"
        done = world.command(
            "register", kind, "-", *more, "--organization", "acme", "-o", "json", stdin=given.encode()
        )
        assert done.returncode == 0, done.stderr
        assert told in done.stderr
        assert told or "separated" not in done.stderr
        (registered,) = json.loads(done.stdout)
        assert registered["distinct_id" if kind == "people" else "session_id"] in {"u-1", "s-0"}

    lines = [
        {"session_id": "s-1", "distinct_id": "u-1", "started_at": 1_764_000_000_000},
        {"session_id": "s-2", "server": "srv_9"},
        {"session_id": "s-3", "server": "srv_1", "distinct_id": "u-9"},
    ]
    given = "\n".join(json.dumps(line) for line in lines) + "\n{\n"
    done = world.command(
        "register", "sessions", "-", "--organization", "org", "-o", "ndjson", stdin=given.encode()
    )
    assert done.returncode == 1
    assert "line 2: unknown-server: there is no server with the slug or id `srv_9`" in done.stderr
    assert "line 4: not-json: the line is no JSON" in done.stderr
    assert "2 of 4 were refused" in done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["status"] for r in results] == ["accepted", "refused", "accepted", "refused"]
    users = {r["session_id"]: r["mcp_server_session_id"] for r in results if r["status"] == "accepted"}
    kept = dict(
        await world.db.fetch("select mcp_server_session_id, mcp_server_user_id from mcp_server_session")
    )
    assert kept[users["s-1"]] == ids["u-1"]
    assert kept[users["s-3"]] == await world.db.fetchval(
        "select mcp_server_user_id from registered_people where distinct_id = 'u-9'"
    )
    one = ("register", "sessions", "--organization", "org", "--session-id", "s-1", "-o", "json")
    again = json.loads((await world.invoke(*one)).stdout)
    assert (again[0]["mcp_server_session_id"], again[0]["created"]) == (users["s-1"], False)


@pytest.mark.parametrize(
    ("args", "given", "code", "told"),
    [
        (("people",), b"", 2, "--distinct-id"),
        (("people", "-", "--delimiter", ";;"), b"", 2, "`;;` is not one character"),
        (
            ("people", "--distinct-id", "u-1", "--delimiter", ";"),
            b"",
            2,
            "--delimiter and --column are for a file",
        ),
        (("people", "-"), b"name;distinct_id\nann;u-1\n", 2, "line 1: `name` is no column of people"),
        (("people", "-"), b"user_id\nann\n", 2, "--column distinct_id=user_id says what it is"),
        (("people", "-", "--column", "distinct_id=name"), b"user_id\nann\n", 2, "there is no column `name`"),
        (("people", "-", "--column", "colour=name"), b"name\nann\n", 2, "there is no field `colour`"),
        (("people", "--distinct-id", "u-1", "--column", "distinct_id=a"), b"", 2, "are for a file"),
        (("people", "-", "--distinct-id", "u-1"), b"", 2, "one of them"),
        (("people", "-"), b"", 2, "there are no people in it"),
        (("people", "-"), b"name\nann\n", 2, "line 1: `name` is no column of people"),
        (("people", "-"), b"distinct_id\n\xff\n", 2, "line 2: it is no UTF-8"),
        (("people", "-"), b"distinct_id\na,b\nc\n", 1, "line 2: not-json: the line has 2 cells for 1 names"),
        (("people", "nowhere.csv"), b"", 2, "nowhere.csv: No such file"),
        (("sessions", "--server", "srv_1"), b"", 2, "--server is of one session"),
        (("sessions", "-"), b"session_id,started_at\ns,soon\n", 1, "started_at: neither milliseconds"),
        (("sessions", "-"), b"session_id,started_at\ns,1764000000\n", 1, "are these seconds instead of"),
    ],
)
async def test_what_cannot_be_registered_is_said_with_its_line(
    world: World, args: tuple[str, ...], given: bytes, code: int, told: str
) -> None:
    await world.offer()
    done = world.command("register", *args, "--organization", "org", stdin=given)
    assert (done.returncode, told in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    "given",
    [
        b"customer,visit,began,mail\nu-1,s-1,2025-11-24T17:00:00+01:00,a@b.c\n",
        b'{"customer": "u-1", "visit": "s-1", "began": "2025-11-24T16:00:00Z", "mail": 1}\n',
    ],
)
async def test_columns_may_have_other_names_and_a_time_is_what_rfc_3339_says(
    world: World, given: bytes
) -> None:
    await world.offer()
    columns = ("session_id=visit", "distinct_id=customer", "started_at=began")
    named = [part for column in columns for part in ("--column", column)]
    done = world.command("register", "sessions", "-", *named, "--organization", "org", stdin=given)
    assert done.returncode == 0, done.stderr
    row = await world.db.fetchrow("select mcp_server_user_id, connection_timestamp from mcp_server_session")
    assert row is not None
    assert row["mcp_server_user_id"] is not None
    assert row["connection_timestamp"] == 1_764_000_000_000


async def test_registering_for_an_organization_that_there_is_not_is_refused(world: World) -> None:
    done = world.command("register", "people", "--organization", "acme", "--distinct-id", "u-1")
    assert done.returncode == 2
    assert "there is no organization with the id or slug `acme`" in done.stderr


async def test_keys_are_made_and_listed_with_what_they_may(world: World) -> None:
    await world.offer()
    make = ("keys", "create", "--organization", "org", "--name")
    assert (await world.invoke(*make, "reader")).returncode == 0
    writer = await world.invoke(
        *make, "writer", "--may-write", "--type", "step-completed", "--server", "srv_1", "--source", "/shop"
    )
    assert writer.returncode == 0, writer.stderr
    assert (await world.invoke(*make, "both", "--may-write", "--may-read", "--may-register")).returncode == 0
    rows = json.loads((await world.invoke("keys", "list", "-o", "json")).stdout)
    assert {row["name"]: row["may"] for row in rows} == {
        "reader": "read",
        "writer": "write, only step-completed, only srv_1",
        "both": "read, write, register",
    }
    (row,) = [row for row in rows if row["name"] == "writer"]
    assert (row["write_types"], row["write_server_ids"], row["source"], row["may_read"]) == (
        ["step-completed"],
        ["srv_1"],
        "/shop",
        False,
    )
    assert "write, only" in (await world.invoke("keys", "list")).stdout
    for more, told in (
        (("--may-register",), "--may-write"),
        (("--type", "step-completed"), "--may-write"),
        (("--may-write", "--type", "user-erased"), "`user-erased` is none of"),
        (("--may-write", "--server", "srv_9"), "no server with the slug or id `srv_9`"),
        (("--may-write", "--source", "stepstream-operator"), "is trusted"),
        (("--may-write", "--source", "x" * 101), "at most 100"),
        (("--may-write", "--may-edit"), "--may-read"),
    ):
        refused = await world.invoke(*make, "wrong", *more)
        assert (refused.returncode, told in refused.stderr) == (2, True), refused.stderr
    trusted = await world.invoke(*make, "wrong", "--may-write", "--source", "/crm", trusted_sources="/crm")
    assert trusted.returncode == 2


async def test_who_is_registered_is_the_one_whom_agents_lead(world: World) -> None:
    """By the tracking id in the address; at another organization's server the same id is another person."""
    await world.offer()
    await another_organization(world)
    await world.db.execute(
        "insert into walkthroughs (id, organization_id, title, status) values ('wt_o', 'other', 'o', 'published')"
    )
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields) values ('o1', 'wt_o', 'o1', '{}')"
    )
    await world.db.execute(
        "insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ('o', 'srv_2', 'wt_o')"
    )
    service = await world.start_mcp()
    person = (await register_people(world.db, "org", ["u-1"]))["u-1"].user_id
    for slug in ("srv_1", "srv_2-slug", "srv_1"):
        async with agent(f"http://127.0.0.1:{service.port}/mcp/{slug}/u-1") as client:
            await client.call("start_walkthrough")
    met = await world.db.fetch(
        "select mcp_server_user_id as id, mcp_server_slug as slug from mcp_server_session"
    )
    users = {slug: {row["id"] for row in met if row["slug"] == slug} for slug in ("srv_1", "srv_2-slug")}
    assert users["srv_1"] == {person}
    assert len(users["srv_2-slug"]) == 1
    assert person not in users["srv_2-slug"]
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 2
    # Who came to a server before is known to its organization alone.
    assert await find_people(world.db, "other", ["u-1"]) == {"u-1": users["srv_2-slug"].pop()}


async def people_of(world: World, distinct_id: str) -> list[str]:
    """All who stand for this id, registered or come."""
    rows = await world.db.fetch(
        "select mcp_server_user_id as id from registered_people where distinct_id = $1"
        " union select id from mcp_server_user where distinct_id = $1",
        distinct_id,
    )
    return [row["id"] for row in rows]


async def test_who_comes_for_the_first_time_while_being_registered_is_one_person(world: World) -> None:
    await world.offer()
    service = await world.start_mcp()

    async def waits_or_is_there() -> bool:
        waiting = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
        return bool(await world.db.fetchval(waiting)) or len(await people_of(world, "u-1")) > 0

    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/u-1") as client:
        async with world.connection() as other, other.transaction():
            registered = (await register_people(other, "org", ["u-1"]))["u-1"]
            first = asyncio.create_task(client.call("start_walkthrough"))
            await eventually(waits_or_is_there, "the first visit waits, or is over", every=0.001)
        await first
    assert await people_of(world, "u-1") == [registered.user_id]
    assert await world.db.fetchval("select mcp_server_user_id from mcp_server_session") == registered.user_id


async def test_first_visits_and_registrations_at_once_make_one_person_of_each(world: World) -> None:
    await world.offer()
    api = await world.start_api()
    key = await key_of(world, WRITES)
    service = await world.start_mcp(
        mcp_address_rate="",
        mcp_new_people_rate="",
        mcp_new_people_address_rate="",
        mcp_new_people_server_rate="",
    )
    names = [f"u-{n}" for n in range(40)]

    async def comes(name: str) -> None:
        async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/{name}") as client:
            await client.call("start_walkthrough")

    async def is_registered(some: list[str]) -> dict[str, str]:
        answer = await post(api, "people", [{"distinct_id": name} for name in some], key)
        assert answer.status_code == 200, answer.text
        return {r["distinct_id"]: r["mcp_server_user_id"] for r in answer.json()["results"]}

    found, *_ = await asyncio.gather(
        is_registered(names),
        *(comes(name) for name in names),
        *(is_registered(names[n::5]) for n in range(5)),
    )
    assert {name: await people_of(world, name) for name in names} == {n: [found[n]] for n in names}
    assert await world.db.fetchval("select count(distinct mcp_server_user_id) from mcp_server_session") == 40


async def test_who_is_erased_is_forgotten_and_the_same_id_is_a_new_person(world: World) -> None:
    await world.offer()
    world.start_both()
    api = await world.start_api()
    key = await key_of(world, WRITES)

    async def come(path: str, item: dict[str, Any]) -> dict[str, Any]:
        answer = await post(api, path, item, key)
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        return dict(result)

    first = (await come("people", {"distinct_id": "u-1"}))["mcp_server_user_id"]
    session = (await come("sessions", {"session_id": "s-1", "distinct_id": "u-1"}))["mcp_server_session_id"]
    await world.produce([completed(first, "a", 1, mcp_server_session_id=session)])
    await world.drained()
    assert await world.db.fetchval("select count(*) from walkthrough_step_completions") == 1
    erased = await world.invoke("erase", first, "--execute")
    assert erased.returncode == 0, erased.stderr
    await world.drained()
    for table in (
        "registered_people",
        "mcp_server_user",
        "mcp_server_session",
        "walkthrough_step_completions",
    ):
        assert await world.db.fetchval(f"select count(*) from {table}") == 0, table
    again = await come("people", {"distinct_id": "u-1"})
    assert again["created"]
    assert again["mcp_server_user_id"] != first
    # The session's id is free again, too: it is the new person's.
    bound = await come("sessions", {"session_id": "s-1", "distinct_id": "u-1"})
    assert (bound["mcp_server_session_id"], bound["created"]) == (session, True)


async def test_many_at_once_come_in_and_each_is_one(world: World) -> None:
    """People and sessions of the same ids, by several clients and keys."""
    await world.offer()
    api = await world.start_api()
    keys = [await key_of(world, WRITES) for _ in range(3)]
    ids = [f"u-{n}" for n in range(60)]

    async def come(number: int) -> list[str]:
        key = keys[number % len(keys)]
        mixed = ids[number * 7 % 60 :] + ids[: number * 7 % 60]
        people = await post(api, "people", [{"distinct_id": one} for one in mixed], key)
        assert people.status_code == 200, people.text
        given = [{"session_id": f"s-{one}", "distinct_id": one} for one in reversed(mixed)]
        sessions = await post(api, "sessions", given, key)
        assert sessions.status_code == 200, sessions.text
        return sorted(r["mcp_server_session_id"] for r in sessions.json()["results"])

    answers = await asyncio.gather(*(come(number) for number in range(9)))
    assert all(answer == answers[0] for answer in answers)
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 60
    assert await world.db.fetchval("select count(*) from mcp_server_session") == 60


async def test_it_is_written_at_the_primary_wherever_figures_are_read(world: World) -> None:
    """A role that may read alone stands for a replica: its connections refuse to write as well."""
    await world.offer()
    key = await key_of(world, WRITES)
    writer = urlsplit(world.settings_of(API).dsn)
    readers = urlunsplit(writer._replace(query="options=-c%20default_transaction_read_only%3Don"))
    api = await world.start_api(api_database_url=readers)
    assert (await post(api, "people", {"distinct_id": "u-1"}, key)).status_code == 200
    async with reader_of(world) as reader:
        alone = await world.start_api(database_url=reader)
        refused = await post(alone, "people", {"distinct_id": "u-2"}, key)
        assert (refused.status_code, "primary" in refused.json()["detail"]) == (501, True)
    assert await world.db.fetchval("select count(*) from registered_people") == 1


@contextlib.asynccontextmanager
async def reader_of(world: World) -> AsyncIterator[str]:
    """The database by a login that has the rights of the API but those to write."""
    name = f"reader_{world.settings.topic[:20]}"
    await world.db.execute(f"create role {name} login password 'reader'")
    await world.db.execute(f"grant usage on schema public to {name}")
    await world.db.execute(f"grant select on all tables in schema public to {name}")
    parts = urlsplit(world.settings.dsn)
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}:reader@{parts.netloc.rpartition('@')[2]}"))
    finally:
        await world.db.execute(f"drop owned by {name}; drop role {name}")


async def test_what_somebody_has_locked_is_to_be_sent_again_and_nothing_is_taken(world: World) -> None:
    await world.offer()
    api = await world.start_api(api_lock_seconds=0.05)
    key = await key_of(world, WRITES)
    async with locked(
        world,
        "insert into mcp_server_user (id) values ('ann')",
        "insert into registered_people (organization_id, distinct_id, mcp_server_user_id)"
        " values ('org', 'u-1', 'ann')",
    ):
        busy = await post(api, "people", [{"distinct_id": "u-0"}, {"distinct_id": "u-1"}], key)
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "5")
        assert await world.db.fetchval("select count(*) from registered_people") == 0
    assert (await post(api, "people", {"distinct_id": "u-1"}, key)).status_code == 200


async def test_with_the_database_away_nothing_is_taken_and_it_can_be_sent_again(world: World) -> None:
    """Figures are read elsewhere all the while; the API need not be restarted."""
    await world.offer()
    key = await key_of(world, WRITES)
    direct = world.settings_of(API).dsn
    async with proxied(direct) as (proxy, url):
        api = await world.start_api(database_url=url, api_database_url=direct)
        await proxy.refuse()
        for path, item in (("people", {"distinct_id": "u-1"}), ("sessions", {"session_id": "s-1"})):
            away = await post(api, path, item, key)
            assert (away.status_code, away.headers["Retry-After"]) == (503, "2"), away.text
        assert await api.get("organization")
        await proxy.listen()
        assert (await post(api, "people", {"distinct_id": "u-1"}, key)).status_code == 200
        proxy.cut()
        again = await post(api, "people", {"distinct_id": "u-1"}, key)
        assert again.status_code in {200, 503}
        (result,) = (await post(api, "people", {"distinct_id": "u-1"}, key)).json()["results"]
        assert not result["created"]
    assert await world.db.fetchval("select count(*) from registered_people") == 1


async def test_a_body_is_not_read_for_who_may_not_write(world: World) -> None:
    """Nor judged: neither a key that is not good nor one that reads learns what is wrong with it."""
    await world.offer()
    api = await world.start_api(api_failure_rate="")
    gone = await make_key(world.db, "org", "gone", None, WRITES)
    assert (await post(api, "people", {"distinct_id": "u-1"}, gone.text)).status_code == 200
    await revoke(world.db, gone.id)
    for path in ("people", "sessions", "events"):
        for key, status in ((gone.text, 401), ("sst_nobody_knows", 401), (api.key, 403)):
            answer = await post(api, path, b"{" * 100, key, **{"Content-Type": "application/json"})
            assert (answer.status_code, answer.headers["Content-Type"]) == (
                status,
                "application/problem+json",
            )


async def test_writing_uses_up_no_rate_of_reading(world: World) -> None:
    await world.offer()
    api = await world.start_api(api_key_rate="3/minute", api_write_rate="5/minute")
    key = await key_of(world, BOTH)
    for number in range(5):
        assert (await post(api, "people", {"distinct_id": f"u-{number}"}, key)).status_code == 200
    assert (await post(api, "people", {"distinct_id": "u-5"}, key)).status_code == 429
    assert [(await api.ask("organization", key=key)).status_code for _ in range(4)] == [200, 200, 200, 429]
    other = await key_of(world, BOTH)
    large = [{"distinct_id": f"v-{number}"} for number in range(5)]
    assert (await post(api, "people", large, other)).status_code == 200, (
        "an organization may write twice as much"
    )
    third = await key_of(world, BOTH)
    assert (await post(api, "people", large[:1], third)).status_code == 429, "but no more"

"""People and sessions that organizations register by ids of their own: each once, and nobody sees another's."""

import asyncio
from collections.abc import Iterable
from typing import Any

import asyncpg
import pytest

from services.analytics_api.registering import (
    OwnSession,
    find_people,
    find_servers,
    known_users,
    own_session_id,
    register_people,
    register_sessions,
)
from tests.support.world import World

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
    assert [servers.find(name, None) for name in ("srv_2", "srv_2-slug", "srv_1", None)] == [
        "srv_2",
        "srv_2",
        None,
        "srv_2",
    ]
    await another_organization(world, server="srv_3")
    servers = await find_servers(world.db, "other", [], None)
    assert servers.find(None, None) is None
    servers = await find_servers(world.db, "other", [], {"srv_3"})
    assert servers.find(None, {"srv_3"}) == "srv_3"

"""Organizations, servers and walkthroughs by commands alone: from nothing to an agent that leads a person."""

import asyncio
import json
from pathlib import Path

import pytest

from services.runtime.database import connected
from services.runtime.errors import UsageError
from services.walkthrough_mcp import catalog
from tests.support.agents import agent
from tests.support.world import OPERATOR, World

pytestmark = pytest.mark.integration


async def run(world: World, *command: str, code: int = 0) -> str:
    done = await world.invoke(*command)
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout.strip() if code == 0 else done.stderr


async def test_from_nothing_to_a_walkthrough_in_an_agent(world: World, tmp_path: Path) -> None:
    organization = await run(world, "organizations", "create", "Acme Tools")
    address = await run(world, "servers", "create", "Acme docs", "--organization", "acme-tools")
    assert address.endswith("/mcp/acme-docs")
    walkthrough = await run(world, "walkthroughs", "create", "First steps", "--server", "acme-docs")
    refused = await run(world, "walkthroughs", "publish", walkthrough, "--execute", code=2)
    assert "has no step" in refused
    (tmp_path / "install.md").write_text("Press *Install*.")
    content = (("--for-user", str(tmp_path / "install.md")), ("--operations", "Ask for the name."))
    steps = [
        await run(world, "walkthroughs", "add-step", walkthrough, title, *given)
        for title, given in zip(("Install", "Sign in"), content, strict=True)
    ]
    mcp = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{mcp.port}/mcp/acme-docs/ann") as ann:
        assert (await ann.start())["outcome"] == "nothing-offered"
        await run(world, "walkthroughs", "publish", walkthrough)
        assert (await ann.start())["outcome"] == "nothing-offered", "that was a plan"
        await run(world, "walkthroughs", "publish", walkthrough, "--execute")
        first = await ann.start()
        assert (first["step"]["id"], first["step"]["content_for_user"]) == (steps[0], "Press *Install*.")
        last = await ann.next(current_step_id=steps[0])
        assert last["step"]["operations_for_agent"] == "Ask for the name."
    shown = json.loads(await run(world, "walkthroughs", "show", walkthrough, "-o", "json"))
    assert [(s["id"], s["shown_to"]) for s in shown["steps"]] == [(steps[0], 0), (steps[1], 1)]
    assert (shown["organization_id"], shown["status"], shown["under_way"]) == (organization, "published", 1)
    (server,) = json.loads(await run(world, "servers", "list", "-o", "json"))
    assert (server["slug"], server["walkthroughs"], server["auth_type"]) == ("acme-docs", 1, "none")
    (listed,) = json.loads(await run(world, "organizations", "list", "-o", "json"))
    assert (listed["id"], listed["servers"], listed["walkthroughs"]) == (organization, 1, 1)


async def test_steps_move_and_people_go_on_with_the_first_that_is_open(world: World) -> None:
    await world.offer(steps="abc")
    mcp = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{mcp.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        await ann.next(current_step_id="a")
        plan = await world.invoke("walkthroughs", "move-step", "c", "--to", "1")
        assert "1 person under way now" in plan.stderr
        assert [s["id"] for s in (await shown(world))["steps"]] == ["a", "b", "c"]
        await run(world, "walkthroughs", "move-step", "c", "--to", "1", "--execute")
        assert [s["id"] for s in (await shown(world))["steps"]] == ["c", "a", "b"]
        first, second = json.loads(await run(world, "walkthroughs", "versions", "wt_a", "-o", "json"))
        assert [s["id"] for s in first["steps"]] == ["a", "b", "c"]
        assert (first["since"], second["since"]) == (None, second["made_at"])
        assert second["says"] == "Moved “title of c” from place 3 to 1."
        assert "Moved “title of c”" in await run(world, "walkthroughs", "versions", "wt_a")
        assert (await ann.next(current_step_id="b"))["step"]["id"] == "c"
        assert "nothing to do" in (await world.invoke("walkthroughs", "move-step", "c", "--to", "1")).stderr
        await run(world, "walkthroughs", "archive", "wt_a", "--execute")
        assert (await ann.start())["outcome"] == "nothing-offered"


async def shown(world: World) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads(
        await run(world, "walkthroughs", "show", "wt_a", "-o", "json")
    )
    return found


async def test_two_who_change_steps_at_once_lose_none(world: World) -> None:
    await world.offer(steps="abcdef")
    settings = world.settings_of(OPERATOR)

    async def move(step: str, place: int) -> None:
        async with connected(settings) as db:
            await catalog.move_step(db, step, place)

    async def add(title: str) -> None:
        async with connected(settings) as db:
            await catalog.add_step(db, "wt_a", title, {"contentForUser": "x"})

    moves = [move(step, place) for step in "abc" for place in (1, 3, 6)]
    await asyncio.gather(*moves, *(add(f"new {i}") for i in range(4)))
    rows = await world.db.fetch("select display_order from walkthrough_steps where walkthrough_id = 'wt_a'")
    assert sorted(row["display_order"] for row in rows) == list(range(10))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("organizations", "create", "Org"), "slug `org` already"),
        (("organizations", "create", "日本"), "none can be made of"),
        (("organizations", "create", "x", "--slug", "-a"), "a slug has 1 to 63"),
        (("organizations", "create", " "), "the name has to be a text"),
        (("servers", "create", "Srv 1", "--organization", "org", "--slug", "srv_1"), "a slug has"),
        (("servers", "create", "Docs", "--organization", "nobody"), "no organization with the id or slug"),
        (("servers", "create", "Docs", "--organization", "org", "--issuer", "ftp://x"), "--issuer: "),
        (("servers", "show", "none"), "no MCP server with the slug"),
        (("walkthroughs", "create", "T", "--server", "none"), "no MCP server with the slug"),
        (("walkthroughs", "create", "T" * 501, "--server", "srv_1"), "1 to 500 characters"),
        (("walkthroughs", "show", "none"), "no walkthrough with the id"),
        (("walkthroughs", "versions", "none"), "no walkthrough with the id"),
        (("walkthroughs", "add-step", "wt_a", "T"), "a step has something to say"),
        (("walkthroughs", "add-step", "wt_a", "T", "--for-user", "nowhere.md"), "nowhere.md: No such file"),
        (("walkthroughs", "move-step", "none", "--to", "1"), "no step with the id"),
        (("walkthroughs", "move-step", "a", "--to", "9"), "has 5 steps"),
    ],
)
async def test_what_cannot_be_is_said(world: World, command: tuple[str, ...], why: str) -> None:
    await world.offer()
    await world.db.execute("update organization set slug = 'org'")
    assert why in await run(world, *command, code=2)


async def test_a_slug_is_taken_once(world: World) -> None:
    await world.offer()
    async with connected(world.settings_of(OPERATOR)) as db:
        await catalog.create_server(db, "org", "Docs")
        with pytest.raises(UsageError, match="slug `docs` already"):
            await catalog.create_server(db, "org", "Docs!")


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("claude-code", "claude mcp add --transport http srv_1 http://h/mcp/srv_1/an%20n"),
        ("vscode", {"servers": {"srv_1": {"type": "http", "url": "http://h/mcp/srv_1/an%20n"}}}),
        ("cursor", {"mcpServers": {"srv_1": {"url": "http://h/mcp/srv_1/an%20n"}}}),
        ("claude-desktop", ["-y", "mcp-remote", "http://h/mcp/srv_1/an%20n", "--allow-http"]),
    ],
)
async def test_how_an_agent_connects(world: World, client: str, expected: object) -> None:
    await world.offer()
    command = ("servers", "connect", "srv_1", "--client", client, "--tracking-id", "an n")
    done = await world.invoke(*command, public_url="http://h")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.strip() if client == "claude-code" else json.loads(done.stdout)
    assert (shown["mcpServers"]["srv_1"]["args"] if client == "claude-desktop" else shown) == expected

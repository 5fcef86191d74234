"""What a client learns before it calls a tool: which server this is, what it offers, and prompts to start each."""

from importlib import metadata

import pytest
from mcp.shared.exceptions import MCPError

from tests.support.agents import agent
from tests.support.world import World

pytestmark = pytest.mark.integration

both_generations = pytest.mark.parametrize("generation", ["auto", "legacy"])


async def two_servers(world: World) -> str:
    """The address below which the servers are: of Bun with two walkthroughs, and of something else."""
    await world.offer("wt_bun", "ab", "bun")
    await world.offer("wt_test", "cd", "bun")
    await world.offer("wt_other", "x", "other")
    await world.db.execute(
        "update mcp_servers set name = 'Bun docs', product_platform_or_tool = 'Bun' where id = 'bun'"
    )
    await world.db.execute("update walkthroughs set title = 'Install Bun' where id = 'wt_bun'")
    await world.db.execute(
        "update walkthroughs set title = 'Run tests', description = 'With Bun.' where id = 'wt_test'"
    )
    return f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp"


@both_generations
async def test_a_server_introduces_itself_by_its_own_name_with_what_it_offers(
    world: World, generation: str
) -> None:
    base = await two_servers(world)
    for path in ("bun", "bun/ann"):
        async with agent(f"{base}/{path}", generation) as who:
            info, told = who.client.server_info, who.client.instructions or ""
            assert (info.name, info.title, info.version) == (
                "bun",
                "Bun docs",
                metadata.version("stepstream"),
            )
            for part in ("“Bun docs”", "“Bun”", "start_walkthrough", "- “Install Bun”\n- “Run tests”"):
                assert part in told
            assert "wt_other" not in told
            assert len(told) < 2_000
    async with agent(f"{base}/other", generation) as who:
        assert who.client.server_info.name == "other"
        assert "Bun" not in (who.client.instructions or "")
        await world.db.execute("update mcp_servers set walkthrough_tools_enabled = 'false'")
        assert (await who.client.list_prompts()).prompts == []
    async with agent(f"{base}/bun", generation) as who:
        assert "Install Bun" not in (who.client.instructions or "")


async def test_every_answer_of_the_newest_protocol_names_the_server(world: World) -> None:
    base = await two_servers(world)
    async with agent(f"{base}/bun/ann") as ann:
        result = await ann.raw("start_walkthrough", name="bun")
        assert result.meta
        assert result.meta["io.modelcontextprotocol/serverInfo"]["name"] == "bun"


@both_generations
async def test_a_prompt_starts_each_walkthrough(world: World, generation: str) -> None:
    base = await two_servers(world)
    async with agent(f"{base}/bun/ann", generation) as ann:
        prompts = (await ann.client.list_prompts()).prompts
        assert [(p.name, p.title, p.description) for p in prompts] == [
            ("install-bun", "Install Bun", "Start or resume “Install Bun”"),
            ("run-tests", "Run tests", "With Bun."),
        ]
        for name in ("run-tests", "Run tests", "wt_test"):
            (message,) = (await ann.client.get_prompt(name)).messages
            assert message.role == "user"
            assert message.content.type == "text"
            assert 'start_walkthrough with name "wt_test"' in message.content.text
        assert await world.db.fetchval("select count(*) from mcp_server_user") == 0, "nothing has begun"
        with pytest.raises(MCPError, match="no prompt"):
            await ann.client.get_prompt("wt_other")
        with pytest.raises(MCPError, match="no such cursor"):
            await ann.client.list_prompts(cursor="-1")


@both_generations
async def test_many_walkthroughs_are_pages_of_prompts_and_a_bounded_introduction(
    world: World, generation: str
) -> None:
    for number in range(120):
        await world.offer(f"wt_{number:03}", [f"s{number}"], "many")
    await world.db.execute("update walkthroughs set title = 'Same title ' || repeat('long ', 300)")
    base = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp"
    async with agent(f"{base}/many", generation) as who:
        names: list[str] = []
        page = await who.client.list_prompts()
        while page.next_cursor:
            names += [prompt.name for prompt in page.prompts]
            page = await who.client.list_prompts(cursor=page.next_cursor)
        names += [prompt.name for prompt in page.prompts]
        assert names == [f"wt_{number:03}" for number in range(120)], "a title that several have names none"
        assert len(who.client.instructions or "") < 2_000
        assert " more, which start_walkthrough lists" in (who.client.instructions or "")


async def test_a_session_opens_though_what_is_offered_cannot_be_read(world: World) -> None:
    base = await two_servers(world)
    async with world.connection() as other, other.transaction():
        await other.execute("lock table walkthroughs in access exclusive mode")
        async with agent(f"{base}/bun", "legacy") as who:
            assert "“Bun docs”" in (who.client.instructions or "")
            with pytest.raises(MCPError) as caught:
                await who.client.list_prompts()
            assert caught.value.error.data == {"reason": "busy"}

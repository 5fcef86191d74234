"""Titles of any length: whoever writes them makes no answer larger than others have the memory for."""

from typing import Any

import pytest

from tests.support.agents import agent
from tests.support.world import World, completed

pytestmark = pytest.mark.integration
WT = "walkthroughs/wt_a"
#: How much of a title, or name, is read.
MOST = 500


def texts(value: Any) -> list[str]:
    """Every text in an answer."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []


async def test_long_titles_make_no_large_answers(world: World) -> None:
    await world.offer()
    await world.people(["ann"])
    for table, column in (
        *(("walkthrough_steps", "title"), ("walkthroughs", "title"), ("mcp_server_session", "title")),
        *(("mcp_servers", "name"), ("organization", "name")),
    ):
        await world.db.execute(f"update {table} set {column} = 'begins ' || repeat('x', 100000)")
    await world.insert(*[completed("ann", step, 1000 * n) for n, step in enumerate("abcd")])
    await world.drain_marks()
    await world.db.execute("insert into walkthrough_finish_rules values ('wt_a', '{a}', '{}', '{d}')")
    api = await world.start_api()
    whole = ("sankey", "funnel", "steps", "endings", "paths", "trends", "versions", "compare", "diagnose")
    for path in (
        *("organization", "servers/srv_1", "sessions/s_ann", WT, f"{WT}/journeys", f"{WT}/journeys/ann"),
        *(f"{WT}/{name}" for name in whole),
        f"{WT}/time-to-finish",
        f"{WT}/finish-rule",
    ):
        found = texts(await api.get(path))
        assert max(map(len, found)) < 2 * MOST + 500, path
        if path != f"{WT}/finish-rule":
            assert "begins " + "x" * (MOST - 7) in found, path


async def test_long_titles_make_no_large_answers_for_agents(world: World) -> None:
    await world.offer()
    await world.db.execute(
        "update walkthroughs set title = repeat('x', 100000), description = repeat('d', 100000);"
        "update walkthrough_steps set title = id || repeat('x', 100000)"
    )
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        for tool in ("start_walkthrough", "get_next_step", "get_outline"):
            answer = await ann.client.call_tool(tool, {})
            assert not answer.is_error
            assert len(answer.content[0].text) < 20_000
            assert max(map(len, texts(answer.structured_content))) < 10_000


async def test_times_that_no_calendar_has_are_told(world: World) -> None:
    """The platform's columns take any number."""
    await world.offer()
    await world.people(["ann"])
    await world.db.execute("update mcp_server_session set connection_timestamp = 9223372036854775807")
    api = await world.start_api()
    assert (await api.get("sessions/s_ann"))["connected_at"] == 9223372036854775807
    async with agent(f"{api.url}/mcp/analytics", token=api.key) as analyst:
        answer = await analyst.client.call_tool("get_session", {"mcp_server_session_id": "s_ann"})
    assert "connected_at: after 9999" in answer.content[0].text

"""From agents to the Sankey: real exports, and an MCP layer that is killed."""

import asyncio
import json
from typing import Any

import httpx2
import pytest

from services.devstack.processes import free_port
from tests.integration.test_import_export import OURS, REAL
from tests.support.agents import GENERATIONS, HELLO, agent, endings_of, post, transitions_of
from tests.support.world import MCP, PATIENCE, RELAY, World, eventually

pytestmark = pytest.mark.integration


async def lead(url: str, generation: str, patience: int, name: str | None = None) -> list[str]:
    """Leads somebody so far; returns the steps done, as the agent saw it."""
    done: list[str] = []
    async with agent(url, generation) as who:
        answer = await who.start(**({"name": name} if name else {}))
        while answer["step"] and len(done) < patience:
            step = answer["step"]["id"]
            answer = await who.next(current_step_id=step)
            done.append(step)
    return done


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_imported_walkthroughs_led_through_by_agents_agree_with_their_records(
    world: World, generation: str
) -> None:
    """The real exports where they are beside the checkout, and our own."""
    await world.offer("wt_empty", [], "docs")
    files = [*REAL, *OURS]
    for file in files:
        assert world.command("import", str(file), "--server", "docs").returncode == 0
    await world.db.execute("update walkthroughs set status = 'published'")
    world.start_both()
    world.start(RELAY)
    service = await world.start_mcp(process=True)
    exports = [json.loads(file.read_text()) for file in files]

    async def person(number: int, export: dict[str, Any]) -> list[str]:
        url = f"http://127.0.0.1:{service.port}/mcp/docs/p{number}"
        patience = number % (len(export["steps"]) + 1)
        return await lead(url, generation, patience, export["walkthrough"]["title"])

    people = [(n, export) for n, export in enumerate(exports * 4)]
    records = await asyncio.gather(*(person(n, export) for n, export in people))
    title_of = {r["id"]: r["title"] for r in await world.db.fetch("select id, title from walkthrough_steps")}
    for (number, export), done in zip(people, records, strict=True):
        titles = [s["title"] for s in sorted(export["steps"], key=lambda s: s["displayOrder"])]
        assert [title_of[step] for step in done] == titles[: number % (len(titles) + 1)]
    await world.relayed()
    await world.drained()
    users = {
        r["distinct_id"]: r["id"] for r in await world.db.fetch("select id, distinct_id from mcp_server_user")
    }
    assert set(await world.completions()) == {
        (users[f"p{n}"], step) for n, steps in enumerate(records) for step in steps
    }
    assert await world.transitions() == transitions_of(records)
    assert await world.endings() == endings_of(records)
    assert await world.dead_letters() == []
    await world.assert_exact()


async def test_the_mcp_layer_is_killed_again_and_again_and_no_step_is_lost_or_skipped(world: World) -> None:
    """An agent that got no answer calls again with the step that it was at."""
    steps = [f"s{i:02}" for i in range(10)]
    await world.offer(steps=steps)
    world.start_both()
    world.start(RELAY)
    port = free_port()
    settings = {"public_url": f"http://127.0.0.1:{port}"}
    service = await world.start(MCP, port, **settings).ready()
    seen: dict[int, list[str]] = {n: [] for n in range(12)}

    async def person(number: int) -> None:
        url = f"http://127.0.0.1:{port}/mcp/srv_1/p{number}"
        current: str | None = None
        while True:
            try:
                async with asyncio.timeout(PATIENCE), agent(url) as who:
                    answer = await (who.next(current_step_id=current) if current else who.start())
                    while answer["step"]:
                        current = answer["step"]["id"]
                        if current not in seen[number]:
                            seen[number].append(current)
                        answer = await who.next(current_step_id=current)
                    return
            except (Exception, BaseExceptionGroup):
                await asyncio.sleep(0.1)  # the service is away; the next try says when it is back

    people = [asyncio.create_task(person(n)) for n in range(12)]
    for kill in range(3):

        async def some(goal: int = (kill + 1) * 25) -> bool:
            return sum(map(len, seen.values())) >= goal

        await eventually(some, "some steps were shown", every=0.01)
        service.kill()
        service = await world.start(MCP, port, **settings).ready()
    await asyncio.gather(*people)
    await world.relayed()
    await world.drained()
    assert all(shown == steps for shown in seen.values()), "each step was shown to each person, in order"
    assert await world.transitions() == transitions_of([steps] * 12)
    assert await world.db.fetchval("select count(*) from walkthrough_starts") == 12
    await world.assert_exact()


async def test_sigterm_ends_a_stream_and_gives_up_a_request_that_does_not_come_whole(world: World) -> None:
    """Neither is cancelled when the time for calls is over: the stream has an end, the request an answer."""
    await world.offer()
    service = await world.start_mcp(process=True)
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    opened = await post(url, HELLO)
    session = {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"POST /mcp/srv_1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\ncontent-length: 50\r\n\r\n{")
    async with (
        httpx2.AsyncClient(timeout=PATIENCE) as http,
        http.stream("GET", url, headers=session | {"accept": "text/event-stream"}) as stream,
    ):
        assert stream.status_code == 200
        ended = asyncio.create_task(asyncio.to_thread(service.terminate))
        # Of a stream that is cut off in the midst, reading raises.
        assert [chunk async for chunk in stream.aiter_raw()] == []
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 503 ")
    assert '"reason":"temporarily_unavailable"' in answer
    assert await ended == 0

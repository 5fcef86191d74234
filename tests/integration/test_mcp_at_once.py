"""Calls of a person at the same moment that name no step: one step is done, whichever process they reach."""

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.agents import GENERATIONS, Agent, agent
from tests.support.proxy import round_robin
from tests.support.world import World

pytestmark = pytest.mark.integration

#: How many pairs there are; and a fifth as many bursts of five.
PAIRS = int(os.environ.get("STEPSTREAM_TEST_PAIRS", "5"))
#: Many are to show what the services do as they are set. A few have to pass on a busy machine, too, where calls
#: that are sent at the same moment arrive half a second apart.
SETTINGS: dict[str, Any] = {"mcp_person_rate": ""}
if "STEPSTREAM_TEST_PAIRS" not in os.environ:
    SETTINGS["mcp_together_ms"] = 1_000
#: Begun anew every third time: five calls at once do at most five steps.
STEPS = 16


@contextlib.asynccontextmanager
async def served(world: World, processes: int) -> AsyncIterator[str]:
    """The address of so many processes; one of them is the test's own."""
    if processes == 1:
        yield f"http://127.0.0.1:{(await world.start_mcp(**SETTINGS)).port}"
        return
    services = [await world.start_mcp(process=True, **SETTINGS) for _ in range(processes)]
    async with round_robin(*(service.port for service in services)) as (_, url):
        yield url


async def done_by(calls: int, who: Agent, **names: str) -> int:
    """How many steps calls at the same moment have done, as a call after them sees it."""
    before = (await who.start(**names))["progress"]["completed_steps"]
    answers = await asyncio.gather(*(who.next(**names) for _ in range(calls)))
    after = (await who.start(**names))["progress"]["completed_steps"]
    outcomes = Counter(answer["outcome"] for answer in answers)
    assert outcomes["advanced"] == after - before
    return int(after - before)


@pytest.mark.parametrize(
    ("processes", "generation", "tracking_id"),
    [
        pytest.param(1, "2026-07-28", "", id="one-process-visitor"),
        pytest.param(1, "legacy", "", id="one-process-session"),
        pytest.param(2, "2026-07-28", "", id="two-processes-visitor"),
        pytest.param(2, "legacy", "/ann", id="two-processes-session"),
    ],
)
async def test_calls_at_once_do_one_step_and_no_other(
    world: World, processes: int, generation: str, tracking_id: str
) -> None:
    await world.offer(steps=[f"s{i}" for i in range(STEPS)])
    done: Counter[tuple[int, int]] = Counter()
    async with served(world, processes) as url, agent(f"{url}/mcp/srv_1{tracking_id}", generation) as who:
        visitor = (await who.start())["visitor"]
        names = {"visitor": visitor} if visitor else {}
        for number in range(PAIRS * 6 // 5):
            await who.start(restart=number % 3 == 0, **names)
            calls = 5 if number % 6 == 5 else 2
            done[calls, await done_by(calls, who, **names)] += 1
    assert done == {(2, 1): PAIRS, (5, 1): PAIRS // 5}, dict(done)


async def test_calls_sent_one_after_the_other_on_a_connection_without_waiting_are_of_one_moment(
    world: World,
) -> None:
    """HTTP answers the second only after the first; it was sent, and has come, before that."""
    await world.offer(steps="abc")
    port = (await world.start_mcp()).port
    path = "/mcp/srv_1/ann"
    async with agent(f"http://127.0.0.1:{port}{path}") as ann:
        await ann.start()
        meta = {
            "io.modelcontextprotocol/protocolVersion": GENERATIONS[0],
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        call = {"name": "get_next_step", "arguments": {}, "_meta": meta}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
            "accept: application/json, text/event-stream\r\n"
            f"mcp-protocol-version: {GENERATIONS[0]}\r\nmcp-method: tools/call\r\nmcp-name: get_next_step\r\n"
            f"content-length: {len(body)}\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}\r\n{body}{head}connection: close\r\n\r\n{body}".encode())
        answers = (await reader.read()).decode()
        writer.close()
        assert (answers.count('"advanced"'), answers.count('"repeated"')) == (1, 1)
        assert (await ann.start())["step"]["id"] == "b"

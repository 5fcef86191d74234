"""One server over stdio: a real child process, led by the SDK's client."""

import asyncio
import json
import shlex
import subprocess
import sys

import pytest
from mcp import Client, StdioServerParameters

from tests.support.agents import GENERATIONS, HELLO, Agent
from tests.support.world import MCP, World

pytestmark = pytest.mark.integration


def child(world: World, *more: str) -> StdioServerParameters:
    """A server that knows no Kafka: its events wait in the outbox."""
    environment = world.environment(MCP)
    del environment["STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS"]
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "services.operator_cli", "run", MCP, "--stdio", "srv_1", *more],
        env=environment,
    )


@pytest.mark.parametrize("generation", ["auto", *GENERATIONS])
async def test_a_person_is_led_to_the_end_and_known_by_the_tracking_id(world: World, generation: str) -> None:
    await world.offer(steps="ab")
    for turn, outcomes in enumerate((["started", "advanced"], ["resumed", "finished"])):
        parameters = child(world, "--tracking-id", "ann")
        async with Client(parameters, mode=generation, cache=None) as client:
            ann = Agent(client)
            assert generation == GENERATIONS[0] or "wt_a" in (client.instructions or "")
            assert [prompt.name for prompt in (await client.list_prompts()).prompts] == ["wt-a"]
            assert client.server_info is None or client.server_info.name == "srv_1"
            assert {t.name for t in (await client.list_tools()).tools} == {
                "start_walkthrough",
                "get_next_step",
                "skip_step",
                "get_outline",
                "show_step",
            }
            answers = [await ann.start(), await ann.next(current_step_id="ab"[turn])]
            assert [a["outcome"] for a in answers] == outcomes
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 1
    assert await world.db.fetchval("select count(*) from outbox where type <> 'step-shown'") == 3


async def test_without_a_tracking_id_each_process_is_somebody_new(world: World) -> None:
    await world.offer(steps="ab")
    for _ in range(2):
        async with Client(child(world), cache=None) as client:
            who = Agent(client)
            visitor = (await who.start())["visitor"]
            assert (await who.next())["step"]["id"] == "b"
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 2
    async with Client(child(world), cache=None) as client:
        assert (await Agent(client).next(visitor=visitor))["outcome"] == "finished"
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 2


async def test_what_is_wrong_is_said_on_stderr_alone(world: World) -> None:
    await world.offer()
    for arguments, told in (
        (("--stdio", "nothing"), "no MCP server with the slug `nothing`"),
        (("--stdio", "srv_1", "--tracking-id", ""), "--tracking-id: a tracking id has 1 to 200 characters"),
        (("--tracking-id", "ann"), "--tracking-id goes with --stdio"),
    ):
        refused = world.command("run", MCP, *arguments)
        assert refused.returncode == 2
        assert told in refused.stderr.replace("\n", " ")
        assert refused.stdout == ""
    refused = world.command("run", "outbox-relay", "--stdio", "srv_1")
    assert refused.returncode == 2


async def test_it_ends_with_its_input(world: World) -> None:
    await world.offer()
    done = world.command("run", MCP, "--stdio", "srv_1", stdin=b"")
    assert (done.returncode, done.stdout) == (0, "")


async def test_an_output_that_cannot_be_written_leaves_no_traceback(world: World) -> None:
    """The client went away, its disk is full, or it never opened the pipe."""
    await world.offer()
    full = "error: cannot write: No space left on device\n"
    closed = "error: cannot write: standard output is closed\n"
    for where, told in (("| true; exit ${PIPESTATUS[0]}", ""), (">/dev/full", full), (">&-", closed)):
        command = [sys.executable, "-m", "services.operator_cli", "run", MCP, "--stdio", "srv_1"]
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            f"{shlex.join(command)} {where}",
            env=world.environment(MCP),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _, errors = await process.communicate(json.dumps(HELLO).encode() + b"\n")
        assert (process.returncode, errors.decode()) == (1, told), where

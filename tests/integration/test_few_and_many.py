"""Few rows are given to their statements, many land in temporary tables: both leave the same tables."""

import json
import random
from typing import Any

import pytest
from aiokafka import ConsumerRecord

from schemas import OPERATOR_SOURCES
from services.completion_recorder import upsert
from services.completion_recorder.judge import read
from services.completion_recorder.load_counts import Load
from services.completion_recorder.transaction import record
from services.runtime.kafka import next_offsets
from services.sankey_aggregator import counting
from services.sankey_aggregator.verify import verify
from tests.support.world import World, completed, corrected, shown, skipped, started

pytestmark = pytest.mark.integration

RECORDED = (
    "walkthrough_step_completions",
    "later_completions",
    "completion_corrections",
    "walkthrough_starts",
    "walkthrough_step_skips",
    "walkthrough_step_showings",
)
COUNTED = ("sankey_journeys", "sankey_transitions", "sankey_endings")
PEOPLE = [f"p{i}" for i in range(9)]


def traffic(seed: int) -> list[dict[str, Any]]:
    """Events of all kinds of a few people: early and late, again, corrected, and with ids of others."""
    chance = random.Random(seed)
    events = []
    for n in range(160):
        user, step, at = chance.choice(PEOPLE), chance.choice("abcde"), chance.randrange(50)
        kind = chance.random()
        if kind < 0.5:
            events.append(completed(user, step, at, metadata=chance.choice([{"n": n}, {}])))
        elif kind < 0.6:
            events.append(started(user, at))
        elif kind < 0.7:
            events.append(skipped(user, step, at, reason=chance.choice(["has it", "no time"])))
        elif kind < 0.85:
            events.append(shown(user, step, at))
        elif kind < 0.9:
            to = chance.choice([None, chance.randrange(at, 60)])
            events.append(corrected(user, step, n, at, to))
        elif completions := [e for e in events if e["type"] == "step-completed"]:
            one = chance.choice(completions)
            events.append(chance.choice([one, completed(user, step, at, event_id=one["event_id"])]))
    return events


def load_of(world: World, events: list[dict[str, Any]], partition: int, first: int) -> Load:
    topic = world.settings.topic
    records = []
    for offset, event in enumerate(events, first):
        key, value = event["mcp_server_user_id"].encode(), json.dumps(event).encode()
        headers = (("ce_source", OPERATOR_SOURCES[0].encode()),)
        records.append(ConsumerRecord(topic, partition, offset, 0, 0, key, value, None, 0, 0, headers))
    accepted, refused = read(records, 10**13)
    assert refused == []
    return Load(topic, next_offsets(records), accepted)


async def tables(world: World, *names: str) -> dict[str, list[str]]:
    """The rows of each, but for numbers that tables count by themselves."""
    left = {}
    for name in names:
        rows = await world.db.fetch(f"select to_jsonb(t) - array['number', 'id'] from {name} as t order by 1")
        left[name] = [row[0] for row in rows]
    return left


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 7])
async def test_both_leave_the_same_tables(
    world: World, monkeypatch: pytest.MonkeyPatch, seed: int, size: int
) -> None:
    await world.offer()
    await world.people(PEOPLE)
    recorder, aggregator = await world.recorder_pool(), await world.aggregator_pool()
    events = traffic(seed)
    left = []
    for few in (True, False):
        if not few:
            monkeypatch.setattr(upsert, "_FEW", 0)
            monkeypatch.setattr(counting, "_FEW", 0)
            for name in (*RECORDED, *COUNTED):
                await world.db.execute(f"delete from {name}")
            await counting.recount_from_marks(aggregator, 10_000)
        refused = []
        for first in range(0, len(events), size):
            part = events[first : first + size]
            found = await record(recorder, load_of(world, part, int(not few), first))
            refused += [(r.record.offset, r.rejection) for r in found.refused]
            journeys = {(e["mcp_server_user_id"], e["walkthrough_id"]) for e in part}
            await counting.recount_from_events(aggregator, journeys)
            await counting.recount_from_marks(aggregator, 10_000)
        assert (await verify(world.settings)).differing == 0
        left.append((await tables(world, *RECORDED, *COUNTED), refused))
    assert left[0][0] == left[1][0]
    assert left[0][1] == left[1][1]
    assert all(left[0][0].values()), "each table has rows"

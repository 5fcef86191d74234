"""What the tables must hold after a set of events, and where keys belong: from the rules, without our own code."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from schemas.generate import FOLDER
from tests.support.world import completed, started

Event = dict[str, Any]
STEPS = "abcd"
BEGIN = 1_750_000_000_000
VECTORS = json.loads((FOLDER / "partition-vectors.json").read_text("utf-8"))["vectors"]
#: Keys in any script, as the vectors have them, short enough for more behind them.
NAMES = [v["key"] for v in VECTORS if len(v["key"]) < 30]


def people(cell: str) -> list[str]:
    """Who is sent by one cell of the matrix alone."""
    return [f"{name} {cell}" for name in NAMES]


def traffic(cell: str, names: Sequence[str]) -> list[Event]:
    """Starts, and completions of some steps, shuffled: some again later or earlier, some twice the same."""
    draw = random.Random(cell)
    note = {"note": f"{cell}: " + "the same again, " * 50}  # smaller when it is compressed even alone
    events: list[Event] = []
    for name in names:
        if draw.random() < 0.7:
            events.append(started(name, BEGIN + draw.randrange(1_000)))
        for step in draw.sample(STEPS, draw.randrange(len(STEPS) + 1)):
            times = [BEGIN + draw.randrange(1_000, 100_000) for _ in range(draw.choice([1, 1, 2, 3]))]
            events += [completed(name, step, at, metadata=note) for at in times]
    events += draw.sample(events, len(events) // 4)
    draw.shuffle(events)
    return events


def completions(events: Iterable[Event]) -> dict[tuple[str, str], tuple[int, str]]:
    """(user, step) to the earliest (time, event id)."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for e in events:
        if e["type"] == "step-completed":
            key, this = (e["mcp_server_user_id"], e["step_id"]), (e["completed_at"], e["event_id"])
            found[key] = min(found.get(key, this), this)
    return found


def flow(events: Sequence[Event]) -> tuple[Counter[Any], Counter[Any]]:
    """Transitions (position, from, to) and endings (steps done, step), with their journeys."""
    journeys: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for (user, step), (at, event_id) in completions(events).items():
        journeys[user].append((at, event_id, step))
    transitions: Counter[Any] = Counter()
    endings: Counter[Any] = Counter()
    for user in {e["mcp_server_user_id"] for e in events}:
        steps = [step for *_, step in sorted(journeys[user])]
        before = [None, *steps]
        transitions.update((i, before[i], step) for i, step in enumerate(steps))
        endings[len(steps), before[-1]] += 1
    return transitions, endings


def partition(key: bytes, partitions: int) -> int:
    """Where Kafka's own client puts a key."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(key: bytes) -> int:
    """MurmurHash2 of 32 bits with Kafka's seed."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if key[whole:]:
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15

"""What is sent: events, the rows that they refer to, and the rows that they have to become."""

import json
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.drain import STEPS, insert_references, make_events
from tests.support import logs

COLUMNS = (
    "id",
    "mcp_server_user_id",
    "walkthrough_id",
    "step_id",
    "mcp_server_id",
    "mcp_server_session_id",
    "completed_at",
    "metadata",
)
#: Of a user and step: when, and by which event.
Rows = dict[tuple[str, str], tuple[int, str]]


@dataclass(frozen=True)
class Workload:
    """Events in the order in which they are sent; `references` inserts what they refer to."""

    name: str
    events: Sequence[dict[str, Any]]
    references: Callable[[asyncpg.Connection], Awaitable[None]] = field(compare=False)
    #: Workloads with one key have the same references, which are inserted once.
    key: str = ""

    def first(self, count: int) -> "Workload":
        return Workload(self.name, self.events[:count], self.references, self.key)


def expected(events: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Of each user and step the earliest event, by time and then by id."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        key = event["mcp_server_user_id"], event["step_id"]
        if key not in best or _rank(event) < _rank(best[key]):
            best[key] = event
    return best


def _rank(event: dict[str, Any]) -> tuple[int, str]:
    return event["completed_at"], event["event_id"]


def wrong_share(events: Iterable[dict[str, Any]], found: Rows) -> float:
    """The share of rows that are missing, too many, or of another event than the earliest.

    A row's id may be the event's alone: Kafka Connect cannot make ours of it.
    """
    wanted = {key: _rank(event) for key, event in expected(events).items()}
    there = {key: (at, id_.removeprefix("wtsc_")) for key, (at, id_) in found.items()}
    keys = wanted.keys() | there.keys()
    return sum(wanted.get(key) != there.get(key) for key in keys) / len(keys) if keys else 0.0


def row_of(event: dict[str, Any]) -> tuple[Any, ...]:
    """The row that an event becomes, in the order of `COLUMNS`."""
    names = COLUMNS[1:-1]
    return (
        "wtsc_" + event["event_id"],
        *(event[name] for name in names),
        json.dumps(event["metadata"]) if event.get("metadata") else None,
    )


def distinct(count: int, seed: int) -> Workload:
    """Events of which each becomes a row, in time order."""
    count -= count % STEPS

    async def references(db: asyncpg.Connection) -> None:
        await insert_references(db, count // STEPS)

    return Workload("distinct", make_events(count, seed), references, f"people{count // STEPS}")


def again(workload: Workload, seed: int) -> Workload:
    """Each event a second time somewhere behind it: the same, or another one of the same step, later."""
    chance = random.Random(f"again {seed}")  # not that of the events: it would make their ids again
    count = len(workload.events)
    placed = []
    for number, event in enumerate(workload.events):
        second = event
        if number % 2:
            second = event | {
                "event_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
                "completed_at": event["completed_at"] + 1 + chance.randrange(10**7),
            }
        placed += [(number, 0, event), (number + chance.randrange(1, count + 1), 1, second)]
    placed.sort(key=lambda one: one[:2])
    return Workload("again", [event for _, _, event in placed], workload.references, workload.key)


def shuffled(workload: Workload, seed: int) -> Workload:
    """The same events in any order."""
    mixed = random.Random(seed).sample(list(workload.events), len(workload.events))
    return Workload("shuffled", mixed, workload.references, workload.key)


def real_log(name: str) -> Workload | None:
    """A real event log; None where the logs are not beside this checkout."""
    file = Path(logs.path(name))
    if not file.exists() or logs.needs_logs.args[0]:
        return None
    reader = logs.oracle()

    async def references(db: asyncpg.Connection) -> None:
        await db.execute(reader.rows(str(file)))
        await db.execute("vacuum analyze")

    return Workload("log", list(reader.events(str(file))), references, f"log{name}")

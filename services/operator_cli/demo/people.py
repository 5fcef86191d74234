"""Simulated people: where they begin, what they skip, where they stop, and how their events arrive.

Pure, and the same for the same seed.
"""

import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


@dataclass(frozen=True, slots=True)
class Offer:
    """A walkthrough as a server offers it: its steps in display order."""

    server_id: str
    walkthrough_id: str
    step_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody and their session."""

    user_id: str
    session_id: str
    offer: Offer


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who there is, and the events in the order in which they reach Kafka: (key, value)."""

    people: list[Person]
    records: list[tuple[bytes, bytes]]
    distinct_events: int


def simulate(offers: Sequence[Offer], people: int, now_ms: int, seed: int = 7) -> Traffic:
    """Leads people through the offers over the last two weeks.

    Three of ten take some step out of order, about half drop out on the way, one event in eight is sent
    twice, and one in ten arrives late, up to two days after it happened.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret, and the same each time
    crowd, arrivals, distinct = [], [], 0
    for _ in range(people):
        person = Person(
            f"mcpu_{_name(chance, 12)}",
            f"mss_{_name(chance, 16)}",
            chance.choices(offers, _WEIGHTS[: len(offers)])[0],
        )
        crowd.append(person)
        began = now_ms - chance.randrange(_HOUR_MS, 14 * _DAY_MS)
        for completed_at, event in _events(person, began, now_ms, chance):
            distinct += 1
            record = person.user_id.encode(), json.dumps(event, separators=(",", ":")).encode()
            late = chance.randrange(2 * _DAY_MS) if chance.random() < 0.1 else 0
            arrivals.append((completed_at + late, record))
            if chance.random() < 0.125:
                arrivals.append((completed_at + chance.randrange(_DAY_MS), record))
    arrivals.sort(key=lambda arrival: arrival[0])
    return Traffic(crowd, [record for _, record in arrivals], distinct)


_WEIGHTS = (5, 3, 4, 2)


def _name(chance: random.Random, length: int) -> str:
    return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))


def _order(steps: Sequence[str], chance: random.Random) -> list[str]:
    order = list(steps)
    habit = chance.random()
    if habit < 0.2:  # looks ahead: two neighbours change places
        i = chance.randrange(len(order) - 1)
        order[i], order[i + 1] = order[i + 1], order[i]
    elif habit < 0.3:  # leaves out a step in the middle
        del order[chance.randrange(1, len(order) - 1)]
    return order


def _events(
    person: Person, began: int, now_ms: int, chance: random.Random
) -> list[tuple[int, dict[str, object]]]:
    steps = person.offer.step_ids
    # Some step is hard for everybody; where it is depends on the walkthrough.
    hard = len(steps) // 2
    at = began
    events: list[tuple[int, dict[str, object]]] = []
    for step in _order(steps, chance):
        at += int(chance.lognormvariate(12.3, 1.1))
        if at > now_ms:
            break
        place = steps.index(step)
        event = {
            "type": "step-completed",
            "event_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            "mcp_server_user_id": person.user_id,
            "walkthrough_id": person.offer.walkthrough_id,
            "step_id": step,
            "mcp_server_id": person.offer.server_id,
            "mcp_server_session_id": person.session_id,
            "completed_at": at,
            "metadata": {"stepOrder": place + 1, "isLastStep": place == len(steps) - 1},
        }
        events.append((at, event))
        if chance.random() < (0.22 if place == hard else 0.08):
            break
    return events

"""Simulated people: what each of them will do with an agent's help. Pure, and the same for the same seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offer:
    """A walkthrough as a server offers it."""

    slug: str
    walkthrough_id: str
    title: str
    steps: int


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody, and how far they will go.

    `patience` is how many steps they do before they stop; 0 opens the walkthrough and leaves. After
    `pause_after` steps they close the agent and come back later with another. Some agents call again what was
    answered already (`repeats`), and some speak the protocol's older generation.
    """

    tracking_id: str
    offer: Offer
    patience: int
    pause_after: int | None
    repeats: bool
    old_protocol: bool


def simulate(offers: Sequence[Offer], people: int, run: str, seed: int = 7) -> list[Person]:
    """People for the offers: one in twelve only looks, about half stop on the way, one in five comes back."""
    chance = random.Random(seed)  # noqa: S311 - no secret, and the same each time
    weights = WEIGHTS[: len(offers)]
    return [_person(f"demo-{run}-{i}", chance.choices(offers, weights)[0], chance) for i in range(people)]


WEIGHTS = (5, 3, 4, 2)


def _person(tracking_id: str, offer: Offer, chance: random.Random) -> Person:
    return Person(
        tracking_id=tracking_id,
        offer=offer,
        patience=_patience(offer.steps, chance),
        pause_after=chance.randrange(1, offer.steps) if chance.random() < 0.2 else None,
        repeats=chance.random() < 0.15,
        old_protocol=chance.random() < 0.3,
    )


def _patience(steps: int, chance: random.Random) -> int:
    """Some step is hard for everybody: the one in the middle."""
    if chance.random() < 1 / 12:
        return 0
    for done in range(1, steps):
        if chance.random() < (0.22 if done == steps // 2 else 0.08):
            return done
    return steps

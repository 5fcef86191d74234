"""Which faults a round has, when, and with what choices: a function of the seed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

#: From when on there are faults, and how far the second of a pair may be from the first, in seconds.
_FIRST = (2.5, 4.0)
_APART = 2.5


class Drawable(Protocol):
    """What the plan needs to know of a fault."""

    name: str
    #: What it changes so thoroughly that no other fault of a pair may change it as well.
    touches: frozenset[str]
    #: How long it lasts, in seconds.
    lasts: tuple[float, float]

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        """Its choices: targets, directions, amounts."""


@dataclass(frozen=True)
class Planned:
    """A fault at its time."""

    fault: str
    begins: float
    lasts: float
    choices: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.choices.items())
        return f"{self.fault} at {self.begins:.1f} s for {self.lasts:.1f} s" + (
            f" ({chosen})" if chosen else ""
        )


@dataclass(frozen=True)
class Plan:
    """A round."""

    seed: int
    number: int
    faults: tuple[Planned, ...]
    among: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What plays it again."""
        faults = f" --faults {','.join(self.among)}" if self.among else ""
        return f"python -m tests.nemesis --seed {self.seed} --round {self.number} --rounds 1{faults}"

    @property
    def title(self) -> str:
        """Its faults in short, as `--faults` takes them."""
        return "+".join(p.fault for p in self.faults)

    @property
    def chance(self) -> random.Random:
        """For what the traffic draws."""
        return random.Random(f"traffic {self.seed} {self.number}")


def draw(seed: int, number: int, faults: Mapping[str, Drawable], among: Sequence[str] = ()) -> Plan:
    """The plan of a round.

    Args:
        seed: of the run.
        number: of the round; each has its own.
        faults: all there are, by name.
        among: names, or pairs as `name+name`, of which one is drawn; of all faults where there are none, alone and
            in pairs.

    Raises:
        KeyError: there is no such fault.
    """
    chance = random.Random(f"plan {seed} {number}")
    if among:
        names = chance.choice(list(among)).split("+")
    else:
        names = [chance.choice(sorted(faults))]
        if chance.random() < 0.5:
            first = faults[names[0]]
            others = [f.name for f in faults.values() if f is not first and not f.touches & first.touches]
            names += chance.sample(sorted(others), 1)
    planned = []
    begins = chance.uniform(*_FIRST)
    for name in names:
        fault = faults[name]
        planned.append(
            Planned(name, round(begins, 2), round(chance.uniform(*fault.lasts), 2), dict(fault.draw(chance)))
        )
        begins += chance.uniform(0, _APART)
    return Plan(seed, number, tuple(planned), tuple(among))

"""What was measured, and what it comes to over the rounds: pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


class BenchError(Exception):
    """A service failed, or a table is not what it has to be."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing, measured once.

    `against` is the line of the same section and case, in the same round, to which the value named `by` is
    put in relation.
    """

    section: str
    case: str
    line: str
    values: dict[str, float]
    against: str | None = None
    by: str = "rate"


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and the least and the most."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Summary:
    """A line over all rounds."""

    section: str
    case: str
    line: str
    values: dict[str, Spread]
    against: str | None = None
    ratio: Spread | None = None


@dataclass
class Results:
    """The rounds as they were."""

    rounds: list[list[Measurement]] = field(default_factory=list)

    def raw(self) -> list[list[dict[str, Any]]]:
        return [[asdict(one) for one in each] for each in self.rounds]


def summarise(rounds: Iterable[Iterable[Measurement]]) -> list[Summary]:
    """Medians and spreads in the order in which lines came first; a ratio is of one round, never of two."""
    found: dict[tuple[str, str, str], list[Measurement]] = {}
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for each in rounds:
        there = {(one.section, one.case, one.line): one for one in each}
        for key, one in there.items():
            found.setdefault(key, []).append(one)
            floor = there.get((one.section, one.case, one.against or ""))
            if floor is not None and floor.values.get(one.by) and one.by in one.values:
                ratios.setdefault(key, []).append(one.values[one.by] / floor.values[one.by])
    return [
        Summary(
            *key,
            {name: Spread.of([m.values[name] for m in all_ if name in m.values]) for name in _names(all_)},
            all_[0].against,
            Spread.of(ratios[key]) if key in ratios else None,
        )
        for key, all_ in found.items()
    ]


def _names(of: Iterable[Measurement]) -> list[str]:
    return list(dict.fromkeys(name for one in of for name in one.values))


def quantiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}

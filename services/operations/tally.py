"""What of a file was refused: how much of each kind, and the first of each, however many there are."""

import bisect
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: So many of each kind are kept.
_FIRST: Final = 20
#: So many kinds are told apart.
_MOST_KINDS: Final = 50
OTHER: Final = "other"
_NUMBER: Final = re.compile(r"\d+$")


class Refused(NamedTuple):
    """An item of a file that was refused, by where it is: `line 3`."""

    place: str
    reason: str


def _order(one: Refused) -> tuple[int, str]:
    number = _NUMBER.search(one.place)
    return int(number[0]) if number else 0, one.place


@dataclass
class Tally:
    """Counts what is refused; `tell` is told of each."""

    counts: Counter[str] = field(default_factory=Counter)
    tell: Callable[[Refused], object] = lambda _: None
    _first: dict[str, list[Refused]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.counts.total()

    def add(self, kind: str, place: str, reason: str) -> None:
        """Notes one more."""
        if kind not in self.counts and len(self.counts) >= _MOST_KINDS:
            kind = OTHER
        self.counts[kind] += 1
        one = Refused(place, reason)
        kept = self._first.setdefault(kind, [])
        if len(kept) < _FIRST or _order(one) < _order(kept[-1]):
            bisect.insort(kept, one, key=_order)
            del kept[_FIRST:]
        self.tell(one)

    def first(self, most: int) -> list[Refused]:
        """The first ones in their order, so many at most: some of each kind."""
        found: list[Refused] = []
        for rank in range(_FIRST):
            for kept in self._first.values():
                if rank < len(kept) and len(found) < most:
                    found.append(kept[rank])
        return sorted(found, key=_order)

"""The events of a load that do not become rows: refused, waiting, of people who were erased, or covered."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from services.completion_recorder.judge import Accepted, Refused


class Waiting(NamedTuple):
    """An event that has to wait, and for what: table and key of a row."""

    item: Accepted
    waits_for: str


@dataclass(frozen=True, slots=True)
class NotWritten:
    """Which of some events are not written, and why; the sum of two is of the events of both.

    Refused and waiting ones are in the order in which that was found, not in that of the log.
    """

    refused: Sequence[Refused] = ()
    waiting: Sequence[Waiting] = ()
    #: The people of these events who were erased.
    erased: Set[str] = frozenset()
    #: How many completions do not count because a correction covers them.
    covered: int = 0

    def __add__(self, other: "NotWritten") -> "NotWritten":
        return NotWritten(
            [*self.refused, *other.refused],
            [*self.waiting, *other.waiting],
            self.erased | other.erased,
            self.covered + other.covered,
        )

"""Dead letters by source and error class: how many wait, since when, and one of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from schemas import Rejection
from services.completion_recorder.dead_letters import Letter, Source
from services.consumers.batches import ERROR_CLASS as UNREADABLE_BATCH
from services.runtime.sources import OTHERS

#: So many pairs of source and class are told apart; sources that come later are counted together.
_PAIRS = 5_000
_CLASSES = frozenset({*(rejection.value for rejection in Rejection), UNREADABLE_BATCH})
_OTHER_CLASSES = "(other classes)"


@dataclass(slots=True)
class Tally:
    """The letters of one source and class; times in milliseconds since the epoch, of the refused records."""

    sender: str
    error_class: str
    letters: int
    since: int
    newest: int
    #: Where the newest one was, and what was wrong with it.
    example: Source
    error: str
    #: How many of them hold a part of their event alone.
    cut: int = 0

    def add(self, letter: Letter) -> None:
        """Counts one more."""
        self.letters += 1
        self.cut += letter.cut is not None
        last = letter.last
        self.since = min(self.since, last.timestamp)
        if last.timestamp >= self.newest:
            self.newest, self.example, self.error = last.timestamp, last.source, last.error


async def summarize(letters: AsyncIterator[Letter], pairs: int = _PAIRS) -> list[Tally]:
    """By source and class, the most letters first; bounded in memory, however many letters there are.

    Args:
        letters: each once.
        pairs: how many pairs are told apart.
    """
    tallies: dict[tuple[str, str], Tally] = {}
    async for letter in letters:
        last = letter.last
        pair = (letter.sender, last.error_class)
        if pair not in tallies and len(tallies) >= pairs:
            pair = (OTHERS, last.error_class if last.error_class in _CLASSES else _OTHER_CLASSES)
        tally = tallies.get(pair)
        if tally is None:
            tally = tallies[pair] = Tally(*pair, 0, last.timestamp, 0, last.source, last.error)
        tally.add(letter)
    return sorted(tallies.values(), key=lambda t: (-t.letters, t.sender, t.error_class))

"""Dead letters by source and error class: how many wait, since when, and one of them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from schemas import Rejection
from services.operator_cli.dead_letters import Letter, Source
from services.operator_cli.options import print_json, print_table, say
from services.runtime.batches import ERROR_CLASS as UNREADABLE_BATCH
from services.runtime.sources import OTHERS
from services.runtime.text import many, told_time

#: So many pairs of source and class are told apart; sources that come later are counted together.
_PAIRS = 5_000
_CLASSES = frozenset({*(rejection.value for rejection in Rejection), UNREADABLE_BATCH})
_OTHER_CLASSES = "(other classes)"
_SHOWN = 40


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

    def add(self, letter: Letter) -> None:
        """Counts one more."""
        self.letters += 1
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


def show(tallies: Sequence[Tally], *, as_json: bool) -> None:
    """The summary, on stdout."""
    if as_json:
        print_json([_json(tally) for tally in tallies])
        return
    if not tallies:
        say("no dead letters wait here")
        return
    rows = [
        (
            t.sender,
            t.error_class,
            t.letters,
            told_time(t.since),
            told_time(t.newest),
            str(t.example),
            t.error,
        )
        for t in tallies
    ]
    columns = ("source", "error class", "letters", "since", "newest", "example", "its error")
    print_table(f"{many(sum(t.letters for t in tallies), 'dead letter')} by source", columns, rows, _SHOWN)


def _json(tally: Tally) -> dict[str, Any]:
    return {
        "source": tally.sender,
        "error_class": tally.error_class,
        "letters": tally.letters,
        "since": told_time(tally.since),
        "newest": told_time(tally.newest),
        "example": {
            "id": str(tally.example),
            "topic": tally.example.topic,
            "error": tally.error,
        },
    }

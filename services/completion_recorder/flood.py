"""When bad events are too many to be set aside in silence: the rule, without I/O.

An event is *broken* when it is not what the contract says, or PostgreSQL refuses its row, or nothing that it
refers to exists. One that refers to some rows that exist and to some that do not is *missing* its
references: deletions leave such events behind, so they count only when nearly all events are like that,
which a wrong database does. On ground that was judged before, events of which nothing exists any more are
missing theirs, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

from services.runtime.errors import StepstreamError

#: How many events are recent.
WINDOW: Final = 10_000
#: The window moves on by so many events at once.
_CHUNK: Final = 100
#: This share of missing references, in percent, of at least so many events is a wrong database.
_NEARLY_ALL: Final = 99.0
_ENOUGH: Final = 1_000


class Verdict(IntEnum):
    """What a record is to the rule."""

    GOOD = 0
    MISSING = 1
    BROKEN = 2


class Chunk(NamedTuple):
    """Some events that were judged one after another."""

    events: int
    missing: int
    broken: int


class FloodError(StepstreamError):
    """Too many events are bad: a producer is broken, or the database is not the one of these events."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: more than `percent` of the recent events; `in_a_row` on a partition, 0 is never."""

    percent: float
    in_a_row: int


@dataclass(frozen=True, slots=True)
class Recent:
    """What is known of recent events; never changed, so that a transaction that fails leaves it as it was."""

    chunks: tuple[Chunk, ...] = ()
    in_a_row: Mapping[int, int] = field(default_factory=dict)

    @property
    def total(self) -> Chunk:
        """All of the window."""
        return Chunk(
            sum(c.events for c in self.chunks),
            sum(c.missing for c in self.chunks),
            sum(c.broken for c in self.chunks),
        )

    def resumed(self, stored: Chunk) -> "Recent":
        """As a predecessor left the window, where that is worse than what is known here."""
        total = self.total
        worse = stored.broken > total.broken or stored.missing > total.missing
        return Recent((stored,), self.in_a_row) if worse else self

    def seen_by(self, limits: Limits) -> "Recent":
        """Without what these limits let pass: once they are set again, it is forgiven."""
        return Recent(() if limits.percent >= 100 else self.chunks, self.in_a_row if limits.in_a_row else {})

    def after(self, verdicts: Iterable[tuple[int, Verdict]], limits: Limits) -> "Recent":
        """With these (partition, verdict) in the order of offsets.

        Raises:
            FloodError: a limit is passed.
        """
        chunks, in_a_row = list(self.chunks), dict(self.in_a_row)
        for part in _parts(list(verdicts)):
            for partition, verdict in part:
                row = in_a_row[partition] = in_a_row.get(partition, 0) + 1 if verdict is Verdict.BROKEN else 0
                if limits.in_a_row and row >= limits.in_a_row:
                    raise FloodError(f"{row} bad events in a row on partition {partition}")
            chunks.append(_count(part))
            recent = Recent(_window(chunks), in_a_row)
            _check(recent.total, limits)
            chunks = list(recent.chunks)
        return Recent(tuple(chunks), {p: row for p, row in in_a_row.items() if row}).seen_by(limits)

    def after_good(self, count: int, partitions: Iterable[int], limits: Limits) -> "Recent":
        """With so many good events of these partitions: the short way of `after`."""
        whole, rest = divmod(min(count, WINDOW), _CHUNK)
        chunks = _window([*self.chunks, *[Chunk(_CHUNK, 0, 0)] * whole, Chunk(rest, 0, 0)])
        good = set(partitions)
        rows = {p: row for p, row in self.in_a_row.items() if p not in good}
        return Recent(chunks, rows).seen_by(limits)


def _parts(verdicts: Sequence[tuple[int, Verdict]]) -> Iterable[Sequence[tuple[int, Verdict]]]:
    for i in range(0, len(verdicts), _CHUNK):
        yield verdicts[i : i + _CHUNK]


def _count(part: Sequence[tuple[int, Verdict]]) -> Chunk:
    verdicts = [verdict for _, verdict in part]
    return Chunk(len(part), verdicts.count(Verdict.MISSING), verdicts.count(Verdict.BROKEN))


def _window(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    """The newest chunks that make a window; small neighbours become one."""
    kept: list[Chunk] = []
    events = 0
    for chunk in reversed(chunks):
        if events >= WINDOW:
            break
        if kept and kept[-1].events + chunk.events <= _CHUNK:
            kept[-1] = Chunk(*(a + b for a, b in zip(kept[-1], chunk, strict=True)))
        else:
            kept.append(chunk)
        events += chunk.events
    return tuple(reversed(kept))


def _check(total: Chunk, limits: Limits) -> None:
    if limits.percent >= 100:
        return
    # What a predecessor left is one chunk, with which the window may hold more than it should.
    if total.broken > limits.percent / 100 * max(WINDOW, total.events):
        raise FloodError(f"{total.broken} of the last {total.events} events are bad")
    absent = total.missing + total.broken
    if total.events >= _ENOUGH and absent >= _NEARLY_ALL / 100 * total.events:
        raise FloodError(
            f"{absent} of the last {total.events} events refer to what is not in this database. "
            "Is it the one that belongs to this topic?"
        )

"""Whether this is the database, and the topic, that belong together: the rule, and what it looks up.

Where nearly nothing that is read can be recorded, from whichever source, and this database holds nothing of
the topic either, the recorder stops. One producer that sends nonsense looks otherwise, however much it sends:
something of the topic was recorded before. Events that were judged before, in a replay, say nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.completion_recorder.judge import Refused
from services.completion_recorder.source_tally import UNREAD, RefusedKind, SourceNames
from services.runtime.database import Connection, load_queries
from services.runtime.errors import StepstreamError

SQL = load_queries(__file__)

#: How many events are recent.
WINDOW: Final = 2_000
#: The window moves on by so many events at once, at least.
_CHUNK: Final = 100
#: This share of refused events, in percent, of at least so many is suspect.
_NEARLY_ALL: Final = 99.0
_ENOUGH: Final = 1_000


class Chunk(NamedTuple):
    """Some events that were judged one after another, for the first time."""

    events: int
    refused: int


class WrongDatabaseError(StepstreamError):
    """Nothing that is read can be recorded: the database, or the topic, is another one."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Recent:
    """What is known of recent events; never changed, so that a transaction that fails leaves it as it was."""

    chunks: tuple[Chunk, ...] = ()

    @property
    def total(self) -> Chunk:
        return Chunk(sum(c.events for c in self.chunks), sum(c.refused for c in self.chunks))

    @property
    def is_suspect(self) -> bool:
        """Whether nearly all of enough events were refused."""
        events, refused = self.total
        return events >= _ENOUGH and refused >= _NEARLY_ALL / 100 * events

    def resumed(self, stored: Chunk) -> "Recent":
        """As a predecessor left the window, where that is worse than what is known here."""
        return Recent((stored,)) if stored.refused > self.total.refused else self

    def after(self, events: int, refused: int) -> "Recent":
        """With so many events more, of which so many were refused."""
        return Recent(_window([*self.chunks, Chunk(events, refused)])) if events else self


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


async def belongs_to_topic(
    connection: Connection, topic: str, refused: Sequence[RefusedKind], *, has_recorded: bool
) -> bool:
    """Whether this database holds what was recorded of the topic, or what unreadable events name.

    Args:
        connection: in the transaction of the load.
        topic: what was read.
        refused: what of it is no event that counts.
        has_recorded: whether this process has recorded of the topic, which may not be written yet.
    """
    unread = [kind for kind in refused if kind.rejection in UNREAD]
    servers, walkthroughs = [kind.server_id for kind in unread], [kind.walkthrough_id for kind in unread]
    arguments = (topic, servers, walkthroughs, has_recorded)
    return bool(await connection.fetchval(SQL["belongs_to_topic"], *arguments))


def what_is_wrong(total: Chunk, topic: str, refused: Sequence[Refused], names: SourceNames) -> str:
    """What was wrong and where, without content, and what an operator can do.

    Args:
        total: recent events.
        topic: what they were read from.
        refused: those of the load in hand, at least one.
        names: of their sources.
    """
    classes = Counter(r.rejection.value for r in refused)
    sources = Counter(names.of(r.record) for r in refused)
    first = min((r.record.partition, r.record.offset, r.message) for r in refused)
    return (
        f"{total.refused:,} of the last {total.events:,} events were refused, and this database holds "
        f"nothing that was recorded of {topic}: is it the one that belongs to this topic? In this batch: "
        f"{_told(classes)}; from {_told(sources)}; the first on partition {first[0]} at offset "
        f"{first[1]}: {first[2]}. Nothing of the batch was written, and the offsets stay where they are. "
        "Correct STEPSTREAM_DATABASE_URL or STEPSTREAM_TOPIC and start again; if both are right, "
        "STEPSTREAM_WRONG_DATABASE_GUARD=false sends what is bad to the dead letters"
    )


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(5))

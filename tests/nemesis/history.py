"""What was sent, what Kafka acknowledged and where, what was answered: noted during a round, judged after it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Kind(StrEnum):
    """What an event says that counts once."""

    STEP = "step"
    START = "start"
    SKIP = "skip"
    SHOWN = "shown"


class Key(NamedTuple):
    """What counts once: a step of a person, done, skipped or shown first; or their start of a walkthrough."""

    kind: Kind
    user: str
    thing: str


class Rank(NamedTuple):
    """The smallest wins."""

    at: int
    event_id: str


class Copy(NamedTuple):
    """One record of an event in Kafka; `at` is when that was known here, in seconds since the epoch."""

    topic: str
    partition: int
    offset: int
    at: float


@dataclass(slots=True)
class Sent:
    """A good event, the moment before it was sent first, and the copies that are known to have been in Kafka."""

    key: Key
    rank: Rank
    walkthrough: str
    server: str
    session: str
    at: float
    copies: list[Copy] = field(default_factory=list)


class Row(NamedTuple):
    """A row of completions or starts."""

    rank: Rank
    walkthrough: str
    server: str
    session: str


class Gone(NamedTuple):
    """Offsets that the database names as gone; without `until` to whatever the end was."""

    topic: str
    partition: int
    cause: str
    from_offset: int
    until_offset: int | None

    def covers(self, copy: Copy) -> bool:
        return (
            self[:2] == copy[:2]
            and self.from_offset <= copy.offset
            and (self.until_offset is None or copy.offset < self.until_offset)
        )


class Loss(NamedTuple):
    """A fault took records out of Kafka: of those acknowledged before `at`.

    `removed` is the first offset of each partition that was taken away; None is everything.
    """

    fault: str
    at: float
    removed: Mapping[int, int] | None = None

    def took(self, copy: Copy) -> bool:
        """Whether a record was taken away, whatever is at its place now."""
        if copy.at > self.at:
            return False
        return self.removed is None or copy.offset >= self.removed.get(copy.partition, copy.offset + 1)


class Answer(NamedTuple):
    """What the API answered: journeys of a walkthrough, and how many of them did each step. Times in seconds."""

    walkthrough: str
    asked_at: float
    answered_at: float
    looked_at: float | None
    current: bool | None
    journeys: int
    steps: dict[str, int]


@dataclass
class History:
    """All of a round."""

    sent: dict[str, Sent] = field(default_factory=dict)
    #: Who somebody has begun to erase, and whose erasure is known to be committed or in Kafka, with its copies.
    erasing: set[str] = field(default_factory=set)
    erased: dict[str, list[Copy]] = field(default_factory=dict)
    #: Steps, people and sessions that somebody has deleted, or begun to: their events count no more.
    deleted: set[str] = field(default_factory=set)
    losses: list[Loss] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    #: Steps that agents were told are done: by the person as their agent names them, and step.
    told: set[tuple[str, str]] = field(default_factory=set)
    #: Steps of people whom agents led, of which the topic has the event at the end: session, person, step.
    led: set[tuple[str, str, str]] = field(default_factory=set)

    def send(self, event: dict[str, Any], at: float) -> None:
        """Notes a good event before it is sent; a second copy changes nothing."""
        if event["event_id"] not in self.sent:
            self.sent[event["event_id"]] = sent_of(event, at)

    def acknowledge(self, event_id: str, copy: Copy) -> None:
        """Notes where an event is; told of twice, the first time counts. Events that are not ours are passed over.

        Where a fault has taken it away since, it was sent again and came to the same place.
        """
        sent = self.sent.get(event_id)
        if sent is not None and not any(self._is_known(known, copy) for known in sent.copies):
            sent.copies.append(copy)

    def _is_known(self, known: Copy, copy: Copy) -> bool:
        return known[:3] == copy[:3] and not any(
            loss.took(known) and not loss.took(copy) for loss in self.losses
        )

    def erase(self, user: str, copy: Copy | None = None) -> None:
        """Notes that an erasure is committed, or where its event is."""
        self.erasing.add(user)
        copies = self.erased.setdefault(user, [])
        if copy is not None and not any(self._is_known(known, copy) for known in copies):
            copies.append(copy)

    def is_deleted(self, sent: Sent) -> bool:
        """Whether an event refers to what is deleted."""
        return bool(self.deleted & {sent.key.user, sent.key.thing, sent.session})

    def is_excused(self, copy: Copy, gone: Iterable[Gone]) -> bool:
        """Whether a record was taken away by a fault, and the database says so."""
        return any(loss.took(copy) for loss in self.losses) and any(g.covers(copy) for g in gone)

    def is_owed(self, copies: Sequence[Copy], gone: Sequence[Gone], until: float = float("inf")) -> bool:
        """Whether an event must count: one of its copies was acknowledged by then, and is not excused."""
        return any(copy.at <= until and not self.is_excused(copy, gone) for copy in copies)


#: What an event of each type is about, and the field that says when it happened.
TIMES = {
    "step-completed": (Kind.STEP, "completed_at"),
    "walkthrough-started": (Kind.START, "started_at"),
    "step-skipped": (Kind.SKIP, "skipped_at"),
    "step-shown": (Kind.SHOWN, "shown_at"),
}


def sent_of(event: dict[str, Any], at: float) -> Sent:
    """A good event of the contract, as it is judged."""
    user, walkthrough = event["mcp_server_user_id"], event["walkthrough_id"]
    kind, field_ = TIMES[event["type"]]
    key = Key(kind, user, walkthrough if kind is Kind.START else event["step_id"])
    return Sent(
        key,
        Rank(event[field_], event["event_id"]),
        walkthrough,
        event["mcp_server_id"],
        event["mcp_server_session_id"],
        at,
    )

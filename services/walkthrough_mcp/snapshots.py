"""What one look at the database found for a call: who calls, where they are, and what version is offered."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cachetools import LRUCache

from services.walkthrough_mcp.guide import Offer, OfferedStep, Progress

#: How much of what servers offer is kept, in characters of its JSON.
_MOST_KEPT = 20_000_000


class Names(NamedTuple):
    """What a look is for: a server, and what somebody is known by; arguments of the statement, in order.

    With `must_exist` the person is one who was at the server.
    """

    slug: str
    tracking_id: str | None = None
    must_exist: bool = False
    issuer: str | None = None
    subject: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is known. `sessions` is the version of the rows that each call of theirs writes."""

    id: str
    tracking_id: str | None
    signs_in: bool
    sessions: str | None


class Opened(NamedTuple):
    """Somebody's progress in a walkthrough, the version of its row, and what was recorded as done since.

    `recorded_skips` was recorded as skipped.
    """

    progress: Progress | None
    version: str | None
    recorded: tuple[str, ...]
    recorded_skips: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was there at one moment; nothing of it is locked.

    The database began the look at `begun_at`, in its milliseconds; it was sent at `asked`, on the monotonic
    clock of this process. It was `read_at` at `read`, or before.
    """

    names: Names
    asked: float
    begun_at: int
    read: float
    read_at: int
    version: str
    person: Person | None
    live_session: str | None
    session_used_at: int | None
    is_own_session: bool
    shown_at: int | None
    walkthroughs: dict[str, Opened]

    def arrived_at(self, arrived: float) -> int:
        """When a call arrived that came at `arrived`, or a little later, in milliseconds of the database."""
        return self.begun_at - int((self.asked - arrived) * 1000)

    def now(self, monotonic: float) -> int:
        """The database's time at a later moment of this process, or a little earlier, in milliseconds."""
        return self.read_at + int((monotonic - self.read) * 1000)

    def with_progress(self, offers: Sequence[Offer]) -> tuple[Offer, ...]:
        """What is offered, with the person's progress."""
        return tuple(
            replace(
                offer,
                progress=opened.progress,
                recorded=opened.recorded,
                recorded_skips=opened.recorded_skips,
            )
            if (opened := self.walkthroughs.get(offer.walkthrough_id))
            else offer
            for offer in offers
        )


def snapshot_of(row: Any, names: Names, asked: float, read: float) -> Snapshot:
    """The snapshot that a row of the statement `look` says."""
    person = None
    if row["person_id"] is not None:
        person = Person(row["person_id"], row["tracking_id"], row["signs_in"], row["sessions"])
    return Snapshot(
        names=names,
        asked=asked,
        begun_at=row["begun_at"],
        read=read,
        read_at=row["read_at"],
        version=row["version"],
        person=person,
        live_session=row["live_session"],
        session_used_at=row["session_used_at"],
        is_own_session=row["is_own_session"],
        shown_at=row["shown_at"],
        walkthroughs=dict(map(_opened, json.loads(row["walkthroughs"] or "[]"))),
    )


def _opened(given: list[Any]) -> tuple[str, Opened]:
    walkthrough, progress, recorded, skipped_since = given
    since, skips = _texts(recorded), _texts(skipped_since)
    if progress is None:
        return walkthrough, Opened(None, None, since, skips)
    identifier, completed, current, started_at, completed_at, last_activity_at, skipped, version = progress
    done, passed_over = _joined(_texts(completed), since), _joined(_texts(skipped), skips)
    here = Progress(identifier, done, current, started_at, completed_at, last_activity_at, passed_over)
    return walkthrough, Opened(here, version, since, skips)


def _joined(known: tuple[str, ...], since: tuple[str, ...]) -> tuple[str, ...]:
    return (*known, *(step for step in since if step not in known))


def _texts(given: Any) -> tuple[str, ...]:
    """A list in JSON; nothing where somebody else has put something else there."""
    return tuple(str(step) for step in given) if isinstance(given, list) else ()


class _Kept(NamedTuple):
    version: str
    offers: tuple[Offer, ...]
    size: int


class OfferCache:
    """What servers offer, with nobody's progress, as it was at a version: no use at any other."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._kept: LRUCache[str, _Kept] = LRUCache(most, getsizeof=lambda kept: kept.size)
        self._most = most

    def get(self, slug: str, version: str) -> tuple[Offer, ...] | None:
        """What the server of that slug offers at that version, where it is known."""
        kept = self._kept.get(slug)
        return kept.offers if kept is not None and kept.version == version else None

    def keep(self, slug: str, version: str, text: str) -> tuple[Offer, ...]:
        """Keeps what the database said in JSON; version and text are of one snapshot."""
        offers = tuple(_offer(given) for given in json.loads(text))
        if len(text) <= self._most:
            self._kept[slug] = _Kept(version, offers, len(text))
        return offers


def _offer(given: dict[str, Any]) -> Offer:
    return Offer(
        walkthrough_id=given["walkthrough_id"],
        title=given["title"],
        description=given["description"],
        type=given["type"],
        minutes=given["minutes"],
        tags=tuple(str(tag) for tag in given["tags"]) if isinstance(given["tags"], list) else (),
        steps=tuple(OfferedStep(*step) for step in given["steps"]),
        progress=None,
    )

"""Versions of a walkthrough: which steps people had before them at a time, and what edits changed.

Pure. There is always a version: the newest has the steps as they are today, and the first counts for all
before the second, since what was edited before it is not known.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Kind = Literal["added", "removed", "moved", "renamed", "edited"]
#: What is said of the first version.
FIRST: Final = "The first steps that are known."


class StepThen(NamedTuple):
    """A step of a version; `content` is a hash of what it says, None where that is not known."""

    id: str
    title: str
    content: str | None = None


def steps_then(
    step_ids: Sequence[str], titles: Sequence[str], contents: Sequence[str]
) -> tuple[StepThen, ...]:
    """The steps of a version as columns have them."""
    return tuple(StepThen(*step) for step in zip(step_ids, titles, contents, strict=True))


@dataclass(frozen=True, slots=True)
class Version:
    """The steps between two edits.

    `made_at` is when the edit was committed, in milliseconds; None where that is not known. `since` is the
    same, but None of the first, which counts for all before the second.
    """

    number: int
    since: int | None
    made_at: int | None
    steps: tuple[StepThen, ...]

    @property
    def order(self) -> tuple[str, ...]:
        """The ids of its steps, in display order."""
        return tuple(step.id for step in self.steps)


class Change(NamedTuple):
    """What an edit did to a step; places are from 1, None where it was not there."""

    kind: Kind
    step_id: str
    title: str
    from_place: int | None
    to_place: int | None
    title_before: str | None = None


@dataclass(frozen=True, slots=True)
class Versions:
    """All versions in order: their numbers from 1 without gap, each later than the one before."""

    all: tuple[Version, ...]

    @classmethod
    def of(cls, edits: Sequence[tuple[int, Sequence[StepThen]]], today: Sequence[StepThen]) -> "Versions":
        """The versions that edits made.

        Args:
            edits: when each was committed, and the steps from then on; in order.
            today: the steps as they are now, which are those of the newest version.
        """
        versions = [
            Version(number, None if number == 1 else at, at, tuple(steps))
            for number, (at, steps) in enumerate(edits, start=1)
        ]
        newest = versions.pop() if versions else Version(1, None, None, ())
        contents = {step.id: step.content for step in newest.steps}
        now = tuple(step._replace(content=contents.get(step.id)) for step in today)
        return cls((*versions, Version(newest.number, newest.since, newest.made_at, now)))

    @property
    def newest(self) -> Version:
        """The one of today."""
        return self.all[-1]

    @property
    def sinces(self) -> list[int]:
        """When each but the first began."""
        return [version.since for version in self.all if version.since is not None]

    @property
    def added_in(self) -> dict[str, int]:
        """The number of the first version that has each step of today, of those that are not in the first."""
        added: dict[str, int] = {}
        for version in reversed(self.all):
            added.update(dict.fromkeys(version.order, version.number))
        return {step: added[step] for step in self.newest.order if added[step] > 1}

    @property
    def orders(self) -> list[tuple[str, ...]]:
        """The display order of each."""
        return [version.order for version in self.all]

    def order_since(self, version: Version) -> int | None:
        """Since when the steps are in the order of a version; None where no other is known before it."""
        since = version.since
        for before in reversed(self.all[: version.number - 1]):
            if before.order != version.order:
                return since
            since = before.since
        return None

    def at(self, ms: int) -> Version:
        """The version of a time, in milliseconds."""
        return self.all[bisect_right(self.sinces, ms)]

    def numbered(self, number: int) -> Version | None:
        """The version of that number; None where there is none."""
        return self.all[number - 1] if 0 < number <= len(self.all) else None

    def windows(self, numbers: Collection[int]) -> list[tuple[int | None, int | None]]:
        """From when until before when each of these counts; None has no end. Neighbours are joined."""
        joined: list[tuple[int | None, int | None]] = []
        for number in sorted(set(numbers)):
            since, until = self.all[number - 1].since, self.until(number)
            if joined and joined[-1][1] == since and since is not None:
                joined[-1] = joined[-1][0], until
            else:
                joined.append((since, until))
        return joined

    def says(self, number: int, name: Callable[[str], str] = str) -> str:
        """What the edit that made the version of that number did, in a sentence."""
        if number == 1:
            return FIRST
        return describe(changes(self.all[number - 2], self.all[number - 1]), name)

    def until(self, number: int) -> int | None:
        """When the version of that number was followed by the next; None of the newest."""
        return self.all[number].since if number < len(self.all) else None


def first_open(then: Sequence[str], today: Sequence[str], passed: Iterable[str]) -> str | None:
    """The step that an unfinished journey is assumed to stand at.

    It is the first of the order at that time that is not passed and is still there; where all of these are
    passed, the first of today's.
    """
    left = set(today).difference(passed)
    return next((step for order in (then, today) for step in order if step in left), None)


def changes(before: Version, after: Version) -> list[Change]:
    """What an edit did, in as few moves as can be: order, then titles, then contents."""
    old = {step.id: (place, step) for place, step in enumerate(before.steps, start=1)}
    new = {step.id: (place, step) for place, step in enumerate(after.steps, start=1)}
    common = [step for step in new if step in old]
    kept = set(_longest_increasing([old[step][0] for step in common]))
    removed = [(place, step) for place, step in old.values() if step.id not in new]
    added = [(place, step) for place, step in new.values() if step.id not in old]
    result = [Change("removed", step.id, step.title, place, None) for place, step in removed]
    result += [Change("added", step.id, step.title, None, place) for place, step in added]
    result += [
        Change("moved", s, new[s][1].title, old[s][0], new[s][0]) for s in common if old[s][0] not in kept
    ]
    both = [(*old[step], *new[step]) for step in common]
    result += [
        Change("renamed", step.id, step.title, from_place, to_place, was.title)
        for from_place, was, to_place, step in both
        if was.title != step.title
    ]
    result += [
        Change("edited", step.id, step.title, from_place, to_place)
        for from_place, was, to_place, step in both
        if None not in {was.content, step.content} and was.content != step.content
    ]
    return result


def describe(made: Iterable[Change], name: Callable[[str], str] = str) -> str:
    """What an edit did, in a sentence; `name` makes of a title what is shown of it."""
    said = "; ".join(_told(change, name) for change in made)
    return f"{said[:1].upper()}{said[1:]}." if said else "Nothing that is told apart."


def _told(change: Change, name: Callable[[str], str]) -> str:
    title = f"“{name(change.title)}”"
    match change.kind:
        case "added":
            return f"added {title} at place {change.to_place}"
        case "removed":
            return f"removed {title} from place {change.from_place}"
        case "moved":
            return f"moved {title} from place {change.from_place} to {change.to_place}"
        case "renamed":
            return f"renamed “{name(change.title_before or '')}” to {title}"
        case "edited":
            return f"changed what {title} says"


def _longest_increasing(numbers: Sequence[int]) -> list[int]:
    """A longest increasing subsequence of different numbers, by patience sorting."""
    piles: list[int] = []
    behind: dict[int, int | None] = {}
    for number in numbers:
        place = bisect_left(piles, number)
        behind[number] = piles[place - 1] if place else None
        piles[place : place + 1] = [number]
    found: list[int] = []
    last = piles[-1] if piles else None
    while last is not None:
        found.append(last)
        last = behind[last]
    return found[::-1]

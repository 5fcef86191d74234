"""Journeys as each stood so many days after its beginning: how many days, and two sides of them compared.

Pure. A journey is judged where it began at least so many days ago, so all that are compared were observed
for the same time: who began lately has not stopped, and is left out.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.journeys.comparison import Compared, NodeKey, Shares, compare, drop_shares, link_shares
from services.journeys.diagnosis import Progress, progress_of, step_shares
from services.journeys.flow import Flows, LinkKey, Outcome, Variant, View

#: No longer after its beginning a journey is judged, in days.
MOST_DAYS: Final = 366
#: So many of those who finished have done so within the days that are proposed.
_MOST_OF_THEM: Final = 0.9
#: So many of a side stay with the days that are proposed.
_STAY: Final = 0.5


class Began(NamedTuple):
    """Journeys that began on a day: how many whole days ago, and within how many days they finished.

    `day` counts from the epoch; `age_days` is -1 where it is not a whole day yet; `finish_days` is the least
    number of days within which they did, None where they are not finished.
    """

    day: int
    age_days: int
    finish_days: int | None
    journeys: int

    def had_time(self, days: int) -> bool:
        """Whether they began at least so many days ago."""
        return self.age_days >= days

    def finished_within(self, days: int) -> bool:
        """Whether they had the time, and finished in it."""
        return self.had_time(days) and self.finish_days is not None and self.finish_days <= days


class Judged(NamedTuple):
    """How many journeys had so many days, and how many of them finished within these."""

    had_time: int
    finished: int


def judged(began: Iterable[Began], days: int) -> Judged:
    """The sums of journeys."""
    had_time = finished = 0
    for of in began:
        had_time += of.journeys if of.had_time(days) else 0
        finished += of.journeys if of.finished_within(days) else 0
    return Judged(had_time, finished)


class Proposal(NamedTuple):
    """After how many days journeys are judged.

    `longest` is for how many of them at least half of each side can be; of those who could and who finished
    by then, `finished`, 90 % did so within `days`.
    """

    days: int
    longest: int
    finished: int


def propose(sides: Sequence[Sequence[Began]], otherwise: int) -> Proposal:
    """The smallest number of days by which 90 % of those who finish have done so.

    Of those who began long enough ago: `longest` is the largest number of days, 1 to MOST_DAYS, such that
    half of the journeys of each side began so long ago, and only these are looked at. So the quick ones of
    the last days do not count more, and each side keeps people.

    Args:
        sides: the journeys of one side or more; one without any bounds nothing.
        otherwise: the days where nobody finished, or `longest` where that is less.
    """
    longest = min((_longest(side) for side in sides if side), default=MOST_DAYS)
    counts: Counter[int] = Counter()
    for of in (of for side in sides for of in side):
        if of.finished_within(longest) and of.finish_days is not None:
            counts[of.finish_days] += of.journeys
    finished, seen = counts.total(), 0
    for days in sorted(counts):
        seen += counts[days]
        if seen >= _MOST_OF_THEM * finished:
            return Proposal(max(1, days), longest, finished)
    return Proposal(min(otherwise, longest), longest, 0)


def _longest(side: Sequence[Began]) -> int:
    counts: Counter[int] = Counter()
    for of in side:
        counts[of.age_days] += of.journeys
    seen, enough = 0, _STAY * counts.total()
    for age in sorted(counts, reverse=True):
        seen += counts[age]
        if seen >= enough:
            return min(max(1, age), MOST_DAYS)
    return 1


@dataclass(frozen=True, slots=True)
class Side:
    """What journeys of a view had done by then: by place, and by step wherever it was."""

    flows: Flows
    progress: Progress


def side_of(
    view: View, order: Sequence[str], orders: Sequence[Sequence[str]], variants: Iterable[Variant]
) -> Side:
    """A side of a comparison; steps are of whole paths of the journeys that are in the view.

    `order` is today's, `orders` those of all versions.
    """
    shown = [variant for variant in variants if view.path(variant.step_ids) is not None]
    return Side(view.flows(shown), progress_of(order, orders, shown))


@dataclass(frozen=True, slots=True)
class Differences:
    """What was compared of two sides: three families, each adjusted by itself.

    They are completion alone; each step; and each link with each drop-off, as what leaves a node goes on or
    does not.
    """

    completion: Compared
    steps: Mapping[str, Compared]
    links: Mapping[LinkKey, Compared]
    drops: Mapping[NodeKey, Compared]

    @property
    def places(self) -> list[Compared]:
        """Links and drop-offs."""
        return [*self.links.values(), *self.drops.values()]


def differences(
    order: Sequence[str], a: Side, b: Side, added: Collection[str] = (), can_finish: bool = True
) -> Differences:
    """Two sides compared.

    Args:
        order: the steps that are compared.
        a: the journeys of A.
        b: the journeys of B.
        added: steps that were added after somebody of a side had begun: whether they were done, and whether
            journeys are finished, is not tested.
        can_finish: whether the view shows if journeys are finished.
    """
    whole = Shares(
        a.flows.journeys,
        a.flows.ended(Outcome.FINISHED),
        b.flows.journeys,
        b.flows.ended(Outcome.FINISHED),
    )
    (completion,) = compare([whole], [can_finish and not added])
    steps = step_shares(order, a.progress, b.progress)
    links, drops = link_shares(a.flows, b.flows), drop_shares(a.flows, b.flows)
    places = compare(
        [*links.values(), *drops.values()],
        [*(key.to_step_id not in added for key in links), *(True for _ in drops)],
    )
    return Differences(
        completion,
        dict(zip(steps, compare(list(steps.values()), [s not in added for s in steps]), strict=True)),
        dict(zip(links, places[: len(links)], strict=True)),
        dict(zip(drops, places[len(links) :], strict=True)),
    )

"""What a call does to somebody's progress: a function of what is offered and what is done. No I/O, no clock.

The next step is always the first in display order that is not passed, that is, neither done nor skipped; so
reordering, adding and deleting steps keeps what people have done. A call completes, or skips, at most the
step that the server last showed, so a retried call never passes one; what was skipped can be done later, by
its id. To look something up changes nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from services.runtime.titles import meant


@dataclass(frozen=True, slots=True)
class OfferedStep:
    """A step in display order; `order` is its `display_order`."""

    id: str
    title: str
    order: int
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """Where somebody is in a walkthrough; times in milliseconds since the epoch.

    `completed` and `skipped` may hold steps that were deleted since; they count for nothing. A step that was
    skipped and done counts as done. `current_step_id` is the step that was shown last; None when it was
    deleted, or all is passed.
    """

    id: str
    completed: tuple[str, ...]
    current_step_id: str | None
    started_at: int | None
    completed_at: int | None
    last_activity_at: int | None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """A walkthrough that a server offers, its steps in display order, and the person's progress in it.

    `recorded` is what was recorded as completed since that progress was written, `recorded_skips` as skipped;
    both are part of it.
    """

    walkthrough_id: str
    title: str
    description: str | None
    type: str | None
    minutes: int | None
    tags: tuple[str, ...]
    steps: tuple[OfferedStep, ...]
    progress: Progress | None
    recorded: tuple[str, ...] = ()
    recorded_skips: tuple[str, ...] = ()

    @property
    def done(self) -> frozenset[str]:
        """The steps that are done, of those that there are."""
        completed = self.progress.completed if self.progress else ()
        return frozenset(completed) & {step.id for step in self.steps}

    @property
    def passed(self) -> frozenset[str]:
        """The steps that are done or skipped, of those that there are."""
        skipped = self.progress.skipped if self.progress else ()
        return self.done | (frozenset(skipped) & {step.id for step in self.steps})


class CallOutcome(StrEnum):
    """What a call came to."""

    LISTED = "listed"
    UNKNOWN_NAME = "unknown-name"
    AMBIGUOUS_NAME = "ambiguous-name"
    NOTHING_OFFERED = "nothing-offered"
    STARTED = "started"
    RESUMED = "resumed"
    RESTARTED = "restarted"
    ADVANCED = "advanced"
    SKIPPED = "skipped"
    SKIPPED_BEFORE = "skipped-before"
    DONE_AFTER_ALL = "done-after-all"
    NOT_OPTIONAL = "not-optional"
    REPEATED = "repeated"
    CHANGED = "changed"
    FINISHED = "finished"
    ALREADY_FINISHED = "already-finished"
    NOT_STARTED = "not-started"
    OUTLINED = "outlined"
    SHOWN_AGAIN = "shown-again"
    UNKNOWN_STEP = "unknown-step"


@dataclass(frozen=True, slots=True)
class CallEffect:
    """What a call does.

    `completes` is the one step that it completes, if any, and `skips` the one that it skips, for a `reason`;
    `shows` the step that is current afterwards; `completed` and `skipped` what is so afterwards. `opens` says
    that the person had never opened the walkthrough, `is_unnamed` that the call completes what is current.
    Without an `offer` nothing is written, nor where a call `only_looks`; `reads` is the step that it looks
    up. `meant` are the walkthroughs among which it is not clear which one is.
    """

    outcome: CallOutcome
    offer: Offer | None = None
    completes: OfferedStep | None = None
    shows: OfferedStep | None = None
    completed: tuple[str, ...] = ()
    opens: bool = False
    is_unnamed: bool = False
    meant: tuple[str, ...] = ()
    only_looks: bool = False
    reads: OfferedStep | None = None
    skips: OfferedStep | None = None
    skipped: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def passes(self) -> OfferedStep | None:
        """The one step that the call completes or skips."""
        return self.completes or self.skips

    @property
    def shows_anew(self) -> bool:
        """Whether another step is current afterwards, or the same one again from the beginning."""
        if self.offer is None:
            return False
        before = self.offer.progress.current_step_id if self.offer.progress else None
        is_anew = self.opens or self.passes is not None or self.outcome is CallOutcome.RESTARTED
        return is_anew or (self.shows.id if self.shows else None) != before

    @property
    def writes(self) -> bool:
        """Whether progress has to be written."""
        if self.offer is None or self.only_looks:
            return False
        progress = self.offer.progress
        if self.shows is not None or self.passes is not None or progress is None:
            return True
        return progress.completed_at is None or progress.current_step_id is not None


def start(offers: Sequence[Offer], name: str | None, *, restart: bool) -> CallEffect:
    """Starts or resumes the walkthrough of that title, or nearly that, or id; lists those that it may be."""
    if not offers:
        return CallEffect(CallOutcome.NOTHING_OFFERED)
    found = _one_of(offers, name)
    return found if isinstance(found, CallEffect) else _open(found, restart=restart)


def outline(offers: Sequence[Offer], name: str | None) -> CallEffect:
    """Looks at all steps of a walkthrough: the one named, else the one under way, else the only one."""
    if not offers:
        return CallEffect(CallOutcome.NOTHING_OFFERED)
    found = (_under_way(offers, None) if name is None else None) or _one_of(offers, name)
    return found if isinstance(found, CallEffect) else _looked_at(CallOutcome.OUTLINED, found)


def look_up(offers: Sequence[Offer], step: str) -> CallEffect:
    """Looks at one step, by its id, or its title in the walkthrough under way; any that is on offer."""
    if not offers:
        return CallEffect(CallOutcome.NOTHING_OFFERED)
    for offer in offers:
        for given in offer.steps:
            if given.id == step.strip():
                return _looked_at(CallOutcome.SHOWN_AGAIN, offer, given)
    under_way = _under_way(offers, None) or (offers[0] if len(offers) == 1 else None)
    if under_way is None:
        return CallEffect(CallOutcome.UNKNOWN_STEP, only_looks=True)
    places = meant(step, [given.title for given in under_way.steps])
    if len(places) != 1:
        return _looked_at(CallOutcome.UNKNOWN_STEP, under_way)
    return _looked_at(CallOutcome.SHOWN_AGAIN, under_way, under_way.steps[places[0]])


def advance(offers: Sequence[Offer], current_step_id: str | None, *, saw_current: bool = True) -> CallEffect:
    """Completes the step that was shown last, and shows the next.

    Args:
        offers: what the server offers, with the person's progress.
        current_step_id: the step that the agent says is done. When it is done already, or is not the one
            that was shown last, nothing is completed.
        saw_current: whether the call can have seen the step that is current now. Where another call has
            moved the person on meanwhile it cannot, and completes nothing unless it names the step.
    """
    offer = _under_way(offers, current_step_id)
    if offer is None or offer.progress is None:
        return CallEffect(CallOutcome.NOT_STARTED if offers else CallOutcome.NOTHING_OFFERED)
    progress, done, passed = offer.progress, offer.done, offer.passed
    shown, following = _shown(offer), _first_open(offer, passed)
    late = next((s for s in offer.steps if s.id == current_step_id and s.id in passed - done), None)
    if late is not None:
        return CallEffect(
            CallOutcome.DONE_AFTER_ALL,
            offer,
            late,
            shown or following,
            (*progress.completed, late.id),
            skipped=tuple(step for step in progress.skipped if step != late.id),
        )
    if current_step_id is None:
        completes = shown if saw_current else None
        otherwise = CallOutcome.CHANGED if shown is None else CallOutcome.REPEATED
    else:
        expected = shown or following
        completes = expected if expected is not None and expected.id == current_step_id else None
        otherwise = CallOutcome.REPEATED if current_step_id in done else CallOutcome.CHANGED
    completed = (*progress.completed, *([completes.id] if completes else []))
    shows = _first_open(offer, {*passed, *([completes.id] if completes else [])})
    if shows is None:
        outcome = CallOutcome.FINISHED if completes else CallOutcome.ALREADY_FINISHED
    else:
        outcome = CallOutcome.ADVANCED if completes else otherwise
    return CallEffect(
        outcome,
        offer,
        completes,
        shows,
        completed,
        is_unnamed=current_step_id is None,
        skipped=progress.skipped,
    )


def skip(offers: Sequence[Offer], step_id: str, reason: str | None = None, *, insists: bool) -> CallEffect:
    """Goes on without doing the step that was shown last, where it is optional or the person insists.

    Nothing is skipped where the step is done or skipped already, or is not the one that was shown last.
    """
    offer = _under_way(offers, step_id)
    if offer is None or offer.progress is None:
        return CallEffect(CallOutcome.NOT_STARTED if offers else CallOutcome.NOTHING_OFFERED)
    progress, passed = offer.progress, offer.passed
    step = _shown(offer) or _first_open(offer, passed)
    if step is None or step.id != step_id:
        if step_id in offer.done:
            outcome = CallOutcome.REPEATED
        else:
            outcome = CallOutcome.SKIPPED_BEFORE if step_id in passed else CallOutcome.CHANGED
        if step is None:
            outcome = CallOutcome.ALREADY_FINISHED
        return CallEffect(outcome, offer, None, step, progress.completed, skipped=progress.skipped)
    if not step.optional and not insists:
        return _looked_at(CallOutcome.NOT_OPTIONAL, offer)
    following = _first_open(offer, {*passed, step.id})
    return CallEffect(
        CallOutcome.SKIPPED if following else CallOutcome.FINISHED,
        offer,
        None,
        following,
        progress.completed,
        skips=step,
        skipped=(*progress.skipped, step.id),
        reason=reason,
    )


#: The longest that an answer may wait for calls of the same moment, in milliseconds.
MOST_TOGETHER_MS = 1_000
#: Two calls of a person wait for each other at most so long, in milliseconds.
_OVERLAP_MS = 30_000
#: How far ahead of the clock a time of ours may be before it is no longer believed, in milliseconds.
_AHEAD_MS = 60_000


def next_time(now: int, last_activity_at: int | None) -> int:
    """A time for what happens now that is later than what happened last, so that the order is never lost."""
    if last_activity_at is not None and now <= last_activity_at <= now + _AHEAD_MS:
        return last_activity_at + 1
    return now


def can_have_seen(arrived_at: int, shown_at: int | None) -> bool:
    """Whether a call can have seen what is current.

    Args:
        arrived_at: when the call reached the server, before it waited for anything; or later.
        shown_at: when an answer showed what is current, at the earliest. All times are the database's.
    """
    return shown_at is None or not 0 < shown_at - arrived_at < _OVERLAP_MS


def time_of_showing(move: CallEffect, now: int, together_ms: int, before: int | None) -> int | None:
    """When what is current after a move is shown at the earliest; `before`, when what was current before was.

    A call that names no step is answered `together_ms` from now at the earliest: whatever arrives until
    then was sent before that answer was seen, also where it reaches another process, or a busy one reads it
    late.
    """
    if not move.shows_anew:
        return before
    return now + together_ms if move.is_unnamed else now


def wait_until_shown(now: int, shown_at: int | None) -> int:
    """How long an answer waits, in milliseconds: never for a clock of the database that was set back."""
    wait = shown_at - now if shown_at is not None else 0
    return wait if 0 < wait <= MOST_TOGETHER_MS else 0


def _one_of(offers: Sequence[Offer], name: str | None) -> Offer | CallEffect:
    """The walkthrough of that name, or the only one; else what there is to choose from."""
    if name is None:
        found = list(offers)
        unclear = CallOutcome.LISTED
    else:
        found = [o for o in offers if o.walkthrough_id == name.strip()] or [
            offers[place] for place in meant(name, [o.title for o in offers])
        ]
        unclear = CallOutcome.AMBIGUOUS_NAME if found else CallOutcome.UNKNOWN_NAME
    if len(found) != 1:
        return CallEffect(unclear, meant=tuple(o.walkthrough_id for o in found))
    return found[0]


def _looked_at(outcome: CallOutcome, offer: Offer, step: OfferedStep | None = None) -> CallEffect:
    progress = offer.progress
    shows = None if progress is None else _shown(offer) or _first_open(offer, offer.passed)
    completed = offer.recorded if progress is None else progress.completed
    skipped = offer.recorded_skips if progress is None else progress.skipped
    return CallEffect(
        outcome, offer, shows=shows, completed=completed, only_looks=True, reads=step, skipped=skipped
    )


def _shown(offer: Offer) -> OfferedStep | None:
    """The step that was shown last, where it is not passed."""
    current = offer.progress.current_step_id if offer.progress else None
    return next((s for s in offer.steps if s.id == current and s.id not in offer.passed), None)


def _open(offer: Offer, *, restart: bool) -> CallEffect:
    progress = offer.progress
    if progress is None:
        shows = _first_open(offer, {*offer.recorded, *offer.recorded_skips})
        outcome = CallOutcome.ALREADY_FINISHED if shows is None else CallOutcome.STARTED
        return CallEffect(
            outcome,
            offer,
            shows=shows,
            completed=offer.recorded,
            opens=True,
            skipped=offer.recorded_skips,
        )
    if restart:
        return CallEffect(CallOutcome.RESTARTED, offer, shows=_first_open(offer, ()))
    shows = _first_open(offer, offer.passed)
    outcome = CallOutcome.ALREADY_FINISHED if shows is None else CallOutcome.RESUMED
    return CallEffect(outcome, offer, shows=shows, completed=progress.completed, skipped=progress.skipped)


def _under_way(offers: Sequence[Offer], step_id: str | None) -> Offer | None:
    """The walkthrough of the named step, else the one in which something was done most recently."""
    started = [offer for offer in offers if offer.progress is not None]
    if step_id is not None:
        for offer in offers:
            if step_id in {step.id for step in offer.steps}:
                return offer
    return max(started, key=_last_activity, default=None)


def _last_activity(offer: Offer) -> tuple[int, str]:
    last = offer.progress.last_activity_at if offer.progress else None
    return (last or 0, offer.walkthrough_id)


def _first_open(offer: Offer, passed: Collection[str]) -> OfferedStep | None:
    return next((step for step in offer.steps if step.id not in passed), None)

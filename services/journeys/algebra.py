"""Journeys, what they contribute to the Sankey, and the difference that a change makes.

A journey is one user in one walkthrough: the steps that were passed, that is, completed, or skipped and
not completed, in `(time, id)` order; the start before them where one is known; and what was shown. It
contributes one transition per step and one ending, all filed under its cohort: its walkthrough, and the
server and the UTC day where it began. Hence, at every node `(position, step)` of every cohort,

    journeys in = journeys out + journeys ended there,

and the journeys of a cohort are those that took a first step and those that ended with none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

_EPOCH: Final = date(1970, 1, 1)
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Journey:
    """What one user did in one walkthrough, in order.

    `step_ids[i]` was completed, or skipped where `skipped[i]`, at `completed_at[i]` (milliseconds since the
    epoch, never falling), and shown before at `shown_at[i]`. Where no step was skipped, or none is known to
    have been shown, there is None instead of the sequence.
    `started_at` is when it was opened, never after the first step; None where that is not known.
    `first_shown_at` is when something was shown, where there is neither a start nor a step.
    `mcp_server_id` is the server of the start, else of the first step, else of the first showing. Without any
    of them there is no journey.
    `shown_step_id` is what was shown last of the steps that are not passed; None where that is not known.
    """

    walkthrough_id: str
    mcp_server_id: str | None
    step_ids: Sequence[str]
    completed_at: Sequence[int]
    started_at: int | None = None
    first_shown_at: int | None = None
    skipped: Sequence[bool] | None = None
    shown_at: Sequence[int | None] | None = None
    shown_step_id: str | None = None

    @property
    def began_at(self) -> int | None:
        """Milliseconds since the epoch; None where there is no journey."""
        if self.started_at is not None:
            return self.started_at
        return self.completed_at[0] if self.completed_at else self.first_shown_at


class TransitionKey(NamedTuple):
    """A link of the Sankey within a cohort; at position 0 it comes from the start, `from_step_id` None.

    Where it is `skipped`, the step that it leads to was skipped.
    """

    walkthrough_id: str
    mcp_server_id: str
    began_on: date
    position: int
    from_step_id: str | None
    to_step_id: str
    skipped: bool = False


class EndingKey(NamedTuple):
    """Where journeys of a cohort stand.

    How many steps they have completed and skipped, the last of these, the day they were last active, and what
    was shown to them last and is not passed.
    """

    walkthrough_id: str
    mcp_server_id: str
    began_on: date
    steps_done: int
    step_id: str | None
    last_active_on: date
    steps_skipped: int = 0
    shown_step_id: str | None = None


class Flow(NamedTuple):
    """How many journeys took a transition, and the sums of the milliseconds they took for it.

    `elapsed_ms` is since the step before, or the start, over `timed_journeys`: the first step of a journey
    whose start is not known took a time that nobody knows. `active_ms` is since the step was shown, over
    `active_journeys`.
    """

    journeys: int
    elapsed_ms: int
    timed_journeys: int
    active_ms: int = 0
    active_journeys: int = 0


@dataclass(slots=True)
class Contributions:
    """Amounts by key; amounts that are zero are left out, so that equal contributions compare equal."""

    transitions: dict[TransitionKey, Flow] = field(default_factory=dict)
    endings: dict[EndingKey, int] = field(default_factory=dict)


#: What has to be added to counts to follow a change: contributions whose amounts may be negative.
Delta = Contributions


@lru_cache(maxsize=4096)
def _day(number: int) -> date:
    return _EPOCH + timedelta(days=number)


def utc_day(ms: int) -> date:
    """The UTC day of a time in milliseconds since the epoch."""
    return _day(ms // _DAY_MS)


def contributions(journey: Journey) -> Contributions:
    """What a journey adds to the Sankey: nothing where there is none."""
    delta = Contributions()
    _contribute(delta, journey, 0, 1)
    return delta


def difference(old: Journey, new: Journey) -> Delta:
    """`contributions(new) - contributions(old)`, without the parts that both share."""
    delta = Contributions()
    accumulate(delta, old, new)
    return delta


def accumulate(total: Delta, old: Journey, new: Journey) -> None:
    """Adds `difference(old, new)` to `total` in place.

    Steps that both journeys begin with are skipped when the cohort is the same too: their transitions
    cancel. A journey that goes on by one step costs one transition and two endings, however long it is.
    """
    shared = _shared_prefix(old, new)
    _contribute(total, old, shared, -1)
    _contribute(total, new, shared, 1)


def add(total: Delta, delta: Delta) -> None:
    """Adds `delta` to `total` in place."""
    for transition, flow in delta.transitions.items():
        _add_flow(total.transitions, transition, flow)
    for ending, journeys in delta.endings.items():
        _add_ending(total.endings, ending, journeys)


def _shared_prefix(old: Journey, new: Journey) -> int:
    if not old.step_ids or not new.step_ids or old.walkthrough_id != new.walkthrough_id:
        return 0
    if old.mcp_server_id != new.mcp_server_id or old.started_at != new.started_at:
        return 0
    if old.began_at // _DAY_MS != new.began_at // _DAY_MS:  # type: ignore[operator]
        return 0
    shared = 0
    for a, b, at, bt in zip(old.step_ids, new.step_ids, old.completed_at, new.completed_at, strict=False):
        if a != b or at != bt:
            break
        shared += 1
    if old.skipped is not None or new.skipped is not None:
        shared = _alike(old.skipped, new.skipped, False, shared)
    if old.shown_at is not None or new.shown_at is not None:
        shared = _alike(old.shown_at, new.shown_at, None, shared)
    return shared


def _alike(old: Sequence[object] | None, new: Sequence[object] | None, absent: object, most: int) -> int:
    """How many of the first `most` are the same; all are `absent` where there is no sequence."""
    for i in range(most):
        if (absent if old is None else old[i]) != (absent if new is None else new[i]):
            return i
    return most


def _contribute(total: Delta, journey: Journey, first: int, sign: int) -> None:
    """Adds, or takes away, the transitions from position `first` on, and the ending."""
    steps, times = journey.step_ids, journey.completed_at
    began_at = journey.began_at
    if began_at is None:
        return
    server = journey.mcp_server_id
    if server is None:
        raise ValueError("a journey has the server where it began")
    walkthrough = journey.walkthrough_id
    began_on = utc_day(began_at)
    skipped, shown_at = journey.skipped, journey.shown_at
    before_id = steps[first - 1] if first else None
    before_at = times[first - 1] if first else journey.started_at
    for position in range(first, len(steps)):
        is_skip = skipped is not None and skipped[position]
        key = TransitionKey(walkthrough, server, began_on, position, before_id, steps[position], is_skip)
        at = times[position]
        elapsed, timed = (0, 0) if before_at is None else (sign * (at - before_at), sign)
        shown = None if shown_at is None else shown_at[position]
        active, known = (0, 0) if shown is None else (sign * (at - shown), sign)
        _add_flow(total.transitions, key, Flow(sign, elapsed, timed, active, known))
        before_id, before_at = steps[position], at
    last_active_on = utc_day(times[-1]) if steps else began_on
    passed_over = sum(skipped) if skipped is not None else 0
    ending = EndingKey(
        walkthrough,
        server,
        began_on,
        len(steps) - passed_over,
        before_id,
        last_active_on,
        passed_over,
        journey.shown_step_id,
    )
    _add_ending(total.endings, ending, sign)


def _add_flow(flows: dict[TransitionKey, Flow], key: TransitionKey, flow: Flow) -> None:
    before = flows.get(key)
    if before is None:
        flows[key] = flow
        return
    journeys, elapsed, timed, active, known = before
    journeys += flow.journeys
    elapsed += flow.elapsed_ms
    timed += flow.timed_journeys
    active += flow.active_ms
    known += flow.active_journeys
    if journeys or elapsed or timed or active or known:
        flows[key] = Flow(journeys, elapsed, timed, active, known)
    else:
        del flows[key]


def _add_ending(endings: dict[EndingKey, int], key: EndingKey, journeys: int) -> None:
    after = endings.get(key, 0) + journeys
    if after:
        endings[key] = after
    else:
        endings.pop(key, None)

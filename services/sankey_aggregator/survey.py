"""What differs between completions, journeys and counts, found in one snapshot of the database.

Two things are compared. *Counts against journeys*: the aggregator writes both in one transaction, so they
agree at every moment, whatever is in flight. *Journeys against completions and starts*: a journey whose
event or mark is still on its way differs, so `settle` looks at those again until the aggregator has passed
them.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg

from services.consumers.lag import AGGREGATOR, committed_offsets
from services.runtime.database import Connection, fetch_one, load_queries, no_longer_than
from services.runtime.errors import StepstreamError
from services.runtime.settings import Settings

SQL = load_queries(__file__)

#: Rows of completions and starts that are looked at in one go: they fit into `work_mem`.
_SHARE_ROWS = 500_000
_WORK_MEM = "128MB"
#: A survey's snapshot keeps vacuum from old rows: so long at most, and less between two statements or with an
#: answer unread. `settle` asks others meanwhile, each of which has a time limit.
_SURVEY_SECONDS = 4 * 3600
_SILENCE_SECONDS = 900
#: Users fall into so many classes by the hash of their id (the SQL knows the number too).
_CLASSES = 2**20
#: More journeys than this are not looked at one by one.
_LOOKED_AT_AGAIN = 50_000
#: Without Kafka nobody knows what is in flight; this long, in seconds, differing journeys are looked at
#: again.
_WITHOUT_KAFKA = 5.0
_CHECK_AGAIN = 0.2

#: The most differing cells, and journeys, that are listed.
LISTED = 1_000
#: A survey takes as long as there are rows, in seconds.
NO_LIMIT = 24 * 3600.0

#: Told how many of how many parts are done.
Progress = Callable[[int, int], None]
_Key = tuple[str, str]


class Horizon(NamedTuple):
    """What the aggregator has to pass, for what a snapshot shows to be settled."""

    newest_mark: int
    next_offsets: dict[int, int]


@dataclass
class Unsettled:
    """Why journeys may be in flight, or that they are not."""

    #: Journeys that differed and were right at a later look.
    in_flight: int = 0
    #: Journeys that differ because somebody has locked what is counted of them.
    waiting: int = 0
    #: Whether all that still differ is known to be wrong.
    certain: bool = True
    reasons: list[str] = field(default_factory=list)


class Differences(NamedTuple):
    """What a survey found: all are counted, the first thousand of each kind are listed."""

    journeys: int
    transition_cells: int
    ending_cells: int
    listed_journeys: list[dict[str, Any]]
    listed_transitions: list[dict[str, Any]]
    listed_endings: list[dict[str, Any]]


async def prepare(connection: Connection) -> None:
    """Makes the session's temporary tables; they vanish with it."""
    await connection.execute(SQL["create_survey"])


async def begin(connection: Connection, topic: str) -> Horizon:
    """The first statements in the survey's transaction, which is repeatable read.

    A command that is frozen in it, or cut off, loses its connection; so does one that takes too long.
    """
    await no_longer_than(connection, _SURVEY_SECONDS)
    for name in ("idle_in_transaction_session_timeout", "tcp_user_timeout"):
        await connection.execute(f"set local {name} = '{_SILENCE_SECONDS}s'")
    await connection.execute(f"set local work_mem = '{_WORK_MEM}'")
    return await _horizon(connection, topic)


async def find_journeys(connection: Connection, progress: Progress, sample: float = 100.0) -> int:
    """Fills `differing_journeys`, share by share of all users, so that memory stays bounded.

    Args:
        connection: in the survey's transaction.
        progress: told after each share.
        sample: the percentage of users that is looked at.

    Returns:
        How many journeys differ.
    """
    classes = max(1, round(_CLASSES * sample / 100))
    rows = await connection.fetchval(SQL["survey_size"])
    shares = max(1, math.ceil(rows * sample / 100 / _SHARE_ROWS))
    bounds = [classes * i // shares for i in range(shares + 1)]
    for number, (low, high) in enumerate(itertools.pairwise(bounds), start=1):
        await connection.execute(SQL["survey_journeys"], low, high - 1)
        progress(number, shares)
    return int(await connection.fetchval("select count(*) from differing_journeys"))


async def find_cells(connection: Connection) -> None:
    """Fills `differing_transitions` and `differing_endings`.

    What a cell should hold is what the journeys contribute, the differing ones as their rows say.
    """
    for name in ("survey_transitions", "survey_endings"):
        await connection.execute(SQL[name])


async def differences(connection: Connection) -> Differences:
    """What the survey's tables hold now."""

    async def listed(name: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await connection.fetch(SQL[name], LISTED)]

    counts = await fetch_one(connection, SQL["survey_counts"])
    return Differences(
        counts["journeys"],
        counts["transitions"],
        counts["endings"],
        await listed("list_journeys"),
        await listed("list_transitions"),
        await listed("list_endings"),
    )


async def settle(
    survey: Connection, fresh: Connection, settings: Settings, horizon: Horizon, seconds: float
) -> Unsettled:
    """Leaves in `differing_journeys` those that are wrong, and not only on their way.

    Args:
        survey: the connection of the survey.
        fresh: another one, to look at what is there now.
        settings: where the aggregator's group is.
        horizon: as of the survey's snapshot.
        seconds: how long to wait for the aggregator.
    """
    outcome = Unsettled()
    #: Journeys that may be on their way, each as its rows were when the horizon was.
    waiting = {_key(row): _state(row) for row in await survey.fetch(SQL["survey_rows"])}
    suspected: set[_Key] = set()
    deadline = time.monotonic() + seconds
    while waiting:
        passed, trouble = await _passed(fresh, settings, horizon)
        if trouble and trouble.startswith("Kafka"):
            deadline = min(deadline, time.monotonic() + _WITHOUT_KAFKA)
        # Those whose counts somebody has locked are on their way, too: as long as the lock is there.
        locked = {key: waiting[key] for key in await _waiting_for_a_lock(fresh, waiting)}
        waiting = {key: state for key, state in waiting.items() if key not in locked}
        if len(waiting) > _LOOKED_AT_AGAIN:
            still, later = waiting, horizon
        else:
            still, later = await _recheck(fresh, settings.topic, waiting)
        right = [key for key in waiting if key not in still]
        await survey.execute(SQL["survey_forget"], [u for u, _ in right], [w for _, w in right])
        outcome.in_flight += len(right)
        if passed:
            # Passed, and neither changed nor counted, twice in a row: that is wrong. (Once is not enough:
            # rows may have changed and changed back.) What has changed is on its way again.
            same = {key for key, state in still.items() if waiting[key] == state}
            waiting = {key: state for key, state in still.items() if key not in same & suspected}
            suspected, horizon = same, later
        else:
            waiting = {key: waiting[key] for key in still}
        if (waiting or locked) and (trouble == "no members" or time.monotonic() > deadline):
            outcome.certain = False
            outcome.waiting = len(locked)
            if locked:
                outcome.reasons.append(_why_locked(len(locked)))
            if waiting:
                outcome.reasons.append(_why_unsettled(trouble, seconds))
            break
        waiting |= locked
        if waiting:
            await asyncio.sleep(_CHECK_AGAIN)
    return outcome


def _why_locked(journeys: int) -> str:
    return (
        f"{journeys:,} of the journeys wait for counts that somebody else has locked, and are counted when "
        "the lock goes: `stepstream status` says who has it; verify again then"
    )


def _why_unsettled(trouble: str | None, seconds: float) -> str:
    if trouble == "no members":
        return (
            "the sankey-aggregator has not passed the newest events or marks, and none is running: start it, "
            "and verify again"
        )
    if trouble:
        return f"whether they are only on their way is not known: {trouble}"
    return (
        f"the sankey-aggregator did not get through what was waiting in {seconds:g} s (`stepstream lag` "
        "shows "
        "how far it is); verify again, or with a longer --wait"
    )


async def _recheck(fresh: Connection, topic: str, states: dict[_Key, Any]) -> tuple[dict[_Key, Any], Horizon]:
    async with fresh.transaction(isolation="repeatable_read", readonly=True):
        later = await _horizon(fresh, topic)
        rows = await fresh.fetch(SQL["recheck"], [u for u, _ in states], [w for _, w in states])
    return {_key(row): _state(row) for row in rows}, later


async def _waiting_for_a_lock(fresh: Connection, journeys: Collection[_Key]) -> set[_Key]:
    rows = await fresh.fetch(SQL["survey_waiting"], [u for u, _ in journeys], [w for _, w in journeys])
    return {_key(row) for row in rows}


async def _passed(fresh: Connection, settings: Settings, horizon: Horizon) -> tuple[bool, str | None]:
    """Whether the aggregator has passed the horizon; and what keeps it from it, where that is known."""
    marks = await fresh.fetchval(SQL["marks_up_to"], horizon.newest_mark)
    try:
        group = await committed_offsets(settings, AGGREGATOR)
    except StepstreamError as error:
        return False, f"Kafka is away ({error})"
    behind = any(group.committed.get(p, 0) < offset for p, offset in horizon.next_offsets.items())
    if not behind and not marks:
        return True, None
    return False, None if group.members else "no members"


async def _horizon(connection: Connection, topic: str) -> Horizon:
    row = await fetch_one(connection, SQL["horizon"], topic)
    return Horizon(row["newest_mark"], dict(zip(row["partitions"], row["next_offsets"], strict=True)))


def _key(row: asyncpg.Record) -> _Key:
    return row["mcp_server_user_id"], row["walkthrough_id"]


def _state(row: asyncpg.Record) -> tuple[Any, ...]:
    """The journey's rows, and what is counted of it."""
    return tuple(
        (
            row[f"{which}_server_id"],
            row[f"{which}_started_at"],
            tuple(row[f"{which}_step_ids"] or ()),
            tuple(row[f"{which}_completed_at"] or ()),
            row[f"{which}_first_shown_at"],
            tuple(row[f"{which}_skipped"] or ()),
            tuple(row[f"{which}_shown_at"] or ()),
            row[f"{which}_shown_step_id"],
        )
        for which in ("expected", "counted")
    )

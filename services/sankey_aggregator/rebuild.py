"""Journeys and counts anew from completions and starts, beside the running aggregator.

What differs is found in one snapshot and kept in tables of this session, which vanish with it however it
ends. Then one transaction puts it right. Only that one makes the aggregator wait: it keeps others from
writing journeys (reading goes on), leaves alone what the aggregator has counted since the snapshot, and
marks the rest, so that whatever changed meanwhile is looked at again. Why this is exact:
docs/decisions/0009-rebuild.md.

That holds while nobody but the aggregator writes journeys and counts. So there is one rebuild at a time, and
after the swap the cells are compared again: what somebody else did to them in between is mended too, or told.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.journeys import Delta, Journey, accumulate
from services.runtime.alone import Act, be_alone
from services.runtime.database import Connection, connected, load_queries, no_longer_than
from services.runtime.errors import MismatchError
from services.runtime.settings import Settings
from services.runtime.text import plural
from services.sankey_aggregator import counting
from services.sankey_aggregator.survey import (
    NO_LIMIT,
    Progress,
    begin,
    differences,
    find_cells,
    find_journeys,
)
from services.sankey_aggregator.survey import prepare as prepare_survey

SQL = load_queries(__file__)

#: The swap holds the aggregator up. A command that is frozen in it loses its connection; nothing is changed.
_SILENCE_SECONDS = 30
#: How long the swap waits for a lock; the aggregator waits behind it.
_LOCK_SECONDS = 10
#: How long it may take: frozen between two messages of the protocol, its session is not idle.
_SWAP_SECONDS = 3600
#: How often cells that somebody else changes are put right, before the command gives up.
_ROUNDS = 3


@dataclass
class Rebuilt:
    """What differed, and what became of it."""

    journeys: int
    transitions: list[dict[str, Any]]
    endings: list[dict[str, Any]]
    differing_journeys: list[dict[str, Any]]
    transition_cells: int
    ending_cells: int
    executed: bool = False
    #: Journeys that the aggregator had counted anew before the swap.
    counted_meanwhile: int = 0
    swap_seconds: float = 0.0
    #: Cells that were wrong after the swap, because somebody else had changed them since they were compared.
    changed_meanwhile: int = 0

    @property
    def differing(self) -> int:
        """How many cells and journeys differed."""
        return self.journeys + self.transition_cells + self.ending_cells


async def rebuild(
    settings: Settings,
    *,
    execute: bool,
    progress: Progress = lambda *_: None,
    before_swap: Callable[[Rebuilt], None] | None = None,
) -> Rebuilt:
    """Finds what differs, and with `execute` puts it right.

    Args:
        settings: where the database is.
        execute: whether to change anything.
        progress: told of parts done, of how many.
        before_swap: shown what differs before anything changes.

    Raises:
        RefusedError: somebody else rebuilds this database; nothing was changed.
        MismatchError: somebody else changes the counts all the time.
    """
    async with connected(settings, counting.prepare, counting.SERVER_SETTINGS, NO_LIMIT) as db:
        if execute:
            await be_alone(db, Act.REBUILD)
        found = await _survey(db, settings, progress)
        if before_swap is not None:
            before_swap(found)
        if execute and found.differing:
            await _swap(db, found)
            await _compare_again(db, settings, found)
        found.executed = execute
        return found


async def _compare_again(db: Connection, settings: Settings, found: Rebuilt) -> None:
    """Holds the cells against the journeys as they are now, and puts right what somebody else did to either.

    Where cells differ somebody else was there: then the journeys are held against their rows again, too.
    """
    for tries_left in reversed(range(_ROUNDS + 1)):
        differing = (await _survey(db, settings)).differing
        if not differing:
            return
        if tries_left:
            found.changed_meanwhile += differing
            await _survey(db, settings, lambda *_: None)
            await _swap(db, found)
    raise MismatchError(
        f"{plural(differing, 'cell')} were wrong again after each of {_ROUNDS} corrections: somebody else "
        "changes sankey_transitions, sankey_endings or sankey_journeys. Find out who, and run this again"
    )


async def _survey(db: Connection, settings: Settings, progress: Progress | None = None) -> Rebuilt:
    """Finds what differs in a snapshot of now; without `progress` cells alone, which takes less time."""
    await prepare_survey(db)
    async with db.transaction(isolation="repeatable_read"):
        await begin(db, settings.topic)
        if progress is not None:
            await find_journeys(db, progress)
        await find_cells(db)
        return await _found(db)


async def _found(db: Connection) -> Rebuilt:
    found = await differences(db)
    return Rebuilt(
        journeys=found.journeys,
        transitions=found.listed_transitions,
        endings=found.listed_endings,
        differing_journeys=found.listed_journeys,
        transition_cells=found.transition_cells,
        ending_cells=found.ending_cells,
    )


async def _swap(db: Connection, found: Rebuilt) -> None:
    # The planner knows nothing of tables that were just filled.
    await db.execute("analyze differing_journeys")
    async with db.transaction():
        await no_longer_than(db, _SWAP_SECONDS)
        await db.execute(f"set local idle_in_transaction_session_timeout = '{_SILENCE_SECONDS}s'")
        await db.execute(f"set local lock_timeout = '{_LOCK_SECONDS}s'")
        await db.execute(SQL["swap_lock"])
        began = time.monotonic()
        touched = await db.fetch(SQL["swap_touched"])
        # Their counts moved from what was counted at the survey; the cells that were found say otherwise.
        delta = Delta()
        for walkthrough, *values in touched:
            counted, expected = values[: len(values) // 2], values[len(values) // 2 :]
            accumulate(delta, _journey(walkthrough, expected), _journey(walkthrough, counted))
        await db.execute(SQL["swap_delete_journeys"])
        await db.execute(SQL["swap_write_journeys"])
        await db.execute(
            SQL["swap_transitions"],
            *_columns([(*key, *flow) for key, flow in delta.transitions.items()], 12),
        )
        await db.execute(SQL["swap_endings"], *_columns([(*key, n) for key, n in delta.endings.items()], 9))
        await counting.add_filled_deltas(db)
        await db.execute(SQL["swap_mark"])
        await db.execute(SQL["swap_freshness"])
    found.swap_seconds += time.monotonic() - began
    found.counted_meanwhile += len(touched)


def _journey(walkthrough: str, values: list[Any]) -> Journey:
    server, steps, times, *others = values
    if not server:  # contributes nothing, as in the survey
        return Journey(walkthrough, None, (), ())
    return Journey(walkthrough, server, steps or (), times or (), *others)


def _columns(rows: list[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]

"""The Sankey tables against completions and starts, from one snapshot, also while traffic flows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.consumers.agreement import agreements, why_apart
from services.consumers.lag import AGGREGATOR, RECORDER
from services.consumers.stored_positions import read_positions
from services.runtime.database import Connection, connected, fetch_one, load_queries
from services.runtime.settings import Settings
from services.sankey_aggregator.survey import (
    LISTED,
    NO_LIMIT,
    Progress,
    Unsettled,
    begin,
    differences,
    find_cells,
    find_journeys,
    prepare,
    settle,
)

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Verification:
    """What was compared, and what differs.

    `differing` counts all; the lists hold the first thousand of each kind.
    """

    totals: dict[str, int]
    transitions: list[dict[str, Any]]
    endings: list[dict[str, Any]]
    journeys: list[dict[str, Any]]
    nodes: list[dict[str, Any]]
    differing: int
    in_flight: int = 0
    #: Partitions of which recorder and aggregator have read different events.
    apart: list[int] = field(default_factory=list)
    #: Journeys that wait for a lock on what is counted of them.
    journeys_waiting: int = 0
    #: Events that wait for a lock: in no table that is compared.
    events_waiting: int = 0
    why: list[str] = field(default_factory=list)


async def verify(
    settings: Settings, *, sample: float = 100.0, wait: float = 30.0, progress: Progress = lambda *_: None
) -> Verification:
    """Compares every cell, every node, and every journey (or a sample of them).

    Args:
        settings: where the database and the aggregator's group are.
        sample: the percentage of users whose journeys are held against their rows.
        wait: seconds to wait for the aggregator to pass what was in flight.
        progress: told of parts done, of how many.
    """
    async with connected(settings, command_timeout=NO_LIMIT) as survey, connected(settings) as fresh:
        await prepare(survey)
        async with survey.transaction(isolation="repeatable_read"):
            horizon = await begin(survey, settings.topic)
            read = [await read_positions(survey, s, settings.topic) for s in (RECORDER, AGGREGATOR)]
            await find_journeys(survey, progress, sample)
            outcome = await settle(survey, fresh, settings, horizon, wait)
            await find_cells(survey)
            return await _verdict(survey, outcome, agreements(*read))


async def _verdict(survey: Connection, outcome: Unsettled, agrees: Mapping[int, bool | None]) -> Verification:
    totals = await fetch_one(survey, SQL["totals"])
    found = await differences(survey)
    missing = await survey.fetch(SQL["triggers"])
    nodes = [dict(row) for row in await survey.fetch(SQL["survey_nodes"], LISTED)]
    cells = found.transition_cells + found.ending_cells
    why = list(outcome.reasons)
    if missing:
        why.append(
            "triggers that leave marks are missing, off or replaced ("
            + ", ".join(f"{r['trigger_name']} on {r['table_name']}" for r in missing)
            + "), so changes by hand, deletions and restores were not counted: put them back, then "
            "`stepstream rebuild --execute`"
        )
    elif found.journeys and outcome.certain:
        why.append(
            "journeys are not what their rows say though nothing is on its way: sankey_journeys was changed "
            "by "
            "hand or restored alone, marks were removed, or rows came in with triggers off. "
            "`stepstream rebuild --execute` mends it"
        )
    elif cells and not found.journeys:
        why.append(
            "counts are not what the journeys contribute, which no traffic explains: sankey_transitions or "
            "sankey_endings were changed by hand or restored alone. `stepstream rebuild --execute` mends it"
        )
    if cause := why_apart(agrees):
        why.append(cause)
    apart = [partition for partition, same in agrees.items() if same is False]
    differing = cells + found.journeys + (0 if cells else len(nodes)) + len(apart)
    return Verification(
        totals=dict(totals),
        transitions=found.listed_transitions,
        endings=found.listed_endings,
        journeys=found.listed_journeys,
        nodes=nodes,
        differing=differing,
        in_flight=outcome.in_flight,
        apart=apart,
        journeys_waiting=outcome.waiting,
        events_waiting=await survey.fetchval(SQL["events_waiting"]),
        why=why if differing else [],
    )

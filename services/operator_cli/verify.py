"""The Sankey tables against completions and starts, from one snapshot, also while traffic flows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from services.operator_cli.against_topic import agreements, why_apart
from services.operator_cli.options import many, print_json, print_table, say, told_time
from services.operator_cli.survey import (
    SQL,
    Progress,
    Unsettled,
    begin,
    find_cells,
    find_journeys,
    prepare,
    settle,
)
from services.runtime.database import Connection, connected
from services.runtime.errors import MismatchError
from services.runtime.lag import AGGREGATOR, RECORDER
from services.runtime.settings import Settings
from services.runtime.stored_positions import read_positions

_SHOWN = 20
#: The most differing cells, and journeys, that are listed.
LISTED = 1_000
#: A comparison takes as long as there are rows, in seconds.
NO_LIMIT = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Verdict:
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
) -> Verdict:
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


async def _verdict(survey: Connection, outcome: Unsettled, agrees: Mapping[int, bool | None]) -> Verdict:
    async def fetch(name: str) -> list[dict[str, Any]]:
        return [dict(row) for row in await survey.fetch(SQL[name], LISTED)]

    totals = await survey.fetchrow(SQL["totals"])
    counts = await survey.fetchrow(SQL["survey_counts"])
    missing = await survey.fetch(SQL["triggers"])
    assert totals is not None  # noqa: S101 - one row, always
    assert counts is not None  # noqa: S101 - one row, always
    nodes = await fetch("survey_nodes")
    cells = counts["transitions"] + counts["endings"]
    why = list(outcome.reasons)
    if missing:
        why.append(
            "triggers that leave marks are missing, off or replaced ("
            + ", ".join(f"{r['trigger_name']} on {r['table_name']}" for r in missing)
            + "), so changes by hand, deletions and restores were not counted: put them back, then "
            "`stepstream rebuild --execute`"
        )
    elif counts["journeys"] and outcome.certain:
        why.append(
            "journeys are not what their rows say though nothing is on its way: sankey_journeys was changed "
            "by "
            "hand or restored alone, marks were removed, or rows came in with triggers off. "
            "`stepstream rebuild --execute` mends it"
        )
    elif cells and not counts["journeys"]:
        why.append(
            "counts are not what the journeys contribute, which no traffic explains: sankey_transitions or "
            "sankey_endings were changed by hand or restored alone. `stepstream rebuild --execute` mends it"
        )
    if told := why_apart(agrees):
        why.append(told)
    apart = [partition for partition, same in agrees.items() if same is False]
    differing = cells + counts["journeys"] + (0 if cells else len(nodes)) + len(apart)
    return Verdict(
        totals=dict(totals),
        transitions=await fetch("list_transitions"),
        endings=await fetch("list_endings"),
        journeys=await fetch("list_journeys"),
        nodes=nodes,
        differing=differing,
        in_flight=outcome.in_flight,
        apart=apart,
        journeys_waiting=outcome.waiting,
        events_waiting=await survey.fetchval(SQL["events_waiting"]),
        why=why if differing else [],
    )


def show_cells(transitions: list[dict[str, Any]], endings: list[dict[str, Any]]) -> None:
    """The cells that differ, figure by figure."""
    for name, cells in (("transitions", transitions), ("endings", endings)):
        rows = [
            (_cell(c), figure.replace("_", " "), c[f"expected_{figure}"], c[f"counted_{figure}"])
            for c in cells
            for figure in ("journeys", "elapsed_ms", "timed_journeys")
            if c.get(f"expected_{figure}") != c.get(f"counted_{figure}")
        ]
        if rows:
            print_table(f"{name} that differ", ("cell", "figure", "expected", "counted"), rows, _SHOWN)


def show_journeys(journeys: list[dict[str, Any]]) -> None:
    """The journeys that are not counted as their rows say."""
    rows = [
        (f"{j['mcp_server_user_id']} in {j['walkthrough_id']}", _told(j, "expected"), _told(j, "counted"))
        for j in journeys
    ]
    if rows:
        print_table("journeys that differ", ("journey", "as its rows say", "as counted"), rows, _SHOWN)


def _cell(cell: dict[str, Any]) -> str:
    """A cell's key on a line: walkthrough, server, day, and where in the flow."""
    where = f"{cell['walkthrough_id']} {cell['mcp_server_id']} {cell['began_on']}"
    if "to_step_id" in cell:
        return f"{where} {cell['position']}: {cell['from_step_id'] or 'start'} > {cell['to_step_id']}"
    if "position" in cell:
        return f"{where} {cell['position']}: {cell['step_id']}"
    last = f", last active {cell['last_active_on']}"
    return f"{where} {cell['steps_done']} done, at {cell['step_id'] or 'start'}{last}"


def _told(journey: dict[str, Any], which: str) -> str:
    """A journey's start and steps on a line."""
    steps, started = journey[f"{which}_step_ids"], journey[f"{which}_started_at"]
    if steps is None:
        return "none"
    begin = "" if started is None else f"started {told_time(started)}: "
    return begin + (" > ".join(steps) or "no step")


def report(verdict: Verdict, *, as_json: bool) -> None:
    """Prints the verdict.

    Raises:
        MismatchError: something differs.
    """
    if as_json:
        print_json(asdict(verdict))
    else:
        show_cells(verdict.transitions, verdict.endings)
        show_journeys(verdict.journeys)
        if verdict.nodes and not verdict.transitions and not verdict.endings:
            rows = [(_cell(n), n["arrived"], n["went_on_or_ended"]) for n in verdict.nodes]
            print_table("nodes that keep or make people", ("node", "in", "out"), rows, _SHOWN)
        totals = verdict.totals
        say(
            f"{totals['completions']:,} completions, {totals['starts']:,} starts, "
            f"{totals['journeys']:,} journeys, "
            f"{totals['transition_cells']:,} transition cells, {totals['ending_cells']:,} ending cells"
        )
        if verdict.in_flight:
            say(f"{verdict.in_flight:,} journeys were in flight, and right when looked at again")
        if verdict.events_waiting:
            say(
                f"[yellow]{many(verdict.events_waiting, 'event')} wait for rows that somebody else has "
                "locked[/], and are no completions yet: `stepstream status` says which rows"
            )
    if verdict.differing:
        cells = verdict.differing - len(verdict.apart)
        told = [f"{many(cells, 'cell')} and journeys differ"] if cells else []
        raise MismatchError("; ".join([*told, *verdict.why]))
    if not as_json:
        say("[bold green]exact[/]: every cell equals what completions and starts say")

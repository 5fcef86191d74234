"""How what differs between tables and counts is shown."""

from dataclasses import asdict
from typing import Any

from services.operator_cli.options import not_executed, print_json, print_table, say
from services.runtime.errors import MismatchError
from services.runtime.text import format_time, plural
from services.sankey_aggregator.rebuild import Rebuilt
from services.sankey_aggregator.verify import Verification

_SHOWN = 20


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
    begin = "" if started is None else f"started {format_time(started)}: "
    return begin + (" > ".join(steps) or "no step")


def report(verdict: Verification, *, as_json: bool) -> None:
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
                f"[yellow]{plural(verdict.events_waiting, 'event')} wait for rows that somebody else has "
                "locked[/], and are no completions yet: `stepstream status` says which rows"
            )
    if verdict.differing:
        cells = verdict.differing - len(verdict.apart)
        told = [f"{plural(cells, 'cell')} and journeys differ"] if cells else []
        raise MismatchError("; ".join([*told, *verdict.why]))
    if not as_json:
        say("[bold green]exact[/]: every cell equals what completions and starts say")


def show_differing(found: Rebuilt) -> None:
    """Tells what differs, on stdout."""
    show_cells(found.transitions, found.endings)
    show_journeys(found.differing_journeys)
    say(
        f"{plural(found.transition_cells, 'transition cell')}, {plural(found.ending_cells, 'ending cell')} "
        f"and {plural(found.journeys, 'journey')} differ from completions and starts"
    )


def report_rebuilt(found: Rebuilt, *, as_json: bool) -> None:
    """Tells what was done."""
    if as_json:
        print_json(asdict(found) | {"differing": found.differing})
    if not found.differing:
        say("[bold green]nothing to do[/]: every cell equals what completions and starts say")
    elif not found.executed:
        not_executed()
    else:
        say(
            f"[bold green]rebuilt[/]: the aggregator waited {found.swap_seconds:.2f} s for the swap; "
            f"{found.counted_meanwhile:,} of the journeys it had counted anew itself meanwhile"
        )
        if found.changed_meanwhile:
            say(
                f"[yellow]{plural(found.changed_meanwhile, 'cell')} were changed by somebody else[/] "
                "meanwhile, and put right as well"
            )

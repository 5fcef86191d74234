"""How journeys and cells that are not counted as their rows say are shown."""

from typing import Any

from services.operator_cli.options import print_table
from services.runtime.text import format_time

#: So many are shown; JSON has them all.
SHOWN = 20


def show_cells(transitions: list[dict[str, Any]], endings: list[dict[str, Any]]) -> None:
    """The cells that differ, figure by figure."""
    for name, cells in (("transitions", transitions), ("endings", endings)):
        rows = [
            (format_cell(c), figure.replace("_", " "), c[f"expected_{figure}"], c[f"counted_{figure}"])
            for c in cells
            for figure in ("journeys", "elapsed_ms", "timed_journeys", "active_ms", "active_journeys")
            if c.get(f"expected_{figure}") != c.get(f"counted_{figure}")
        ]
        if rows:
            print_table(f"{name} that differ", ("cell", "figure", "expected", "counted"), rows, SHOWN)


def show_journeys(journeys: list[dict[str, Any]]) -> None:
    """The journeys that are not counted as their rows say."""
    rows = [
        (
            f"{j['mcp_server_user_id']} in {j['walkthrough_id']}",
            _format_journey(j, "expected"),
            _format_journey(j, "counted"),
        )
        for j in journeys
    ]
    if rows:
        print_table("journeys that differ", ("journey", "as its rows say", "as counted"), rows, SHOWN)


def format_cell(cell: dict[str, Any]) -> str:
    """A cell's key on a line: walkthrough, server, day, and where in the flow."""
    where = f"{cell['walkthrough_id']} {cell['mcp_server_id']} {cell['began_on']}"
    if "to_step_id" in cell:
        skipped = " (skipped)" if cell["skipped"] else ""
        return (
            f"{where} {cell['position']}: {cell['from_step_id'] or 'start'} > {cell['to_step_id']}{skipped}"
        )
    if "position" in cell:
        return f"{where} {cell['position']}: {cell['step_id']}"
    skipped = f" and {cell['steps_skipped']} skipped" if cell["steps_skipped"] else ""
    shown = f", shown {cell['shown_step_id']}" if cell["shown_step_id"] else ""
    last = f", last active {cell['last_active_on']}"
    return f"{where} {cell['steps_done']} done{skipped}, at {cell['step_id'] or 'start'}{shown}{last}"


def _format_journey(journey: dict[str, Any], which: str) -> str:
    """A journey's start and steps on a line."""
    steps, started = journey[f"{which}_step_ids"], journey[f"{which}_started_at"]
    if steps is None:
        return "none"
    skipped = journey[f"{which}_skipped"] or [False] * len(steps)
    names = [f"{step} (skipped)" if is_skip else step for step, is_skip in zip(steps, skipped, strict=True)]
    begin = "" if started is None else f"started {format_time(started)}: "
    shown = journey[f"{which}_shown_step_id"]
    return begin + (" > ".join(names) or "no step") + (f", shown {shown}" if shown else "")

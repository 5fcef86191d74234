"""`stepstream rebuild`: the Sankey tables made what the rows of events say."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from services.operator_cli.cells import show_cells, show_journeys
from services.operator_cli.options import (
    ExecuteOption,
    Output,
    OutputOption,
    current_settings,
    examples,
    not_executed,
    print_json,
    progress,
    say,
)
from services.runtime.text import plural

if TYPE_CHECKING:
    from services.sankey_aggregator.rebuild import Rebuilt

app = typer.Typer()


@app.command(epilog=examples("rebuild", "rebuild --execute"))
def rebuild(execute: ExecuteOption = False, output: OutputOption = Output.TABLE) -> None:
    """Make the Sankey tables what the rows of events say, beside running services.

    Shows what differs first. The aggregator waits for the last transaction alone; what changes meanwhile is
    kept; interrupted, it leaves nothing behind. Refused (exit 4) while somebody else rebuilds.
    """
    from services.sankey_aggregator.rebuild import rebuild as build

    settings = current_settings()
    as_json = output is Output.JSON
    with progress("counting anew", "parts") as advance:
        found = asyncio.run(
            build(
                settings, execute=execute, progress=advance, before_swap=None if as_json else _show_differing
            )
        )
    _report(found, as_json=as_json)


def _show_differing(found: "Rebuilt") -> None:
    """Tells what differs, on stdout."""
    show_cells(found.transitions, found.endings)
    show_journeys(found.differing_journeys)
    say(
        f"{plural(found.transition_cells, 'transition cell')}, {plural(found.ending_cells, 'ending cell')} "
        f"and {plural(found.journeys, 'journey')} differ from the rows of events"
    )


def _report(found: "Rebuilt", *, as_json: bool) -> None:
    """Tells what was done."""
    if as_json:
        print_json(asdict(found) | {"differing": found.differing})
    if not found.differing:
        say("[bold green]nothing to do[/]: every cell equals what the rows of events say")
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

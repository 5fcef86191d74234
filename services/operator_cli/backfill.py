"""`stepstream backfill`: completions from before Stepstream."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.options import (
    ExecuteOption,
    Output,
    OutputOption,
    current_settings,
    examples,
    not_executed,
    print_json,
    print_table,
    say,
)
from services.operator_cli.produce import report as report_sent
from services.runtime.errors import UsageError

if TYPE_CHECKING:
    from services.operations.backfill import Backfill

_TOLD = 20


app = typer.Typer()


@app.command(
    epilog=examples(
        "backfill completions.csv",
        "backfill completions.csv --server docs --execute",
        "backfill --from-progress",
    )
)
def backfill(
    file: Annotated[
        Path | None,
        typer.Argument(help="CSV (.csv) or NDJSON: one completed step a line, with the fields of the event."),
    ] = None,
    from_progress: Annotated[
        bool,
        typer.Option("--from-progress", help="From the platform's walkthrough_progress, without a file."),
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="SLUG", help="Where people went of whom no session is known; one is made for each."
        ),
    ] = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send completions from before Stepstream, as events with stable ids: doing it again changes nothing.

    Without --execute it says what it would send, and what it cannot know.
    """
    from services.operations.backfill import backfill as fill

    if (file is None) != from_progress:
        raise UsageError("name a file, or say --from-progress")
    outcome = asyncio.run(fill(current_settings(), file, server, execute=execute))
    _report(outcome, as_json=output is Output.JSON)


def _report(outcome: "Backfill", *, as_json: bool) -> None:
    """Tells what was, or would be, sent, and what cannot be known.

    Raises:
        StepstreamError: something was not sent.
    """
    counts = {name: n for name, n in outcome.counts.items() if n}
    if as_json:
        print_json(
            {
                "executed": outcome.executed,
                "counts": counts,
                "sessions_made": outcome.sessions_made,
                "sent": outcome.sent.sent,
                "left_out": [{"where": w, "reason": r} for w, r in outcome.left_out],
            }
        )
    else:
        kinds = ("walkthrough-started", "step-completed")
        verb = "sent" if outcome.executed else "that would be sent"
        rows = [(f"{kind} events {verb}", counts[kind]) for kind in kinds if kind in counts]
        rows += [(name, n) for name, n in sorted(counts.items()) if name not in kinds]
        if outcome.sessions_made:
            made = "made" if outcome.executed else "that would be made"
            rows.append((f"sessions {made}, for people without one", outcome.sessions_made))
        print_table("", ("what", "how many"), rows or [("events", 0)])
        for where, reason in outcome.left_out[:_TOLD]:
            say(f"  {where}: {reason}", markup=False)
        if len(outcome.left_out) > _TOLD:
            say(f"  and {len(outcome.left_out) - _TOLD:,} more; -o json lists them")
    if outcome.executed:
        report_sent(outcome.sent, as_json=False)
    else:
        not_executed()

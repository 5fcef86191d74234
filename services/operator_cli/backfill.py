"""`stepstream backfill`: completions from before Stepstream."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.options import (
    ColumnOption,
    DelimiterOption,
    ExecuteOption,
    Output,
    OutputOption,
    current_settings,
    examples,
    not_executed,
    parse_columns,
    parse_delimiter,
    print_json,
    print_table,
    say,
)
from services.operator_cli.produce import report as report_sent
from services.operator_cli.stopping import nothing_begun, run_until_stopped
from services.runtime.errors import StepstreamError, StoppedError, UsageError
from services.runtime.text import plural

if TYPE_CHECKING:
    from services.operations.backfill import Backfill

_TOLD = 20


app = typer.Typer()


@app.command(
    epilog=examples(
        "backfill completions.csv",
        "backfill completions.csv --server docs --execute",
        "backfill export.csv.gz --column mcp_server_user_id=user --column completed_at=finished",
        "backfill --from-progress",
    )
)
def backfill(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="CSV (.csv, .tsv), NDJSON or JSON, gzip or not: one completed step a line, with the fields "
            "of the event."
        ),
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
    delimiter: DelimiterOption = None,
    column: ColumnOption = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send completions from before Stepstream, as events with stable ids: doing it again changes nothing.

    People may be named by `distinct_id`, as their organization registered them. Without --execute it says
    what it would send, and what it cannot know. Exit 1 where all was left out.
    """
    with nothing_begun():
        from services.operations.backfill import Backfill, Origin, Row, Shape
        from services.operations.backfill import backfill as fill

    if (file is None) != from_progress:
        raise UsageError("name a file, or say --from-progress")
    shape = Shape(parse_delimiter(delimiter), parse_columns(column or (), tuple(Row.model_fields)))
    outcome = Backfill(executed=execute)
    early = run_until_stopped(fill(current_settings(), Origin(file, shape, server), outcome))
    if early is not None and not outcome.sent.sent and not isinstance(early, StoppedError):
        raise early
    _report(outcome, early, as_json=output is Output.JSON)


def _report(outcome: "Backfill", early: StepstreamError | None, *, as_json: bool) -> None:
    """Tells what was, or would be, sent, and what cannot be known.

    Raises:
        StepstreamError: something was not sent.
    """
    for note in outcome.notes:
        say(note, markup=False)
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
            | ({"ended": str(early)} if early else {})
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
        report_sent(outcome.sent, early)
    elif early is not None:
        early.args = (f"{early}: the plan is not whole; nothing was changed",)
        raise early
    else:
        not_executed()
    _refuse_nothing(outcome)


def _refuse_nothing(outcome: "Backfill") -> None:
    """Raises where all was left out.

    Raises:
        StepstreamError: it was.
    """
    left = outcome.all_left_out
    is_something = any(n for name, n in outcome.counts.items() if not name.startswith("left out: "))
    if left and not is_something:
        what = "was sent" if outcome.executed else "would be sent"
        raise StepstreamError(
            f"nothing {what}: {plural(left, 'row')} left out, and there are no others. The reasons are above"
        )

"""`stepstream completions`: see what counts of a person, and mend what is wrong."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.options import (
    ExecuteOption,
    OfOrganizationOption,
    Output,
    OutputOption,
    PersonArgument,
    current_settings,
    examples,
    not_executed,
    print_json,
    print_table,
    say,
    time_option,
)
from services.runtime.text import format_time

if TYPE_CHECKING:
    from services.completion_recorder.corrections import Correction, Entry

app = typer.Typer(help="What counts of a person: see it, and mend what is wrong.", no_args_is_help=True)

StepArgument = Annotated[str, typer.Argument(metavar="STEP", help="Id of the step.")]


@app.command("show", epilog=examples("completions show mcpu_b01"))
def completions_show(
    person: PersonArgument,
    step: Annotated[str | None, typer.Option(help="Only of this step.")] = None,
    organization: OfOrganizationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what counts of a person, what would count if that did not, and what was corrected."""
    from services.completion_recorder import corrections

    entries = asyncio.run(corrections.show(current_settings(), person, step, organization=organization))
    _show_entries(entries, as_json=output is Output.JSON)


@app.command(
    "correct",
    epilog=examples(
        "completions correct mcpu_b01 install --completed-at 2026-11-24T09:00:00Z",
        "completions correct mcpu_b01 install --completed-at 2026-11-24T09:00:00Z --execute",
    ),
)
def completions_correct(
    person: PersonArgument,
    step: StepArgument,
    completed_at: Annotated[int, time_option("--completed-at", "When the person completed the step.")],
    session: Annotated[
        str | None, typer.Option(help="Id of the session; else that of the completion that is known.")
    ] = None,
    execute: ExecuteOption = False,
    organization: OfOrganizationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say when a person completed a step. No other completion up to now counts then; later ones do.

    A `step-corrected` event in the topic keeps it so under replay and on other consumers.
    """
    from services.completion_recorder import corrections

    work = corrections.correct(
        current_settings(), person, step, completed_at, session, execute=execute, organization=organization
    )
    _report(asyncio.run(work), as_json=output is Output.JSON)


@app.command(
    "remove",
    epilog=examples("completions remove mcpu_b01 install", "completions remove mcpu_b01 install --execute"),
)
def completions_remove(
    person: PersonArgument,
    step: StepArgument,
    execute: ExecuteOption = False,
    organization: OfOrganizationOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say that a person did not complete a step. No completion up to now counts then; later ones do.

    A `step-corrected` event in the topic keeps it so under replay and on other consumers.
    """
    from services.completion_recorder import corrections

    work = corrections.correct(
        current_settings(), person, step, None, execute=execute, organization=organization
    )
    _report(asyncio.run(work), as_json=output is Output.JSON)


def _show_entries(entries: Sequence["Entry"], *, as_json: bool) -> None:
    """What `show` found."""
    if as_json:
        print_json([asdict(e) for e in entries])
        return
    rows = [
        (
            e.step_id,
            e.state,
            "none" if e.completed_at is None else format_time(e.completed_at),
            "" if e.covers_until is None else format_time(e.covers_until),
            e.id,
        )
        for e in entries
    ]
    print_table("", ("step", "what", "completed at", "covers until", "id"), rows)


def _report(correction: "Correction", *, as_json: bool) -> None:
    """The plan, or what was done."""
    before, after, event = correction.before, correction.after, correction.event
    if as_json:
        print_json(asdict(correction))
    else:
        then = "counts now" if correction.recorded else "will count" if correction.executed else "would count"
        now = "counted before" if correction.executed else "counts now"
        title = f"step {event['step_id']} of {event['mcp_server_user_id']}"
        rows = [(now, *_row(before)), (then, *_row(after))]
        print_table(title, ("", "completed at", "id"), rows)
    if not correction.executed:
        say(f"completions up to {format_time(event['covers_until'])} would not count any more; later ones do")
        not_executed()
        return
    if not correction.recorded:
        say("[yellow]the completion-recorder has not passed the event yet[/]; it will")
    say(
        f"[bold green]sent[/]: the event {event['event_id']} keeps it so under replay. The person's progress "
        "at the MCP servers is as it was"
    )


def _row(entry: "Entry | None") -> tuple[str, str]:
    return ("no completion", "") if entry is None else (format_time(entry.completed_at), entry.id)

"""`stepstream gone`: events that are gone from Kafka, and that somebody has seen so."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operator_cli.options import (
    Output,
    OutputOption,
    current_settings,
    examples,
    print_json,
    print_table,
    say,
)
from services.runtime.errors import UsageError
from services.runtime.text import format_time, plural

if TYPE_CHECKING:
    from services.consumers.gone import NamedGone

app = typer.Typer(
    help="Events that are gone from Kafka: see which, and take them out of `status`.", no_args_is_help=True
)


@app.command("list", epilog=examples("gone list", "gone list --all -o json"))
def gone_list(
    everything: Annotated[bool, typer.Option("--all", help="Also what was acknowledged.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Events that are gone from Kafka: partition, offsets, between which times they came, and why."""
    from services.consumers import gone

    found = asyncio.run(gone.listed(current_settings(needs_kafka=False), acknowledged_too=everything))
    _show(found, output_json=output is Output.JSON)


@app.command("acknowledge", epilog=examples("gone acknowledge 1", "gone acknowledge --all"))
def gone_acknowledge(
    ids: Annotated[list[int] | None, typer.Argument(help="The numbers that `gone list` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Take them out of `status`: you have seen them, and done what there is to do."""
    from services.consumers import gone

    if bool(ids) == everything:
        raise UsageError("say which: their numbers, or --all")
    count = asyncio.run(
        gone.acknowledge(current_settings(needs_kafka=False), ids or [], everything=everything)
    )
    say(f"[green]done[/]: {plural(count, 'range')} acknowledged")


def as_json(gone: "NamedGone") -> dict[str, Any]:
    """For programs."""
    times = {
        name: format_time(getattr(gone, name)) or None
        for name in ("noticed_at", "before_at", "after_at", "acknowledged_at")
    }
    return asdict(gone) | times


def _show(gone: Sequence["NamedGone"], *, output_json: bool) -> None:
    """Tells what is gone."""
    if output_json:
        print_json([as_json(g) for g in gone])
        return
    if not gone:
        say("[green]nothing is gone[/] of which nobody knows")
        return
    columns = ("id", "topic", "partition", "offsets", "in the tables", "cause", "came between", "noticed")
    rows = [
        (
            g.id,
            g.topic,
            g.partition,
            g.offsets,
            g.judged,
            g.cause,
            f"{format_time(g.before_at) or '?'} and {format_time(g.after_at) or '?'}",
            format_time(g.noticed_at),
        )
        for g in gone
    ]
    print_table(plural(len(gone), "range"), columns, rows)
    from services.consumers.gone import CAUSES

    for cause in dict.fromkeys(g.cause for g in gone):
        say(f"{cause}: {CAUSES[cause]}")

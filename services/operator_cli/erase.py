"""`stepstream erase`: forget a person."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

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
)
from services.runtime.text import format_time, plural

if TYPE_CHECKING:
    from services.operations.erase import Receipt

#: So many letters of others are named.
_NAMED = 20


app = typer.Typer()


@app.command(epilog=examples("erase mcpu_k3Jd82LsQ0aZ", "erase mcpu_k3Jd82LsQ0aZ --execute -o json"))
def erase(
    user: PersonArgument,
    execute: ExecuteOption = False,
    organization: OfOrganizationOption = None,
    even_if_unknown: Annotated[
        bool, typer.Option("--even-if-unknown", help="Also where nothing is known of such an id (any more).")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Forget a person: completions, progress, sessions, journeys and counts, outbox and dead letters.

    A `user-erased` event in the topic keeps it so under replay and on other consumers. Doing it again is
    harmless.
    """
    from services.operations import erase as act
    from services.runtime.crashpoints import arm

    settings = current_settings()
    arm(settings.crash_at)
    work = act.erase if execute else act.plan
    receipt = asyncio.run(work(settings, user, unknown_too=even_if_unknown, organization=organization))
    _report(receipt, as_json=output is Output.JSON)


def _named_in(ids: Sequence[str]) -> str:
    """Which dead letters of others name the person, and what can be done."""
    named = ", ".join(ids[:_NAMED]) + (f" and {len(ids) - _NAMED:,} more (-o json)" if ids[_NAMED:] else "")
    return (
        f"{plural(len(ids), 'dead letter')} of others name this person and stay until their retention "
        f"removes them: {named}. `stepstream dlq show ID` shows one; Kafka lets nobody remove it alone"
    )


def _only(receipt: "Receipt") -> str:
    """Where else the name is found, of somebody of whom nothing is known."""
    if letters := receipt.removed["dead_letters"]:
        return f"; only {plural(letters, 'dead letter')} {'has' if letters == 1 else 'have'} this id"
    return "; only sources are called so" if receipt.is_source else ""


def _report(receipt: "Receipt", *, as_json: bool) -> None:
    """The plan, or the receipt."""
    if as_json:
        print_json(
            asdict(receipt) | {"erased_at": format_time(receipt.erased_at) if receipt.erased_at else None}
        )
    else:
        title = f"{'removed of' if receipt.executed else 'what there is of'} {receipt.user}"
        rows: Sequence[tuple[Any, ...]] = [(k.replace("_", " "), n) for k, n in receipt.removed.items()]
        print_table(title, ("what", "rows"), rows)
    for note in receipt.notes:
        say(f"[yellow]{escape(note)}[/]")
    if receipt.named_in:
        say(f"[yellow]{escape(_named_in(receipt.named_in))}[/]")
    if not receipt.executed:
        if receipt.erased_at is not None:
            say(f"erased before, at {format_time(receipt.erased_at)}")
        if receipt.nothing_known:
            say(f"[yellow]nothing is known of such a person[/]{_only(receipt)}: is the id right?")
        not_executed()
        return
    if receipt.event_id is None and not receipt.nothing_known:
        say(f"[bold green]erased[/]: nothing of {escape(receipt.user)} is left")
        return
    if receipt.event_id is None:
        say(
            "[bold green]done[/]: what sources of that name sent counts as (no source). Nobody is known by "
            "it, so nobody is noted as erased"
        )
        return
    say(
        f"[bold green]erased[/]: the event {receipt.event_id} keeps it so under replay and on other "
        "consumers. "
        "Earlier events stay in the topic until its retention removes them, and count nowhere"
    )

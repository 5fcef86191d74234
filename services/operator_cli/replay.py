"""`stepstream replay`: events again."""

import asyncio
import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from services.operator_cli.options import (
    ExecuteOption,
    GroupOption,
    Output,
    OutputOption,
    PartitionsOption,
    current_settings,
    examples,
    not_executed,
    parse_partitions,
    print_json,
    print_table,
    progress,
    say,
    time_option,
)
from services.runtime.errors import UsageError
from services.runtime.text import plural

if TYPE_CHECKING:
    from services.operations.replay import Fed, ReplayPlan


app = typer.Typer()


@app.command(
    epilog=examples(
        "replay --group sankey-aggregator --from-beginning",
        "replay --group completion-recorder --from -2h --execute",
        "replay --group completion-recorder --from 2026-11-24T09:00:00Z --to 2026-11-24T10:00:00Z",
        "replay --group completion-recorder --from-offset 0 --to-offset 5 --partitions 0,1 --execute",
    )
)
def replay(
    group: GroupOption,
    from_time: Annotated[
        int | None, time_option("--from", "From events that came to Kafka at this time or later.")
    ] = None,
    from_offset: Annotated[
        int | None, typer.Option(min=0, help="From this offset of each partition.")
    ] = None,
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="From the first event.")] = False,
    to_time: Annotated[
        int | None,
        time_option("--to", "Up to events that came before this time; the group stays where it is."),
    ] = None,
    to_offset: Annotated[
        int | None, typer.Option(min=0, help="Up to this offset, exclusively; the group stays where it is.")
    ] = None,
    partitions: PartitionsOption = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read events again: move a stopped group back, or feed a bounded range through once more.

    The tables are the same afterwards. Refused (exit 4) while the group has members, or, where it would be
    moved, somebody else moves positions. Nothing is skipped: a partition of which the group has not yet come
    so far stays where it is.
    """
    from services.operations import replay as act
    from services.runtime.alone import Act, alone

    if [from_time is not None, from_offset is not None, from_beginning].count(True) != 1:
        raise UsageError("say where to begin: one of --from, --from-offset and --from-beginning")
    if to_time is not None and to_offset is not None:
        raise UsageError("say where to stop once: --to or --to-offset")
    settings = current_settings()
    numbers = parse_partitions(partitions)

    async def work() -> tuple["ReplayPlan", "Fed | None"]:
        start = act.ReplayStart(from_time, from_offset, from_beginning)
        end = act.ReplayEnd(to_time, to_offset)
        moves = execute and not end.is_bounded
        async with alone(settings, Act.MOVE_POSITIONS) if moves else contextlib.nullcontext():
            plan = await act.make_plan(settings, group.value, start, end, numbers)
            await act.refuse_gaps(settings, plan)
            if not execute:
                return plan, None
            with progress("reading again", "events", plan.events) as advance:
                return plan, await act.execute(settings, plan, advance)

    plan, fed = asyncio.run(work())
    _show(plan, fed, as_json=output is Output.JSON, executed=execute)
    if not execute and plan.members:
        say(
            f"[yellow]the group has {plural(plan.members, 'member')} now[/]: stop every {group.value} before "
            "--execute, "
            "which is refused until then"
        )


def _show(plan: "ReplayPlan", fed: "Fed | None", *, as_json: bool, executed: bool) -> None:
    """Tells the plan, and whether it was carried out."""
    if as_json:
        print_json(
            {
                "service": plan.service,
                "group": plan.group,
                "topic": plan.topic,
                "bounded": plan.bounded,
                "members": plan.members,
                "events": plan.events,
                "partitions": [asdict(m) for m in plan.moves],
                "executed": executed,
            }
        )
    else:
        columns = ("topic", "partition", "group is at", "from", "up to", "events", "expired", "dead letters")
        rows = [
            (
                plan.topic,
                m.partition,
                m.present,
                m.new,
                m.until,
                m.events,
                f"up to {m.expired:,}" if m.expired and m.expired_at_most else m.expired,
                m.letters,
            )
            for m in plan.moves
        ]
        what = "fed through again, the group stays" if plan.bounded else "read again by the group"
        print_table(f"{plan.group}: {plural(plan.events, 'event')} {what}", columns, rows)
    if expired := sum(m.expired for m in plan.moves):
        at_most = "up to " if any(m.expired_at_most and m.expired for m in plan.moves) else ""
        say(
            f"[yellow]{at_most}{expired:,} of the wanted events have expired[/]: Kafka has removed them, "
            "and what "
            "is there is read from its first event on. The completions that they made stay"
        )
    if letters := sum(m.letters for m in plan.moves):
        say(
            f"{plural(letters, 'dead letter')} {'is' if letters == 1 else 'are'} of events in this range: "
            "what is refused again comes to the dead letters once more"
        )
    if not executed:
        not_executed()
    elif plan.bounded and fed is not None:
        _show_fed(fed)
        say(f"[green]done[/]: {fed.events:,} events were fed through; {escape(plan.group)} is where it was")
    elif plan.events:
        say(f"[green]done[/]: start {plan.service} again, and it reads {plan.events:,} events once more")
    else:
        say("[green]done[/]: there was nothing to move")


def _show_fed(fed: "Fed") -> None:
    if fed.waiting:
        say(
            f"[yellow]{plural(fed.waiting, 'event')} wait for rows that somebody else has locked[/]: "
            "completion-recorder records them when the locks go. `stepstream status` says which rows"
        )
    for what in fed.left_out:
        say(f"[yellow]left out[/]: {escape(what)}")

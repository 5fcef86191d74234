"""`stepstream skip`: events left behind, of which a service can make nothing."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operator_cli.options import (
    ExecuteOption,
    GroupName,
    Output,
    OutputOption,
    current_settings,
    examples,
    not_executed,
    print_json,
    print_table,
    say,
)
from services.runtime.errors import UsageError
from services.runtime.text import format_time, plural

if TYPE_CHECKING:
    from services.operations.skip import EventSkip
    from services.operations.unreadable import BatchSkip


app = typer.Typer()


@app.command(
    epilog=examples(
        "skip --partition 2",
        "skip --partition 2 --execute",
        "skip --group completion-recorder --partition 2 --to-offset 4",
        "skip --group sankey-aggregator --partition 2 --to-offset 4 -o json",
    )
)
def skip(
    partition: Annotated[int, typer.Option(min=0, help="The partition.")],
    group: Annotated[
        GroupName | None, typer.Option("--group", help="The service whose group it is; else both.")
    ] = None,
    to_offset: Annotated[
        int | None,
        typer.Option(min=1, help="The offset to go on at; else behind a batch that cannot be read."),
    ] = None,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Leave events behind that cannot be handled: the one way to move a service forward.

    Without --to-offset, it is the batch at which the services stand because nobody can read it: the plan
    shows it, its bytes become a dead letter, and services that run go on within seconds. With --to-offset,
    anything: then --group is needed, and it is refused (exit 4) while the group has members. What is left
    behind is named in `status` until it is acknowledged. An offset that is moved forward in Kafka alone is
    not believed. One at a time: a second one is refused (exit 4), and told who is at it.
    """
    from services.operations import skip as events
    from services.operations import unreadable as batches
    from services.runtime.alone import Act, alone

    settings = current_settings()
    as_json = output is Output.JSON

    async def of_events(service: str, to: int) -> None:
        plan = await events.plan_skip(settings, service, partition, to)
        if execute:
            async with alone(settings, Act.MOVE_POSITIONS):
                plan = await events.plan_skip(settings, service, partition, to)
                await events.skip(settings, plan)
        _show_events(plan, as_json=as_json, executed=execute)

    async def of_a_batch(services: Sequence[str]) -> None:
        plan, taken_up = await batches.plan_skip(settings, partition, services), False
        if execute:
            async with alone(settings, Act.MOVE_POSITIONS):  # whoever was at it may have moved the services
                plan = await batches.plan_skip(settings, partition, services)
                taken_up = await batches.skip(settings, plan)
        _show_batch(plan, as_json=as_json, executed=execute, taken_up=taken_up)
        if execute and not taken_up:
            raise typer.Exit(1)

    if to_offset is None:
        asyncio.run(of_a_batch([g.value for g in ([group] if group else GroupName)]))
    elif group is None:
        raise UsageError("--to-offset goes with --group: each service is where it is")
    else:
        asyncio.run(of_events(group.value, to_offset))


def _show_events(plan: "EventSkip", *, as_json: bool, executed: bool) -> None:
    """Tells the plan, and whether it was carried out."""
    if as_json:
        print_json(
            {
                "service": plan.service,
                "topic": plan.topic,
                "partition": plan.partition,
                "present": plan.present,
                "to": plan.to,
                "offsets": plan.offsets,
                "members": plan.members,
                "executed": executed,
            }
        )
    else:
        columns = ("topic", "partition", f"{plan.service} is at", "goes to", "left behind")
        print_table("", columns, [(plan.topic, plan.partition, plan.present, plan.to, plan.offsets)])
    if not executed:
        not_executed()
        return
    say(f"[green]done[/]: {plural(plan.offsets, 'offset')} are left behind")
    if plan.service == "completion-recorder":
        say(
            "`stepstream status` names them until somebody acknowledges them. Where the sankey-aggregator "
            "cannot read them either, skip them for it, too: --group sankey-aggregator"
        )


def _show_batch(plan: "BatchSkip", *, as_json: bool, executed: bool, taken_up: bool) -> None:
    """Tells the plan, and whether it was carried out."""
    batch = plan.batch
    if as_json:
        print_json(_as_json(plan, executed=executed, taken_up=taken_up))
    else:
        rows = [
            ("partition", f"{plan.partition} of {plan.topic}"),
            ("left behind", f"offsets {plan.offset:,} to {batch.until - 1:,}"),
            (
                "the batch",
                f"offsets {batch.first:,} to {batch.until - 1:,}, says that it has {batch.records:,} records",
            ),
            ("size", f"{len(batch.raw):,} bytes{'' if plan.is_kept else ', too large for a dead letter'}"),
            ("codec", batch.codec),
            ("format", batch.magic),
            ("came", format_time(batch.timestamp) or ""),
            ("cause", batch.cause),
            ("goes on", ", ".join(plan.services)),
        ]
        print_table("", ("what", "value"), rows)
    for service, at in plan.elsewhere.items():
        if at < plan.offset:
            say(
                f"[yellow]{service} is at {at:,}[/] and has yet to come to it: run this again when it stands "
                "there"
            )
    if not executed:
        not_executed()
        return
    say(
        f"[green]done[/]: {plural(plan.offsets, 'offset')} are left behind; `stepstream status` names them "
        "until somebody acknowledges them"
    )
    if not taken_up:
        say(
            "[yellow]a service has not gone on yet[/]: look at `stepstream status`, and run this "
            "again if it stays"
        )


def _as_json(plan: "BatchSkip", *, executed: bool, taken_up: bool) -> dict[str, Any]:
    batch = {k: v for k, v in asdict(plan.batch).items() if k != "raw"}
    return {
        "topic": plan.topic,
        "partition": plan.partition,
        "from_offset": plan.offset,
        "until_offset": plan.batch.until,
        "offsets": plan.offsets,
        "batch": batch | {"bytes": len(plan.batch.raw), "timestamp": format_time(plan.batch.timestamp)},
        "kept": plan.is_kept,
        "services": list(plan.services),
        "elsewhere": dict(plan.elsewhere),
        "executed": executed,
        "taken_up": taken_up if executed else None,
    }

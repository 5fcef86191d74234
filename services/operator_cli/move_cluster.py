"""`stepstream move-cluster`: on in another Kafka cluster."""

import asyncio
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from services.operations.move_cluster import ClusterMove


app = typer.Typer()


@app.command("move-cluster", epilog=examples("move-cluster", "move-cluster --execute"))
def move_cluster(execute: ExecuteOption = False, output: OutputOption = Output.TABLE) -> None:
    """Go on in another Kafka cluster: the one that STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS names now.

    The services refuse to start where the database's positions are of another cluster. This makes them read
    the new one from its beginning. Refused (exit 4) while a group has members there, or somebody else moves
    positions; stop the services of the old cluster first.
    """
    from services.operations import move_cluster as act
    from services.runtime.alone import Act, alone

    settings = current_settings()

    async def work() -> "ClusterMove":
        if not execute:
            return await act.plan_move(settings)
        async with alone(settings, Act.MOVE_POSITIONS):
            plan = await act.plan_move(settings)
            if plan.is_needed:
                await act.move(settings, plan)
            return plan

    plan = asyncio.run(work())
    _show(plan, as_json=output is Output.JSON, executed=execute)


def _show(plan: "ClusterMove", *, as_json: bool, executed: bool) -> None:
    """Tells the plan, and whether it was carried out."""
    rows: list[tuple[Any, ...]] = [
        (service, p, gone.from_offset, new.position.reads_from)
        for service, placements in plan.placements.items()
        for p, new in sorted(placements.items())
        for gone in new.gone[:1]
    ]
    if as_json:
        print_json(
            {
                "topic": plan.topic,
                "from_clusters": plan.from_clusters,
                "to_cluster": plan.to_cluster,
                "members": plan.members,
                "partitions": [
                    {"service": s, "partition": p, "read_in_the_old": old, "reads_from": new}
                    for s, p, old, new in rows
                ],
                "executed": executed,
            }
        )
    elif rows:
        columns = ("service", "partition", "read in the old cluster up to", "reads the new one from")
        print_table(f"{', '.join(plan.from_clusters)} → {plan.to_cluster}", columns, rows)
    if not plan.is_needed:
        say(f"[green]nothing to do[/]: no position is of another cluster than {plan.to_cluster}")
        return
    if not executed:
        not_executed()
        return
    say(
        "[green]done[/]: start the services again. They read all that this cluster holds; what they had "
        "before changes nothing. What the old cluster held after these offsets `stepstream status` names"
    )

"""`stepstream migrate`: schema and topics."""

import asyncio
from typing import Annotated

import typer

from services.operator_cli.options import console, current_settings, examples

app = typer.Typer()


@app.command(epilog=examples("migrate"))
def migrate(
    database_only: Annotated[
        bool, typer.Option(help="Leave Kafka alone: somebody else creates the topics.")
    ] = False,
) -> None:
    """Bring the database's schema up to date and create the topics that are missing. Safe to repeat."""
    from services.runtime.database import connected
    from services.runtime.kafka import ensure_topics
    from services.runtime.migrate import migrate as apply

    settings = current_settings(needs_kafka=not database_only)

    async def work() -> tuple[list[str], list[str]]:
        async with connected(settings) as connection:
            applied = await apply(connection)
        return applied, [] if database_only else await ensure_topics(settings)

    applied, topics = asyncio.run(work())
    for name in applied:
        console.print(f"applied {name}")
    for name in topics:
        console.print(f"created topic {name}")
    if not applied and not topics:
        console.print("nothing to do: the schema and the topics are up to date")

"""`stepstream examples`: what the contract's examples need."""

import asyncio

import typer

from services.operator_cli.options import current_settings, examples, say

app = typer.Typer()


@app.command("examples", epilog=examples("examples"))
def examples_command() -> None:
    """Write the rows that schemas/examples name, and print the id of their organization. Safe to repeat."""
    from services.operations.examples import ORGANIZATION, write_rows
    from services.runtime.database import connected

    settings = current_settings(needs_kafka=False)

    async def work() -> None:
        async with connected(settings) as db:
            await write_rows(db)

    asyncio.run(work())
    typer.echo(ORGANIZATION)
    say("[dim]next: cat schemas/examples/valid/*.json | stepstream produce -[/]")

"""`stepstream organizations`: whose servers and walkthroughs they are."""

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from services.walkthrough_mcp.catalog import Organization

app = typer.Typer(help="Organizations: whose servers and walkthroughs they are.", no_args_is_help=True)

SlugOption = Annotated[str | None, typer.Option(help="Its name in addresses; else made of the name.")]


@app.command("create", epilog=examples('organizations create "Acme Tools"'))
def organizations_create(
    name: Annotated[str, typer.Argument(help="What it is called.")], slug: SlugOption = None
) -> None:
    """Make an organization, and print its id."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "Organization":
        async with connected(settings) as db:
            return await catalog.create_organization(db, name, slug)

    made = asyncio.run(work())
    typer.echo(made.id)
    say(
        f"[dim]next: stepstream servers create --organization {made.slug} NAME; "
        f"a key for its figures: stepstream keys create --organization {made.slug}[/]"
    )


@app.command("list", epilog=examples("organizations list", "organizations list -o json"))
def organizations_list(output: OutputOption = Output.TABLE) -> None:
    """List organizations, with how many servers and walkthroughs each has."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "list[Organization]":
        async with connected(settings) as db:
            return await catalog.list_organizations(db)

    found = asyncio.run(work())
    if output is Output.JSON:
        print_json([asdict(o) for o in found])
        return
    columns = ("id", "name", "slug", "servers", "walkthroughs")
    print_table("", columns, [(o.id, o.name, o.slug, o.servers, o.walkthroughs) for o in found])

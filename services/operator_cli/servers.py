"""`stepstream servers`: MCP servers, which agents connect to."""

import asyncio
from dataclasses import asdict
from enum import StrEnum
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
from services.operator_cli.organizations import SlugOption

if TYPE_CHECKING:
    from services.runtime.settings import Settings
    from services.walkthrough_mcp.catalog import Server, Walkthrough

app = typer.Typer(help="MCP servers, which agents connect to.", no_args_is_help=True)

OrganizationOption = Annotated[
    str | None, typer.Option("--organization", help="Only of this one: its id or slug.")
]


class Auth(StrEnum):
    """How a server knows people."""

    NONE = "none"
    COLLECT_EMAIL = "collect_email"
    PLATFORM_OAUTH = "platform_oauth"
    CUSTOM_OAUTH = "custom_oauth"


@app.command("create", epilog=examples('servers create "Acme docs" --organization acme-tools'))
def servers_create(
    name: Annotated[str, typer.Argument(help="What it is called.")],
    organization: Annotated[str, typer.Option(help="Whose it is: id or slug.")],
    slug: SlugOption = None,
    product: Annotated[str | None, typer.Option(help="The product that it is about; else its name.")] = None,
    auth: Annotated[Auth, typer.Option(help="How it knows people: see docs/agents.md.")] = Auth.NONE,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Who issues tokens for it, where people sign in.")
    ] = None,
) -> None:
    """Make an MCP server, and print the address that agents connect to."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings()

    async def work() -> "Server":
        async with connected(settings) as db:
            return await catalog.create_server(
                db, organization, name, product=product, slug=slug, auth_type=auth.value, issuer=issuer
            )

    made = asyncio.run(work())
    typer.echo(_address(settings, made.slug))
    say(
        f'[dim]next: stepstream walkthroughs create "TITLE" --server {made.slug}, or '
        f"stepstream import FILE --server {made.slug}[/]"
    )


@app.command("list", epilog=examples("servers list", "servers list --organization acme-tools -o json"))
def servers_list(organization: OrganizationOption = None, output: OutputOption = Output.TABLE) -> None:
    """List MCP servers, with how many walkthroughs each offers."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings()

    async def work() -> "list[Server]":
        async with connected(settings) as db:
            return await catalog.list_servers(db, organization)

    found = asyncio.run(work())
    if output is Output.JSON:
        print_json([asdict(s) | {"address": _address(settings, s.slug)} for s in found])
        return
    columns = ("slug", "name", "organization", "how it knows people", "walkthroughs", "address")
    rows = [
        (s.slug, s.name, s.organization_id, s.auth_type, s.walkthroughs, _address(settings, s.slug))
        for s in found
    ]
    print_table("", columns, rows)


@app.command("show", epilog=examples("servers show docs"))
def servers_show(
    slug: Annotated[str, typer.Argument(help="Its slug.")], output: OutputOption = Output.TABLE
) -> None:
    """Show an MCP server: its address, how it knows people, and what it offers."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings()

    async def work() -> "tuple[Server, list[Walkthrough]]":
        async with connected(settings) as db:
            return await catalog.find_server(db, slug), await catalog.list_walkthroughs(db, server=slug)

    server, offered = asyncio.run(work())
    address = _address(settings, server.slug)
    if output is Output.JSON:
        print_json(asdict(server) | {"address": address, "offers": [w.id for w in offered]})
        return
    facts = [
        ("address", address),
        ("name", server.name),
        ("product", server.product),
        ("organization", server.organization_id),
        ("how it knows people", server.auth_type),
        ("issuer", server.issuer or ""),
    ]
    print_table("", ("what", "value"), facts)
    rows = [(w.id, w.title, w.status, w.step_count, w.under_way) for w in offered]
    print_table("walkthroughs", ("id", "title", "status", "steps", "people under way"), rows)


def _address(settings: "Settings", slug: str) -> str:
    return f"{settings.public_url.rstrip('/')}/mcp/{slug}"

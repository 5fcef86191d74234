"""`stepstream servers`: MCP servers, which agents connect to."""

import asyncio
import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlsplit

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
from services.runtime.errors import UsageError

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


class AgentClient(StrEnum):
    """Agents whose configuration is known."""

    CLAUDE_CODE = "claude-code"
    CLAUDE_DESKTOP = "claude-desktop"
    CURSOR = "cursor"
    VSCODE = "vscode"
    INSPECTOR = "inspector"


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
    """Make an MCP server, and print the address that agents connect to, and the id, which events name."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "Server":
        async with connected(settings) as db:
            return await catalog.create_server(
                db, organization, name, product=product, slug=slug, auth_type=auth.value, issuer=issuer
            )

    made = asyncio.run(work())
    typer.echo(_address(settings, made.slug))
    say(f"its id, which events name as mcp_server_id: {made.id}")
    say(
        f'[dim]next: stepstream walkthroughs create "TITLE" --server {made.slug}, or stepstream import FILE '
        f"--server {made.slug}; then stepstream servers connect {made.slug}[/]"
    )


@app.command("list", epilog=examples("servers list", "servers list --organization acme-tools -o json"))
def servers_list(organization: OrganizationOption = None, output: OutputOption = Output.TABLE) -> None:
    """List MCP servers, with how many walkthroughs each offers."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "list[Server]":
        async with connected(settings) as db:
            return await catalog.list_servers(db, organization)

    found = asyncio.run(work())
    if output is Output.JSON:
        print_json([asdict(s) | {"address": _address(settings, s.slug)} for s in found])
        return
    columns = ("id", "slug", "name", "organization", "how it knows people", "walkthroughs", "address")
    rows = [
        (s.id, s.slug, s.name, s.organization_id, s.auth_type, s.walkthroughs, _address(settings, s.slug))
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

    settings = current_settings(needs_kafka=False)

    async def work() -> "tuple[Server, list[Walkthrough]]":
        async with connected(settings) as db:
            return await catalog.find_server(db, slug), await catalog.list_walkthroughs(db, server=slug)

    server, offered = asyncio.run(work())
    address = _address(settings, server.slug)
    if output is Output.JSON:
        print_json(asdict(server) | {"address": address, "offers": [w.id for w in offered]})
        return
    facts = [
        ("id", server.id),
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


@app.command(
    "connect",
    epilog=examples("servers connect docs", "servers connect docs --client vscode --tracking-id visitor-1"),
)
def servers_connect(
    slug: Annotated[str, typer.Argument(help="Its slug.")],
    client: Annotated[AgentClient, typer.Option(help="The agent that connects.")] = AgentClient.CLAUDE_CODE,
    tracking_id: Annotated[
        str | None, typer.Option(help="Who the person is, where the server does not ask them to sign in.")
    ] = None,
) -> None:
    """Print how an agent connects to a server: a command, or a part of its configuration."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog
    from services.walkthrough_mcp.people import problem_of_tracking_id

    settings = current_settings(needs_kafka=False)

    async def work() -> "Server":
        async with connected(settings) as db:
            return await catalog.find_server(db, slug)

    server = asyncio.run(work())
    url = _address(settings, server.slug)
    if tracking_id is not None:
        if problem := problem_of_tracking_id(tracking_id):
            raise UsageError(f"--tracking-id: {problem}")
        url += f"/{quote(tracking_id, safe='')}"
    where, text = _connection(client, server.slug, url)
    if where:
        say(f"[dim]put it into {where}[/]")
    typer.echo(text)


def _connection(client: AgentClient, slug: str, url: str) -> tuple[str, str]:
    """Where it goes, empty for a command; and what it is."""
    commands = {
        AgentClient.CLAUDE_CODE: f"claude mcp add --transport http {slug} {url}",
        AgentClient.INSPECTOR: (
            f"npx @modelcontextprotocol/inspector --cli {url} --transport http --method tools/list"
        ),
    }
    if client in commands:
        return "", commands[client]
    # mcp-remote takes plain HTTP of this machine alone.
    is_plain = url.startswith("http://") and urlsplit(url).hostname not in {"127.0.0.1", "localhost"}
    allow_http = ["--allow-http"] if is_plain else []
    file, value = {
        AgentClient.CLAUDE_DESKTOP: (
            "claude_desktop_config.json",
            {"mcpServers": {slug: {"command": "npx", "args": ["-y", "mcp-remote", url, *allow_http]}}},
        ),
        AgentClient.CURSOR: (".cursor/mcp.json", {"mcpServers": {slug: {"url": url}}}),
        AgentClient.VSCODE: (".vscode/mcp.json", {"servers": {slug: {"type": "http", "url": url}}}),
    }[client]
    return file, json.dumps(value, indent=2)


def _address(settings: "Settings", slug: str) -> str:
    return f"{settings.public_url.rstrip('/')}/mcp/{slug}"

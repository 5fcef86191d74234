"""`stepstream keys`: make, list and revoke API keys."""

import asyncio
from datetime import datetime
from typing import Annotated, Any

import typer

from services.operator_cli.options import (
    ExecuteOption,
    Output,
    OutputOption,
    current_settings,
    examples,
    not_executed,
    parse_some_time,
    print_json,
    print_table,
    say,
)
from services.runtime.text import format_time

app = typer.Typer(help="API keys of organizations.", no_args_is_help=True)


@app.command(
    "create", epilog=examples("keys create --organization org_demo --name dashboard --expires-in 90d")
)
def keys_create(
    organization: Annotated[str, typer.Option(help="Id of the organization whose figures it opens.")],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: Annotated[
        float | None,
        typer.Option(
            metavar="DURATION", parser=parse_some_time, help="How long it is valid; else until revoked."
        ),
    ] = None,
    may_edit: Annotated[
        bool, typer.Option("--may-edit", help="Let it set when journeys are finished, beside reading.")
    ] = False,
) -> None:
    """Make a key and print it: it is shown this once, and kept as a hash alone."""
    from services.analytics_api import keys as api_keys
    from services.runtime.database import connected

    settings = current_settings(needs_kafka=False)

    async def work() -> api_keys.Key:
        async with connected(settings) as db:
            return await api_keys.create(db, organization, name, expires_in, may_edit=may_edit)

    key = asyncio.run(work())
    typer.echo(key.text)
    until = (
        "until it is revoked"
        if key.expires_at is None
        else f"until {format_time(key.expires_at.timestamp() * 1000)}"
    )
    say(f"[dim]its id is {key.id}; it is valid {until}. It is not shown again[/]")


@app.command("list", epilog=examples("keys list", "keys list --organization org_demo -o json"))
def keys_list(
    organization: Annotated[str | None, typer.Option(help="Only of this one.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List keys, without their secrets."""
    from services.analytics_api import keys as api_keys
    from services.runtime.database import connected

    settings = current_settings(needs_kafka=False)

    async def work() -> list[dict[str, Any]]:
        async with connected(settings) as db:
            return await api_keys.list_keys(db, organization)

    rows = [{name: _cell(value) for name, value in row.items()} for row in asyncio.run(work())]
    if output is Output.JSON:
        print_json(rows)
        return
    names = ("id", "state", "organization_id", "name", "may_edit", "created_at", "expires_at")
    heads = ("id", "state", "organization", "name", "may edit", "created", "expires")
    print_table("", heads, [["yes" if row[n] is True else row[n] or "" for n in names] for row in rows])


def _cell(value: object) -> object:
    return format_time(value.timestamp() * 1000) if isinstance(value, datetime) else value


@app.command("revoke", epilog=examples("keys revoke 1f9c3a7b20de", "keys revoke 1f9c3a7b20de --execute"))
def keys_revoke(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the key itself.")],
    execute: ExecuteOption = False,
) -> None:
    """Make a key invalid, from now on."""
    from services.analytics_api import keys as api_keys
    from services.runtime.database import connected

    settings = current_settings(needs_kafka=False)

    async def work() -> dict[str, Any]:
        async with connected(settings) as db:
            found = await api_keys.find(db, identifier)
            if execute:
                await api_keys.revoke(db, found["id"])
            return found

    found = asyncio.run(work())
    say(f"{found['id']} ({found['name'] or 'without a name'}) of {found['organization_id']}", markup=False)
    if found["revoked_at"] is not None:
        say("it was revoked before")
    elif execute:
        say("[green]done[/]: it opens nothing any more")
    else:
        not_executed()

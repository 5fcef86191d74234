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
    "create",
    epilog=examples(
        "keys create --organization org_demo --name dashboard --expires-in 90d",
        "keys create --organization org_demo --name shop --may-write --type step-completed --source /shop",
    ),
)
def keys_create(
    organization: Annotated[str, typer.Option(help="The organization that it is of: id or slug.")],
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
    may_write: Annotated[
        bool,
        typer.Option("--may-write", help="Let it send events and register people and sessions, not read."),
    ] = False,
    may_read: Annotated[
        bool, typer.Option("--may-read", help="Let one that writes read figures, too; all others do.")
    ] = False,
    may_register: Annotated[
        bool,
        typer.Option("--may-register", help="Register people and sessions on first sight in its events."),
    ] = False,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="TYPE", help="A type of events that it may send; again for more. Else each."
        ),
    ] = None,
    servers: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="SLUG",
            help="A server, by slug or id, that its events may name; again for more. Else each.",
        ),
    ] = None,
    source: Annotated[
        str, typer.Option(help="The system that sends, as its refused events are shown: /checkout, say.")
    ] = "",
) -> None:
    """Make a key and print it: it is shown this once, and kept as a hash alone."""
    from services.analytics_api import keys as api_keys
    from services.runtime.database import connected

    settings = current_settings(needs_kafka=False)
    grant = api_keys.Grant(
        may_read=may_read or not may_write,
        may_edit=may_edit,
        may_write=may_write,
        may_register=may_register,
        types=types or (),
        servers=servers or (),
        source=source,
    )

    async def work() -> api_keys.Key:
        async with connected(settings) as db:
            return await api_keys.create(
                db,
                organization,
                name,
                expires_in,
                grant,
                trusted_sources=settings.names(settings.trusted_sources),
            )

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
    organization: Annotated[str | None, typer.Option(help="Only of this one: id or slug.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List keys, without their secrets."""
    from services.analytics_api import keys as api_keys
    from services.runtime.database import connected

    settings = current_settings(needs_kafka=False)

    async def work() -> list[dict[str, Any]]:
        async with connected(settings) as db:
            return await api_keys.list_keys(db, organization)

    rows = [
        {name: _cell(value) for name, value in row.items()} | {"may": api_keys.says(row)}
        for row in asyncio.run(work())
    ]
    if output is Output.JSON:
        print_json(rows)
        return
    names = ("id", "state", "organization_id", "name", "may", "source", "created_at", "expires_at")
    heads = ("id", "state", "organization", "name", "may", "source", "created", "expires")
    print_table("", heads, [[row[n] or "" for n in names] for row in rows])


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

"""`stepstream import` and `stepstream export`: walkthroughs in the platform's format."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from services.operator_cli.options import Output, OutputOption, console, current_settings, examples
from services.runtime.errors import UsageError
from services.runtime.text import json_text

app = typer.Typer()


@app.command("import", epilog=examples("import walkthrough.json --server docs --dry-run"))
def import_(
    file: Annotated[Path, typer.Argument(help="A walkthrough in the platform's export format 1.0.")],
    server: Annotated[str, typer.Option(help="Slug of the MCP server that will offer it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import a walkthrough and offer it on a server. A second import of the same file updates it.

    Prints the walkthrough's id. Steps that are there and not in the file stay, with what people did in them.
    """
    from services.runtime.database import connected
    from services.walkthrough_mcp.exchange import ImportPlan, import_walkthrough, read_export

    export = read_export(file)
    settings = current_settings(needs_kafka=False)

    async def work() -> ImportPlan:
        async with connected(settings) as connection:
            return await import_walkthrough(connection, export, server, dry_run=dry_run)

    plan = asyncio.run(work())
    if output is Output.JSON:
        typer.echo(json.dumps(asdict(plan) | {"dry_run": dry_run}))
    else:
        typer.echo(plan.walkthrough_id)
    marks = {"create": "[green]+[/]", "update": "[yellow]~[/]", "keep": "[dim]=[/]", "leave": "[dim]·[/]"}
    for change in plan.changes:
        note = " [dim](not in the file; it stays)[/]" if change.action == "leave" else ""
        title = escape(change.title)
        what = f"{change.what} {escape(change.id)}"
        console.print(f"{marks[change.action]} {what}  {title}{note}", soft_wrap=True)
    counts = plan.counts
    console.print(
        f"{'would have ' if dry_run else ''}created {counts['create']}, updated {counts['update']}, "
        f"left {counts['keep'] + counts['leave']} as they are"
    )


@app.command(epilog=examples("export wt_quick", "export wt_quick --file walkthrough.json"))
def export(
    walkthrough: Annotated[str, typer.Argument(help="Id of the walkthrough.")],
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Where to write; else stdout.")] = None,
) -> None:
    """Write a walkthrough in the platform's export format 1.0; importing that changes nothing."""
    from services.runtime.database import connected
    from services.walkthrough_mcp.exchange import export_walkthrough

    settings = current_settings(needs_kafka=False)

    async def work() -> dict[str, Any]:
        async with connected(settings) as connection:
            return await export_walkthrough(connection, walkthrough)

    text = json_text(asyncio.run(work()), indent=2)
    if file is None:
        typer.echo(text)
        return
    try:
        file.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None

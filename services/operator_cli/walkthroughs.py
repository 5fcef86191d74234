"""`stepstream walkthroughs`: make them, publish them, and change their steps."""

import asyncio
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

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
from services.operator_cli.servers import OrganizationOption
from services.runtime.errors import UsageError
from services.runtime.text import format_time, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.journeys.versions import Versions
    from services.runtime.finish_rules import FinishRuleOf
    from services.walkthrough_mcp.catalog import Status, Step, StepMove, Walkthrough

app = typer.Typer(help="Walkthroughs: make, publish and change them.", no_args_is_help=True)

WalkthroughArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the walkthrough.")]


class Type(StrEnum):
    """The platform's types of walkthroughs."""

    COURSE = "course"
    INSTALLER = "installer"
    TROUBLESHOOTING = "troubleshooting"
    INTEGRATION = "integration"
    QUICKSTART = "quickstart"


@app.command("create", epilog=examples('walkthroughs create "First steps" --server docs --minutes 15'))
def walkthroughs_create(
    title: Annotated[str, typer.Argument(help="Its title.")],
    server: Annotated[str, typer.Option(metavar="SLUG", help="The MCP server that will offer it.")],
    description: Annotated[str | None, typer.Option(help="What it is about, for agents and people.")] = None,
    type_: Annotated[Type, typer.Option("--type", help="What kind of walkthrough it is.")] = Type.COURSE,
    minutes: Annotated[int | None, typer.Option(min=1, max=100_000, help="About how long it takes.")] = None,
) -> None:
    """Make a walkthrough without steps, a draft that nobody is offered, and print its id.

    `stepstream import` makes a whole one from a file.
    """
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "Walkthrough":
        async with connected(settings) as db:
            return await catalog.create_walkthrough(
                db, server, title, description=description, type_=type_.value, minutes=minutes
            )

    made = asyncio.run(work())
    typer.echo(made.id)
    say(f'[dim]next: stepstream walkthroughs add-step {made.id} "TITLE" --for-user FILE[/]')


@app.command(
    "list",
    epilog=examples("walkthroughs list", "walkthroughs list --server docs", "walkthroughs list -o json"),
)
def walkthroughs_list(
    organization: OrganizationOption = None,
    server: Annotated[str | None, typer.Option(metavar="SLUG", help="Only what this server offers.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List walkthroughs, with their steps and how many people are under way."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "list[Walkthrough]":
        async with connected(settings) as db:
            return await catalog.list_walkthroughs(db, organization, server)

    found = asyncio.run(work())
    if output is Output.JSON:
        print_json([_as_json(w) for w in found])
        return
    columns = ("id", "title", "status", "steps", "people under way", "servers")
    rows = [(w.id, w.title, w.status, w.step_count, w.under_way, ", ".join(w.servers)) for w in found]
    print_table("", columns, rows)


@app.command("show", epilog=examples("walkthroughs show wt_quick"))
def walkthroughs_show(walkthrough: WalkthroughArgument, output: OutputOption = Output.TABLE) -> None:
    """Show a walkthrough with its steps, and how many people stand before each."""
    found = asyncio.run(_find(walkthrough))
    if output is Output.JSON:
        print_json(_as_json(found) | {"steps": [asdict(s) for s in found.steps]})
        return
    title = f"{found.title}: {found.status}, {_people(found.under_way)} under way"
    print_table(title, ("place", "id", "step", "people before it"), _rows(found.steps))


@app.command(
    "add-step",
    epilog=examples(
        'walkthroughs add-step wt_quick "Install it" --for-user install.md --operations "Run the installer."'
    ),
)
def walkthroughs_add_step(
    walkthrough: WalkthroughArgument,
    title: Annotated[str, typer.Argument(help="Title of the step.")],
    for_user: Annotated[
        Path | None, typer.Option("--for-user", metavar="FILE", help="What the person is shown: Markdown.*")
    ] = None,
    introduction: Annotated[str | None, typer.Option(help="How the agent introduces it.*")] = None,
    context: Annotated[str | None, typer.Option(help="What the agent should know.*")] = None,
    operations: Annotated[str | None, typer.Option(help="What the agent does.*")] = None,
    optional: Annotated[bool, typer.Option("--optional", help="People may leave it out.")] = False,
) -> None:
    """Add a step behind the last one, and print its id. One of the options marked with * is required."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    given = {
        "introductionForAgent": introduction,
        "contextForAgent": context,
        "contentForUser": None if for_user is None else _read(for_user),
        "operationsForAgent": operations,
    }
    content = {name: text for name, text in given.items() if text is not None}
    if not content:
        raise UsageError("a step has something to say: --for-user, --introduction, --context or --operations")
    settings = current_settings(needs_kafka=False)

    async def work() -> "Step":
        async with connected(settings) as db:
            return await catalog.add_step(db, walkthrough, title, content, optional=optional)

    typer.echo(asyncio.run(work()).id)


@app.command(
    "move-step",
    epilog=examples("walkthroughs move-step deploy --to 2", "walkthroughs move-step deploy --to 2 --execute"),
)
def walkthroughs_move_step(
    step: Annotated[str, typer.Argument(metavar="STEP", help="Id of the step.")],
    to: Annotated[int, typer.Option("--to", min=1, help="Its place, from 1.")],
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Move a step to another place. What people did stays done; each goes on with the first open step."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "StepMove":
        async with connected(settings) as db:
            act = catalog.move_step if execute else catalog.plan_move
            return await act(db, step, to)

    plan = asyncio.run(work())
    found = plan.walkthrough
    if output is Output.JSON:
        print_json(_as_json(found) | {"steps": [s.id for s in plan.after], "executed": execute})
    elif plan.is_needed:
        print_table(f"{found.title}, then", ("place", "id", "step", "people before it"), _rows(plan.after))
    if not plan.is_needed:
        say(f"[green]nothing to do[/]: it is at place {to}")
    elif execute:
        say(f"[green]done[/]: {escape(found.id)} has its steps in this order")
    else:
        _warn_of_people(found)
        not_executed()


@app.command(
    "finish-rule",
    epilog=examples(
        "walkthroughs finish-rule wt_quick",
        "walkthroughs finish-rule wt_quick --goal deploy --execute",
        "walkthroughs finish-rule wt_quick --end deploy --execute",
        "walkthroughs finish-rule wt_quick --default --execute",
    ),
)
def walkthroughs_finish_rule(
    walkthrough: WalkthroughArgument,
    goal: Annotated[
        list[str] | None,
        typer.Option("--goal", metavar="STEP", help="Completing it finishes a journey; may be repeated."),
    ] = None,
    end: Annotated[
        list[str] | None,
        typer.Option(
            "--end", metavar="STEP", help="Who does nothing after it has finished; may be repeated."
        ),
    ] = None,
    optional: Annotated[
        list[str] | None,
        typer.Option("--optional", metavar="STEP", help="It need not be passed; may be repeated."),
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Nothing set: every step that is not optional is passed.")
    ] = False,
    execute: ExecuteOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show, or set, when journeys count as finished. Figures follow at once, of all journeys.

    What is given stands for all that was set before.
    """
    from services.runtime.database import connected
    from services.runtime.finish_rules import GivenRule, plan_finish_rule, read_finish_rule, set_finish_rule
    from services.walkthrough_mcp import catalog

    given = GivenRule(tuple(goal or ()), tuple(optional or ()), tuple(end or ()))
    if default and not given.is_empty:
        raise UsageError("--default sets nothing: leave out --goal, --end and --optional")
    sets = default or not given.is_empty
    if execute and not sets:
        raise UsageError("nothing to execute: give --goal, --end, --optional, or --default")
    settings = current_settings(needs_kafka=False)

    async def work() -> "tuple[FinishRuleOf, FinishRuleOf]":
        async with connected(settings) as db:
            found = await catalog.find_walkthrough(db, walkthrough)
            before = await read_finish_rule(db, found.id)
            if not sets:
                return before, before
            act = set_finish_rule if execute else plan_finish_rule
            return before, await act(db, found.id, given)

    before, after = asyncio.run(work())
    if output is Output.JSON:
        print_json(_rule_as_json(walkthrough, after) | {"executed": execute})
    elif not sets:
        say(f"a journey is finished when {after.says}", markup=False)
    else:
        say(f"before: a journey is finished when {before.says}", markup=False)
        say(f"{'now' if execute else 'then'}: when {after.says}", markup=False)
    if sets and not execute:
        not_executed()


@app.command(
    "versions", epilog=examples("walkthroughs versions wt_quick", "walkthroughs versions wt_quick -o json")
)
def walkthroughs_versions(walkthrough: WalkthroughArgument, output: OutputOption = Output.TABLE) -> None:
    """List what edits made of a walkthrough: since when, its steps then, and what each changed."""
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "Versions":
        async with connected(settings) as db:
            return await catalog.list_versions(db, walkthrough)

    found = asyncio.run(work())
    if output is Output.JSON:
        print_json(
            [
                {
                    "number": v.number,
                    "since": v.since,
                    "made_at": v.made_at,
                    "says": found.says(v.number),
                    "steps": [{"id": s.id, "title": s.title} for s in v.steps],
                }
                for v in found.all
            ]
        )
        return
    rows = [
        (v.number, "" if v.since is None else format_time(v.since), len(v.steps), found.says(v.number))
        for v in found.all
    ]
    print_table("", ("version", "since", "steps", "what changed"), rows)


@app.command(
    "publish", epilog=examples("walkthroughs publish wt_quick", "walkthroughs publish wt_quick --execute")
)
def walkthroughs_publish(walkthrough: WalkthroughArgument, execute: ExecuteOption = False) -> None:
    """Offer a walkthrough to people on its servers."""
    _set_status(walkthrough, "published", execute=execute)


@app.command(
    "archive", epilog=examples("walkthroughs archive wt_quick", "walkthroughs archive wt_quick --execute")
)
def walkthroughs_archive(walkthrough: WalkthroughArgument, execute: ExecuteOption = False) -> None:
    """Offer a walkthrough to nobody any more, also not to those who are under way. Its figures stay."""
    _set_status(walkthrough, "archived", execute=execute)


def _set_status(identifier: str, status: "Status", *, execute: bool) -> None:
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    settings = current_settings(needs_kafka=False)

    async def work() -> "Walkthrough":
        async with connected(settings) as db:
            found = await catalog.find_walkthrough(db, identifier)
            if execute and found.status != status:
                await catalog.set_status(db, found, status)
            return found

    found = asyncio.run(work())
    where = escape(", ".join(found.servers)) or "no server"
    if found.status == status:
        say(f"[green]nothing to do[/]: {escape(found.id)} is {status}")
    elif execute:
        offered = f"; offered on {where}" if status == "published" else ""
        say(f"[green]done[/]: {escape(found.id)} is {status}{offered}")
    else:
        say(f"“{escape(found.title)}” is {found.status}, with {plural(found.step_count, 'step')}, on {where}")
        if status == "archived":
            _warn_of_people(found)
        not_executed()


def _warn_of_people(found: "Walkthrough") -> None:
    if found.under_way:
        say(f"[yellow]{_people(found.under_way)} under way now[/]")


def _people(count: int) -> str:
    return f"{count:,} {'person' if count == 1 else 'people'}"


async def _find(identifier: str) -> "Walkthrough":
    from services.runtime.database import connected
    from services.walkthrough_mcp import catalog

    async with connected(current_settings(needs_kafka=False)) as db:
        return await catalog.find_walkthrough(db, identifier)


_OPTIONAL = " (optional)"
#: What a person is shown in a step is no longer, in bytes.
_MOST_TEXT = 16 * 1024 * 1024


def _rows(steps: "Sequence[Step]") -> list[tuple[int, str, str, int]]:
    return [
        (place, s.id, s.title + _OPTIONAL * (s.optional and _OPTIONAL not in s.title.lower()), s.shown_to)
        for place, s in enumerate(steps, start=1)
    ]


def _rule_as_json(walkthrough: str, rule: "FinishRuleOf") -> dict[str, object]:
    return {
        "walkthrough_id": walkthrough,
        "goal_step_ids": list(rule.given.goal),
        "optional_step_ids": list(rule.given.optional),
        "end_step_ids": list(rule.given.ends),
        "finished_means": rule.says,
    }


def _as_json(found: "Walkthrough") -> dict[str, object]:
    return {
        "id": found.id,
        "organization_id": found.organization_id,
        "title": found.title,
        "status": found.status,
        "servers": list(found.servers),
        "step_count": found.step_count,
        "under_way": found.under_way,
    }


def _read(file: Path) -> str:
    from services.runtime.files import read_whole

    try:
        return read_whole(file, _MOST_TEXT).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file}: it is not UTF-8") from None

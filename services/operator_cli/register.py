"""`stepstream register`: people and sessions, by ids of their organization's own."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operator_cli.options import (
    console,
    current_settings,
    examples,
    parse_time,
    print_json,
    print_table,
    progress,
    say,
)
from services.runtime.errors import StepstreamError, UsageError

if TYPE_CHECKING:
    from services.analytics_api.intake.bodies import Item
    from services.operations.register import Result, What

app = typer.Typer(
    help="People and sessions, by ids of their organization's own: safe to repeat.", no_args_is_help=True
)

#: So many that were refused are told one by one, and so many rows are printed.
_TOLD = 20
_ROWS = 50


class Format(StrEnum):
    """How what became of each is printed on stdout."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"


FileArgument = Annotated[
    str | None,
    typer.Argument(
        help="One JSON object a line, or CSV that begins with a line of names; `-` is standard input."
    ),
]
OrganizationOption = Annotated[str, typer.Option("--organization", help="Whose they are: id or slug.")]
FormatOption = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]


@app.command(
    "people",
    epilog=examples(
        "register people people.csv --organization acme-tools",
        "register people --organization acme-tools --distinct-id u-1 -o json",
    ),
)
def register_people(
    organization: OrganizationOption,
    file: FileArgument = None,
    distinct_id: Annotated[
        list[str] | None, typer.Option(help="Somebody, by the organization's own id; again for more.")
    ] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Register people, and print the id of each, by which events name them.

    The same distinct_id again is the same person; that of another organization is another one.
    """
    from services.operations.register import PEOPLE

    given = [{"distinct_id": one} for one in distinct_id or ()]
    columns = ("distinct_id", "mcp_server_user_id", "created")
    _report(_taken(organization, PEOPLE, file, given, "--distinct-id", output), columns, output)


@app.command(
    "sessions",
    epilog=examples(
        "register sessions sessions.ndjson --organization acme-tools",
        "register sessions --organization acme-tools --session-id s-1 --server acme-docs --distinct-id u-1",
    ),
)
def register_sessions(
    organization: OrganizationOption,
    file: FileArgument = None,
    session_id: Annotated[str | None, typer.Option(help="One session, by the organization's own id.")] = None,
    server: Annotated[
        str | None, typer.Option(help="Its server: slug or id; else the organization's only one.")
    ] = None,
    distinct_id: Annotated[
        str | None, typer.Option(help="Whose it is, by the organization's own id; else nobody's yet.")
    ] = None,
    started_at: Annotated[
        int | None,
        typer.Option(metavar="TIME", parser=parse_time, help="When it began: RFC 3339, say; else now."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="What it is called.")] = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Register sessions, with the people whom they name, and print the id of each, for events."""
    from services.operations.register import SESSIONS

    names = {"server": server, "distinct_id": distinct_id, "started_at": started_at, "title": title}
    one = {name: value for name, value in names.items() if value is not None}
    if session_id is None and one:
        raise UsageError(
            f"--{next(iter(one)).replace('_', '-')} is of one session: name it with --session-id"
        )
    given = [] if session_id is None else [{"session_id": session_id, **one}]
    columns = ("session_id", "mcp_server_session_id", "created")
    _report(_taken(organization, SESSIONS, file, given, "--session-id", output), columns, output)


def _taken(
    organization: str,
    what: "What",
    file: str | None,
    given: Sequence[dict[str, Any]],
    option: str,
    output: Format,
) -> "list[Result]":
    """What became of each.

    Raises:
        UsageError: neither a file nor options say what, or both do; or the file cannot be read.
    """
    from services.operations.register import register
    from services.runtime.database import connected

    if (file is None) is not bool(given):
        raise UsageError(f"give a file, `-` for standard input, or {option}: one of them")
    settings = current_settings(needs_kafka=False)

    async def work() -> "list[Result]":
        results: list[Result] = []
        with _items(file, what, given) as items:
            async with connected(settings) as db:
                async for batch in register(db, organization, what, items):
                    results += batch
                    if output is Format.NDJSON:
                        for result in batch:
                            print_json(_json_of(result))
        return results

    return asyncio.run(work())


@contextlib.contextmanager
def _items(file: str | None, what: "What", given: Sequence[dict[str, Any]]) -> "Iterator[Iterator[Item]]":
    from services.analytics_api.intake.bodies import Item
    from services.operations.register import MOST_LINE, items_of_file
    from services.runtime.files import lines_of, open_lines

    if file is None:
        yield iter([Item(index, one) for index, one in enumerate(given)])
        return
    with open_lines(file) as (lines, size), progress("registering", "bytes", size) as bar:
        read = 0

        def advance(more: int) -> None:
            nonlocal read
            read += more
            bar(read)

        yield items_of_file(lines_of(lines, file, MOST_LINE), what, advance)


def _json_of(result: "Result") -> dict[str, Any]:
    return result.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _report(results: "Sequence[Result]", columns: Sequence[str], output: Format) -> None:
    """Prints what became of each.

    Raises:
        StepstreamError: some were refused.
    """
    if output is Format.JSON:
        print_json([_json_of(result) for result in results])
    good = [result for result in results if result.error is None]
    if output is Format.TABLE and good:
        rows = [[getattr(result, name) for name in columns] for result in good]
        print_table("", (*columns[:-1], "new"), rows, _ROWS, len(rows))
    new = sum(1 for result in good if result.created)
    say(f"{len(good):,} registered, {new:,} of them new")
    refused = [result for result in results if result.error is not None]
    if not refused:
        return
    for result in refused[:_TOLD]:
        where = f"line {result.line}" if result.line is not None else f"number {result.index + 1}"
        assert result.error is not None  # noqa: S101 - those alone were chosen
        console.print(
            f"  {where}: {result.error.class_}: {result.error.message}", markup=False, soft_wrap=True
        )
    if len(refused) > _TOLD:
        console.print(f"  and {len(refused) - _TOLD:,} more; -o json lists them all")
    raise StepstreamError(
        f"{len(refused):,} of {len(results):,} were refused. Mend them and give them again: what is "
        "registered stays as it is"
    )

"""`stepstream register`: people and sessions, by ids of their organization's own."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operator_cli.options import (
    ColumnOption,
    DelimiterOption,
    JsonList,
    current_settings,
    examples,
    parse_columns,
    parse_delimiter,
    parse_time,
    print_json,
    print_table,
    progress_of_bytes,
    say,
    tell_refused,
)
from services.runtime.errors import StepstreamError, UsageError

if TYPE_CHECKING:
    from services.analytics_api.intake.bodies import Item
    from services.operations.register import Result, What

app = typer.Typer(
    help="People and sessions, by ids of their organization's own: safe to repeat.", no_args_is_help=True
)

#: So many rows are printed.
_ROWS = 50


class Format(StrEnum):
    """How what became of each is printed on stdout."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"


@dataclass(frozen=True, slots=True)
class _File:
    """A file, or none, with what separates its columns and which they are; what stands for one."""

    name: str | None
    delimiter: str | None
    columns: Sequence[str]
    else_: str


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
        "register people customers.csv --organization acme-tools --column distinct_id=customer",
        "register people --organization acme-tools --distinct-id u-1 -o json",
    ),
)
def register_people(
    organization: OrganizationOption,
    file: FileArgument = None,
    distinct_id: Annotated[
        list[str] | None, typer.Option(help="Somebody, by the organization's own id; again for more.")
    ] = None,
    delimiter: DelimiterOption = None,
    column: ColumnOption = None,
    output: FormatOption = Format.TABLE,
) -> None:
    """Register people, and print the id of each, by which events name them.

    The same distinct_id again is the same person; that of another organization is another one.
    """
    from services.operations.register import PEOPLE

    given = [{"distinct_id": one} for one in distinct_id or ()]
    columns = ("distinct_id", "mcp_server_user_id", "created")
    read = _File(file, parse_delimiter(delimiter), column or (), "--distinct-id")
    _register(organization, PEOPLE, given, read, _Outcome(columns, output))


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
    delimiter: DelimiterOption = None,
    column: ColumnOption = None,
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
    read = _File(file, parse_delimiter(delimiter), column or (), "--session-id")
    _register(organization, SESSIONS, given, read, _Outcome(columns, output))


@dataclass
class _Outcome:
    """What became of each, told as it comes: the first ones are kept, and counts of all."""

    columns: Sequence[str]
    output: Format
    good: int = 0
    new: int = 0
    #: Rows of a table.
    first: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        from services.operations.tally import Tally

        self.refused = Tally()
        self.stream = JsonList()

    def take(self, results: "Sequence[Result]") -> None:
        """Takes some more."""
        for result in results:
            if self.output is Format.NDJSON:
                print_json(_json_of(result))
            elif self.output is Format.JSON:
                self.stream.add([_json_of(result)])
            if (error := result.error) is not None:
                where = f"line {result.line}" if result.line is not None else f"number {result.index + 1}"
                self.refused.add(error.class_, where, f"{error.class_}: {error.message}")
                continue
            self.good += 1
            self.new += bool(result.created)
            if len(self.first) < _ROWS:
                self.first.append([getattr(result, name) for name in self.columns])

    def report(self) -> None:
        """Tells what came of it.

        Raises:
            StepstreamError: some were refused.
        """
        if self.output is Format.TABLE and self.good:
            print_table("", (*self.columns[:-1], "new"), self.first, _ROWS, self.good)
        say(f"{self.good:,} registered, {self.new:,} of them new")
        tell_refused(self.refused)
        if bad := self.refused.total:
            raise StepstreamError(
                f"{bad:,} of {self.good + bad:,} were refused. Mend them and give them again: what is "
                "registered stays as it is"
            )


def _register(
    organization: str, what: "What", given: Sequence[dict[str, Any]], file: _File, outcome: _Outcome
) -> None:
    """Registers, and tells what became of each.

    Raises:
        UsageError: neither a file nor options say what, or both do; or the file cannot be read.
        StepstreamError: some were refused.
    """
    from services.operations.register import register
    from services.runtime.database import connected

    if (file.name is None) is not bool(given):
        raise UsageError(f"give a file, `-` for standard input, or {file.else_}: one of them")
    if file.name is None and (file.delimiter is not None or file.columns):
        raise UsageError("--delimiter and --column are for a file")
    columns = parse_columns(file.columns, what.columns)
    settings = current_settings(needs_kafka=False)

    async def work() -> None:
        with _items(file, columns, what, given) as items:
            async with connected(settings) as db:
                async for batch in register(db, organization, what, items):
                    outcome.take(batch)

    try:
        asyncio.run(work())
    finally:
        if outcome.output is Format.JSON and (outcome.good or outcome.refused.total):
            outcome.stream.end()
    outcome.report()


@contextlib.contextmanager
def _items(
    file: _File, columns: dict[str, str], what: "What", given: Sequence[dict[str, Any]]
) -> "Iterator[Iterator[Item]]":
    from services.analytics_api.intake.bodies import Item
    from services.operations.register import MOST_LINE, Reading, items_of_file
    from services.runtime.files import lines_of, open_lines

    if file.name is None:
        yield iter([Item(index, one) for index, one in enumerate(given)])
        return
    with open_lines(file.name) as (lines, size), progress_of_bytes("registering", size) as advance:
        told = lambda text: say(f"{file.name}: {text}", markup=False)  # noqa: E731 - of this file
        yield items_of_file(
            lines_of(lines, file.name, MOST_LINE), what, Reading(file.delimiter, advance, told, columns)
        )


def _json_of(result: "Result") -> dict[str, Any]:
    return result.model_dump(mode="json", by_alias=True, exclude_unset=True)

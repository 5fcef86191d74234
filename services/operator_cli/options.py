"""What the commands share: options, output, times, and how a plan is confirmed."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import durationpy
import typer
from pydantic import AwareDatetime, TypeAdapter, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.console import Group as Lines
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from services.runtime.errors import UsageError
from services.runtime.text import json_text

if TYPE_CHECKING:
    from services.operations.tally import Tally
    from services.runtime.settings import Settings


class Safe:
    """What is shown, without what a terminal would obey: titles, ids and names are somebody else's words.

    Args:
        shown: anything that rich shows.
    """

    def __init__(self, shown: RenderableType) -> None:
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._shown, options):
            if segment.control:
                yield segment
            else:
                yield Segment("\n".join(map(safe, segment.text.split("\n"))), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._shown)


class _Safely(RenderHook):
    """Makes all that a console prints safe for a terminal."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [Safe(renderable) for renderable in renderables]


def _safe_console(*, stderr: bool = False, width: int | None = None) -> Console:
    made = Console(stderr=stderr, width=width, highlight=False)
    made.push_render_hook(_Safely())
    return made


def safe(text: str) -> str:
    """A text of unknown origin for a terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() or c == " " else ascii(c)[1:-1] for c in text)


#: For people: what a command says beside its result.
console = _safe_console(stderr=True)

#: How wide results are where there is no terminal.
_WIDE = 120
#: Texts so short are never broken.
_SHORT = 24


class Output(StrEnum):
    """How a command prints its result on stdout."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]
PersonArgument = Annotated[
    str,
    typer.Argument(
        metavar="PERSON",
        help="A person: id, tracking id, the id under which an organization registered them, or e-mail "
        "address, in any case.",
    ),
]
OfOrganizationOption = Annotated[
    str | None,
    typer.Option(
        "--organization",
        metavar="NAME",
        help="Whose person it is, by id or slug: for an id that several have registered.",
    ),
]
ExecuteOption = Annotated[
    bool, typer.Option("--execute", help="Do it. Without this the plan is shown and nothing changes.")
]


class GroupName(StrEnum):
    """A consumer group, by its service."""

    COMPLETION_RECORDER = "completion-recorder"
    SANKEY_AGGREGATOR = "sankey-aggregator"


GroupOption = Annotated[GroupName, typer.Option("--group", help="The service whose group it is.")]


def current_settings(*, needs_kafka: bool = True, needs_database: bool = True) -> "Settings":
    """The settings of the environment."""
    from services.runtime.environment import load_settings

    return load_settings(needs_kafka=needs_kafka, needs_database=needs_database)


def examples(*lines: str) -> str:
    """The end of a command's help: each line is tried by the tests."""
    return "\n\n".join(["Examples:", *(f"$ stepstream {line}" for line in lines)])


DelimiterOption = Annotated[
    str | None,
    typer.Option(
        "--delimiter", metavar="CHAR", help="What separates columns of CSV, or `tab`; else it is seen."
    ),
]


def parse_delimiter(given: str | None) -> str | None:
    """The character of --delimiter; None where it is not given.

    Raises:
        UsageError: it is not one.
    """
    if given is None or len(given) == 1:
        return given
    if given in {"tab", "\\t"}:
        return "\t"
    raise UsageError(f"--delimiter: `{given}` is not one character; `tab` stands for one")


ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=NAME",
        help="Which column a field is, once for each; others are left out then.",
    ),
]


def parse_columns(given: Iterable[str], fields: Sequence[str]) -> dict[str, str]:
    """The column of each field that --column names.

    Raises:
        UsageError: it is none, or there is no such field.
    """
    found = {}
    for pair in given:
        name, is_pair, column = pair.partition("=")
        known = ", ".join(fields)
        if not is_pair or not column:
            raise UsageError(f"--column: `{pair}` is not FIELD=NAME; the fields are {known}")
        if name not in fields:
            raise UsageError(f"--column: there is no field `{name}`; the fields are {known}")
        found[name] = column
    return found


PartitionsOption = Annotated[
    str | None, typer.Option("--partitions", metavar="N,N", help="Only these partitions; else all.")
]


def parse_partitions(text: str | None) -> list[int] | None:
    """The numbers of --partitions; None where it is not given.

    Raises:
        UsageError: it is no list of numbers.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise UsageError(f"--partitions: `{text}` is no list of numbers like 0,3")
    return [int(part) for part in parts]


# --- times ---------------------------------------------------------------------------------------------

_AWARE: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)
_TIMES = (
    "an RFC 3339 time (2026-11-24T09:00:00Z), seconds or milliseconds since the epoch, or -2h for two "
    "hours ago"
)


def parse_time(text: str) -> int:
    """A time of the command line in milliseconds since the epoch.

    RFC 3339 with an offset; seconds or milliseconds since the epoch; or a duration before now: `-2h`,
    `-1h30m`, `-7d`.

    Raises:
        typer.BadParameter: it is none of these.
    """
    if re.fullmatch(r"-\s*(\d+(\.\d+)?[a-z]+)+", text):
        try:
            return int((time.time() - durationpy.from_str(text[1:].strip()).total_seconds()) * 1000)
        except durationpy.DurationError:
            raise typer.BadParameter(f"`{text}` is not a time: give {_TIMES}") from None
    if re.fullmatch(r"\d+", text):
        number = int(text)
        return number if number >= 100_000_000_000 else number * 1000
    try:
        return round(_AWARE.validate_python(text).timestamp() * 1000)
    except ValidationError:
        raise typer.BadParameter(f"`{text}` is not a time: give {_TIMES}") from None


def parse_duration(text: str | float) -> float:
    """A duration of the command line in seconds: `30s`, `10m`, `2h`, `90d`.

    Raises:
        typer.BadParameter: it is none, or is less than nothing.
    """
    if isinstance(text, float):  # a default
        return text
    try:
        seconds = float(durationpy.from_str(text).total_seconds())
    except durationpy.DurationError:
        raise typer.BadParameter(f"`{text}` is not a duration: give one like 30s, 10m, 2h or 90d") from None
    if seconds < 0:
        raise typer.BadParameter(f"`{text}` is less than nothing: give a duration like 30s, 10m, 2h or 90d")
    return seconds


def parse_some_time(text: str | float) -> float:
    """A duration of the command line in seconds, which is not 0: of what is then done again, or ends.

    Raises:
        typer.BadParameter: it is none, or lasts no time.
    """
    seconds = parse_duration(text)
    if not seconds:
        raise typer.BadParameter(f"`{text}` lasts no time: give a duration like 30s, 10m, 2h or 90d")
    return seconds


def time_option(name: str, help_: str) -> Any:
    """An option that takes a time."""
    return typer.Option(name, metavar="TIME", parser=parse_time, help=help_)


# --- output --------------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """The result for programs: one JSON document on stdout."""
    typer.echo(json_text(value))


class JsonList:
    """A list for programs that is printed as it comes, an element a line."""

    def __init__(self) -> None:
        self._is_begun = False

    def add(self, values: Iterable[Any]) -> None:
        """Prints some more."""
        texts = [json_text(value) for value in values]
        if texts:
            typer.echo((",\n" if self._is_begun else "[") + ",\n".join(texts), nl=False)
            self._is_begun = True

    def end(self, *, nl: bool = True) -> None:
        """Prints its end."""
        typer.echo("]" if self._is_begun else "[]", nl=nl)


class JsonObject:
    """An object for programs with one long list, whose elements are printed as they come.

    Args:
        name: of the list.
    """

    def __init__(self, name: str) -> None:
        self._beginning = f"{{{json_text(name)}: "
        self._is_begun = False
        self._list = JsonList()

    def add(self, element: Any) -> None:
        """Prints one more."""
        self._begin()
        self._list.add([element])

    def end(self, rest: Mapping[str, Any]) -> None:
        """Prints its end, with these beside the list."""
        self._begin()
        self._list.end(nl=False)
        typer.echo("".join(f", {json_text(name)}: {json_text(value)}" for name, value in rest.items()) + "}")

    def _begin(self) -> None:
        if not self._is_begun:
            typer.echo(self._beginning, nl=False)
        self._is_begun = True


#: So many that were refused are told one by one.
_TOLD = 20


def tell_refused(tally: "Tally") -> None:
    """The first of what was refused, some of each kind, and how many more there are."""
    for one in (first := tally.first(_TOLD)):
        console.print(f"  {one.place}: {one.reason}", markup=False, soft_wrap=True)
    if (more := tally.total - len(first)) > 0:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in tally.counts.most_common())
        of_all = f" (of all: {kinds})" if len(tally.counts) > 1 else ""
        console.print(f"  and {more:,} more{of_all}; -o json lists them all", markup=False, soft_wrap=True)


def print_result(what: RenderableType) -> None:
    """The result for people, on stdout."""
    _out().print(what)


def _out() -> Console:
    """Stdout; where it is no terminal and nobody says how wide, lines are not broken early."""
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return _safe_console(width=wide)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    shown: int | None = None,
    total: int | None = None,
) -> None:
    """As `make_table`, on stdout; with `shown`, no more than so many rows of the `total`."""
    print_result(make_table(title, columns, rows[:shown]))
    left = (len(rows) if total is None else total) - (shown or 0)
    if shown is not None and left > 0:
        typer.echo(f"and {left:,} more; -o json lists them all")


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> RenderableType:
    """A table for people: texts are shown as they are, numbers to the right."""
    table = Table(header_style="dim", box=SIMPLE_HEAD, pad_edge=False)
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max((len(row[i]) for row in [columns, *cells]), default=0) for i in range(len(columns))]
    keep = [w for w in widths if w <= _SHORT]
    fits = sum(keep) + 3 * len(widths) <= _out().width
    for number, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(r[number], int | float | None) for r in rows)
        table.add_column(
            name,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=fits and widths[number] <= _SHORT,
        )
    for row in cells:
        table.add_row(*row)
    return Lines(Text(title, style="bold", no_wrap=True), table) if title else table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else escape(safe(str(value)))


def say(text: str, **style: Any) -> None:
    """A line for people, on stderr. It has rich's markup: what others wrote has to be escaped."""
    console.print(text, soft_wrap=True, **style)


def not_executed() -> None:
    """What ends a plan."""
    say("[yellow]nothing was changed[/]: this is the plan; --execute carries it out")


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, of: int | None = None) -> None:
        """So much is done, of so much where that is known."""


@contextmanager
def progress(description: str, unit: str, total: int | None = None) -> Iterator[Advance]:
    """A progress bar on a terminal, nothing elsewhere; yields a function of (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit, style="dim"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)

        def advance(done: int, of: int | None = None) -> None:
            bar.update(task, completed=done, total=of)

        yield advance


@contextmanager
def progress_of_bytes(
    description: str, size: int | None, more: Callable[[], str] = lambda: ""
) -> Iterator[Callable[[int], None]]:
    """As `progress`, over a file of so many bytes; yields a function of how many more are done.

    What `more` says is shown beside it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[more]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=size, more="")
        yield lambda done: bar.update(task, advance=done, more=more())

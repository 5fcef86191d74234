"""People and sessions from a file: the same verdicts as over HTTP, some at a time."""

import csv
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from schemas.names import meant_by
from services.analytics_api.intake.bodies import Item
from services.analytics_api.intake.registrations import (
    MOST_REGISTERED,
    GivenPerson,
    GivenSession,
    PersonResult,
    SessionResult,
    take_people,
    take_sessions,
)
from services.analytics_api.registering import find_organization
from services.operations.tables import delimiter_of, told
from services.runtime.database import Connection
from services.runtime.errors import UsageError
from services.runtime.fair import Writing

#: Whoever may run commands registers whom they name.
_OPERATOR: Final = Writing(source="", may_register=True)
#: No line of a file is longer, in bytes.
MOST_LINE: Final = 100_000

Result: TypeAlias = PersonResult | SessionResult


@dataclass(frozen=True, slots=True)
class What:
    """What is registered: its name, and the columns that a table of it may have."""

    name: str
    columns: tuple[str, ...]


PEOPLE: Final = What("people", tuple(GivenPerson.model_fields))
SESSIONS: Final = What("sessions", tuple(GivenSession.model_fields))


async def register(
    db: Connection, organization: str, what: What, items: Iterable[Item]
) -> AsyncIterator[Sequence[Result]]:
    """Registers for an organization, named by id or slug, and yields what became of each, in order.

    Some are committed at a time; to run it again is safe.

    Raises:
        UsageError: there is no such organization, or a file cannot be read.
    """
    owner = await find_organization(db, organization)
    left = iter(items)
    while batch := list(itertools.islice(left, MOST_REGISTERED)):
        async with db.transaction():
            if what is PEOPLE:
                taken: Any = await take_people(db, owner, batch)
            else:
                taken = await take_sessions(db, owner, _OPERATOR, batch, int(time.time() * 1000))
        yield taken.results


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file is read: what separates its columns, else it is seen; who is told of bytes, and of that.

    Where `columns` are named, by the field that they stand for, others than fields are left out.
    """

    delimiter: str | None
    advance: Callable[[int], None]
    tell: Callable[[str], object]
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, str]:
        """The field of each column that was named."""
        return {column: name for name, column in self.columns.items()}


def items_of_file(lines: Iterable[bytes], what: What, reading: Reading) -> Iterator[Item]:
    """The items of a file, NDJSON or CSV with a line of names.

    Raises:
        UsageError: it is neither, or names a column that there is not.
    """
    numbered = _numbered(lines, reading.advance)
    first = next(numbered, None)
    if first is None:
        raise UsageError(f"there are no {what.name} in it")
    text = itertools.chain([first], numbered)
    if reading.delimiter is None and first[1].startswith("{"):
        yield from _of_json(text, reading)
        return
    wanted = {*what.columns, *reading.columns.values()}
    delimiter = reading.delimiter or delimiter_of(first[1], wanted)
    if reading.delimiter is None and delimiter != ",":
        reading.tell(told(delimiter))
    yield from _of_table(text, what, delimiter, reading)


def _numbered(lines: Iterable[bytes], advance: Callable[[int], None]) -> Iterator[tuple[int, str]]:
    """Lines that say something, each with its number."""
    for number, line in enumerate(lines, start=1):
        advance(len(line))
        if len(line) > MOST_LINE:
            raise UsageError(f"line {number}: it has more than {MOST_LINE:,} bytes")
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise UsageError(f"line {number}: it is no UTF-8") from None
        if text:
            yield number, text


def _of_json(lines: Iterable[tuple[int, str]], reading: Reading) -> Iterator[Item]:
    for index, (number, text) in enumerate(lines):
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Item(index, None, number, problem=f"the line is no JSON: {error}")
            continue
        if reading.columns and isinstance(given, dict):
            named = {name: given[column] for column, name in reading.fields.items() if column in given}
            given = {name: value for name, value in given.items() if name not in reading.fields} | named
        yield Item(index, given, number)


def _of_table(
    lines: Iterable[tuple[int, str]], what: What, delimiter: str, reading: Reading
) -> Iterator[Item]:
    """Rows of CSV, one a line; an empty cell is none."""
    rows = ((number, _cells(text, delimiter)) for number, text in lines)
    number, columns = next(rows)
    names = _names([column.strip() for column in columns], what, reading, number)
    for index, (at, cells) in enumerate(rows):
        if len(cells) > len(names):
            yield Item(index, None, at, problem=f"the line has {len(cells)} cells for {len(names)} names")
            continue
        pairs = zip(names, cells, strict=False)
        given = {name: _cell(name, text) for name, text in pairs if text and name is not None}
        yield Item(index, given, at)


def _names(columns: Sequence[str], what: What, reading: Reading, number: int) -> list[str | None]:
    """The field of each column; None where it is left out.

    Raises:
        UsageError: one is no field, and nobody said which are; or one that was named is not there.
    """
    of = f"of {what.name}, which are {', '.join(what.columns)}"
    if absent := [column for column in reading.columns.values() if column not in columns]:
        raise UsageError(f"line {number}: --column: there is no column `{absent[0]}`")
    fields = {name: name for name in what.columns if name not in reading.columns} | reading.fields
    unknown = [column for column in columns if column not in fields]
    if unknown and not reading.columns:
        meant = meant_by(unknown[0], tuple(name for name in what.columns if name not in columns))
        field_ = meant[0] if meant else "FIELD"
        raise UsageError(
            f"line {number}: `{unknown[0]}` is no column {of}; --column {field_}={unknown[0]} says what it "
            "is, and leaves other columns out. Else give one JSON object a line"
        )
    return [fields.get(column) for column in columns]


def _cells(text: str, delimiter: str) -> list[str]:
    """The cells of a line; a line that ends in its midst, as with a bare carriage return, is one cell."""
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except csv.Error:
        return [text]


def _cell(name: str, text: str) -> str | int:
    is_number = name == "started_at" and text.isascii() and text.isdigit() and len(text) < 20
    return int(text) if is_number else text

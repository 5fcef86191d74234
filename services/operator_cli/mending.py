"""Dead letters mended in bulk: out as lines of JSON, and back in with other values.

A mended value stands for the same event: key and event id stay, and so do headers. All lines are checked
before anything is sent.
"""

import base64
import binascii
import dataclasses
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from schemas import EventError, decode, event_id_in
from services.operator_cli.dead_letters import (
    Filter,
    Letter,
    Source,
    encoded,
    encoded_headers,
    is_event_of,
    read_letters,
)
from services.operator_cli.options import safe, say
from services.operator_cli.produce import open_lines
from services.runtime.database import Connection
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.settings import Settings
from services.runtime.text import many, told_time

#: Lines that are told one by one.
_TOLD = 20
_ABSENT = object()


# --- out -------------------------------------------------------------------------------------------------


async def export(letters: AsyncIterator[Letter], file: str | None) -> int:
    """Writes a line for each letter to the file, or to stdout; returns how many.

    Raises:
        UsageError: the file cannot be written.
    """
    count = 0
    with _writing(file) as out:
        async for letter in letters:
            out.write(_line(_exported(letter)))
            count += 1
    return count


def _exported(letter: Letter) -> dict[str, Any]:
    return {
        "topic": letter.source.topic,
        "partition": letter.source.partition,
        "offset": letter.source.offset,
        "source": letter.sender,
        "error_class": letter.last.error_class,
        "error": letter.last.error,
        "came_at": told_time(letter.last.timestamp),
        **encoded("key", letter.record.key),
        **encoded("value", letter.record.value),
        "headers": encoded_headers(letter),
    }


def _line(exported: dict[str, Any]) -> bytes:
    try:
        return json.dumps(exported, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # the name of a header is not UTF-8
        return json.dumps(exported).encode() + b"\n"


@contextmanager
def _writing(file: str | None) -> Iterator[BinaryIO]:
    """The file, for its owner alone: what letters hold is about people."""
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    with os.fdopen(number, "wb") as out:
        yield out


# --- in --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mended:
    """A line: the letter that it mends and its new value; what else it says has to be the letter's."""

    line: int
    source: Source
    value: bytes
    said: Mapping[str, object]


@dataclass
class Plan:
    """What would be sent again."""

    letters: list[Letter] = field(default_factory=list)
    #: Letters of the file that somebody has redriven or dropped in the meantime.
    handled: list[Letter] = field(default_factory=list)
    #: Lines of the file that cannot be sent, and why.
    problems: list[tuple[int, str]] = field(default_factory=list)
    #: How many letters of the file hold no event id to compare with.
    without_id: int = 0

    def of_topic(self, settings: Settings) -> list[Letter]:
        """Those that come from the topic of events, and can go back there."""
        return [letter for letter in self.letters if is_event_of(settings.topic, letter)]

    def tell(self, settings: Settings) -> None:
        """Says which lines are wrong, what is left out, and where nothing could be compared.

        Raises:
            StepstreamError: a line is wrong.
        """
        if stay := len(self.letters) - len(self.of_topic(settings)):
            say(
                f"[yellow]{stay:,} do not say that they come from {settings.topic}, or are batches that "
                "could not be read: they stay[/]"
            )
        for line, problem in sorted(self.problems)[:_TOLD]:
            say(f"  line {line}: {safe(problem)}", markup=False)
        if len(self.problems) > _TOLD:
            say(f"  and {len(self.problems) - _TOLD:,} more; -o json lists them all")
        if self.handled:
            ids = [f"{letter.source} ({letter.action})" for letter in self.handled]
            more = f" and {len(ids) - _TOLD:,} more" if len(ids) > _TOLD else ""
            say(f"[yellow]handled meanwhile, left out:[/] {', '.join(ids[:_TOLD])}{more}")
        if self.without_id:
            say(
                f"{many(self.without_id, 'letter')} held no event id that can be read: those of the file are "
                "taken"
            )
        if self.problems:
            raise StepstreamError(f"{many(len(self.problems), 'line')} cannot be sent; nothing was sent")


@dataclass
class File:
    """The lines of a file by the letter that each mends, and those that mend none."""

    mended: dict[Source, Mended] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)


def read_file(file: str) -> File:
    """Reads a file of mended letters, or standard input for `-`, to its end.

    Raises:
        UsageError: the file cannot be read.
    """
    found = File()
    with open_lines(file) as (lines, _):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                one = _read(number, line)
            except ValueError as error:
                found.problems.append((number, str(error)))
                continue
            first = found.mended.setdefault(one.source, one)
            if first is not one:
                found.problems.append((number, f"{one.source}: line {first.line} mends this letter, too"))
    return found


async def make_plan(settings: Settings, db: Connection, file: File) -> Plan:
    """Holds each line against its letter and the contract.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    made = Plan(problems=list(file.problems))
    mended = dict(file.mended)
    now_ms = int(time.time() * 1000)
    async for letter in read_letters(settings, db, Filter(), handled=True):
        if (of_letter := mended.pop(letter.source, None)) is None:
            continue
        if letter.action not in {None, "redriving"}:
            made.handled.append(letter)
        elif problem := _problem(settings, of_letter, letter, now_ms):
            made.problems.append((of_letter.line, f"{letter.source}: {problem}"))
        else:
            made.without_id += _id_of(letter) is None
            record = dataclasses.replace(letter.record, value=of_letter.value)
            made.letters.append(dataclasses.replace(letter, record=record))
    for one in mended.values():
        made.problems.append((one.line, f"{one.source}: there is no such dead letter of {one.source.topic}"))
    made.letters.sort(key=lambda letter: (letter.last.timestamp, letter.source))
    return made


def _read(number: int, line: bytes) -> Mended:
    """A line of the file.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    if not isinstance(said, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - read as the others
    topic, partition, offset = (said.get(name) for name in Source._fields)
    if not isinstance(topic, str) or type(partition) is not int or type(offset) is not int:
        raise ValueError("topic, partition and offset say which letter it is")
    source = Source(topic, partition, offset)
    if ("value" in said) == ("value_base64" in said):
        raise ValueError(f"{source}: it has to have either value or value_base64")
    value = said.get("value")
    # An object may stand for its text: that is one step less in jq.
    given = {**said, "value": json.dumps(value, ensure_ascii=False)} if isinstance(value, dict) else said
    found = _decoded(given, "value")
    if not isinstance(found, bytes):
        raise ValueError(f"{source}: the value is no text, no object and no base64")  # noqa: TRY004 - as above
    return Mended(number, source, found, said)


def _decoded(said: Mapping[str, object], name: str) -> object:
    """What `encoded` wrote; `_ABSENT` where it is not there, and None where it is none or no such thing."""
    if name in said:
        text = said[name]
        return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else None
    if f"{name}_base64" not in said:
        return _ABSENT
    try:
        return base64.b64decode(str(said[f"{name}_base64"]), validate=True)
    except binascii.Error:
        return None


def _problem(settings: Settings, mended: Mended, letter: Letter, now_ms: int) -> str | None:
    """Why it cannot be sent in place of the letter."""
    key, headers = letter.record.key, encoded_headers(letter)
    if letter.source.topic != settings.topic:
        return f"it does not say that it comes from {settings.topic}"
    if _decoded(mended.said, "key") not in (_ABSENT, key):
        return "the key is another one than the letter's; it has to stay"
    if mended.said.get("headers", headers) != headers:
        return "the headers are other ones than the letter's; they have to stay"
    try:
        event = decode(mended.value, now_ms)
    except EventError as error:
        return f"{error.rejection}: {error}"
    problem = None
    if key is not None and event.mcp_server_user_id.encode() != key:
        problem = "mcp_server_user_id is not the letter's key, which has to stay; send the event anew instead"
    elif _id_of(letter) not in (None, event.event_id):
        problem = "event_id is another one than the letter's; it has to stay, so that the event counts once"
    return problem


def _id_of(letter: Letter) -> str | None:
    return event_id_in(letter.record.value) if letter.record.value else None


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs, beside what a redrive says."""
    return {
        "handled": [str(letter.source) for letter in plan.handled],
        "problems": [{"line": line, "error": problem} for line, problem in sorted(plan.problems)],
    }

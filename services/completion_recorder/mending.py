"""Dead letters mended in bulk: out as lines of JSON, and back in with other values.

A mended value stands for the same event: key and event id stay, and so do headers. All lines are checked
before anything is sent. Neither letters nor lines are held: where each line is, and what is wrong with it, is
in a temporary table of PostgreSQL.
"""

import base64
import binascii
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Container, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from schemas import EventError, decode, event_id_in
from services.completion_recorder.dead_letters import (
    Filter,
    Letter,
    Source,
    columns,
    encoded,
    encoded_cut,
    encoded_headers,
    read_portions,
    source_at,
)
from services.runtime.database import Connection, load_queries
from services.runtime.errors import UsageError
from services.runtime.files import lines_of, open_lines
from services.runtime.settings import Settings
from services.runtime.text import format_time, json_text

SQL = load_queries(__file__)

#: So many lines are noted at once, and so many are told.
_AT_ONCE = 5_000
#: No line is longer, in bytes: a letter of 2 MiB, each byte of it written with six.
_MOST_LINE = 16 * 1024 * 1024
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
        "came_at": format_time(letter.last.timestamp),
        **encoded("key", letter.record.key),
        **encoded("value", letter.record.value),
        "headers": encoded_headers(letter),
        **encoded_cut(letter),
    }


def _line(exported: dict[str, Any]) -> bytes:
    try:
        return json_text(exported).encode() + b"\n"
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

    source: Source
    value: bytes
    said: Mapping[str, object]


@dataclass
class RedrivePlan:
    """What became of a file's lines, in numbers."""

    #: Lines that cannot be sent.
    problems: int = 0
    #: Letters that somebody has redriven or dropped in the meantime.
    handled: int = 0
    #: How many letters hold no event id to compare with.
    without_id: int = 0


@dataclass(frozen=True)
class MendedFile:
    """A file of mended letters: its lines, and the connection on which is noted where each is."""

    lines: BinaryIO
    db: Connection

    async def note(self) -> None:
        """Notes where each line begins, which letter it mends, and what is wrong with it.

        Raises:
            UsageError: a line is longer than any letter's.
        """
        await self.db.execute(SQL["mended_begin"])
        noted: list[tuple[int, int, Source | None, str | None]] = []
        at = self.lines.tell()
        for number, line in enumerate(lines_of(self.lines, "what is mended", _MOST_LINE), start=1):
            if len(line) > _MOST_LINE:
                raise UsageError(f"line {number}: it has more than {_MOST_LINE:,} bytes")
            if line.strip():
                try:
                    noted.append((number, at, _read(line).source, None))
                except ValueError as error:
                    noted.append((number, at, None, str(error)))
            at += len(line)
            if len(noted) >= _AT_ONCE:
                await self._note(noted)
                noted = []
        await self._note(noted)

    async def _note(self, noted: Sequence[tuple[int, int, Source | None, str | None]]) -> None:
        of_letters = [(number, at, source) for number, at, source, _ in noted if source is not None]
        twice = await self.db.fetch(
            SQL["mended_note"],
            [number for number, _, _ in of_letters],
            [at for _, at, _ in of_letters],
            *columns(source for _, _, source in of_letters),
        )
        wrong = [(number, problem) for number, _, _, problem in noted if problem is not None]
        if twice:
            sources = {number: source for number, _, source in of_letters}
            again = [(row["line"], sources[row["line"]]) for row in twice]
            first = await self.db.fetch(SQL["mended_first"], *columns(source for _, source in again))
            lines = {Source(r["topic"], r["partition"], r["offset"]): r["line"] for r in first}
            wrong += [(number, f"{s}: line {lines[s]} mends this letter, too") for number, s in again]
        await self.db.execute(SQL["mended_wrong"], [n for n, _ in wrong], [message for _, message in wrong])

    async def problems(self, most: int = _AT_ONCE) -> AsyncIterator[list[tuple[int, str]]]:
        """The lines that cannot be sent and why, in order, `most` at a time."""
        last = 0
        while page := await self.db.fetch(SQL["mended_problems"], last, most):
            yield [(row["line"], row["problem"]) for row in page]
            last = page[-1]["line"]

    async def handled(self, most: int = _AT_ONCE) -> AsyncIterator[list[tuple[Source, str]]]:
        """The letters that were handled in the meantime and how, in order of lines, `most` at a time."""
        last = 0
        while page := await self.db.fetch(SQL["mended_handled"], last, most):
            yield [(Source(r["topic"], r["partition"], r["offset"]), r["action"]) for r in page]
            last = page[-1]["line"]

    async def check(
        self, settings: Settings, plan: RedrivePlan, also: Container[Source] = ()
    ) -> AsyncGenerator[list[Letter]]:
        """The letters that lines mend, with their new values, where nothing is wrong with them.

        Args:
            settings: where Kafka is.
            plan: counts, known at the end.
            also: of letters that do not wait, those that are in the topic by this redrive.

        Raises:
            StepstreamError: Kafka cannot be reached.
        """
        now_ms = int(time.time() * 1000)
        async with aclosing(read_portions(settings, self.db, Filter(), handled=True)) as portions:
            async for portion in portions:
                if mended := await self._check(settings, portion, also, now_ms, plan):
                    yield mended
        await self.db.execute(SQL["mended_of_nothing"])
        (counts,) = await self.db.fetch(SQL["mended_count"])
        plan.problems, plan.handled = counts["problems"], counts["handled"]

    async def _check(
        self,
        settings: Settings,
        portion: Sequence[Letter],
        also: Container[Source],
        now_ms: int,
        plan: RedrivePlan,
    ) -> list[Letter]:
        rows = await self.db.fetch(SQL["mended_of"], *columns(letter.source for letter in portion))
        known = {Source(r["topic"], r["partition"], r["offset"]): (r["line"], r["at"]) for r in rows}
        good: list[Letter] = []
        wrong: list[tuple[int, str]] = []
        handled: list[tuple[int, str]] = []
        for letter in portion:
            if letter.source not in known:
                continue
            number, at = known[letter.source]
            if not letter.is_waiting and letter.source not in also:
                handled.append((number, letter.action or ""))
                continue
            mended = self._read_again(letter, at)
            if mended is None:
                wrong.append((number, f"{letter.source}: the file has changed while it was read"))
                continue
            if problem := _problem(settings, mended, letter, now_ms):
                wrong.append((number, f"{letter.source}: {problem}"))
                continue
            plan.without_id += _id_of(letter) is None
            record = dataclasses.replace(letter.record, value=mended.value)
            good.append(dataclasses.replace(letter, record=record, cut=None))
        if wrong:
            await self.db.execute(
                SQL["mended_wrong"], [n for n, _ in wrong], [message for _, message in wrong]
            )
        if handled:
            await self.db.execute(SQL["mended_done"], [n for n, _ in handled], [how for _, how in handled])
        return good

    def _read_again(self, letter: Letter, at: int) -> Mended | None:
        """The line that mends a letter; None where something else is there now."""
        self.lines.seek(at)
        try:
            mended = _read(self.lines.readline(_MOST_LINE))
        except ValueError:
            return None
        return mended if mended.source == letter.source else None


@contextmanager
def open_mended(file: str) -> Iterator[BinaryIO]:
    """A file of mended letters, or standard input for `-`, that can be read several times.

    Raises:
        UsageError: the file cannot be read.
    """
    with open_lines(file) as (lines, _):
        if lines.seekable():
            yield lines
            return
        with TemporaryFile() as copy:
            shutil.copyfileobj(lines, copy, 1024 * 1024)
            copy.seek(0)
            yield copy


def _read(line: bytes) -> Mended:
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
    try:
        source = source_at(topic, partition, offset)
    except ValueError:
        raise ValueError(f"{partition}:{offset}: there is no such dead letter") from None
    if ("value" in said) == ("value_base64" in said):
        raise ValueError(f"{source}: it has to have either value or value_base64")
    value = said.get("value")
    # An object may stand for its text: that is one step less in jq.
    given = {**said, "value": json.dumps(value, ensure_ascii=False)} if isinstance(value, dict) else said
    found = _decoded(given, "value")
    if not isinstance(found, bytes):
        raise ValueError(f"{source}: the value is no text, no object and no base64")  # noqa: TRY004 - as above
    return Mended(source, found, said)


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

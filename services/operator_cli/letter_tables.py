"""Dead letters as tables and JSON: all that `dlq` prints. However many there are, little of them is held."""

import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple

import typer

from schemas import advice_on
from services.completion_recorder.cutting import Cut
from services.completion_recorder.dead_letters import (
    Letter,
    Source,
    Staying,
    encoded,
    encoded_cut,
    encoded_headers,
)
from services.completion_recorder.letter_summary import Tally
from services.completion_recorder.mending import MendedFile, RedrivePlan
from services.completion_recorder.redriving import Redriven
from services.consumers.batches import ERROR_CLASS as UNREADABLE_BATCH
from services.operator_cli.options import JsonList, print_json, print_table, safe, say
from services.runtime.errors import StepstreamError
from services.runtime.sources import NO_SOURCE
from services.runtime.text import format_time, plural

#: So many rows of a table, and lines of a file, are told one by one.
_SHOWN = 20
_SUMMARY_SHOWN = 40
#: So many error classes are told apart: whoever may write dead letters may invent more.
_CLASSES = 100
_OTHER_CLASSES = "(other classes)"
_BODY_SHOWN = 4_000
_OF_BATCHES = "Have the producer send the events of this batch again: nobody could read it."
#: Ids are kept in memory up to so many bytes, then in a file.
_IDS_BYTES = 1024 * 1024


class _Row(NamedTuple):
    """What a table shows of a letter; rows are compared by time and place."""

    came_at: int
    source: Source
    error_class: str
    key: str
    sender: str
    error: str
    failures: int
    action: str
    cut: str

    @classmethod
    def of(cls, letter: Letter) -> "_Row":
        last = letter.last
        return cls(
            last.timestamp,
            last.source,
            last.error_class,
            _key(letter) or "",
            letter.sender,
            last.error,
            len(letter.failures),
            letter.action or "",
            "" if letter.cut is None else ", ".join(letter.cut.parts),
        )


@dataclass
class _OfClass:
    letters: int
    first: int
    last: int


@dataclass
class Listing:
    """Letters by error class, and the newest of them."""

    count: int = 0
    _classes: dict[str, _OfClass] = field(default_factory=dict)
    _newest: list[_Row] = field(default_factory=list)
    _has_source: bool = False
    _has_failed_again: bool = False
    _has_action: bool = False
    _has_cut: bool = False

    def add(self, letters: Iterable[Letter]) -> None:
        """Takes some more."""
        for letter in letters:
            self._add(_Row.of(letter))

    def _add(self, row: _Row) -> None:
        self.count += 1
        name, at = row.error_class, row.came_at
        if name not in self._classes and len(self._classes) >= _CLASSES:
            name = _OTHER_CLASSES
        of_class = self._classes.setdefault(name, _OfClass(0, at, at))
        of_class.letters += 1
        of_class.first, of_class.last = min(of_class.first, at), max(of_class.last, at)
        self._has_source |= row.sender != NO_SOURCE
        self._has_failed_again |= row.failures > 1
        self._has_action |= bool(row.action)
        self._has_cut |= bool(row.cut)
        if len(self._newest) < _SHOWN:
            heapq.heappush(self._newest, row)
        else:
            heapq.heappushpop(self._newest, row)

    def show(self, *, advise: bool = False) -> None:
        """Prints them for people; `advise` is with what to do about each class."""
        if not self.count:
            say("no dead letters wait here")
            return
        rows = [
            (name, of.letters, format_time(of.first), format_time(of.last))
            for name, of in sorted(self._classes.items(), key=lambda item: -item[1].letters)
        ]
        print_table("by error class", ("error class", "letters", "first", "last"), rows)
        # What says nothing of any of them is left out.
        columns: dict[str, Callable[[_Row], Any]] = {
            "id": lambda x: str(x.source),
            "came at": lambda x: format_time(x.came_at),
            "error class": lambda x: x.error_class,
            "key": lambda x: x.key,
            "source": lambda x: x.sender,
            "error": lambda x: x.error,
        }
        if not self._has_source:
            del columns["source"]
        if self._has_failed_again:
            columns["failed"] = lambda x: f"{x.failures} times" if x.failures > 1 else "once"
        if self._has_action:
            columns["handled"] = lambda x: x.action
        if self._has_cut:
            columns["cut"] = lambda x: x.cut
        newest = [[tell(x) for tell in columns.values()] for x in sorted(self._newest, reverse=True)]
        print_table("newest first", list(columns), newest, _SHOWN, self.count)
        if advise:
            show_advice(name for name, *_ in rows)
        say("[dim]`stepstream dlq show ID` shows one with what it holds[/]")


def show_advice(classes: Iterable[str]) -> None:
    """What to do about each of these error classes, once."""
    rows = [(name, _advice(name)) for name in dict.fromkeys(classes) if not name.startswith("(")]
    if rows:
        print_table("what to do", ("error class", "what to do"), rows)


def _advice(error_class: str) -> str:
    return _OF_BATCHES if error_class == UNREADABLE_BATCH else advice_on(error_class)


@dataclass
class Chosen:
    """Letters that are redriven or dropped, or would be: how many, and the id of each."""

    count: int = 0
    _ids: "SpooledTemporaryFile[bytes]" = field(
        default_factory=lambda: SpooledTemporaryFile(_IDS_BYTES)  # noqa: SIM115 - gone with this
    )

    def add(self, letters: Iterable[Letter]) -> None:
        """Takes some more."""
        for letter in letters:
            self._ids.write(f"{letter.source}\n".encode())
            self.count += 1

    def show(self, head: dict[str, Any]) -> None:
        """Prints an object for programs up to the list of ids, which is its last one; `end_json` ends it."""
        typer.echo(json.dumps(head)[:-1] + ', "ids": ', nl=False)
        ids = JsonList()
        self._ids.seek(0)
        while lines := self._ids.readlines(_IDS_BYTES):
            ids.add(line.decode().rstrip("\n") for line in lines)
        ids.end(nl=False)


def end_json() -> None:
    """Ends an object whose lists were printed as they came."""
    typer.echo("}")


def show_redriven(chosen: Chosen, outcome: Redriven | None, stay: Staying) -> None:
    """How many were sent, and which, for programs; without its end."""
    chosen.show(
        {
            "matching": chosen.count + stay.count,
            "cut": stay.cut,
            "executed": outcome is not None,
            "sent": outcome.sent if outcome else 0,
            "sent_before": outcome.found_sent if outcome else 0,
        }
    )


async def show_file(file: MendedFile) -> None:
    """What a redrive from a file says beside, for programs."""
    typer.echo(', "handled": ', nl=False)
    handled = JsonList()
    async for some in file.handled():
        handled.add(str(source) for source, _ in some)
    handled.end(nl=False)
    typer.echo(', "problems": ', nl=False)
    problems = JsonList()
    async for page in file.problems():
        problems.add({"line": line, "error": problem} for line, problem in page)
    problems.end(nl=False)


async def show_problems(file: MendedFile, plan: RedrivePlan) -> None:
    """Says which lines are wrong, what is left out, and where nothing could be compared.

    Raises:
        StepstreamError: a line is wrong.
    """
    async for page in file.problems(_SHOWN):
        for line, problem in page:
            say(f"  line {line}: {safe(problem)}", markup=False)
        break
    if plan.problems > _SHOWN:
        say(f"  and {plan.problems - _SHOWN:,} more; -o json lists them all")
    async for some in file.handled(_SHOWN):
        handled = ", ".join(f"{source} ({action})" for source, action in some)
        more = f" and {plan.handled - _SHOWN:,} more" if plan.handled > _SHOWN else ""
        say(f"[yellow]handled meanwhile, left out:[/] {handled}{more}")
        break
    if plan.without_id:
        letters = plural(plan.without_id, "letter")
        say(f"{letters} held no event id that can be read: those of the file are taken")
    if plan.problems:
        raise StepstreamError(f"{plural(plan.problems, 'line')} cannot be sent; nothing was sent")


def show_staying(stay: Staying, topic: str) -> None:
    """Says how many letters cannot be sent, and what to do with those that hold a part of their event."""
    if stay.strange:
        say(
            f"[yellow]{stay.strange:,} do not say that they come from {topic}, or are batches that could "
            "not be read: they stay[/]"
        )
    if stay.cut and stay.example is not None:
        say(
            f"[yellow]{stay.cut:,} hold a part of their event alone (one is {stay.example}): it is too large "
            f"for a dead letter, and they stay. The whole event is in {topic}, at the partition and offset "
            "that are the letter's id, while Kafka keeps it. Read it there with a client of Kafka, mend it, "
            "and give it with --from-file[/]"
        )


def letter_json(letter: Letter, *, body: bool = False) -> dict[str, Any]:
    """A letter for programs; with `body`, its value and headers too: text where it is UTF-8, else base64."""
    found: dict[str, Any] = {
        "id": str(letter.source),
        "topic": letter.source.topic,
        "error_class": letter.last.error_class,
        "error": letter.last.error,
        "advice": _advice(letter.last.error_class),
        "source": letter.sender,
        "came_at": format_time(letter.last.timestamp),
        "key": _key(letter),
        "failures": len(letter.failures),
        "action": letter.action,
        **encoded_cut(letter),
    }
    if body:
        found["history"] = [
            {"id": str(f.source), "error_class": f.error_class, "error": f.error} for f in letter.failures
        ]
        found |= encoded("value", letter.record.value)
        found["headers"] = encoded_headers(letter)
    return found


def _key(letter: Letter) -> str | None:
    key = letter.record.key
    return None if key is None else safe(key.decode(errors="backslashreplace"))


def show_one(letter: Letter, *, as_json: bool) -> None:
    """One letter with what it holds; nothing in it can speak to the terminal."""
    if as_json:
        print_json(letter_json(letter, body=True))
        return
    facts: Sequence[tuple[str, str]] = [
        ("id", str(letter.source)),
        ("topic", letter.source.topic),
        ("came at", format_time(letter.last.timestamp)),
        ("handled", letter.action or "no"),
        *([] if letter.cut is None else [("cut", _cut(letter, letter.cut))]),
        ("key", "none" if (key := _key(letter)) is None else key),
        *((f"header {safe(n)}", _shown(v)) for n, v in letter.headers),
        *(
            (f"failure {i}", f"{f.error_class} at {f.source}: {f.error}")
            for i, f in enumerate(letter.failures, 1)
        ),
        ("what to do", _advice(letter.last.error_class)),
        ("value", _shown(letter.record.value)),
    ]
    print_table("", ("", ""), facts)


def _cut(letter: Letter, cut: Cut) -> str:
    told = {
        "value": f"the value had {cut.value_bytes:,} bytes (SHA-256 {safe(cut.value_sha256)})",
        "key": f"the key had {cut.key_bytes:,} bytes",
        "headers": f"there were {cut.headers:,} headers",
    }
    source = letter.source
    return (
        f"{'; '.join(told[part] for part in cut.parts)}. The whole record is at {source} of "
        f"{safe(source.topic)}, while Kafka keeps it"
    )


def _shown(value: bytes | None) -> str:
    if value is None:
        return "none"
    text = safe(value[:_BODY_SHOWN].decode(errors="backslashreplace"))
    return text if len(value) <= _BODY_SHOWN else f"{text} … ({len(value):,} bytes; -o json shows all)"


# --- the summary ---------------------------------------------------------------------------------------


def show_summary(tallies: Sequence[Tally], *, as_json: bool) -> None:
    """The summary, on stdout."""
    if as_json:
        print_json([_tally_json(tally) for tally in tallies])
        return
    if not tallies:
        say("no dead letters wait here")
        return
    has_cut = any(t.cut for t in tallies)
    rows = [
        (
            t.sender,
            t.error_class,
            t.letters,
            format_time(t.since),
            format_time(t.newest),
            str(t.example),
            *([t.cut] if has_cut else []),
        )
        for t in tallies
    ]
    columns = [
        "source",
        "error class",
        "letters",
        "since",
        "newest",
        "example",
        *(["cut"] if has_cut else []),
    ]
    print_table(
        f"{plural(sum(t.letters for t in tallies), 'dead letter')} by source", columns, rows, _SUMMARY_SHOWN
    )
    # Beside all the others an error would have few characters.
    errors = [(str(t.example), t.error) for t in tallies[:_SUMMARY_SHOWN]]
    print_table("what was wrong", ("example", "its error"), errors)
    show_advice(tally.error_class for tally in tallies[:_SUMMARY_SHOWN])


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {
        "source": tally.sender,
        "error_class": tally.error_class,
        "advice": _advice(tally.error_class),
        "letters": tally.letters,
        "cut": tally.cut,
        "since": format_time(tally.since),
        "newest": format_time(tally.newest),
        "example": {
            "id": str(tally.example),
            "topic": tally.example.topic,
            "error": tally.error,
        },
    }

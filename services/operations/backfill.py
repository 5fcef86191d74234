"""Completions from before Stepstream, as contract events.

From a file, or from what the platform knows: `walkthrough_progress` says which steps somebody has done, and
when they began and were last active, and not when each step was. Ids are made from what the event says, so
that sending it again changes nothing; what is a completion already is left out, because an estimated time
could win against the real one.
"""

import csv
import gzip
import hashlib
import io
import itertools
import json
import time
import uuid
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, TypeAlias, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas import encode, encode_metadata
from schemas.events import MAX_TIME_MS, Identifier, why_too_early
from services.analytics_api.intake.registrations import milliseconds
from services.analytics_api.registering import find_people, problem_of_own_id
from services.consumers.lag import RECORDER, read_groups
from services.operations.event_files import read_values
from services.operations.in_thread import in_thread
from services.operations.produce import ProduceResult, bulk_producer, send_values
from services.operations.tables import delimiter_of, told
from services.runtime.database import Connection, connected, fetch_one, load_queries
from services.runtime.errors import RefusedError, UsageError
from services.runtime.settings import Settings
from services.runtime.text import format_duration

SQL = load_queries(__file__)

#: The namespace of the ids of backfilled events (UUID version 5).
NAMESPACE = uuid.UUID("6f2f6d0e-6f0b-5c53-9c6b-1d7a52f0b3a4")
_CHUNK = 5_000
#: So many reasons are told apart.
_MOST_REASONS: Final = 100
#: People active so recently may have events on their way, of steps that progress shows already; milliseconds.
_RECENT_MS = 3_600_000


class Row(BaseModel):
    """A line of the file: one completed step. Server and session may be left out.

    The person is named by the platform's id, or by that of the organization whose walkthrough it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mcp_server_user_id: Identifier | None = None
    walkthrough_id: Identifier
    step_id: Identifier
    completed_at: int
    mcp_server_id: Identifier | None = None
    mcp_server_session_id: Identifier | None = None
    metadata: dict[str, Any] | None = None
    event_id: str | None = None
    distinct_id: str | None = None

    @field_validator("distinct_id")
    @classmethod
    def _own_id(cls, value: str | None) -> str | None:
        if value is not None and (problem := problem_of_own_id(value)) is not None:
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _one_person(self) -> "Row":
        if (self.mcp_server_user_id is None) is (self.distinct_id is None):
            raise ValueError("give either mcp_server_user_id or distinct_id")
        return self

    @field_validator("completed_at", mode="before")
    @classmethod
    def _time(cls, value: object) -> object:
        """Milliseconds since the epoch, or an RFC 3339 time."""
        return milliseconds(value)

    @field_validator("completed_at")
    @classmethod
    def _in_milliseconds(cls, value: int) -> int:
        if value > MAX_TIME_MS:
            raise ValueError("after the year 9999, in milliseconds since the epoch")
        if (problem := why_too_early(value)) is not None:
            raise ValueError(problem)
        return value

    @field_validator("metadata", mode="before")
    @classmethod
    def _json(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
        if value is not None:
            encode_metadata(value)
        return value


@dataclass(frozen=True, slots=True)
class Candidate:
    """An event to be, with what is not known yet; without a step it is a start.

    `user` is empty as long as the person is known by `distinct_id` alone.
    """

    where: str
    user: str
    walkthrough: str
    step: str | None
    at: int
    server: str | None = None
    session: str | None = None
    metadata: dict[str, Any] | None = None
    event_id: str | None = None
    distinct_id: str | None = None


#: An event, and where it comes from.
_Placed: TypeAlias = tuple[str, dict[str, Any]]


class _Session(NamedTuple):
    id: str
    slug: str
    at: int
    user: str


@dataclass
class Backfill:
    """What would be, or was, sent, and what cannot be known."""

    counts: Counter[str] = field(default_factory=Counter)
    #: What is left out, and why: (where, reason), the first thousand.
    left_out: list[tuple[str, str]] = field(default_factory=list)
    #: How many there are of them.
    all_left_out: int = 0
    sessions_made: int = 0
    executed: bool = False
    #: What was concluded from the file.
    notes: list[str] = field(default_factory=list)
    sent: ProduceResult = field(default_factory=ProduceResult)

    def leave(self, where: str, reason: str) -> None:
        """Counts something that is not sent."""
        kind = f"left out: {reason}"
        if kind not in self.counts and len(self.counts) >= _MOST_REASONS:
            kind = "left out: other reasons"
        self.counts[kind] += 1
        self.all_left_out += 1
        if len(self.left_out) < 1_000:
            self.left_out.append((where, reason))


# --- what there is -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """How a file names things: `columns` by the field that they stand for, and what separates them in CSV.

    Without a separator it is the one that the first line shows.
    """

    delimiter: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def named(self, record: Mapping[str, object]) -> dict[str, object]:
        """The fields of a line. Where columns were named, others than the contract's are left out."""
        if not self.columns:
            return dict(record)
        taken = set(self.columns.values())
        given = {f: record[f] for f in Row.model_fields if f in record and f not in taken}
        return given | {f: record[column] for f, column in self.columns.items() if column in record}


def read_file(file: Path, shape: Shape, tell: Callable[[str], None]) -> Iterator[tuple[str, Row | str]]:
    """Each line's place, and its row or what is wrong with it.

    CSV by the name (.csv, .tsv, also with .gz) or where a separator is given, else NDJSON or JSON.

    Args:
        file: gzip or not.
        shape: how it names things.
        tell: is told what was concluded from the file.

    Raises:
        UsageError: the file cannot be read, or its head lacks columns.
    """
    names = {suffix.lower() for suffix in file.suffixes[-2:]}
    is_csv = shape.delimiter is not None or not names.isdisjoint({".csv", ".tsv"})
    try:
        with file.open("rb") as raw:
            yield from _read_csv(file, raw, shape, tell) if is_csv else _read_json(file, raw, shape)
    except UnicodeDecodeError:
        raise UsageError(f"{file}: it is not UTF-8") from None
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise UsageError(f"{file}: its gzip is broken or cut off: {error}") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


def _read_csv(
    file: Path, raw: BufferedReader, shape: Shape, tell: Callable[[str], None]
) -> Iterator[tuple[str, Row | str]]:
    content = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
    lines = _Lines(file, io.TextIOWrapper(cast("BinaryIO", content), encoding="utf-8-sig", newline=""))
    head = next(lines, "")
    delimiter = shape.delimiter or delimiter_of(head, {*Row.model_fields, *shape.columns.values()})
    if shape.delimiter is None and delimiter != ",":
        tell(f"{file}: {told(delimiter)}")
    table = csv.DictReader(itertools.chain([head], lines), delimiter=delimiter, restkey=_MORE)
    try:
        _check_head(file, table.fieldnames or (), shape)
        for record in table:
            lines.end_record()
            place = f"line {table.line_num}"
            if _MORE in record:
                yield place, "it has more fields than the first line names: is one not in quotes?"
                continue
            yield place, _row(shape.named({name: text for name, text in record.items() if text}))
    except csv.Error as error:
        raise UsageError(f"{file}: after line {table.line_num} it is no CSV: {error}") from None


class _Lines:
    """The lines of a table, of which no record is held that is longer than any event."""

    def __init__(self, file: Path, text: io.TextIOWrapper) -> None:
        self._file = file
        self._text = text
        self._number = 0
        #: How long the record is that they belong to.
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_MOST_RECORD + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._length += len(line)
        if self._length > _MOST_RECORD:
            raise UsageError(
                f"{self._file}: line {self._number}: a row has more than {_MOST_RECORD:,} characters: is a "
                "quote not closed?"
            )
        return line

    def end_record(self) -> None:
        """The lines so far were whole records."""
        self._length = 0


#: No row of a table is longer, in characters.
_MOST_RECORD: Final = 1_000_000
#: Under which DictReader has what is beyond the last column.
_MORE: Final = "\0"


def _check_head(file: Path, names: Sequence[str], shape: Shape) -> None:
    head = set(names)
    if absent := sorted(set(shape.columns.values()) - head):
        raise UsageError(f"{file}: --column names {', '.join(absent)}; its columns are {', '.join(names)}")
    given = shape.named(dict.fromkeys(names, "")).keys()
    needed = {name for name, column in Row.model_fields.items() if column.is_required()}
    if "distinct_id" not in given:
        needed.add("mcp_server_user_id")
    if absent := sorted(needed - given):
        raise UsageError(
            f"{file}: its columns are {', '.join(names)}; missing: {', '.join(absent)}. "
            f"--column {absent[0]}=NAME says which column it is"
            + ("; distinct_id may stand for mcp_server_user_id" if "mcp_server_user_id" in absent else "")
        )
    if unknown := given - Row.model_fields.keys():
        known = ", ".join(Row.model_fields)
        raise UsageError(f"{file}: unknown columns {', '.join(sorted(unknown))}; there are {known}")


def _read_json(file: Path, raw: BufferedReader, shape: Shape) -> Iterator[tuple[str, Row | str]]:
    for place, value in read_values(cast("BinaryIO", raw), str(file)):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            yield place, f"no JSON: {error}"
            continue
        yield place, _row(shape.named(found) if isinstance(found, dict) else found)


def _row(values: object) -> Row | str:
    try:
        return Row.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, found["loc"])) or "the line"
        return f"{place}: {found['msg'].removeprefix('Value error, ')}"


def spread(times: Sequence[int | None], start: int, end: int) -> list[int]:
    """Times for steps in order, where only some are known: evenly between those around them.

    Args:
        times: of each step in order, None where it is not known.
        start: when the first could have been begun, in milliseconds.
        end: when the last was done at the latest, where it is not known.

    Returns:
        A time for each; the known ones stay, the others rise strictly from the one before.
    """
    found: list[int] = []
    before = start
    while len(found) < len(times):
        known = times[len(found)]
        if known is not None:
            found.append(known)
            before = known
            continue
        rest = times[len(found) :]
        unknown = next((i for i, t in enumerate(rest) if t is not None), len(rest))
        following = rest[unknown] if unknown < len(rest) else None
        parts = unknown if following is None else unknown + 1
        until = max(end, before + unknown) if following is None else following
        at = before
        for part in range(1, unknown + 1):
            at = max(before + (until - before) * part // parts, at + 1)
            found.append(at)
        before = at
    return found


async def _from_progress(db: Connection, outcome: Backfill) -> AsyncIterator[Candidate]:
    """What progress shows and completions do not."""
    last = ""
    recent = int(time.time() * 1000) - _RECENT_MS
    while rows := await db.fetch(SQL["backfill_progress"], last, _CHUNK):
        last = rows[-1]["id"]
        for row in rows:
            for candidate in _of_progress(row, recent, outcome):
                yield candidate


def _of_progress(row: Any, recent: int, outcome: Backfill) -> Iterator[Candidate]:
    where = f"progress {row['id']}"
    done = _step_ids(row["completed_steps"])
    steps = set(row["steps"])
    orphans = [s for s in done if s not in steps]
    outcome.counts["step ids of progress that no step has (any more)"] += len(orphans)
    done = list(dict.fromkeys(s for s in done if s in steps))
    started, active = row["started_at"], row["last_activity_at"] or row["completed_at"]
    times = {step: int(at) for step, at in json.loads(row["times"]).items()}
    missing = [s for s in done if s not in times]
    has_start = row["has_start"] or started is None
    if not missing and has_start:
        outcome.counts["steps that are completions already"] += len(done)
        return
    if row["erased"]:
        outcome.leave(where, "the person was erased")
        return
    if row["on_its_way"] or (active or started or 0) > recent:
        outcome.leave(where, "active within the last hour: run it again later")
        return
    if started is None and active is None:
        outcome.leave(where, "neither start nor last activity is known, so no time is")
        return
    outcome.counts["steps that are completions already"] += len(done) - len(missing)
    begin = started if started is not None else active
    at = spread([times.get(s) for s in done], begin, active if active is not None else begin)
    user, walkthrough = row["mcp_server_user_id"], row["walkthrough_id"]
    if not has_start and (not at or started <= at[0]):
        yield Candidate(where, user, walkthrough, None, started, metadata={"backfill": "progress"})
    for step, moment in zip(done, at, strict=True):
        if step not in times:
            outcome.counts["steps whose time is estimated"] += 1
            metadata = {"backfill": "progress", "completedAt": "estimated"}
            yield Candidate(where, user, walkthrough, step, moment, metadata=metadata)


def _step_ids(completed: str | None) -> list[str]:
    found = json.loads(completed) if completed else []
    return [s for s in found if isinstance(s, str)] if isinstance(found, list) else []


async def _from_file(file: Path, shape: Shape, outcome: Backfill) -> AsyncIterator[Candidate]:
    async with aclosing(in_thread(read_file(file, shape, outcome.notes.append))) as batches:
        async for batch in batches:
            for where, row in batch:
                if isinstance(row, str):
                    outcome.leave(where, row)
                else:
                    yield _candidate(where, row)


def _candidate(where: str, row: Row) -> Candidate:
    return Candidate(
        where,
        row.mcp_server_user_id or "",
        row.walkthrough_id,
        row.step_id,
        row.completed_at,
        row.mcp_server_id,
        row.mcp_server_session_id,
        row.metadata,
        row.event_id,
        row.distinct_id,
    )


# --- what becomes of it --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """Where completions come from: a file, or the platform's progress where there is none.

    `server` is the slug of the server for people of whom no session is known; one is made for each.
    """

    file: Path | None = None
    shape: Shape = field(default_factory=Shape)
    server: str | None = None


async def backfill(settings: Settings, origin: Origin, outcome: Backfill) -> None:
    """Sends what is known of earlier completions; where that is not asked for, says what it would send.

    The outcome is true at every moment: whoever ends it in the middle sees what was done.

    Raises:
        UsageError: the file cannot be read, or there is no such server.
        RefusedError: the recorder is far behind, so what is a completion already is not known.
    """
    await _refuse_lag(settings)
    async with connected(settings, command_timeout=600) as db:
        server = origin.server
        if server is not None and not await db.fetchval(SQL["backfill_server"], server):
            raise UsageError(f"there is no server with the slug `{server}`")
        if origin.file is not None:
            source = _from_file(origin.file, origin.shape, outcome)
        else:
            source = _from_progress(db, outcome)
        if not outcome.executed:
            async for chunk in _chunks(source):
                await _resolve(db, chunk, server, outcome)
            return
        async with bulk_producer(settings, "/stepstream/backfill") as producer:
            async for chunk in _chunks(source):
                events, sessions = await _resolve(db, chunk, server, outcome)
                if sessions:
                    await db.execute(SQL["backfill_make_sessions"], *map(list, zip(*sessions, strict=True)))
                await send_values(producer, [(w, encode(event)) for w, event in events], outcome.sent)


async def _refuse_lag(settings: Settings) -> None:
    (group,) = await read_groups(settings, [RECORDER])
    since = group.waiting_since
    if since is not None and (waited := time.time() * 1000 - since) > _RECENT_MS / 2:
        raise RefusedError(
            f"events wait for the {RECORDER} for {format_duration(waited / 1000)}: until it has recorded "
            "them, nobody "
            "knows which completions there are already. Let it catch up first"
        )


async def _chunks(source: AsyncIterator[Candidate]) -> AsyncIterator[list[Candidate]]:
    chunk: list[Candidate] = []
    async for candidate in source:
        chunk.append(candidate)
        if len(chunk) >= _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _resolve(
    db: Connection, chunk: Sequence[Candidate], server: str | None, outcome: Backfill
) -> tuple[list[_Placed], list[_Session]]:
    """The events of these candidates, and the sessions that they need; the rest is left out with a reason."""
    chunk = await _with_people(db, chunk, outcome)
    known = await fetch_one(
        db,
        SQL["backfill_known"],
        [c.user for c in chunk],
        [c.step for c in chunk if c.step],
        [c.server for c in chunk if c.server],
        [c.session for c in chunk if c.session],
        server,
    )
    steps = dict(pair.split("\x1f") for pair in known["steps"])
    slugs = dict(pair.split("\x1f") for pair in known["servers"])
    default = next((i for i, slug in slugs.items() if slug == server), None)
    users, erased, sessions = set(known["users"]), set(known["erased"]), set(known["sessions"])
    rows = await db.fetch(SQL["backfill_done"], [c.user for c in chunk], [c.step or "" for c in chunk])
    done = {(r["mcp_server_user_id"], r["step_id"]) for r in rows}
    good = []
    for c in chunk:
        reason = why_too_early(c.at)
        if reason is not None:
            pass
        elif c.user in erased:
            reason = "the person was erased"
        elif c.user not in users:
            reason = "there is no such user"
        elif c.step is not None and steps.get(c.step) != c.walkthrough:
            reason = "there is no such step in that walkthrough"
        elif c.server is not None and c.server not in slugs:
            reason = "there is no such server"
        elif c.session is not None and c.session not in sessions:
            reason = "there is no such session"
        if reason is not None:
            outcome.leave(c.where, reason)
        elif c.step is not None and (c.user, c.step) in done:
            outcome.counts["steps that are completions already"] += 1
        else:
            good.append(c)
    return await _with_sessions(db, good, default, slugs, outcome)


async def _with_people(db: Connection, chunk: Sequence[Candidate], outcome: Backfill) -> Sequence[Candidate]:
    """Those whose person is known: a `distinct_id` is that of the organization whose walkthrough it is."""
    own = [c for c in chunk if c.distinct_id is not None]
    if not own:
        return chunk
    rows = await db.fetch(SQL["backfill_organizations"], list({c.walkthrough for c in own}))
    owners: dict[str, str] = {row["id"]: row["organization_id"] for row in rows}
    people = {}
    for owner in set(owners.values()):
        asked = {c.distinct_id for c in own if owners.get(c.walkthrough) == owner and c.distinct_id}
        people[owner] = await find_people(db, owner, asked)
    found = []
    for c in chunk:
        if c.distinct_id is None:
            found.append(c)
        elif (owner_ := owners.get(c.walkthrough)) is None:
            outcome.leave(c.where, "there is no such step in that walkthrough")
        elif (user := people[owner_].get(c.distinct_id)) is None:
            outcome.leave(
                c.where, "nobody is registered under that distinct_id: `stepstream register people` does it"
            )
        else:
            found.append(replace(c, user=user))
    return found


async def _with_sessions(
    db: Connection,
    candidates: Sequence[Candidate],
    default: str | None,
    slugs: dict[str, str],
    outcome: Backfill,
) -> tuple[list[_Placed], list[_Session]]:
    """Each with a session: its own, one of the person's on a server with the walkthrough, or a new one."""
    open_ones = [c for c in candidates if c.server is None or c.session is None]
    rows = await db.fetch(
        SQL["backfill_sessions"],
        [c.user for c in open_ones],
        [c.walkthrough for c in open_ones],
        [c.at for c in open_ones],
    )
    found = {id(open_ones[r["number"] - 1]): (r["mcp_server_id"], r["mcp_server_session_id"]) for r in rows}
    made: dict[str, _Session] = {}
    events = []
    for c in candidates:
        at, session = c.server, c.session
        if id(c) in found and at in {None, found[id(c)][0]}:
            at, session = found[id(c)][0], session or found[id(c)][1]
        at = at or default
        if at is None:
            outcome.leave(c.where, "no session of that person is known: --server SLUG makes one there")
            continue
        if session is None:
            text = f"{c.user}\x1f{at}"
            session = "mss_backfill_" + hashlib.sha256(text.encode()).hexdigest()[:16]
            earlier = made.get(session)
            first = c.at if earlier is None else min(c.at, earlier.at)
            made[session] = _Session(session, slugs[at], first, c.user)
        outcome.counts["step-completed" if c.step else "walkthrough-started"] += 1
        events.append((c.where, event_of(replace(c, server=at, session=session))))
    outcome.sessions_made += len(made)
    return events, list(made.values())


def event_of(candidate: Candidate) -> dict[str, Any]:
    """The contract event; its id is made from what it says, unless the file gave one."""
    c = candidate
    parts = (c.user, c.walkthrough, c.step or "", str(c.at))
    event = {
        "type": "step-completed" if c.step else "walkthrough-started",
        "event_id": c.event_id or str(uuid.uuid5(NAMESPACE, "\x1f".join(parts))),
        "mcp_server_user_id": c.user,
        "walkthrough_id": c.walkthrough,
        "step_id": c.step,
        "mcp_server_id": c.server,
        "mcp_server_session_id": c.session,
        "completed_at" if c.step else "started_at": c.at,
        "metadata": c.metadata,
    }
    return {name: value for name, value in event.items() if value is not None}

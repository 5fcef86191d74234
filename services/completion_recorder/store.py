"""The recorder's transaction: offsets, the check of references, and the upsert.

A load is written at once. Where PostgreSQL refuses a row, or somebody else has locked one, it is written
again part by part: what PostgreSQL refuses is a bad event; what waits for a lock is set aside, in the same
transaction, and the rest goes on.
"""

import base64
import contextlib
import json
import random
import re
import sys
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Set,
)
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import asyncpg
from aiokafka import ConsumerRecord

from schemas import (
    OPERATOR_SOURCES,
    AnyEvent,
    OfStep,
    Rejection,
    StepCompleted,
    UserErased,
    WalkthroughStarted,
)
from services.completion_recorder.guard import Chunk, Recent, WrongDatabaseError
from services.completion_recorder.judge import (
    INCOMING_COLUMNS,
    INCOMING_STARTS_COLUMNS,
    Accepted,
    Decision,
    Known,
    References,
    Refused,
    SeenId,
    check_ids,
    check_references,
    corrections,
    decide,
    doubled_ids,
    key_of,
    merge,
    of_others,
    people_of,
    read,
    row_of,
    rows,
)
from services.completion_recorder.tally import UNREAD, RefusedKind, Unwritten, masked
from services.consumers.stored_positions import Advance
from services.runtime.crashpoints import crash_point
from services.runtime.database import (
    Connection,
    Pool,
    can_be_stored,
    fetch_one,
    load_queries,
    no_longer_than,
)
from services.runtime.kafka import Offsets, Record
from services.runtime.sources import NO_SOURCE

SQL = load_queries(__file__)


def _part(name: str) -> str:
    """A statement that is a part of another."""
    return SQL[name].rstrip().removesuffix(";")


#: Upserts completions, keeps those that they outdo, and returns how many rows it changed; of a replay it
#: leaves marks, too.
_UPSERT = (
    f"with changed as ({_part('upsert')} returning id, mcp_server_user_id, walkthrough_id, step_id,"
    " completed_at, old.id as old_id, old.walkthrough_id as old_walkthrough_id,"
    " old.mcp_server_id as old_server_id, old.mcp_server_session_id as old_session_id,"
    " old.completed_at as old_completed_at, old.metadata as old_metadata),"
    f" outdone as ({_part('keep_outdone')})"
)
_COUNT_CHANGED = " select count(*) from changed"
_UPSERT_AND_MARK = f"{_UPSERT}, marks as ({_part('mark_changed')}) {_COUNT_CHANGED}"
_UPSERT += _COUNT_CHANGED
_UPSERT_STARTS_AND_MARK = (
    f"with changed as ({_part('upsert_starts')} returning mcp_server_user_id, walkthrough_id, id)"
    f" {SQL['mark_changed_starts']}"
)

#: Settings of the recorder's connections. It says who it is, so that its own changes leave no marks; it
#: gives up a lock before PostgreSQL looks for deadlocks, so that it is never somebody else who is
#: cancelled; and the rows of a batch stay in memory.
SERVER_SETTINGS = {
    "application_name": "stepstream completion-recorder",
    "stepstream.recorder": "on",
    "lock_timeout": "500ms",
    "work_mem": "64MB",
}

#: Errors by which PostgreSQL refuses a row for what it holds. A foreign key can only be one that the
#: platform added: those that we know were checked, and what they refer to is locked.
_REFUSED_BY_DATABASE = (
    asyncpg.ForeignKeyViolationError,
    asyncpg.UniqueViolationError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ExclusionViolationError,
    asyncpg.DataError,
)

#: What may be a person's id in the name of a source.
_WORDS = re.compile(r"[\w-]+")

#: How long a part waits for a lock before it is set aside: the next look comes within a second or so.
_PATIENCE = "50ms"
#: So many erasures wait for that long; then the rest waits, too.
_PROBES = 20
#: So often a part is halved to find what waits in it, after the first time with less patience; then its rest
#: waits, too.
_HALVES = 150
_IMPATIENCE = "2ms"
#: It reads both tables whole.
_MARK_ALL_SECONDS = 3600.0
#: About so many bytes of events that wait are written, or looked at, at once: they may be large.
_PORTION_BYTES = 16 * 1024 * 1024
#: Of the message of a refused event, in characters.
_LONGEST_MESSAGE = 500


async def prepare(connection: Connection) -> None:
    """Makes the temporary tables of a new connection."""
    await connection.execute(SQL["create_incoming"])


class Before(NamedTuple):
    """What was known of a partition before the batch; before `next_offset` all is replayed."""

    next_offset: int
    recent: Chunk


class Judged(NamedTuple):
    """What became of a batch, beside the events that are committed."""

    refused: list[Refused]
    #: How many of its records are of people who were erased: nothing is kept of them.
    of_erased: int
    #: How many wait until somebody else's lock goes.
    waiting: int
    #: How many completions do not count because a correction covers them.
    covered: int
    #: Whether what was to be noted beside the rows is.
    is_noted: bool = True


class Waiting(NamedTuple):
    """An event that has to wait, and for what: table and key of a row."""

    item: Accepted
    waits_for: str


class Noted(NamedTuple):
    """What to write of a batch beside its rows: how recent events were, and who sent what."""

    recent: Recent
    sources: Unwritten | None
    refused: Sequence[RefusedKind]
    #: Whether this process has recorded of the topic, which may not be written yet.
    has_recorded: bool
    #: What to say where this is the wrong database; empty where it does not look like it.
    if_wrong: str


#: Looks at what is refused, what was known before, and which records, by partition and offset, are of people
#: who were erased; returns what to write of it.
Watch: TypeAlias = Callable[[Sequence[Refused], Mapping[int, Before], Collection[tuple[int, int]]], Noted]


class Batch(NamedTuple):
    """Records of a topic as they were read: readable events, other records, and where partitions go on.

    Without `advance` they were read before, or it does not matter: the position stays.
    """

    topic: str
    offsets: Offsets
    accepted: Sequence[Accepted]
    unreadable: Sequence[Refused] = ()
    advance: Advance | None = None


async def record(pool: Pool, batch: Batch, watch: Watch | None = None, *, by_parts: bool = False) -> Judged:
    """Writes a batch and how far it goes, in one transaction.

    Args:
        pool: connections made with `SERVER_SETTINGS` and `prepare`.
        batch: what was read.
        watch: called before the commit.
        by_parts: do not try first to write it at once: the last batch could not be.

    Returns:
        The records that are refused, unreadable ones first, with the reason; the others are committed, or
        wait for a lock.

    Raises:
        WrongDatabaseError: nearly nothing can be recorded, and nothing was; nothing is written.
    """
    if not by_parts:
        try:
            return await _record(pool, batch, watch, _write_at_once)
        except (asyncpg.LockNotAvailableError, *_REFUSED_BY_DATABASE):
            pass
    return await _record(pool, batch, watch, _write_by_parts)


@dataclass(slots=True)
class _Outcome:
    refused: list[Refused] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    erased: Set[str] = frozenset()
    covered: int = 0


#: Writes accepted events, given the unreadable records and where each partition had been read up to.
_Write: TypeAlias = Callable[
    [Connection, Sequence[Accepted], Sequence[Refused], Mapping[int, int]], Awaitable[_Outcome]
]


async def _record(pool: Pool, batch: Batch, watch: Watch | None, write: _Write) -> Judged:
    async with pool.acquire() as connection, connection.transaction():
        if batch.advance is None:
            before = await _advance_offsets(connection, batch.topic, batch.offsets)
        else:
            before = await _advance(connection, batch.topic, batch.advance)
        passed = {partition: known.next_offset for partition, known in before.items()}
        outcome = await write(connection, batch.accepted, batch.unreadable, passed)
        await _set_aside(connection, outcome.waiting)
        is_noted, of_erased = True, _of_erased(batch, outcome.erased)
        if watch is not None:
            noted = watch(outcome.refused, before, of_erased)
            if noted.if_wrong and not await _is_ours(connection, batch.topic, noted):
                raise WrongDatabaseError(noted.if_wrong)
            is_noted = await _note(connection, batch.topic, before, noted)
        crash_point("recorder.in-transaction")
    crash_point("recorder.database-committed")
    return Judged(outcome.refused, len(of_erased), len(outcome.waiting), outcome.covered, is_noted)


def _of_erased(batch: Batch, erased: Set[str]) -> set[tuple[int, int]]:
    """Partition and offset of the records that are of these people."""
    if not erased:
        return set()
    theirs = [item.record for item in batch.accepted if _who(item.event) in erased]
    theirs += [r.record for r in batch.unreadable if not erased.isdisjoint(people_of(r.record))]
    return {(record.partition, record.offset) for record in theirs}


async def _write_at_once(
    connection: Connection,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused],
    passed: Mapping[int, int],
) -> _Outcome:
    """All in one go.

    Raises:
        asyncpg.LockNotAvailableError: somebody else has locked a row.
        asyncpg.PostgresError: one of `_REFUSED_BY_DATABASE`, for a row.
    """
    await _erase(connection, _erasures(accepted))
    if corrected := corrections(accepted):
        await connection.execute(SQL["lock_corrected"], _users(corrected))
    good, outcome = await _check(connection, accepted, unreadable, by_parts=False)
    await _correct(connection, corrections(good))
    merged = merge(good)
    if doubled := doubled_ids(merged):
        merged = await _without_reused_ids(connection, merged, doubled, outcome)
    outcome.covered = await _copy_and_upsert(connection, merged, passed)
    return outcome


async def _write_by_parts(
    connection: Connection,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused],
    passed: Mapping[int, int],
) -> _Outcome:
    """What can be written now; the rest waits, or is refused."""
    await connection.execute(f"set local lock_timeout = '{_PATIENCE}'")
    held_back = await _erase_by_parts(connection, accepted)
    good, outcome = await _check(connection, accepted, unreadable, by_parts=True)
    outcome.waiting += held_back
    await _correct_by_parts(connection, corrections(good), outcome)
    merged = await _without_locked_rows(connection, merge(good), outcome)
    merged = await _without_reused_ids(connection, merged, doubled_ids(merged), outcome)
    if merged:
        # In another order each time: who is beside many that wait is not beside them the next time.
        random.shuffle(merged)
        await _upsert_by_halves(connection, merged, passed, outcome, [_HALVES])
    return outcome


def _who(event: AnyEvent) -> str:
    return "" if isinstance(event, UserErased) else event.mcp_server_user_id


# --- erasure ---------------------------------------------------------------------------------------------


def _erasures(accepted: Iterable[Accepted]) -> list[UserErased]:
    return [event for event, _ in accepted if isinstance(event, UserErased)]


async def _erase(connection: Connection, erasures: Sequence[UserErased]) -> None:
    """Removes people and all that is kept of them; the cascade leaves marks for the aggregator."""
    if erasures:
        await _note_erased(connection, erasures)
        await _delete_people(connection, [e.mcp_server_user_id for e in erasures])


async def _erase_by_parts(connection: Connection, accepted: Iterable[Accepted]) -> list[Waiting]:
    """From now on nothing of these people counts; whose rows somebody else has locked is removed later."""
    items = [item for item in accepted if isinstance(item.event, UserErased)]
    if not items:
        return []
    await _note_erased(connection, _erasures(items))
    users = [item.event.mcp_server_user_id for item in items]
    ours = {row["id"] for row in await connection.fetch(SQL["lock_people"], users)}
    locked = {row["id"] for row in await connection.fetch(SQL["find_people"], users)} - ours
    waiting = {user: f"mcp_server_user {user}" for user in locked}
    # In another order each time: who is behind many that wait is not behind them the next time.
    left = list(dict.fromkeys(user for user in users if user not in locked))
    random.shuffle(left)
    probes = _PROBES
    while left and probes:
        user = left.pop()
        try:
            async with connection.transaction():
                await _delete_people(connection, [user])
        except asyncpg.LockNotAvailableError:
            waiting[user] = f"what is kept of mcp_server_user {user}"
            probes -= 1
    waiting |= {user: f"what is kept of mcp_server_user {user}, perhaps" for user in left}
    return [
        Waiting(i, waiting[i.event.mcp_server_user_id])
        for i in items
        if i.event.mcp_server_user_id in waiting
    ]


async def _note_erased(connection: Connection, erasures: Sequence[UserErased]) -> None:
    if erasures:
        await connection.execute(
            SQL["note_erased"],
            [e.mcp_server_user_id for e in erasures],
            [e.erased_at for e in erasures],
            [e.event_id for e in erasures],
        )


async def _delete_people(connection: Connection, users: Sequence[str]) -> None:
    # Their row first: while we hold it, nobody records an event of theirs that waits.
    for statement in ("delete_users", "delete_waiting", "delete_from_outbox", "delete_set_aside"):
        await connection.execute(SQL[statement], users)


# --- corrections -----------------------------------------------------------------------------------------


def _users(items: Iterable[Accepted]) -> list[str]:
    return list({item.event.mcp_server_user_id for item in items})


async def _correct(connection: Connection, items: Sequence[Accepted]) -> None:
    """Decides anew about rows of people whom we have locked: nobody else records completions of theirs."""
    if not items:
        return
    keys = [_key(item.event)[1:] for item in items]
    before = [Decision(*row) for row in await connection.fetch(SQL["find_corrections"], *_columns(keys, 2))]
    decided = decide(items, before)
    await connection.execute(SQL["write_corrections"], *map(list, zip(*decided, strict=True)))
    ids = {decision.event_id for decision in decided}
    superseded = [("wtsc_" + d.event_id, *d.key, d.completed_at) for d in before if d.event_id not in ids]
    if superseded:
        await connection.execute(SQL["delete_superseded"], *map(list, zip(*superseded, strict=True)))
    whose = _columns([decision.key for decision in decided], 2)
    for statement in ("delete_covered", "delete_covered_later", "take_candidates"):
        await connection.execute(SQL[statement], *whose)
    await connection.execute(_UPSERT_AND_MARK)
    for statement in ("keep_later", "clear_incoming"):
        await connection.execute(SQL[statement])
    await connection.execute(SQL["forget_counted"], *whose)


async def _correct_by_parts(connection: Connection, items: Sequence[Accepted], outcome: _Outcome) -> None:
    """One after another: one that meets a lock waits alone."""
    if not items:
        return
    ours = {row["id"] for row in await connection.fetch(SQL["lock_people"], _users(items))}
    for item in items:
        user = item.event.mcp_server_user_id
        if user not in ours:
            outcome.waiting.append(Waiting(item, f"mcp_server_user {user}"))
            continue
        try:
            async with connection.transaction():
                await _correct(connection, [item])
        except asyncpg.LockNotAvailableError:
            outcome.waiting.append(Waiting(item, _named(_key(item.event))))
        except _REFUSED_BY_DATABASE as error:
            outcome.refused.append(_refused_by_database(item, error))


# --- offsets ---------------------------------------------------------------------------------------------


async def _advance_offsets(connection: Connection, topic: str, offsets: Offsets) -> dict[int, Before]:
    rows = await connection.fetch(
        SQL["advance_offsets"], topic, [p.partition for p in offsets], list(offsets.values())
    )
    return {
        r["partition"]: Before(
            r["next_offset"],
            Chunk(r["recent_events"], r["recent_refused"]),
        )
        for r in rows
    }


async def _advance(connection: Connection, topic: str, advance: Advance) -> dict[int, Before]:
    await advance.write(connection)
    rows = await connection.fetch(SQL["find_recent"], topic, list(advance.moves))
    recent = {r["partition"]: r for r in rows}
    return {
        partition: Before(
            max(old.next_offset, old.marks_until),
            Chunk(recent[partition]["recent_events"], recent[partition]["recent_refused"]),
        )
        for partition, (old, _) in advance.moves.items()
    }


async def mark_all(connection: Connection) -> None:
    """Marks every journey: no event tells any more which of them changed."""
    await no_longer_than(connection, _MARK_ALL_SECONDS)
    await connection.execute(SQL["mark_all"], timeout=_MARK_ALL_SECONDS)


async def _is_ours(connection: Connection, topic: str, noted: Noted) -> bool:
    """Whether this database holds what was recorded of the topic, or what unreadable events name."""
    unread = [kind for kind in noted.refused if kind.rejection in UNREAD]
    servers, walkthroughs = [kind.server_id for kind in unread], [kind.walkthrough_id for kind in unread]
    return bool(await connection.fetchval(SQL["is_ours"], topic, servers, walkthroughs, noted.has_recorded))


async def _note(connection: Connection, topic: str, before: Mapping[int, Before], noted: Noted) -> bool:
    """Writes what is recent, where there is something bad to tell, or was; and who sent what.

    Returns whether who sent what could be written: somebody who has locked these rows holds up no event.
    """
    total = noted.recent.total
    if total.refused or any(known.recent.refused for known in before.values()):
        await connection.execute(SQL["note_recent"], topic, *total, list(before))
    if not (noted.refused or noted.sources):
        return True
    try:
        async with connection.transaction():
            await connection.execute(f"set local lock_timeout = '{_PATIENCE}'")
            if noted.refused:
                await _note_refused(connection, topic, noted.refused)
            if noted.sources is not None:
                await _note_sources(connection, topic, noted.sources)
    except asyncpg.LockNotAvailableError:
        return False
    return True


async def _note_refused(connection: Connection, topic: str, refused: Sequence[RefusedKind]) -> None:
    nobodys = await _of_erased_sources(connection, {kind.source for kind in refused})
    refused = [replace(kind, source=NO_SOURCE) if kind.source in nobodys else kind for kind in refused]
    examples = [kind.example for kind in refused]
    await connection.execute(
        SQL["note_refused"],
        topic,
        [kind.source for kind in refused],
        [kind.rejection for kind in refused],
        [kind.server_id for kind in refused],
        [kind.walkthrough_id for kind in refused],
        [kind.events for kind in refused],
        [one.record.partition for one in examples],
        [one.record.offset for one in examples],
        [_without_person(one) for one in examples],
        [json.dumps(masked(one.record.value)) for one in examples],
    )


async def note_sources(pool: Pool, topic: str, sources: Unwritten) -> None:
    """Writes who sent what."""
    async with pool.acquire() as connection, connection.transaction():
        if sources.refused:
            await _note_refused(connection, topic, sources.refused)
        await _note_sources(connection, topic, sources)


async def _of_erased_sources(connection: Connection, sources: Collection[str]) -> Set[str]:
    """Those of the sources that name, as a word, somebody who was erased: of them no row is kept."""
    words = {source: {source, *_WORDS.findall(source)} for source in sources}
    erased = await _erased(connection, set().union(*words.values()))
    return {source for source in sources if not erased.isdisjoint(words[source])}


async def _erased(connection: Connection, people: Collection[str]) -> Set[str]:
    """Those of these people who were erased."""
    return set(await connection.fetchval(SQL["find_erased"], list(people))) if people else set()


async def _note_sources(connection: Connection, topic: str, sources: Unwritten) -> None:
    names = {*sources.counts, *(source for source, _ in sources.places)}
    if nobodys := await _of_erased_sources(connection, names):
        sources = sources.renamed(dict.fromkeys(nobodys, NO_SOURCE))
    if sources.counts:
        counts = sorted(sources.counts.items())
        await connection.execute(
            SQL["note_sources"],
            topic,
            [source for source, _ in counts],
            [of.events for _, of in counts],
            [of.refused for _, of in counts],
            [of.looked_at for _, of in counts],
            [of.elsewhere for _, of in counts],
            [of.without_key for _, of in counts],
        )
    if sources.places:
        await connection.execute(
            SQL["note_places"], topic, [s for s, _ in sources.places], [s for _, s in sources.places]
        )


def _without_person(refused: Refused) -> str:
    """The message of a refusal, which is kept for longer than a person may want, without whose it was."""
    key = key_of(refused.record)
    message = refused.message.replace(key, "…") if key else refused.message
    return "".join(c if can_be_stored(c) else "\ufffd" for c in message[:_LONGEST_MESSAGE])


async def find_sources(pool: Pool, topic: str) -> list[str]:
    """The sources of a topic that are told apart."""
    return [row["source"] for row in await pool.fetch(SQL["find_sources"], topic)]


async def forget_sources(pool: Pool) -> None:
    """Forgets sources of which nothing was ever recorded, and refusals, that are long ago."""
    await pool.execute(SQL["forget_sources"])


# --- references ------------------------------------------------------------------------------------------


async def _check(
    connection: Connection, accepted: Sequence[Accepted], unreadable: Sequence[Refused], *, by_parts: bool
) -> tuple[list[Accepted], _Outcome]:
    """The events that can be written, with their rows locked until the commit; what becomes of the others."""
    outcome = _Outcome(list(unreadable))
    if unreadable:
        outcome.erased = await _erased(connection, set().union(*(people_of(r.record) for r in unreadable)))
        outcome.refused = of_others(unreadable, outcome.erased)
    wanted = References.of(accepted)
    if not wanted.users:
        return [], outcome
    if not by_parts and await _all_there(connection, wanted):
        return list(accepted), outcome
    ids = _ids(wanted)
    free = dict(await connection.fetchrow(SQL["lock_references"], *ids) or {}) if by_parts else {}
    known, erased = await _find(connection, ids)
    outcome.erased = {*outcome.erased, *erased}
    good, refused = check_references([a for a in accepted if _who(a.event) not in erased], known)
    outcome.refused += refused
    if by_parts:
        good, outcome.waiting = _apart_from_waiting(good, {name: set(found) for name, found in free.items()})
    return good, outcome


async def _all_there(connection: Connection, wanted: References) -> bool:
    counts = await fetch_one(
        connection,
        SQL["count_references"],
        list(wanted.users),
        *_columns(wanted.sessions, 3),
        *_columns(wanted.places, 2),
        *_columns(wanted.steps, 2),
    )
    expected = (wanted.users, wanted.sessions, wanted.places, wanted.steps, ())
    return tuple(counts.values()) == tuple(len(part) for part in expected)


def _columns(tuples: Collection[tuple[str, ...]], width: int) -> list[list[str]]:
    return [[one[i] for one in tuples] for i in range(width)]


def _ids(wanted: References) -> tuple[list[str], ...]:
    return (
        list(wanted.users),
        list({session for session, _, _ in wanted.sessions}),
        list({server for server, _ in wanted.places}),
        list({walkthrough for _, walkthrough in wanted.places}),
        list({step for step, _ in wanted.steps}),
    )


async def find_known(connection: Connection, accepted: Iterable[Accepted]) -> tuple[Known, set[str]]:
    """What exists now of the rows that these events refer to, and who of their people was erased."""
    return await _find(connection, _ids(References.of(accepted)))


async def _find(connection: Connection, ids: Sequence[list[str]]) -> tuple[Known, set[str]]:
    """What exists of these rows, and who was erased."""
    found: dict[str, dict[str, Any]] = {}
    for kind, id_, one, two in await connection.fetch(SQL["find_references"], *ids):
        found.setdefault(kind, {})[id_] = (one, two) if kind == "sessions" else one
    kinds = ("users", "sessions", "servers", "walkthroughs", "steps")
    return Known(*(found.get(kind, {}) for kind in kinds)), set(found.get("erased", ()))


def _apart_from_waiting(
    good: Iterable[Accepted], free: Mapping[str, Collection[str]]
) -> tuple[list[Accepted], list[Waiting]]:
    """The events all of whose rows are ours until the commit, and those that wait."""
    now, waiting = [], []
    for item in good:
        event = item.event
        if isinstance(event, UserErased):
            continue
        rows_ = [
            ("users", "mcp_server_user", event.mcp_server_user_id),
            ("sessions", "mcp_server_session", event.mcp_server_session_id),
            ("servers", "mcp_servers", event.mcp_server_id),
            ("walkthroughs", "walkthroughs", event.walkthrough_id),
        ]
        if isinstance(event, OfStep):
            rows_.append(("steps", "walkthrough_steps", event.step_id))
        locked = next((f"{table} {id_}" for kind, table, id_ in rows_ if id_ not in free[kind]), None)
        if locked is None:
            now.append(item)
        else:
            waiting.append(Waiting(item, locked))
    return now, waiting


# --- completions and starts ------------------------------------------------------------------------------


async def _copy_and_upsert(
    connection: Connection, merged: Sequence[Accepted], passed: Mapping[int, int]
) -> int:
    """Returns how many completions do not count because a correction covers them."""
    completions, starts = rows(merged, passed)
    covered = 0
    if completions:
        await connection.copy_records_to_table("incoming", records=completions, columns=INCOMING_COLUMNS)
        covered = await _drop(connection, "drop_covered")
        any_replayed = any(row[-1] for row in completions)
        # Most of a replay is there: that is known sooner than it is upserted in vain.
        left = len(completions) - covered - (await _drop(connection, "drop_recorded") if any_replayed else 0)
        changed = await connection.fetchval(_UPSERT_AND_MARK if any_replayed else _UPSERT) if left else 0
        if changed < left:
            await connection.execute(SQL["keep_later"])
    if starts:
        await connection.copy_records_to_table(
            "incoming_starts", records=starts, columns=INCOMING_STARTS_COLUMNS
        )
        any_replayed = any(row[-1] for row in starts)
        await connection.execute(_UPSERT_STARTS_AND_MARK if any_replayed else SQL["upsert_starts"])
    return covered


async def _drop(connection: Connection, statement: str) -> int:
    """Removes some of `incoming`; returns how many."""
    return int((await connection.execute(SQL[statement])).split()[-1])


async def _without_locked_rows(
    connection: Connection, merged: Sequence[Accepted], outcome: _Outcome
) -> list[Accepted]:
    """Locks the rows that the upsert may change; events whose row somebody else has locked wait."""
    locked: set[tuple[bool, str, str]] = set()
    for is_step, kind in ((True, "completions"), (False, "starts")):
        keys = [_key(item.event)[1:] for item in merged if isinstance(item.event, StepCompleted) == is_step]
        if keys:
            users, of_whom = (list(part) for part in zip(*keys, strict=True))
            ours = {tuple(r) for r in await connection.fetch(SQL[f"lock_{kind}"], users, of_whom)}
            there = {tuple(r) for r in await connection.fetch(SQL[f"find_{kind}"], users, of_whom)}
            locked |= {(is_step, *key) for key in there - ours}
    outcome.waiting += [Waiting(i, _named(_key(i.event))) for i in merged if _key(i.event) in locked]
    return [item for item in merged if _key(item.event) not in locked]


async def _without_reused_ids(
    connection: Connection,
    merged: Sequence[Accepted],
    doubled: Collection[tuple[bool, str]],
    outcome: _Outcome,
) -> list[Accepted]:
    """Refuses events whose id is another event's: one of the table, or with `doubled` one beside them."""
    looked_up: dict[int, SeenId] = {}
    for is_step, kind in ((True, "completions"), (False, "starts")):
        given = [
            (
                i,
                event.event_id,
                *row_of(event)[1:],
                event.mcp_server_id,
                event.happened_at,
                (is_step, event.event_id) in doubled,
            )
            for i, (event, _) in enumerate(merged)
            if isinstance(event, StepCompleted if is_step else WalkthroughStarted)
        ]
        if given:
            columns = [list(column) for column in zip(*given, strict=True)]
            for number, *seen in await connection.fetch(SQL[f"find_reused_ids_of_{kind}"], *columns):
                looked_up[number] = SeenId(*seen)
    good, refused = check_ids(merged, looked_up)
    outcome.refused += refused
    return good


def _key(event: AnyEvent) -> tuple[bool, str, str]:
    """The row that an event is about: whether it is a completion, whose it is, and of what."""
    if isinstance(event, OfStep):
        return True, event.mcp_server_user_id, event.step_id
    return False, _who(event), event.walkthrough_id if isinstance(event, WalkthroughStarted) else ""


def _named(key: tuple[bool, str, str]) -> str:
    is_step, user, of_what = key
    return f"{'walkthrough_step_completions' if is_step else 'walkthrough_starts'} {user} {of_what}"


async def _upsert_by_halves(
    connection: Connection,
    merged: Sequence[Accepted],
    passed: Mapping[int, int],
    outcome: _Outcome,
    probes: list[int],
) -> None:
    """Finds the rows that PostgreSQL refuses for what they hold; all others are upserted.

    What waits for a lock all the same (of a row that is being inserted, or that is not ours) is looked for,
    too, as long as `probes` lasts.
    """
    try:
        async with connection.transaction():
            await connection.execute(SQL["clear_incoming"])
            await connection.execute(SQL["clear_incoming_starts"])
            outcome.covered += await _copy_and_upsert(connection, merged, passed)
            return
    except _REFUSED_BY_DATABASE as error:
        if len(merged) == 1:
            outcome.refused.append(_refused_by_database(merged[0], error))
            return
    except asyncpg.LockNotAvailableError:
        if probes[0] == _HALVES:
            await connection.execute(f"set local lock_timeout = '{_IMPATIENCE}'")
        probes[0] -= 1
        if len(merged) == 1 or probes[0] < 0:
            outcome.waiting += [Waiting(item, _named(_key(item.event))) for item in merged]
            return
    half = len(merged) // 2
    for part in (merged[:half], merged[half:]):
        await _upsert_by_halves(connection, part, passed, outcome, probes)


def _refused_by_database(item: Accepted, error: asyncpg.PostgresError) -> Refused:
    constraint = getattr(error, "constraint_name", None)
    message = f"PostgreSQL refuses it: {type(error).__name__} {constraint or ''}".rstrip()
    return Refused(item.record, Rejection.REFUSED_BY_DATABASE, message)


# --- events that wait ------------------------------------------------------------------------------------


class Resumed(NamedTuple):
    """What became of some events that waited."""

    #: How many are recorded now, or of people who were erased.
    done: int
    #: What is refused now, by the number of the row that holds it until `claim_refused` lets it go.
    refused: dict[int, Refused]
    #: The locks that these events waited for, and wait for no more.
    free: set[str]
    #: The last of them in order, and the number of the last event.
    last_lock: str
    last: int


async def _set_aside(connection: Connection, waiting: Sequence[Waiting]) -> None:
    for portion in _portions(waiting):
        records = [w.item.record for w in portion]
        await connection.execute(
            SQL["set_aside"],
            [r.topic for r in records],
            [r.partition for r in records],
            [r.offset for r in records],
            [r.timestamp for r in records],
            [r.key for r in records],
            [r.value for r in records],
            [_headers_to_json(r) for r in records],
            [w.item.event.mcp_server_user_id for w in portion],
            [
                None if isinstance(e, UserErased) else e.walkthrough_id
                for e in (w.item.event for w in portion)
            ],
            [w.waits_for for w in portion],
        )


def _portions(waiting: Sequence[Waiting]) -> Iterator[Sequence[Waiting]]:
    """What one statement takes: PostgreSQL wants its arguments to be less than a gigabyte."""
    first, size = 0, 0
    for i, (item, _) in enumerate(waiting):
        size += len(item.record.value or b"")
        if size >= _PORTION_BYTES:
            yield waiting[first : i + 1]
            first, size = i + 1, 0
    if waiting[first:]:
        yield waiting[first:]


async def resuming(
    pool: Pool, limit: int, trusted: Container[str] = OPERATOR_SOURCES
) -> AsyncIterator[Resumed]:
    """Records what waited for locks that have gone, as everything replayed; looks at each lock once.

    The first event of each lock tells whether it has gone; the others follow where it has.

    Args:
        pool: connections made with `SERVER_SETTINGS` and `prepare`.
        limit: how many events to look at in a transaction, at most.
        trusted: the sources whose events may decide about a person.
    """
    lock = ""
    while (resumed := await _resume(pool, trusted, "take_first_waiting", lock, limit)) is not None:
        yield resumed
        lock, free, number = resumed.last_lock, resumed.free, 0
        while free and (resumed := await _resume(pool, trusted, "take_waiting", list(free), number, limit)):
            yield resumed
            free, number = free & resumed.free, resumed.last


async def _resume(pool: Pool, trusted: Container[str], query: str, *which: object) -> Resumed | None:
    async with pool.acquire() as connection, connection.transaction():
        taken = await connection.fetch(SQL[query], *which, _PORTION_BYTES)
        if not taken:
            return None
        records = [_record_of(row) for row in taken]
        numbers = {id(record): row["id"] for record, row in zip(records, taken, strict=True)}
        accepted, unreadable = read(records, int(time.time() * 1000), trusted)
        passed = dict.fromkeys((r.partition for r in records), sys.maxsize)
        outcome = await _write_by_parts(connection, accepted, unreadable, passed)
        refused = {numbers[id(r.record)]: r for r in outcome.refused}
        waiting = {numbers[id(w.item.record)]: w.waits_for for w in outcome.waiting}
        await connection.execute(SQL["wait_for_another"], list(waiting), list(waiting.values()))
        done = [number for number in numbers.values() if number not in waiting and number not in refused]
        await connection.execute(SQL["forget_waiting"], done)
        if done:
            crash_point("waiting.in-transaction")
    free = {row["waits_for"] for row in taken if waiting.get(row["id"]) != row["waits_for"]}
    return Resumed(len(done), refused, free, taken[-1]["waits_for"], taken[-1]["id"])


@contextlib.asynccontextmanager
async def claim_refused(pool: Pool, numbers: Iterable[int]) -> AsyncIterator[dict[int, bool]]:
    """Those of these events that no other recorder sends to the dead letters just now, or has sent.

    The block says which are dead letters now; at its end these are removed.
    """
    async with pool.acquire() as connection, connection.transaction():
        taken = await connection.fetch(SQL["take_refused"], list(numbers))
        told = {row["id"]: False for row in taken}
        yield told
        await connection.execute(SQL["forget_waiting"], [n for n, is_sent in told.items() if is_sent])


async def count_waiting(pool: Pool) -> tuple[int, float]:
    """How many events wait for a lock, and for how many seconds the oldest does."""
    row = await fetch_one(pool, SQL["count_waiting"])
    return row["events"], row["oldest_seconds"]


async def count_gone(pool: Pool) -> int:
    """How many ranges of events are gone, or were left behind, and nobody has acknowledged that."""
    return int(await pool.fetchval(SQL["count_gone"]))


def _headers_to_json(record: Record) -> str:
    """Headers byte for byte: neither names nor values need be text."""
    return json.dumps(
        [
            [
                base64.b64encode(name.encode("utf-8", "surrogateescape")).decode(),
                None if value is None else base64.b64encode(value).decode(),
            ]
            for name, value in record.headers
        ]
    )


def _record_of(row: asyncpg.Record) -> Record:
    headers: Any = tuple(
        (
            base64.b64decode(name).decode("utf-8", "surrogateescape"),
            None if value is None else base64.b64decode(value),
        )
        for name, value in json.loads(row["headers"])
    )
    key, value = row["key"], row["value"]
    return ConsumerRecord(
        topic=row["topic"],
        partition=row["partition"],
        offset=row["offset"],
        timestamp=row["timestamp"],
        timestamp_type=0,
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=len(key or b""),
        serialized_value_size=len(value),
        headers=headers,
    )

"""One call: look, decide, write where nothing has changed since; a constant number of round trips."""

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import asyncpg

from services.runtime.database import Connection, Pool, bounded, fetch_one, load_queries
from services.walkthrough_mcp.events import Where, events_of
from services.walkthrough_mcp.guide import (
    CallEffect,
    CallOutcome,
    Offer,
    OfferedStep,
    can_have_seen,
    next_time,
    time_of_showing,
    wait_until_shown,
)
from services.walkthrough_mcp.people import Caller, Client, Server, new_id, new_tracking_id
from services.walkthrough_mcp.snapshots import Names, OfferCache, Person, Snapshot, snapshot_of
from services.walkthrough_mcp.turns import BusyError, Places, Turns

SQL = load_queries(__file__)
SESSION_IDLE_MS = 30 * 60 * 1000
#: How long a call waits for a connection, and for a statement, before its agent is told to try again.
WAIT_SECONDS = 15.0
#: Nobody waits for a lock on a connection that others need; only rows that somebody is inserting cannot be
#: asked for without. A process that hangs, or is cut off, in a call lets the rows of it go.
SERVER_SETTINGS = {
    "application_name": "stepstream walkthrough-mcp",
    "lock_timeout": "10ms",
    # Every statement finds its rows by keys, so one plan is good for all values; made while a table is small
    # or has just been filled, it would otherwise read the table whole from then on.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "jit": "off",
    **bounded(4 * WAIT_SECONDS),
}
#: How long a call waits for other calls of the same person, and for rows that somebody has locked.
_PATIENCE_SECONDS = 10.0
#: So many tries at least: where a connection took as long to come, a lock that is gone in a moment refuses
#: nobody. PostgreSQL has such locks of its own, to make a table's file longer.
_LEAST_TRIES = 8
#: So many tries of what another puts right.
_MOST_TRIES = 5
#: So many calls of one person wait, beside the one that goes on.
WAITING = 16

Result = TypeVar("Result")
#: Decides on what is offered, and whether the call can have seen the step that is current.
Decide: TypeAlias = Callable[[tuple[Offer, ...], bool], CallEffect]
#: What times lose to rounding, and clocks drift apart, while an answer waits.
_ROUNDING_MS = 2


class _GoneError(Exception):
    """The server, the walkthrough or the step to show was deleted between the look and the write."""


#: What another try puts right; none of them can have committed.
_AGAIN = (
    _GoneError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.ForeignKeyViolationError,
)


class _ChangedError(Exception):
    """Another call of the person was committed between the look and the write; or one look is not enough."""


#: Somebody else has locked what a call needs, or was faster.
_OTHERS = (asyncpg.LockNotAvailableError, _ChangedError)


class UnknownVisitorError(Exception):
    """Nobody has the given visitor id, or has it at another server alone."""


class SignsInElsewhereError(Exception):
    """The tracking id is that of somebody who signs in: without a token it opens nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, what the call comes to, and when it arrived, on the monotonic clock of this process.

    `together_ms` is how long the answer to one that names no step waits for those of the same moment.
    `admit` learns, at each try, that the call would make somebody new, and may refuse it. `cache` has what
    servers offer. `looks_anew` says that the caller's snapshot is too old to decide by. `client` is what the
    agent calls itself: a session that begins keeps it.
    """

    caller: Caller
    decide: Decide
    arrived: float
    together_ms: int = 0
    admit: Callable[[], Awaitable[None]] | None = None
    cache: OfferCache | None = None
    looks_anew: bool = False
    client: Client | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What a call came to: the move, what is offered, the content of the step shown, a visitor's id.

    An anonymous person has one. `is_new` says that nobody was known by what came with the call. `shown_from`
    is when the answer may go out, on the monotonic clock of this process.
    """

    move: CallEffect
    offers: tuple[Offer, ...]
    content: dict[str, Any] | None
    visitor: str | None
    is_new: bool
    shown_from: float


@dataclass(frozen=True, slots=True)
class _Moment:
    """When a call is decided: in milliseconds of the database, and on the monotonic clock of this process."""

    now: int
    monotonic: float

    def shown_from(self, shown_at: int | None) -> float:
        """When an answer may go out that shows what is shown at `shown_at` at the earliest."""
        wait = wait_until_shown(self.now, shown_at)
        return self.monotonic + (wait + _ROUNDING_MS) / 1000 if wait else 0.0


async def prepare(connection: Connection) -> None:
    """Prepares the look on a new connection: the time of one that is prepared first comes too late.

    Where the schema is of before, whoever looks at that says so.
    """
    if await connection.fetchval("select to_regproc('mcp_save') is not null"):
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            await connection.fetchrow(SQL["look"], *Names(""))


async def find_server(pool: Pool, slug: str) -> Server | None:
    """The server of that slug; raises as `enter`."""
    found = await enter(pool, Names(slug))
    return found[0] if found else None


async def enter(pool: Pool, names: Names) -> tuple[Server, Snapshot | None] | None:
    """The server of a slug, and what there is of somebody as far as they are known yet.

    Somebody who changes the table, or vacuum when it makes its file shorter, may have locked it whole: that
    is waited for, with no connection meanwhile. Where another table is locked there is no snapshot.

    Raises:
        BusyError: it was locked for too long.
    """
    return await _patiently(_PATIENCE_SECONDS, lambda _: _read_server(pool, names))


async def _read_server(pool: Pool, names: Names) -> tuple[Server, Snapshot | None] | None:
    async with pool.acquire(timeout=WAIT_SECONDS) as connection:
        try:
            return await _look(connection, names)
        except asyncpg.LockNotAvailableError:
            row = await connection.fetchrow(SQL["find_server"], names.slug)
    return (_server(row), None) if row else None


def _server(row: asyncpg.Record) -> Server:
    return Server(
        row["id"],
        row["organization_id"],
        row["slug"],
        row["name"],
        row["product"],
        row["auth_type"],
        row["oauth_issuer_url"],
        row["tools_enabled"],
    )


async def offered(
    pool: Pool, caller: Caller, places: Places | None = None, cache: OfferCache | None = None
) -> tuple[Offer, ...]:
    """What the caller's server offers, with nobody's progress.

    Raises:
        CrowdedError: too many calls of the server, or of its organization, are under way or wait.
        BusyError: others, or a lock of somebody else, were in the way.
        asyncpg.PostgresError, OSError: the database is away.
    """
    if cache is not None and caller.snapshot is not None:
        kept = cache.get(caller.server.slug, caller.snapshot.version)
        if kept is not None:
            return kept
    async with (
        places.place(caller.server.asker, caller.address) if places else contextlib.nullcontext(),
        pool.acquire(timeout=WAIT_SECONDS) as connection,
    ):
        try:
            return await _read_offers(connection, caller.server.slug, cache)
        except asyncpg.LockNotAvailableError as error:
            raise BusyError from error


async def call(pool: Pool, given: Call, turns: Turns | None = None, places: Places | None = None) -> Done:
    """Runs one call; tried again where somebody else was in the way. Returns when the answer may go out.

    Args:
        pool: connections made with `SERVER_SETTINGS`.
        given: the call.
        turns: where the calls of each person wait for each other.
        places: where the calls of all wait for a connection.

    Raises:
        CrowdedError: too many calls of the server, or of its organization, are under way or wait.
        BusyError: other calls, or a lock of somebody else, were in the way for too long.
        UnknownVisitorError: the caller gave a visitor id that nobody has here.
        SignsInElsewhereError: the caller gave the tracking id of somebody who signs in.
        Exception: what `admit` raises for somebody new.
        asyncpg.PostgresError, OSError: the database is away. Whether the call was committed is then unknown.
    """
    came = time.monotonic()
    person = _who(given.caller)
    if person is None or turns is None:
        done = await _until_free(pool, given, came, places)
    else:
        async with turns.turn(person, _PATIENCE_SECONDS) as has_waited:
            given = replace(given, looks_anew=has_waited)
            done = await _until_free(pool, given, came, places)
    if (wait := done.shown_from - time.monotonic()) > 0:
        await asyncio.sleep(wait)
    return done


def _who(caller: Caller) -> Hashable:
    """What a person is known by; None for somebody new."""
    if caller.must_exist:
        return caller.server.id, caller.tracking_id  # one of another server's waits for nobody there
    return caller.identity or caller.tracking_id or caller.transport_session


async def _patiently(seconds: float, run: Callable[[int], Awaitable[Result]]) -> Result:
    """Tries again for so long, and a few times at least, while somebody else is at what is needed.

    Raises:
        BusyError: they still are.
    """
    until = time.monotonic() + seconds
    for number in itertools.count(1):
        try:
            return await run(number)
        except _OTHERS as error:
            if number >= _LEAST_TRIES and time.monotonic() >= until:
                raise BusyError from error
        await asyncio.sleep(random.uniform(0, min(1, 0.01 * 2**number)))  # noqa: S311 - no secret
    raise AssertionError("there is always another try")


async def _until_free(pool: Pool, given: Call, came: float, places: Places | None) -> Done:
    """Runs the call when nobody else has locked what it needs; between two tries it holds nothing."""
    anew = replace(given, looks_anew=True)
    left = max(0.0, came + _PATIENCE_SECONDS - time.monotonic())
    return await _patiently(left, lambda number: _until_there(pool, given if number == 1 else anew, places))


async def _until_there(pool: Pool, given: Call, places: Places | None) -> Done:
    """Runs the call; again, by another look, where what it needs was deleted meanwhile."""
    caller = given.caller
    for number in range(1, _MOST_TRIES + 1):
        try:
            async with (
                places.place(caller.server.asker, caller.address) if places else contextlib.nullcontext(),
                pool.acquire(timeout=WAIT_SECONDS) as connection,
            ):
                return await _call(connection, given)
        except _AGAIN:
            if number == _MOST_TRIES:
                raise
        given = replace(given, looks_anew=True)
        await asyncio.sleep(random.uniform(0, 0.05))  # noqa: S311 - no secret
    raise AssertionError("the last try returns or raises")


async def _call(connection: Connection, given: Call) -> Done:
    """Runs the call by the snapshot that came with it; where that is too old, by one of its own."""
    caller, names = given.caller, _names(given.caller)
    if not given.looks_anew and caller.snapshot is not None and caller.snapshot.names == names:
        with contextlib.suppress(_ChangedError):
            return await _decide(connection, given, caller.snapshot)
    found = await _look(connection, names)
    if found is None or found[0].id != caller.server.id:  # it was deleted since the request came
        return Done(given.decide((), True), (), None, None, False, 0.0)
    return await _decide(connection, given, found[1])


async def _decide(connection: Connection, given: Call, seen: Snapshot) -> Done:
    caller, person = given.caller, seen.person
    if person is None and caller.must_exist:
        raise UnknownVisitorError
    if person is not None and person.signs_in:
        raise SignsInElsewhereError
    bare = given.cache.get(caller.server.slug, seen.version) if given.cache else None
    if bare is None:
        bare = await _read_offers(connection, caller.server.slug, given.cache)
    offers = seen.with_progress(bare)
    move = given.decide(offers, person is None or can_have_seen(_arrived_at(given, seen), seen.shown_at))
    if move.is_unnamed and seen is caller.snapshot:
        raise _ChangedError  # times decide, and those of one look may be too late
    if person is None and move.writes:
        return await _begin(connection, given, bare)
    content, moment, shown_at = None, _moment(seen), seen.shown_at
    if person is not None and move.writes:
        shown_at = time_of_showing(move, moment.now, given.together_ms, shown_at)
        content = await _save(connection, given, person, move, seen, moment, shown_at)
    if move.reads is not None:
        content = await _read(connection, move.reads)
    visitor = person.tracking_id if person is not None and caller.is_anonymous else None
    return Done(move, offers, content, visitor, person is None, moment.shown_from(shown_at))


async def _begin(connection: Connection, given: Call, bare: Sequence[Offer]) -> Done:
    """The first call of somebody new, who is made in the transaction in which it is saved."""
    if given.admit is not None:
        await given.admit()
    async with connection.transaction():
        caller = await _somebody_new(connection, given.caller)
        found = await _look(connection, _names(caller))
        if found is None:
            raise _GoneError
        _, seen = found
        if seen.person is None:
            raise RuntimeError("a person who was just made cannot be found")
        offers = seen.with_progress(bare)
        move = given.decide(offers, True)
        content, moment, shown_at = None, _moment(seen), seen.shown_at
        if move.writes:
            shown_at = time_of_showing(move, moment.now, given.together_ms, shown_at)
            content = await _save(
                connection, replace(given, caller=caller), seen.person, move, seen, moment, shown_at
            )
    visitor = seen.person.tracking_id if given.caller.is_anonymous else None
    return Done(move, offers, content, visitor, True, moment.shown_from(shown_at))


def _names(caller: Caller) -> Names:
    who = caller.identity
    return Names(
        caller.server.slug,
        caller.tracking_id if who is None else None,
        caller.must_exist,
        who.issuer if who else None,
        who.subject if who else None,
        caller.transport_session,
    )


def _arrived_at(given: Call, seen: Snapshot) -> int:
    """When the call arrived, or a little later, in milliseconds of the database.

    Of two looks the earlier is right: a connection may have waited, or prepared the statement, before.
    """
    looks = (seen, given.caller.snapshot or seen)
    return min(look.arrived_at(given.arrived) for look in looks)


def _moment(seen: Snapshot) -> _Moment:
    monotonic = time.monotonic()
    return _Moment(seen.now(monotonic), monotonic)


async def _somebody_new(connection: Connection, caller: Caller) -> Caller:
    """Makes the person of a first call, unless another first call at the same moment has made them.

    Returns:
        The caller, with what the person is known by from now on.
    """
    user = new_id("mcpu_", 12)
    if caller.identity is not None:
        who = caller.identity
        await connection.execute(SQL["create_by_identity"], user, who.issuer, who.subject, who.email)
    elif caller.tracking_id is not None:
        owner = caller.server.organization_id
        await connection.execute(SQL["lock_first_visit"], owner, caller.tracking_id)
        await connection.execute(SQL["create_by_tracking_id"], user, caller.tracking_id, owner)
    elif caller.transport_session is not None:
        session, slug = caller.transport_session, caller.server.slug
        await connection.execute(SQL["create_by_session"], user, session, slug, new_tracking_id())
    else:
        caller = replace(caller, tracking_id=new_tracking_id())
        owner = caller.server.organization_id
        await connection.execute(SQL["create_by_tracking_id"], user, caller.tracking_id, owner)
    return caller


async def _look(connection: Connection, names: Names) -> tuple[Server, Snapshot] | None:
    """The server of that slug, and what there is of the person."""
    asked = time.monotonic()
    row = await connection.fetchrow(SQL["look"], *names)
    if row is None:
        return None
    read = time.monotonic()
    return _server(row), snapshot_of(row, names, asked, read)


async def _read_offers(connection: Connection, slug: str, cache: OfferCache | None) -> tuple[Offer, ...]:
    """What a server offers and its version, in one snapshot: nothing is kept under another's version."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        found = await _look(connection, Names(slug))
        text = await connection.fetchval(SQL["offers"], slug)
    version = found[1].version if found else ""
    return (cache or OfferCache()).keep(slug, version, text)


async def _save(
    connection: Connection,
    given: Call,
    person: Person,
    move: CallEffect,
    seen: Snapshot,
    moment: _Moment,
    shown_at: int | None,
) -> dict[str, Any] | None:
    offer, caller, client = move.offer, given.caller, given.client
    assert offer is not None  # noqa: S101 - moves that write have one
    before = offer.progress
    opened = seen.walkthroughs.get(offer.walkthrough_id)
    at = next_time(moment.now, before.last_activity_at if before else None)
    begins = before is None or move.outcome is CallOutcome.RESTARTED
    finished = None if move.shows else ((before.completed_at if before else None) or at)
    session, is_ours = _session(caller, seen, moment)
    events = events_of(move, Where(person.id, caller.server.id, caller.server.slug, session), at)
    written = await fetch_one(
        connection,
        SQL["save"],
        person.id,
        person.sessions,
        opened.version if opened else None,
        caller.server.id,
        caller.server.slug,
        session,
        is_ours,
        at,
        shown_at,
        before.id if before else new_id("wtp_", 8),
        offer.walkthrough_id,
        json.dumps(list(move.completed)),
        json.dumps(list(move.skipped)),
        move.shows.id if move.shows else None,
        at if begins or before is None else before.started_at,
        finished,
        [event.key for event in events],
        [event.value for event in events],
        [event.headers for event in events],
        [event.type for event in events],
        client.name if client else None,
        client.version if client else None,
    )
    if written["outcome"] == "changed":
        raise _ChangedError
    if written["outcome"] == "gone":
        raise _GoneError
    return None if written["content"] is None else json.loads(written["content"])


def _session(caller: Caller, seen: Snapshot, moment: _Moment) -> tuple[str, bool]:
    """The session of a call, and whether it is one of ours.

    A session is one person's. Who gives a visitor id in that of another has one of ours.
    """
    if caller.transport_session is not None and seen.is_own_session:
        return caller.transport_session, False
    is_live = (seen.session_used_at or 0) > moment.now - SESSION_IDLE_MS
    return (seen.live_session if is_live and seen.live_session else new_id("mss_", 20)), True


async def _read(connection: Connection, step: OfferedStep) -> dict[str, Any] | None:
    row = await connection.fetchrow(SQL["read_step"], step.id)
    if row is None:
        raise _GoneError
    return None if row["content_fields"] is None else json.loads(row["content_fields"])

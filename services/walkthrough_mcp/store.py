"""One call's transaction: lock the person, look, decide, write; a constant number of round trips."""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import asyncpg
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    wait_random,
    wait_random_exponential,
)

from services.runtime.database import Connection, Pool, bounded, fetch_one, load_queries
from services.walkthrough_mcp.events import Where, events_of
from services.walkthrough_mcp.guide import (
    CallEffect,
    CallOutcome,
    Offer,
    OfferedStep,
    Progress,
    can_have_seen,
    next_time,
    time_of_showing,
    wait_until_shown,
)
from services.walkthrough_mcp.people import Caller, Server, new_id, new_tracking_id
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
    **bounded(4 * WAIT_SECONDS),
}
#: How long a call waits for other calls of the same person, and for rows that somebody has locked.
_PATIENCE_SECONDS = 10.0
#: So many tries at least: where a connection took as long to come, a lock that is gone in a moment refuses
#: nobody. PostgreSQL has such locks of its own, to make a table's file longer.
_LEAST_TRIES = 8
#: So many calls of one person wait, beside the one that goes on.
WAITING = 16

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


class UnknownVisitorError(Exception):
    """Nobody has the given visitor id, or has it at another server alone."""


class SignsInElsewhereError(Exception):
    """The tracking id is that of somebody who signs in: without a token it opens nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, what the call comes to, and when it arrived, on the monotonic clock of this process.

    `together_ms` is how long the answer to one that names no step waits for those of the same moment.
    """

    caller: Caller
    decide: Decide
    arrived: float
    together_ms: int = 0


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
class _Times:
    """When a call arrived and its transaction was begun, on the monotonic clock of this process."""

    arrived: float
    begun: float

    def arrived_at(self, begun_at: int, asked: float, asked_at: int) -> int:
        """When the call arrived, or a little later, in milliseconds of the database.

        That is the time at which the database got a statement, less how long before it was sent the call
        came. Of two the earlier is right: a new connection prepares the query before it runs it, and a pooler
        keeps the transaction waiting.
        """
        return min(
            at - int((sent - self.arrived) * 1000) for at, sent in ((begun_at, self.begun), (asked_at, asked))
        )


@dataclass(frozen=True, slots=True)
class _Person:
    """A person; `arrived_at` is when the call arrived, or a little later, in milliseconds of the database."""

    id: str
    tracking_id: str | None
    arrived_at: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is there: the time, the session of this call, when what is current was shown, what is offered.

    `now` and `shown_at` are in milliseconds of the database; it was `now` at `read`, on the monotonic clock,
    or before.
    """

    now: int
    read: float
    session: str
    is_of_transport: bool
    shown_at: int | None
    offers: tuple[Offer, ...]


async def keep_as_it_is(_: Connection) -> None:
    """Resets nothing when a connection goes back to the pool: no statement here leaves anything behind."""


async def find_server(pool: Pool, slug: str) -> Server | None:
    """The server of that slug."""
    async with pool.acquire(timeout=WAIT_SECONDS) as connection:
        row = await connection.fetchrow(SQL["find_server"], slug)
    return Server(**dict(row)) if row else None


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
        asyncpg.PostgresError, OSError: the database is away. Whether the call was committed is then unknown.
    """
    came = time.monotonic()
    person = _who(given.caller)
    if person is None or turns is None:
        done = await _until_free(pool, given, came, places)
    else:
        async with turns.turn(person, _PATIENCE_SECONDS):
            done = await _until_free(pool, given, came, places)
    if (wait := done.shown_from - time.monotonic()) > 0:
        await asyncio.sleep(wait)
    return done


def _who(caller: Caller) -> Hashable:
    """What a person is known by; None for somebody new."""
    if caller.must_exist:
        return caller.server.id, caller.tracking_id  # one of another server's waits for nobody there
    return caller.identity or caller.tracking_id or caller.transport_session


async def _until_free(pool: Pool, given: Call, came: float, places: Places | None) -> Done:
    """Runs the call when nobody else has locked what it needs; between two tries it holds nothing."""
    left = max(0.0, came + _PATIENCE_SECONDS - time.monotonic())
    tries = AsyncRetrying(
        retry=retry_if_exception_type(asyncpg.LockNotAvailableError),
        stop=stop_all(stop_after_delay(left), stop_after_attempt(_LEAST_TRIES)),
        wait=wait_random_exponential(multiplier=0.01, max=1),
        reraise=True,
    )
    try:
        async for attempt in tries:
            with attempt:
                done = await _until_there(pool, given, places)
    except asyncpg.LockNotAvailableError as error:
        raise BusyError from error
    return done


async def _until_there(pool: Pool, given: Call, places: Places | None) -> Done:
    caller = given.caller
    tries = AsyncRetrying(
        retry=retry_if_exception_type(_AGAIN),
        stop=stop_after_attempt(5),
        wait=wait_random(0, 0.05),
        reraise=True,
    )
    async for attempt in tries:
        with attempt:
            async with (
                places.place(caller.server.asker, caller.address) if places else contextlib.nullcontext(),
                pool.acquire(timeout=WAIT_SECONDS) as connection,
            ):
                begun = time.monotonic()
                async with connection.transaction():
                    done = await _call(connection, given, begun)
    return done


async def _call(connection: Connection, given: Call, begun: float) -> Done:
    caller, decide = given.caller, given.decide
    times = _Times(given.arrived, begun)
    person = await _lock(connection, caller, times)
    seen = await _look(connection, caller, person)
    move = decide(seen.offers, person is None or can_have_seen(person.arrived_at, seen.shown_at))
    is_new = person is None
    if person is None and move.writes:
        person = await _somebody_new(connection, caller, times)
        seen = await _look(connection, caller, person)
        move = decide(seen.offers, True)
    content, shown_at = None, seen.shown_at
    if person is not None and move.writes:
        shown_at = time_of_showing(move, seen.now, given.together_ms, shown_at)
        content = await _save(connection, caller, person, move, seen, shown_at)
    wait = wait_until_shown(seen.now, shown_at)
    shown_from = seen.read + (wait + _ROUNDING_MS) / 1000 if wait else 0.0
    visitor = person.tracking_id if person is not None and caller.is_anonymous else None
    return Done(move, seen.offers, content, visitor, is_new, shown_from)


async def _lock(connection: Connection, caller: Caller, times: _Times) -> _Person | None:
    arguments: list[str | None]
    if caller.identity is not None:
        query, arguments = "lock_by_identity", [caller.identity.issuer, caller.identity.subject]
    elif caller.tracking_id is not None:
        only_at = caller.server.id if caller.must_exist else None
        query, arguments = "lock_by_tracking_id", [caller.tracking_id, only_at]
    elif caller.transport_session is not None:
        query, arguments = "lock_by_session", [caller.transport_session, caller.server.slug]
    else:
        return None
    asked = time.monotonic()
    row = await connection.fetchrow(SQL[query], *arguments)
    if row is None:
        if caller.must_exist:
            raise UnknownVisitorError
        return None
    if row["signs_in"]:
        raise SignsInElsewhereError
    return _Person(row["id"], row["tracking_id"], times.arrived_at(row["begun_at"], asked, row["asked_at"]))


async def _somebody_new(connection: Connection, caller: Caller, times: _Times) -> _Person:
    """Makes the person of a first call, or finds who another first call at the same moment has made."""
    user = new_id("mcpu_", 12)
    if caller.identity is not None:
        who = caller.identity
        await connection.execute(SQL["create_by_identity"], user, who.issuer, who.subject, who.email)
    elif caller.tracking_id is not None:
        await connection.execute(SQL["create_by_tracking_id"], user, caller.tracking_id)
    elif caller.transport_session is not None:
        session, slug = caller.transport_session, caller.server.slug
        await connection.execute(SQL["create_by_session"], user, session, slug, new_tracking_id())
    else:
        caller = replace(caller, tracking_id=new_tracking_id())
        await connection.execute(SQL["create_by_tracking_id"], user, caller.tracking_id)
    person = await _lock(connection, caller, times)
    if person is None:
        raise RuntimeError("a person who was just made cannot be found")
    return person


async def _look(connection: Connection, caller: Caller, person: _Person | None) -> _Seen:
    row = await fetch_one(
        connection,
        SQL["look"],
        caller.server.id,
        person.id if person else None,
        SESSION_IDLE_MS,
        caller.transport_session,
    )
    read = time.monotonic()
    offers = tuple(_offer(given) for given in json.loads(row["offers"]))
    # A session is one person's. Who gives a visitor id in that of another has one of ours.
    transport = caller.transport_session if row["is_own_session"] else None
    session = transport or row["live_session_id"] or new_id("mss_", 20)
    return _Seen(row["now_ms"], read, session, transport is not None, row["shown_at"], offers)


async def _save(
    connection: Connection,
    caller: Caller,
    person: _Person,
    move: CallEffect,
    seen: _Seen,
    shown_at: int | None,
) -> dict[str, Any] | None:
    offer = move.offer
    assert offer is not None  # noqa: S101 - moves that write have one
    before = offer.progress
    at = next_time(seen.now, before.last_activity_at if before else None)
    begins = before is None or move.outcome is CallOutcome.RESTARTED
    finished = None if move.shows else ((before.completed_at if before else None) or at)
    where = Where(person.id, caller.server.id, caller.server.slug, seen.session)
    events = events_of(move, where, at)
    written = await fetch_one(
        connection,
        SQL["save"],
        seen.session,
        caller.server.slug,
        caller.server.id,
        person.id,
        at,
        not seen.is_of_transport,
        before.id if before else new_id("wtp_", 8),
        offer.walkthrough_id,
        json.dumps(list(move.completed)),
        move.shows.id if move.shows else None,
        at if begins or before is None else before.started_at,
        finished,
        [event.key for event in events],
        [event.value for event in events],
        [event.headers for event in events],
        [event.type for event in events],
        shown_at,
    )
    if not written["places"] or (move.shows is not None and not written["steps"]):
        raise _GoneError
    return None if written["content"] is None else json.loads(written["content"])


def _offer(given: dict[str, Any]) -> Offer:
    progress = given["progress"]
    recorded = tuple(given["recorded"] or ())
    return Offer(
        walkthrough_id=given["walkthrough_id"],
        title=given["title"],
        description=given["description"],
        type=given["type"],
        minutes=given["minutes"],
        tags=tuple(str(tag) for tag in given["tags"]) if isinstance(given["tags"], list) else (),
        steps=tuple(OfferedStep(*step) for step in given["steps"]),
        progress=None if progress is None else _progress(progress, recorded),
        recorded=recorded,
    )


def _progress(given: dict[str, Any], recorded: Sequence[str]) -> Progress:
    completed = given["completed"]
    known = tuple(str(s) for s in completed) if isinstance(completed, list) else ()
    return Progress(
        id=given["id"],
        completed=(*known, *(s for s in recorded if s not in known)),
        current_step_id=given["current_step_id"],
        started_at=given["started_at"],
        completed_at=given["completed_at"],
        last_activity_at=given["last_activity_at"],
    )

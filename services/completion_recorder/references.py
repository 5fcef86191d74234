"""The rows of other tables that events refer to: looked up, and locked until the commit."""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

from schemas import Known, OfStep, StepCompleted, UserErased
from services.completion_recorder.erasure import find_erased
from services.completion_recorder.first_sight import (
    Sight,
    of_sources,
    register,
    register_by_halves,
    sights_in,
)
from services.completion_recorder.judge import (
    Accepted,
    References,
    Refused,
    check_references,
    of_others,
    people_of,
    user_of,
)
from services.completion_recorder.not_written import NotWritten, Waiting
from services.runtime.database import Connection, fetch_one, load_queries

SQL = load_queries(__file__)


class Checked(NamedTuple):
    """Events whose references are there, and what becomes of the others."""

    good: Sequence[Accepted]
    not_written: NotWritten
    #: Whether one of the good may have the id of a completion that an earlier one has beaten.
    may_name_later: bool


async def check(
    connection: Connection,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused],
    registering: Set[str] = frozenset(),
) -> Checked:
    """The events whose references are there, locked until the commit; what becomes of the others.

    People and sessions that events of the sources `registering` name are made where they are missing.

    Raises:
        asyncpg.LockNotAvailableError: somebody else has locked one of the rows.
    """
    not_written = await _check_unreadable(connection, unreadable)
    wanted = References.of(accepted)
    if not wanted.users:
        return Checked([], not_written, may_name_later=False)
    ids = ["wtsc_" + event.event_id for event, _ in accepted if isinstance(event, StepCompleted)]
    are_there, names_later = await _all_there(connection, wanted, ids)
    if are_there:
        return Checked(accepted, not_written, names_later)
    if sights := await _sights(connection, accepted, registering):
        await register(connection, sights)
        are_there, _ = await _all_there(connection, wanted, ids)
        if are_there:
            return Checked(accepted, not_written, names_later)
    good, others = _judge(accepted, *await _find(connection, _ids(wanted)))
    return Checked(good, not_written + others, names_later)


async def _sights(
    connection: Connection, accepted: Iterable[Accepted], registering: Set[str]
) -> Sequence[Sight]:
    """What is to be made for the events of these sources, where nothing else is wrong with them."""
    candidates = of_sources(accepted, registering) if registering else []
    return sights_in(candidates, *await find_known(connection, candidates)) if candidates else ()


async def check_by_parts(
    connection: Connection,
    accepted: Sequence[Accepted],
    unreadable: Sequence[Refused],
    registering: Set[str] = frozenset(),
) -> tuple[Sequence[Accepted], NotWritten]:
    """As `check`, and waits for nobody: the events of rows that somebody else has locked wait."""
    not_written = await _check_unreadable(connection, unreadable)
    if sights := await _sights(connection, accepted, registering):
        waits = await register_by_halves(connection, sights)
        not_written += NotWritten(waiting=waits)
        later = {id(item) for item, _ in waits}
        accepted = [item for item in accepted if id(item) not in later]
    wanted = References.of(accepted)
    if not wanted.users:
        return [], not_written
    ids = _ids(wanted)
    free = dict(await connection.fetchrow(SQL["lock_references"], *ids) or {})
    good, others = _judge(accepted, *await _find(connection, ids))
    good, waiting = _apart_from_waiting(good, {kind: set(found) for kind, found in free.items()})
    return good, not_written + others + NotWritten(waiting=waiting)


async def find_known(connection: Connection, accepted: Iterable[Accepted]) -> tuple[Known, set[str]]:
    """What exists now of the rows that these events refer to, and who of their people was erased."""
    return await _find(connection, _ids(References.of(accepted)))


async def _check_unreadable(connection: Connection, unreadable: Sequence[Refused]) -> NotWritten:
    """They are refused, but for those of people who were erased."""
    if not unreadable:
        return NotWritten()
    erased = await find_erased(connection, set().union(*(people_of(r.record) for r in unreadable)))
    return NotWritten(of_others(unreadable, erased), erased=erased)


def _judge(accepted: Iterable[Accepted], known: Known, erased: set[str]) -> tuple[list[Accepted], NotWritten]:
    living = [item for item in accepted if user_of(item.event) not in erased]
    good, refused = check_references(living, known)
    return good, NotWritten(refused, erased=erased)


async def _all_there(connection: Connection, wanted: References, ids: Sequence[str]) -> tuple[bool, bool]:
    """Whether all that is wanted is there; and whether later completions have one of these ids."""
    *counts, names_later = await fetch_one(
        connection,
        SQL["count_references"],
        list(wanted.users),
        *_columns(wanted.sessions, 3),
        *_columns(wanted.server_walkthroughs, 2),
        *_columns(wanted.steps, 2),
        ids,
    )
    expected = (wanted.users, wanted.sessions, wanted.server_walkthroughs, wanted.steps, ())
    return counts == [len(part) for part in expected], names_later


def _columns(tuples: Collection[tuple[str, ...]], width: int) -> list[list[str]]:
    return [[one[i] for one in tuples] for i in range(width)]


def _ids(wanted: References) -> tuple[list[str], ...]:
    return (
        list(wanted.users),
        list({session for session, _, _ in wanted.sessions}),
        list({server for server, _ in wanted.server_walkthroughs}),
        list({walkthrough for _, walkthrough in wanted.server_walkthroughs}),
        list({step for step, _ in wanted.steps}),
    )


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
        rows = [
            ("users", "mcp_server_user", event.mcp_server_user_id),
            ("sessions", "mcp_server_session", event.mcp_server_session_id),
            ("servers", "mcp_servers", event.mcp_server_id),
            ("walkthroughs", "walkthroughs", event.walkthrough_id),
        ]
        if isinstance(event, OfStep):
            rows.append(("steps", "walkthrough_steps", event.step_id))
        locked = next((f"{table} {id_}" for kind, table, id_ in rows if id_ not in free[kind]), None)
        if locked is None:
            now.append(item)
        else:
            waiting.append(Waiting(item, locked))
    return now, waiting

"""The rows of `completion_corrections`: what corrections come to, and what counts by them."""

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

import asyncpg

from schemas import StepCorrected
from services.completion_recorder.erasure import lock_people
from services.completion_recorder.judge import Accepted, row_of, user_of
from services.completion_recorder.not_written import NotWritten, Waiting
from services.completion_recorder.upsert import (
    REFUSED_BY_DATABASE,
    refused_by_database,
    upsert_candidates,
)
from services.runtime.database import Connection, load_queries

SQL = load_queries(__file__)


def corrections(accepted: Iterable[Accepted]) -> list[Accepted]:
    """Those that are corrections."""
    return [item for item in accepted if isinstance(item.event, StepCorrected)]


class Decision(NamedTuple):
    """A row of `completion_corrections`."""

    event_id: str
    mcp_server_user_id: str
    walkthrough_id: str
    step_id: str
    mcp_server_id: str
    mcp_server_session_id: str
    corrected_at: int
    covers_until: int
    completed_at: int | None

    @property
    def key(self) -> tuple[str, str]:
        """Whose completion it decides about, and of which step."""
        return self.mcp_server_user_id, self.step_id

    def _rank(self) -> tuple[object, ...]:
        """The largest decides; what follows the id only decides between different contents under one id."""
        completed_at = -1 if self.completed_at is None else self.completed_at
        return self.corrected_at, self.event_id, completed_at, self.mcp_server_id, self.mcp_server_session_id

    def joined_with(self, other: "Decision") -> "Decision":
        """What two decisions about one user and step come to: the newest decides, the largest cover holds."""
        newest = max(self, other, key=Decision._rank)
        return newest._replace(covers_until=max(self.covers_until, other.covers_until))


def decide(items: Iterable[Accepted], before: Iterable[Decision]) -> list[Decision]:
    """What corrections come to, with what was decided before; one for each user and step."""
    decided = {decision.key: decision for decision in before}
    for event, _ in items:
        if isinstance(event, StepCorrected):
            new = Decision(*(getattr(event, name) for name in Decision._fields))
            decided[new.key] = new.joined_with(decided.get(new.key, new))
    return list(decided.values())


async def lock_corrected(connection: Connection, items: Iterable[Accepted]) -> None:
    """Locks the people whose completions these events correct: nobody else records completions of theirs.

    Raises:
        asyncpg.LockNotAvailableError: somebody else has locked one of them.
    """
    if users := _users(corrections(items)):
        await connection.execute(SQL["lock_corrected"], users)


async def correct(connection: Connection, items: Sequence[Accepted]) -> None:
    """Decides anew about rows of people whom we have locked."""
    if not items:
        return
    keys = [row_of(event) for event, _ in items]
    users, steps = [key.user for key in keys], [key.of_what for key in keys]
    before = [Decision(*row) for row in await connection.fetch(SQL["find_corrections"], users, steps)]
    decided = decide(items, before)
    await connection.execute(SQL["write_corrections"], *_columns(decided))
    ids = {decision.event_id for decision in decided}
    superseded = [("wtsc_" + d.event_id, *d.key, d.completed_at) for d in before if d.event_id not in ids]
    if superseded:
        await connection.execute(SQL["delete_superseded"], *_columns(superseded))
    whose = _columns([decision.key for decision in decided])
    for statement in ("delete_covered", "delete_covered_later"):
        await connection.execute(SQL[statement], *whose)
    taken = await connection.execute(SQL["take_candidates"], *whose)
    await upsert_candidates(connection, int(taken.split()[-1]))
    await connection.execute(SQL["forget_counted"], *whose)


async def correct_by_parts(connection: Connection, items: Sequence[Accepted]) -> NotWritten:
    """One after another: one that meets a lock waits alone."""
    not_written = NotWritten()
    if not items:
        return not_written
    locked = await lock_people(connection, _users(items))
    for item in items:
        not_written += await _correct_one(connection, item, locked)
    return not_written


async def _correct_one(connection: Connection, item: Accepted, locked: Container[str]) -> NotWritten:
    if (user := user_of(item.event)) in locked:
        return NotWritten(waiting=[Waiting(item, f"mcp_server_user {user}")])
    try:
        async with connection.transaction():
            await correct(connection, [item])
    except asyncpg.LockNotAvailableError:
        return NotWritten(waiting=[Waiting(item, str(row_of(item.event)))])
    except REFUSED_BY_DATABASE as error:
        return NotWritten([refused_by_database(item, error)])
    return NotWritten()


def _users(items: Iterable[Accepted]) -> list[str]:
    return list({user_of(item.event) for item in items})


def _columns(rows: Iterable[Sequence[object]]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)]

"""People and sessions that events of certain sources name before anybody has registered them.

They are made in the transaction that records the events. `ce_source` is what a producer says of itself: who
may write to the topic may have people registered.
"""

import random
from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple

import asyncpg

from schemas import (
    Known,
    OfStep,
    Rejection,
    StepCompleted,
    StepShown,
    StepSkipped,
    WalkthroughStarted,
    problems_with,
)
from services.completion_recorder.judge import Accepted
from services.completion_recorder.not_written import Waiting
from services.completion_recorder.upsert import REFUSED_BY_DATABASE
from services.runtime.database import Connection, load_queries
from services.runtime.sources import source_of

SQL = load_queries(__file__)

_KINDS: Final = (StepCompleted, StepShown, StepSkipped, WalkthroughStarted)
#: All that may be wrong with an event whose person or session is made.
_MISSING: Final = frozenset({Rejection.UNKNOWN_USER, Rejection.UNKNOWN_SESSION})
#: So many of them wait for a lock with patience; then the rest waits, too.
_PROBES: Final = 20


class Sight(NamedTuple):
    """An event that names a user or a session that is not there, and nothing else that is wrong."""

    item: Accepted
    user: str
    is_user_new: bool
    session: str
    is_session_new: bool
    server: str
    at: int

    @property
    def waits_for(self) -> str:
        """The row that somebody else is about to make, or to delete what it refers to."""
        if self.is_user_new:
            return f"mcp_server_user {self.user}"
        return f"mcp_server_session {self.session}"


def of_sources(accepted: Iterable[Accepted], sources: Container[str]) -> list[Accepted]:
    """The events that these sources sent, of the kinds that producers send."""
    return [
        item for item in accepted if type(item.event) in _KINDS and source_of(item.record.headers) in sources
    ]


def sights_in(candidates: Iterable[Accepted], known: Known, erased: Container[str]) -> list[Sight]:
    """What is to be made for these events, in their order: nothing of people who were erased."""
    sights = []
    for item in candidates:
        event = item.event
        if not isinstance(event, OfStep | WalkthroughStarted) or event.mcp_server_user_id in erased:
            continue
        wrong = {problem.rejection for problem in problems_with(event, known)}
        if wrong and wrong <= _MISSING:
            user, session = event.mcp_server_user_id, event.mcp_server_session_id
            is_user_new, is_session_new = Rejection.UNKNOWN_USER in wrong, Rejection.UNKNOWN_SESSION in wrong
            sights.append(
                Sight(
                    item, user, is_user_new, session, is_session_new, event.mcp_server_id, event.happened_at
                )
            )
    return sights


async def register(connection: Connection, sights: Sequence[Sight]) -> None:
    """Makes users and sessions; a session that several name is that of the first.

    Args:
        connection: in a transaction.
        sights: what is to be made.

    Raises:
        asyncpg.LockNotAvailableError: somebody else is about to make one, or has locked its server.
        asyncpg.PostgresError: PostgreSQL refuses a row, for a constraint of the platform, say.
    """
    people = [sight for sight in sights if sight.is_user_new]
    firsts: dict[str, Sight] = {}
    for sight in sights:
        if sight.is_session_new:
            firsts.setdefault(sight.session, sight)
    await connection.execute(
        SQL["register"],
        [sight.user for sight in people],
        [sight.at for sight in people],
        list(firsts),
        [sight.server for sight in firsts.values()],
        [sight.user for sight in firsts.values()],
        [sight.at for sight in firsts.values()],
    )


async def register_by_halves(connection: Connection, sights: Sequence[Sight]) -> list[Waiting]:
    """Makes what can be made now; events whose person or session somebody else is about to make wait.

    What PostgreSQL refuses is not made: its events are judged without it.
    """
    waiting: list[Waiting] = []
    # In another order each time: who is behind many that wait is not behind them the next time. But a session
    # is that of the first which names it, so whatever is of one session stays together.
    left = [_of_one_session(sights)]
    random.shuffle(left[0])
    probes = _PROBES
    while left:
        part = left.pop()
        some = [sight for group in part for sight in group]
        if not probes:
            waiting += [Waiting(sight.item, sight.waits_for) for sight in some]
            continue
        try:
            async with connection.transaction():
                await register(connection, some)
        except (asyncpg.LockNotAvailableError, *REFUSED_BY_DATABASE) as error:
            is_locked = isinstance(error, asyncpg.LockNotAvailableError)
            probes -= is_locked
            if len(part) > 1:
                left += [part[: len(part) // 2], part[len(part) // 2 :]]
            elif is_locked:
                waiting += [Waiting(sight.item, sight.waits_for) for sight in some]
    return waiting


def _of_one_session(sights: Iterable[Sight]) -> list[list[Sight]]:
    groups: dict[str, list[Sight]] = {}
    for sight in sights:
        groups.setdefault(sight.session, []).append(sight)
    return list(groups.values())

"""What is read, in read-only transactions: the counts, and the journeys where a question needs them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg
from cachetools import LRUCache

from services.analytics_api.fair import SharedCache, Turn
from services.analytics_api.freshness import Backlog, Held, Marks, Newest
from services.analytics_api.models import Cohort, Server, Step, Walkthrough
from services.analytics_api.outcomes import outcome_of
from services.consumers.stored_positions import TABLES, read_positions
from services.journeys.flow import Ending, Flows, Link, Variant, flows
from services.runtime.database import Connection, Pool, bounded, fetch_one, load_queries
from services.runtime.sources import NO_SOURCE, OTHERS

SQL = load_queries(__file__)
_EPOCH: Final = date(1970, 1, 1)
_DAY_MS: Final = 86_400_000
#: Variants kept in memory, in steps: of some 50 bytes each.
_KEPT_STEPS: Final = 2_000_000
#: Answers of other questions that read journeys.
_KEPT_FIGURES: Final = 500
_KEPT_COUNTS: Final = 10_000
#: From so many journeys of a walkthrough on a read of them is a large one. Below it takes some 20 ms at most.
_LARGE_JOURNEYS: Final = 10_000
#: From so many steps of variants, or cells, on computing is.
_LARGE_STEPS: Final = 20_000

T = TypeVar("T")


def server_settings(statement_seconds: float) -> dict[str, str]:
    """Settings of connections on which a statement may take so long, and a transaction three times that.

    A process that hangs, or is cut off, in a read would keep migrations and vacuum waiting.
    """
    return {
        "application_name": "stepstream analytics-api",
        "default_transaction_read_only": "on",
        # Compiling takes longer than most of these statements.
        "jit": "off",
        # A large read keeps one core busy, and leaves the others to small ones.
        "max_parallel_workers_per_gather": "0",
        "statement_timeout": f"{int(statement_seconds * 1000)}ms",
        **bounded(3 * statement_seconds),
    }


async def server_of(connection: Connection) -> str:
    """Which server a connection leads to: another one after a failover, and after a start from a backup."""
    return str(await connection.fetchval(SQL["server"]))


async def keep_as_it_is(_: Connection) -> None:
    """A connection that is given back: no statement here leaves anything in its session."""


@dataclass(frozen=True, slots=True)
class Context:
    """A walkthrough as it is now, with the number that changes with its figures.

    `look` is from before: events that were handled by then are in what is read of the context. `turn` is the
    question's.
    """

    turn: Turn
    walkthrough: Walkthrough
    backlog: Backlog
    newest: Newest
    version: str

    @property
    def id(self) -> str:
        return self.walkthrough.id

    @property
    def steps(self) -> list[Step]:
        """Its steps in display order."""
        return self.walkthrough.steps


@dataclass(frozen=True, slots=True)
class Change:
    """How a walkthrough is: whose, the times of its newest events, and what changes with its figures."""

    organization: str
    newest: Newest
    version: str


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is kept of a key."""

    organization_id: str
    hash: bytes
    is_valid: bool


def _days(of: Cohort) -> tuple[list[str] | None, date | None, date | None]:
    return of.server or None, of.since, of.until


def _times(of: Cohort) -> tuple[list[str] | None, int | None, int | None]:
    """As `_days`, in milliseconds, from the first day's beginning to before the end of the last."""
    return of.server or None, day_ms(of.since), day_ms(of.until, 1)


def day_ms(day: date | None, later: int = 0) -> int | None:
    """When a UTC day begins, or so many days later, in milliseconds since the epoch."""
    return None if day is None else ((day - _EPOCH).days + later) * _DAY_MS


class Store:
    """The database, and what was read of journeys lately."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._variants: SharedCache[list[Variant]] = SharedCache(_KEPT_STEPS)
        self._figures: SharedCache[list[asyncpg.Record]] = SharedCache(_KEPT_FIGURES)
        self._counted: LRUCache[Hashable, int] = LRUCache(_KEPT_COUNTS)
        self._reading: dict[Hashable, asyncio.Task[Any]] = {}

    async def key(self, identifier: str) -> StoredKey | None:
        """The key of that id."""
        row = await self.pool.fetchrow(SQL["find_key"], identifier)
        return None if row is None else StoredKey(**dict(row))

    async def key_ids(self, most: int) -> set[str]:
        """The ids of the newest keys that are good."""
        return {row["id"] for row in await self.pool.fetch(SQL["key_ids"], most)}

    async def walkthrough(self, identifier: str, turn: Turn, backlog: Backlog) -> Context | None:
        """A walkthrough of the organization that asks."""
        row = await self.pool.fetchrow(SQL["walkthrough"], identifier, turn.asker.organization)
        if row is None:
            return None
        walkthrough = Walkthrough(
            id=row["id"],
            title=row["title"],
            type=row["type"],
            status=row["status"],
            steps=[Step(**step) for step in json.loads(row["steps"])],
            servers=[Server(**server) for server in json.loads(row["servers"])],
        )
        return Context(
            turn, walkthrough, backlog, Newest(row["newest_at"], row["recorded_at"]), version_of(row)
        )

    async def foreign_servers(self, servers: Sequence[str], organization: str) -> set[str]:
        """Of these servers, those that are not the organization's."""
        rows = await self.pool.fetch(SQL["servers_of"], list(servers), organization)
        return set(servers) - {row["id"] for row in rows}

    async def counts(self, context: Context, cohort: Cohort, today: date) -> Flows:
        """Links and endings of paths as they are."""
        recent = today - timedelta(days=cohort.active_days)
        rows = await self.pool.fetch(SQL["counts"], context.id, *_days(cohort), recent)
        return await self.work(context, partial(_flows_of, rows, len(context.steps)), len(rows))

    async def variants(self, context: Context, cohort: Cohort, today: date) -> list[Variant]:
        """The distinct paths of a cohort: kept for as long as nothing changes."""
        key = (
            context.id,
            context.version,
            today,
            cohort.active_days,
            tuple(cohort.server),
            *_days(cohort)[1:],
        )
        return await self._once(
            self._variants, context, key, lambda: self._read_variants(context, cohort, today), _size
        )

    async def compute(
        self, context: Context, work: Callable[[list[Variant]], T], variants: list[Variant]
    ) -> T:
        return await self.work(context, partial(work, variants), _size(variants))

    async def work(self, context: Context, work: Callable[[], T], size: int) -> T:
        """What is computed beside the event loop; from some size on, one at a time."""
        if size < _LARGE_STEPS:
            return await asyncio.to_thread(work)
        turn = context.turn
        async with turn.away(), turn.lanes.computing.place(turn.asker):
            return await asyncio.to_thread(work)

    async def _once(
        self,
        kept: SharedCache[T],
        context: Context,
        key: Hashable,
        read: Callable[[], Coroutine[Any, Any, T]],
        size: Callable[[T], int] = lambda _: 1,
    ) -> T:
        """What is kept, or is being read for somebody else, or else is read."""
        turn = context.turn
        organization = turn.asker.organization
        if (found := kept.get(organization, key)) is not None:
            return found
        is_large = await self._is_large(context)
        if (found := kept.get(organization, key)) is not None:
            return found

        async def read_and_keep() -> T:
            async with self._room(turn, is_large):
                result = await read()
            kept.put(organization, key, result, size(result))
            return result

        task: asyncio.Task[T] | None = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(read_and_keep())
            task.add_done_callback(lambda done: self._forget(key, done))
        if not is_large:
            return await asyncio.shield(task)
        async with turn.away():
            return await asyncio.shield(task)

    def _forget(self, key: Hashable, done: "asyncio.Task[Any]") -> None:
        self._reading.pop(key, None)
        if not done.cancelled():
            done.exception()  # nobody may be there any more to see it

    @staticmethod
    def _room(turn: Turn, is_large: bool) -> contextlib.AbstractAsyncContextManager[None]:
        """A place for a large read; a small one has that of its question."""
        return turn.lanes.large.place(turn.asker) if is_large else contextlib.nullcontext()

    async def _is_large(self, context: Context) -> bool:
        """Whether a walkthrough has many journeys, whichever of them a question is about."""
        key = context.id, context.version
        if (journeys := self._counted.get(key)) is None:
            journeys = await self.pool.fetchval(SQL["journeys_counted"], context.id, None, None, None)
            self._counted[key] = journeys
        return journeys >= _LARGE_JOURNEYS

    async def _read_variants(self, context: Context, cohort: Cohort, today: date) -> list[Variant]:
        recent_ms = day_ms(today - timedelta(days=cohort.active_days), 1)
        async with (
            self.pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            most = await connection.fetchval(SQL["most_steps"], context.id)
            sums = ", ".join(
                f"sum(completed_at[{i}] - coalesce(started_at, completed_at[1]))" for i in range(1, most + 1)
            )
            query = SQL["variants"].replace("SUMS", sums)
            rows = await connection.fetch(query, context.id, *_times(cohort), recent_ms)
        return await asyncio.to_thread(_variants_of, rows, len(context.steps))

    async def every(self, context: Context, cohort: Cohort, most_people: int) -> tuple[int, int]:
        """How many journeys a cohort has, and every how many-th person is read so that they are not more."""
        journeys = await self.pool.fetchval(SQL["journeys_counted"], context.id, *_days(cohort))
        return journeys, max(1, -(-journeys // most_people))

    async def step_times(self, context: Context, cohort: Cohort, every: int) -> dict[str, asyncpg.Record]:
        """Times before each step."""
        rows = await self._heavy(context, "step_times", *_times(cohort), every)
        return {row["id"]: row for row in rows}

    async def time_to_finish(self, context: Context, cohort: Cohort, every: int) -> asyncpg.Record:
        """How long finished journeys took."""
        steps = len(context.steps)
        (row,) = await self._heavy(context, "time_to_finish", *_times(cohort), every, steps)
        return row

    async def sessions_and_days(self, context: Context, cohort: Cohort, every: int) -> asyncpg.Record:
        """In how many sessions and on how many days people came."""
        (row,) = await self._heavy(context, "sessions_and_days", *_times(cohort), every)
        return row

    async def trends(self, context: Context, cohort: Cohort, by: str) -> list[asyncpg.Record]:
        """Begun and finished journeys by day or week."""
        rows: list[asyncpg.Record] = await self.pool.fetch(
            SQL["trends"], context.id, *_days(cohort), by, len(context.steps)
        )
        return rows

    async def active_people(self, context: Context, cohort: Cohort, by: str) -> dict[date, int]:
        """People active by day or week."""
        rows = await self._heavy(context, "active_people", *_times(cohort), by)
        return {row["since"]: row["people"] for row in rows}

    async def _heavy(self, context: Context, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """What reads the journeys of a walkthrough: kept for as long as nothing changes."""

        async def read() -> list[asyncpg.Record]:
            rows: list[asyncpg.Record] = await self.pool.fetch(SQL[name], context.id, *arguments)
            return rows

        plain = tuple(tuple(a) if isinstance(a, list) else a for a in arguments)
        return await self._once(self._figures, context, (name, context.id, context.version, plain), read)

    @contextlib.asynccontextmanager
    async def journeys(
        self, context: Context, *arguments: Any
    ) -> AsyncIterator[AsyncIterator[asyncpg.Record]]:
        """Journeys that may be behind a figure, in order, read as they are taken."""
        is_large = await self._is_large(context)
        async with (
            context.turn.away() if is_large else contextlib.nullcontext(),
            self._room(context.turn, is_large),
            self.pool.acquire() as connection,
            connection.transaction(readonly=True),
        ):
            yield aiter(_cursor(connection, SQL["journeys"], arguments))

    async def journey(self, context: Context, user: str, servers: list[str]) -> asyncpg.Record | None:
        """Somebody's journey as it was counted, if it began on one of these servers."""
        row: asyncpg.Record | None = await self.pool.fetchrow(SQL["journey"], user, context.id, servers)
        return row

    async def journey_events(self, context: Context, user: str) -> list[asyncpg.Record]:
        """What somebody did in a walkthrough, on servers of the organization."""
        rows: list[asyncpg.Record] = await self.pool.fetch(
            SQL["journey_events"], user, context.id, context.turn.asker.organization
        )
        return rows

    async def session(
        self, identifier: str, organization: str, most: int
    ) -> tuple[asyncpg.Record, list[asyncpg.Record]] | None:
        """A session on a server of the organization, and its first events, at most so many."""
        row = await self.pool.fetchrow(SQL["session"], identifier, organization)
        if row is None:
            return None
        return row, await self.pool.fetch(SQL["session_events"], identifier, organization, most)

    async def organization(self, identifier: str) -> asyncpg.Record:
        """The organization of a key: it cannot be gone while the key is there."""
        return await fetch_one(self.pool, SQL["organization"], identifier)

    async def servers(self, organization: str) -> list[Server]:
        """The servers of an organization."""
        return [Server(**dict(row)) for row in await self.pool.fetch(SQL["servers"], organization)]

    async def overview(self, organization: str, cohort: Cohort, today: date) -> list[asyncpg.Record]:
        """Each walkthrough's journeys by server."""
        recent = today - timedelta(days=cohort.active_days)
        rows: list[asyncpg.Record] = await self.pool.fetch(
            SQL["overview"], organization, *_days(cohort), recent
        )
        return rows

    async def refused(
        self, topic: str, organization: str, since: date, sources: Sequence[str]
    ) -> list[asyncpg.Record]:
        """Refused events by source and class, and the totals of sources that are the organization's alone."""
        begins = datetime.combine(since, datetime.min.time(), UTC)
        rows: list[asyncpg.Record] = await self.pool.fetch(
            SQL["refused"], topic, organization, begins, list(sources) or None, [NO_SOURCE, OTHERS]
        )
        return rows

    async def offered_by(self, server: str) -> set[str]:
        """The ids of the walkthroughs that a server offers."""
        return {row["walkthrough_id"] for row in await self.pool.fetch(SQL["offered_by"], server)}

    async def changes(self, walkthroughs: Sequence[str]) -> dict[str, Change]:
        """How each walkthrough is, of those that there are."""
        rows = await self.pool.fetch(SQL["changes"], list(walkthroughs))
        return {
            r["id"]: Change(r["organization_id"], Newest(r["newest_at"], r["recorded_at"]), version_of(r))
            for r in rows
        }

    async def marks(self, topic: str) -> Marks:
        """Journeys that wait to be counted again, events that wait for a lock, and where the services are."""
        async with self.pool.acquire() as connection:
            (row,) = await connection.fetch(SQL["marks"])
            stored = {service: await read_positions(connection, service, topic) for service in TABLES}
        return Marks(
            row["waiting"], row["on_replica"], stored, [Held(*held) for held in json.loads(row["held"])]
        )


async def _cursor(
    connection: Connection, query: str, arguments: Sequence[Any]
) -> AsyncIterator[asyncpg.Record]:
    async for row in connection.cursor(query, *arguments, prefetch=500):
        yield row


def _size(variants: list[Variant]) -> int:
    return 1 + sum(3 + len(v.step_ids) for v in variants)


def version_of(row: asyncpg.Record) -> str:
    """What changes with the counts of a walkthrough and with its steps."""
    return f"{row['changes']}-{row['fingerprint'][:8]}"


def _flows_of(rows: Sequence[asyncpg.Record], steps: int) -> Flows:
    return flows(
        (
            Link(
                r["position"],
                r["from_step_id"],
                r["to_step_id"],
                r["journeys"],
                int(r["elapsed_ms"]),
                r["timed_journeys"],
            )
            for r in rows
            if r["is_link"]
        ),
        (
            Ending(
                r["position"],
                r["from_step_id"],
                outcome_of(r["position"], r["is_recent"], steps),
                r["journeys"],
            )
            for r in rows
            if not r["is_link"]
        ),
    )


def _variants_of(rows: Sequence[asyncpg.Record], steps: int) -> list[Variant]:
    found = []
    for step_ids, is_started, is_recent, journeys, sums in rows:
        done = len(step_ids)
        times = tuple(int(sum_) for sum_ in sums[:done])
        outcome = outcome_of(done, is_recent, steps)
        found.append(Variant(tuple(step_ids), outcome, is_started, journeys, times))
    return found

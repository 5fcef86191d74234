"""What is read: the counts, and the journeys where a question needs them. Only finish rules are written."""

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
from services.analytics_api.finishing import expanded
from services.analytics_api.freshness import Backlog, Held, Marks, Newest
from services.analytics_api.models import Cohort, Paths, Server, Step, Walkthrough
from services.analytics_api.outcomes import outcome_of
from services.analytics_api.selecting import ALL, BEGINNINGS, Only, selected
from services.consumers.stored_positions import TABLES, read_positions
from services.journeys.finishing import FinishRule
from services.journeys.flow import Ending, Flows, Link, Variant, flows
from services.journeys.survival import Curve, curve_of
from services.journeys.times import Timed
from services.journeys.versions import StepThen, Versions, steps_then
from services.journeys.within import Began
from services.runtime.database import Connection, Pool, bounded, fetch_one, load_queries
from services.runtime.fair import Asker, Writing
from services.runtime.finish_rules import finished_means
from services.runtime.sources import NO_SOURCE, OTHERS

SQL = {**expanded(load_queries(__file__)), **BEGINNINGS}
_EPOCH: Final = date(1970, 1, 1)
_DAY_MS: Final = 86_400_000
#: Variants kept in memory, in steps: of some 50 bytes each.
_KEPT_STEPS: Final = 2_000_000
#: Journeys with their times that are kept in memory, in steps: of some 100 bytes each.
_KEPT_TIMED_STEPS: Final = 500_000
#: And what was made of them, in their steps: of some 20 bytes each.
_KEPT_MADE_STEPS: Final = 2_000_000
#: Answers of other questions that read journeys.
_KEPT_FIGURES: Final = 500
#: Of those with many rows, so many take the place of an answer.
_ROWS_OF_ONE: Final = 20
_KEPT_COUNTS: Final = 10_000
#: Walkthroughs of which versions are kept.
_KEPT_VERSIONS: Final = 500
#: Curves of times to finish, of as many points as there were times: so many points in all.
_KEPT_POINTS: Final = 500_000
#: From so many journeys of a walkthrough on a read of them is a large one. Below it takes some 20 ms at most.
_LARGE_JOURNEYS: Final = 10_000
#: From so many steps of variants, or cells, on computing is.
_LARGE_STEPS: Final = 20_000

T = TypeVar("T")

#: Links with endings from the counts, too, or from the journeys: one statement, so of one moment.
for _name, _endings in (("counts", "endings"), ("counts_by_rule", "endings_by_rule")):
    SQL[_name] = SQL["links"].rstrip("; \n") + "\nunion all\n" + SQL[_endings]

#: A walkthrough without the time of the newest completion: where the table of these is locked whole.
_WALKTHROUGH_ALONE = SQL["walkthrough"].replace(
    "walkthrough_step_completions",
    "(select null::bigint as completed_at, null as walkthrough_id, null as step_id) as nothing",
)

#: How many classes and sources there are that `refused` chooses the last of: of the same sources.
_REFUSED_IN_ALL = SQL["refused"].partition(",\nlatest as materialized")[0] + "\n" + SQL["refused_in_all"]
#: How many journeys a page of an export has: few enough to be written beside the event loop at any time.
PAGE: Final = 1_000
#: Journeys that may be behind a figure, by their people's ids: who does something keeps their place.
SQL["journeys_by_person"] = (
    SQL["journeys"].rpartition("order by")[0]
    + f"and mcp_server_user_id > $10 order by mcp_server_user_id limit {PAGE}"
)
#: Where what they began with decides, a page is of so many people, whoever of them is asked for: to find
#: out what all began with would take seconds, for each page.
SQL["journeys_until"] = SQL["journeys_by_person"].replace(
    "order by", "and mcp_server_user_id <= $11 order by"
)
_UNTIL = f"""
select mcp_server_user_id from sankey_journeys
where walkthrough_id = $1 and mcp_server_user_id > $2
order by mcp_server_user_id offset {PAGE - 1} limit 1
"""  # noqa: S608 - a number
_LAST_PEOPLE = "(select * from sankey_journeys where walkthrough_id = $1 and mcp_server_user_id > $10)"
_SOME_PEOPLE = f"""(
  select * from sankey_journeys
  where walkthrough_id = $1 and mcp_server_user_id > $10 and mcp_server_user_id <= $11
  order by mcp_server_user_id limit {PAGE}
)"""  # noqa: S608 - a number


def server_settings(
    statement_seconds: float, lock_seconds: float = 0.5, *, reads_alone: bool = True
) -> dict[str, str]:
    """Settings of connections on which a statement may take so long, and a transaction three times that.

    Who needs a table that somebody has locked whole keeps no connection for longer than `lock_seconds`.
    Without `reads_alone` transactions may write.

    A process that hangs, or is cut off, in a read would keep migrations and vacuum waiting.
    """
    return {
        "application_name": "stepstream analytics-api",
        "default_transaction_read_only": "on" if reads_alone else "off",
        # Compiling takes longer than most of these statements.
        "jit": "off",
        # A large read keeps one core busy, and leaves the others to small ones.
        "max_parallel_workers_per_gather": "0",
        "statement_timeout": f"{int(statement_seconds * 1000)}ms",
        "lock_timeout": f"{int(lock_seconds * 1000)}ms",
        **bounded(3 * statement_seconds),
    }


async def server_of(connection: Connection) -> str:
    """Which server a connection leads to: another one after a failover, and after a start from a backup."""
    return str(await connection.fetchval(SQL["server"]))


@dataclass(frozen=True, slots=True)
class Context:
    """A walkthrough as it is now, with the number that changes with its figures.

    `look` is from before: events that were handled by then are in what is read of the context. `turn` is the
    question's, and `only` says which journeys it is about.
    """

    turn: Turn
    walkthrough: Walkthrough
    backlog: Backlog
    newest: Newest
    version: str
    rule: FinishRule
    versions: Versions
    only: Only = ALL

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
    """What is kept of a key; of types and servers that it may write, None is each."""

    organization_id: str
    hash: bytes
    is_valid: bool
    may_edit: bool
    may_read: bool
    may_write: bool
    may_register: bool
    write_types: Sequence[str] | None
    write_server_ids: Sequence[str] | None
    source: str | None

    def asker(self, identifier: str) -> Asker:
        """Who asks with it: its id is `identifier`."""
        writing = None
        if self.may_write:
            types, servers = (
                None if names is None else frozenset(names)
                for names in (self.write_types, self.write_server_ids)
            )
            writing = Writing(self.source or f"/keys/{identifier}", types, servers, self.may_register)
        return Asker(identifier, self.organization_id, self.may_edit, self.may_read, writing)


@dataclass(frozen=True, slots=True)
class VariantsWithin:
    """The paths of journeys as each stood so many days after its beginning, of those that had so many.

    `too_young` is how many began later; `first_began_at` and `last_began_at` are of those that had the time,
    None where there are none. An unfinished journey's outcome is `dropped`: it had not gone on by then.
    """

    variants: list[Variant]
    too_young: int
    first_began_at: int | None
    last_began_at: int | None

    @property
    def journeys(self) -> int:
        """How many had the time."""
        return sum(v.journeys for v in self.variants)


@dataclass(frozen=True, slots=True)
class StepSince:
    """Since when a step is there, in milliseconds since the epoch; None where that is not known.

    Unless it `is_made_then`, that is when it was first done: it may have been there before.
    """

    at: int | None
    is_made_then: bool


@dataclass(frozen=True, slots=True)
class Divided:
    """By what journeys are divided, and what is counted of them.

    With a `step`, who came to it; `before` are the steps that somebody has passed who stands at it, for each
    version. `did` are steps, `keys` those of metadata, `most` how many values of each are told.
    """

    step: str | None
    before: list[list[str]]
    did: list[str]
    keys: list[str]
    kinds: list[str]
    most: int


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
        self._within: SharedCache[VariantsWithin] = SharedCache(_KEPT_STEPS)
        self._curves: SharedCache[Curve] = SharedCache(_KEPT_POINTS)
        self._timed: SharedCache[list[Timed]] = SharedCache(_KEPT_TIMED_STEPS)
        self._made: SharedCache[Any] = SharedCache(_KEPT_MADE_STEPS)
        self._figures: SharedCache[list[asyncpg.Record]] = SharedCache(_KEPT_FIGURES)
        self._counted: LRUCache[Hashable, int] = LRUCache(_KEPT_COUNTS)
        self._edits: LRUCache[Hashable, list[asyncpg.Record]] = LRUCache(_KEPT_VERSIONS)
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
        arguments = identifier, turn.asker.organization
        try:
            row = await self.pool.fetchrow(SQL["walkthrough"], *arguments)
        except asyncpg.LockNotAvailableError:  # of the completions it needs how new the newest is, alone
            row = await self.pool.fetchrow(_WALKTHROUGH_ALONE, *arguments)
        if row is None:
            return None
        steps = [Step(**step) for step in json.loads(row["steps"])]
        versions = await self._versions(row["id"], steps, row["version_id"])
        rule = _rule_of(steps, row["goal_step_ids"], row["end_step_ids"], versions)
        walkthrough = Walkthrough(
            id=row["id"],
            title=row["title"],
            type=row["type"],
            status=row["status"],
            steps=steps,
            finished_means=finished_means(rule, {step.id: step.title for step in steps}),
            goal_step_ids=[step.id for step in steps if step.id in rule.goal],
            end_step_ids=[step.id for step in steps if step.id in rule.ends],
            servers=[Server(**server) for server in json.loads(row["servers"])],
        )
        return Context(
            turn,
            walkthrough,
            backlog,
            Newest(row["newest_at"], row["recorded_at"]),
            version_of(row),
            rule,
            versions,
        )

    async def _versions(self, walkthrough: str, steps: Sequence[Step], newest_id: int | None) -> Versions:
        """Its versions up to the one that it has today, which was read as `newest_id`."""
        key = walkthrough, newest_id
        if (rows := self._edits.get(key)) is None:
            rows = await self.pool.fetch(SQL["versions"], walkthrough)
            if rows and rows[-1]["id"] == newest_id:
                self._edits[key] = rows
        edits = [(row["made_at"], steps_then(*row[2:])) for row in rows]
        return Versions.of(edits, [StepThen(step.id, step.title) for step in steps])

    async def has_walkthrough(
        self, identifier: str, organization: str, connection: "Connection | None" = None
    ) -> bool:
        """Whether a walkthrough is the organization's."""
        return bool(
            await (connection or self.pool).fetchval(SQL["is_walkthrough_of"], identifier, organization)
        )

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator["Connection"]:
        """A transaction that may write, though connections here read by default."""
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("set transaction read write")
            yield connection

    async def foreign_servers(self, servers: Sequence[str], organization: str) -> set[str]:
        """Of these servers, those that are not the organization's."""
        rows = await self.pool.fetch(SQL["servers_of"], list(servers), organization)
        return set(servers) - {row["id"] for row in rows}

    async def counts(self, context: Context, cohort: Cohort, today: date) -> Flows:
        """Links and endings of paths as they are."""
        recent = today - timedelta(days=cohort.active_days)
        if context.rule.needs_journeys:
            rows = await self._heavy(
                context, "counts_by_rule", *_days(cohort), recent, *_rule_arguments(context)
            )
        else:
            rows = await self.pool.fetch(SQL["counts"], context.id, *_days(cohort), recent)
        return await self.work(context, partial(_flows_of, rows, context.rule), len(rows))

    async def variants(
        self, context: Context, cohort: Cohort, today: date, *, with_active: bool = False
    ) -> list[Variant]:
        """The distinct paths of a cohort: kept for as long as nothing changes.

        Those with the times since steps were shown take half as long again to read.
        """
        key = (
            context.id,
            context.version,
            context.only,
            today,
            cohort.active_days,
            tuple(cohort.server),
            *_days(cohort)[1:],
        )
        if not with_active:
            kept = self._variants.get(context.turn.asker.organization, (*key, True))
            if kept is not None:
                return kept
        return await self._once(
            self._variants,
            context,
            (*key, with_active),
            lambda: self._read_variants(context, cohort, today, with_active),
            _size,
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
        if not is_large:
            return contextlib.nullcontext()
        return turn.lanes.large.place(turn.asker, goes_on=turn.goes_on)

    async def _is_large(self, context: Context) -> bool:
        """Whether a walkthrough has many journeys, whichever of them a question is about."""
        key = context.id, context.version
        if (journeys := self._counted.get(key)) is None:
            journeys = await self.pool.fetchval(SQL["journeys_counted"], context.id, None, None, None)
            self._counted[key] = journeys
        return journeys >= _LARGE_JOURNEYS

    async def _read_variants(
        self, context: Context, cohort: Cohort, today: date, with_active: bool
    ) -> list[Variant]:
        recent_ms = day_ms(today - timedelta(days=cohort.active_days), 1)
        arguments = *_times(cohort), recent_ms, context.versions.sinces, context.rule.added
        rows = await self._read_paths("variants", context, *arguments, with_active=with_active)
        return await asyncio.to_thread(_variants_of, rows, context.rule)

    async def variants_within(
        self, context: Context, cohort: Cohort, days: int, judged_at: int
    ) -> VariantsWithin:
        """The distinct paths of a cohort as journeys stood so many days after they began.

        Of those that began so many days before `judged_at`, or earlier.
        """
        arguments = *_times(cohort), days * _DAY_MS, judged_at - days * _DAY_MS

        async def read() -> VariantsWithin:
            sinces = context.versions.sinces
            rows = await self._read_paths("variants_within", context, *arguments, sinces)
            return await asyncio.to_thread(_within_of, rows, context.rule)

        of = context.id, context.version, context.only
        key = ("within", *of, tuple(cohort.server), *arguments[1:])
        return await self._once(self._within, context, key, read, lambda within: _size(within.variants))

    async def _read_paths(
        self, name: str, context: Context, *arguments: Any, with_active: bool = False
    ) -> list[asyncpg.Record]:
        async with (
            self.pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            known = await fetch_one(connection, SQL["most_steps"], context.id)
            query, given = _query(context, name, context.id, *arguments)
            query = _with_sums(query, known["steps"], with_active and known["is_shown"])
            rows: list[asyncpg.Record] = await connection.fetch(query, *given)
            return rows

    async def every(self, context: Context, cohort: Cohort, most_people: int) -> tuple[int, int]:
        """How many journeys a cohort has, and every how many-th person is read so that they are not more."""
        if context.only.is_all:
            journeys = await self.pool.fetchval(SQL["journeys_counted"], context.id, *_days(cohort))
        else:
            ((journeys,),) = await self._heavy(context, "number_of_journeys", *_times(cohort))
        return journeys, max(1, -(-journeys // most_people))

    async def began_with_version(self, context: Context, cohort: Cohort) -> dict[int, int]:
        """How many journeys began with each version, by its number."""
        rows = await self._heavy(context, "began_with_version", *_times(cohort), context.versions.sinces)
        return {row["number"]: row["journeys"] for row in rows}

    async def timed(
        self,
        context: Context,
        cohort: Cohort,
        paths: Paths,
        today: date,
        every: int,
        work: Callable[[list[Timed]], T],
    ) -> T:
        """What `work` makes of the journeys of every n-th person of a cohort with their times.

        Both are kept for as long as nothing changes: what is made by the function and the view.
        """
        of = context.id, context.version, context.only
        key = (*of, today, cohort.active_days, every, tuple(cohort.server))
        key_of_journeys = (*key, *_days(cohort)[1:])
        function = work.func if isinstance(work, partial) else work
        key_of_made = (*key_of_journeys, function, paths.model_dump_json(include=set(Paths.model_fields)))
        organization = context.turn.asker.organization
        made: T | None = self._made.get(organization, key_of_made)
        if made is None:
            journeys = await self._timed_journeys(context, cohort, today, every, key_of_journeys)
            size = _size_of_timed(journeys)
            made = await self.work(context, partial(work, journeys), size)
            self._made.put(organization, key_of_made, made, size)
        return made

    async def _timed_journeys(
        self, context: Context, cohort: Cohort, today: date, every: int, key: Hashable
    ) -> list[Timed]:
        recent_ms = day_ms(today - timedelta(days=cohort.active_days), 1)

        async def read() -> list[Timed]:
            arguments = *_times(cohort), every, recent_ms, context.versions.sinces, context.rule.added
            query, given = _query(context, "timed_journeys", context.id, *arguments)
            rows = await self.pool.fetch(query, *given)
            return await asyncio.to_thread(_timed_of, rows, context.rule)

        return await self._once(self._timed, context, ("timed", key), read, _size_of_timed)

    async def steps_since(self, context: Context) -> dict[str, StepSince]:
        """Since when each step is there."""
        rows = await self.pool.fetch(SQL["steps_since"], context.id)
        return {row["id"]: StepSince(row["since"], bool(row["is_made_then"])) for row in rows}

    async def days_to_finish(self, context: Context, cohort: Cohort, judged_at: int) -> list[Began]:
        """When journeys began, and within how many days they finished."""
        rows = await self._heavy(
            context, "days_to_finish", *_times(cohort), judged_at, *_rule_arguments(context)
        )
        return [Began(*row) for row in rows]

    async def finish_curve(self, context: Context, cohort: Cohort, every: int, judged_at: int) -> Curve:
        """The share of journeys that finished by time, over every so many-th person."""
        arguments = *_times(cohort), every, *_rule_arguments(context), judged_at

        async def read() -> Curve:
            query, given = _query(context, "finish_times", context.id, *arguments)
            row = await fetch_one(self.pool, query, *given)
            return await asyncio.to_thread(curve_of, row["finished_ms"], row["unfinished_ms"])

        of = context.id, context.version, context.only
        key = ("finish_times", *of, tuple(cohort.server), *_times(cohort)[1:], every, judged_at)
        return await self._once(self._curves, context, key, read, lambda curve: 1 + len(curve.points))

    async def time_to_finish(self, context: Context, cohort: Cohort, every: int) -> asyncpg.Record:
        """How long finished journeys took."""
        (row,) = await self._heavy(
            context, "time_to_finish", *_times(cohort), every, *_rule_arguments(context)
        )
        return row

    async def sessions_and_days(self, context: Context, cohort: Cohort, every: int) -> asyncpg.Record:
        """In how many sessions and on how many days people came."""
        (row,) = await self._heavy(context, "sessions_and_days", *_times(cohort), every)
        return row

    async def trends(self, context: Context, cohort: Cohort, by: str) -> list[asyncpg.Record]:
        """Begun and finished journeys by day or week."""
        if context.rule.needs_journeys or not context.only.is_all:
            return await self._heavy(context, "trends_by_rule", *_days(cohort), by, *_rule_arguments(context))
        ends = sorted(context.rule.ends)
        rows: list[asyncpg.Record] = await self.pool.fetch(
            SQL["trends"], context.id, *_days(cohort), by, len(context.steps), ends
        )
        return rows

    async def active_people(self, context: Context, cohort: Cohort, by: str) -> dict[date, int]:
        """People active by day or week."""
        rows = await self._heavy(context, "active_people", *_times(cohort), by)
        return {row["since"]: row["people"] for row in rows}

    async def _heavy(
        self, context: Context, name: str, *arguments: Any, rows_of_one: int = 0
    ) -> list[asyncpg.Record]:
        """What reads the journeys of a walkthrough: kept for as long as nothing changes.

        So many rows take a place among what is kept; 0: any number.
        """

        async def read() -> list[asyncpg.Record]:
            query, given = _query(context, name, context.id, *arguments)
            rows: list[asyncpg.Record] = await self.pool.fetch(query, *given)
            return rows

        plain = tuple(tuple(a) if isinstance(a, list) else a for a in arguments)
        key = name, context.id, context.version, context.only, plain
        size = (lambda rows: 1 + len(rows) // rows_of_one) if rows_of_one else (lambda _: 1)
        return await self._once(self._figures, context, key, read, size)

    async def metadata_keys(self, context: Context, cohort: Cohort, every: int) -> list[asyncpg.Record]:
        """The keys of metadata that journeys began with, over every so many-th person."""
        return await self._heavy(context, "metadata_keys", *_times(cohort), every, rows_of_one=_ROWS_OF_ONE)

    async def values_of(
        self, context: Context, cohort: Cohort, what: str, key: str, most: int, longest: int
    ) -> list[asyncpg.Record]:
        """How many journeys have each value, of at most so many values and characters."""
        return await self._heavy(
            context, "values_of", *_times(cohort), what, key, most, longest, rows_of_one=_ROWS_OF_ONE
        )

    async def by_segment(
        self, context: Context, cohort: Cohort, days: int, judged_at: int, by: Divided
    ) -> list[asyncpg.Record]:
        """How journeys stood so many days after they began, by value of what may tell them apart."""
        return await self._heavy(
            context,
            "by_segment",
            *_times(cohort),
            days * _DAY_MS,
            judged_at - days * _DAY_MS,
            context.versions.sinces,
            *_rule_arguments(context),
            by.step,
            json.dumps(by.before),
            by.did,
            by.keys,
            by.kinds,
            by.most,
            rows_of_one=_ROWS_OF_ONE,
        )

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
            yield aiter(_cursor(connection, *_query(context, "journeys", *arguments)))

    async def journeys_after(
        self, context: Context, user: str, arguments: Sequence[Any]
    ) -> tuple[list[asyncpg.Record], str | None]:
        """A page of the journeys that may be behind a figure: the next ones by their people's ids.

        Returns:
            them, and after whom the next page begins; None where this is the last.
        """
        is_large = await self._is_large(context)
        following = *arguments[:8], None, user
        async with (
            context.turn.away() if is_large else contextlib.nullcontext(),
            self._room(context.turn, is_large),
        ):
            if context.only.needs_beginnings:
                return await self._journeys_until(context, following)
            query, given = _query(context, "journeys_by_person", *following)
            rows: list[asyncpg.Record] = await self.pool.fetch(query, *given)
        return rows, rows[-1]["mcp_server_user_id"] if len(rows) == PAGE else None

    async def _journeys_until(
        self, context: Context, arguments: Sequence[Any]
    ) -> tuple[list[asyncpg.Record], str | None]:
        """Those of the next people for whom it holds what they began with; perhaps nobody."""
        until = await self.pool.fetchval(_UNTIL, context.id, arguments[-1])
        if until is None:
            query, given = _query(context, "journeys_by_person", *arguments, among=_LAST_PEOPLE)
        else:
            query, given = _query(context, "journeys_until", *arguments, until, among=_SOME_PEOPLE)
        return await self.pool.fetch(query, *given), until

    async def journeys_counted(self, context: Context, servers: list[str], cohort: Cohort) -> int:
        """How many journeys of these servers a cohort has."""
        if not context.only.is_all:
            times = _times(cohort)[1:]
            ((journeys,),) = await self._heavy(context, "number_of_journeys", servers, *times)
            return int(journeys)
        days = _days(cohort)[1:]
        return int(await self.pool.fetchval(SQL["journeys_counted"], context.id, servers, *days))

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

    async def has_organization(self, identifier: str) -> bool:
        """Whether there is an organization of that id."""
        return await self.pool.fetchrow(SQL["organization"], identifier) is not None

    async def titles(self, organization: str) -> list[asyncpg.Record]:
        """Ids and titles of an organization's walkthroughs."""
        rows: list[asyncpg.Record] = await self.pool.fetch(SQL["titles"], organization)
        return rows

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

    async def overview_by_rule(self, context: Context, cohort: Cohort, today: date) -> list[asyncpg.Record]:
        """A walkthrough's journeys by server, where its finish rule takes more than the counts have."""
        recent = today - timedelta(days=cohort.active_days)
        return await self._heavy(
            context, "overview_by_rule", *_days(cohort), recent, *_rule_arguments(context)
        )

    async def refused(
        self, topic: str, organization: str, since: date, sources: Sequence[str]
    ) -> list[asyncpg.Record]:
        """Refused events by source and class, and the totals of sources that are the organization's alone."""
        asked = _refused(topic, organization, since, sources)
        rows: list[asyncpg.Record] = await self.pool.fetch(SQL["refused"], *asked)
        return rows

    async def refused_in_all(
        self, topic: str, organization: str, since: date, sources: Sequence[str]
    ) -> tuple[int, int]:
        """How many classes `refused` chooses from, and how many sources with totals; up to 10,000 more."""
        asked = _refused(topic, organization, since, sources)
        row = await fetch_one(self.pool, _REFUSED_IN_ALL, *asked)
        return row["classes"], row["sources"]

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


def _refused(topic: str, organization: str, since: date, sources: Sequence[str]) -> tuple[Any, ...]:
    begins = datetime.combine(since, datetime.min.time(), UTC)
    return topic, organization, begins, list(sources) or None, [NO_SOURCE, OTHERS]


async def _cursor(
    connection: Connection, query: str, arguments: Sequence[Any]
) -> AsyncIterator[asyncpg.Record]:
    async for row in connection.cursor(query, *arguments, prefetch=500):
        yield row


def _with_sums(query: str, steps: int, with_active: bool) -> str:
    """Reads variants of so many steps at most, with the times since these were shown, or without."""
    places = range(1, steps + 1)
    since_shown = places if with_active else ()
    for name, sums in (
        ("SUMS", [f"sum(completed_at[{i}] - began_at)" for i in places]),
        ("ACTIVE", [f"sum(completed_at[{i}] - shown_at[{i}])" for i in since_shown]),
        ("SHOWN", [f"count(shown_at[{i}])" for i in since_shown]),
    ):
        query = query.replace(f"[{name}]", f"[{', '.join(sums)}]")
    return query


def _size_of_timed(journeys: list[Timed]) -> int:
    """How many steps journeys have, and a few for each journey."""
    return 1 + sum(2 + len(journey.step_ids) for journey in journeys)


def _size(variants: list[Variant]) -> int:
    return 1 + sum(3 + len(v.step_ids) for v in variants)


def _query(
    context: Context, name: str, *arguments: Any, among: str = "sankey_journeys"
) -> tuple[str, list[Any]]:
    """A query that reads journeys, with its arguments: those alone that are asked for."""
    return selected(SQL[name], arguments, context.only, with_beginnings=name in BEGINNINGS, among=among)


def version_of(row: asyncpg.Record) -> str:
    """What changes with the counts of a walkthrough, with its steps and with what they say."""
    return f"{row['changes']}-{row['fingerprint'][:8]}-{row['version_id'] or 0}"


def _rule_of(
    steps: Sequence[Step], goal: Sequence[str], ends: Sequence[str], versions: Versions
) -> FinishRule:
    order = tuple(step.id for step in steps)
    return FinishRule(
        order,
        frozenset(step.id for step in steps if step.optional),
        frozenset(goal).intersection(order),
        frozenset(ends).intersection(order),
        versions.added_in,
    )


def _rule_arguments(context: Context) -> tuple[list[str], list[str], list[str], list[int]]:
    """What `finished_at` takes in a statement."""
    rule, versions = context.rule, context.versions.all
    added_at = [versions[rule.added_in.get(step, 1) - 1].since or 0 for step in rule.required]
    return list(rule.required), sorted(rule.goal), sorted(rule.ends), added_at


def _is_finished(row: asyncpg.Record, rule: FinishRule) -> bool:
    """Of an ending; the statement says so, where it takes more than the cells have."""
    told: bool | None = row["is_finished"]
    return rule.is_finished_after(row["position"], row["from_step_id"]) if told is None else told


def _flows_of(rows: Sequence[asyncpg.Record], rule: FinishRule) -> Flows:
    return flows(
        (
            Link(
                r["position"],
                r["from_step_id"],
                r["to_step_id"],
                r["journeys"],
                int(r["elapsed_ms"]),
                r["timed_journeys"],
                bool(r["skipped"]),
                int(r["active_ms"]),
                r["active_journeys"],
            )
            for r in rows
            if r["is_link"]
        ),
        (
            Ending(
                r["position"],
                r["from_step_id"],
                outcome_of(_is_finished(r, rule), r["is_recent"]),
                r["journeys"],
                r["skipped"],
            )
            for r in rows
            if not r["is_link"]
        ),
    )


def _variants_of(rows: Sequence[asyncpg.Record], rule: FinishRule) -> list[Variant]:
    found = []
    for step_ids, is_started, is_recent, skipped, shown, version, journeys, sums, active, known in rows:
        passed = len(step_ids)
        times = tuple(int(sum_) for sum_ in sums[:passed])
        outcome = outcome_of(rule.is_finished(step_ids, skipped, version), is_recent)
        found.append(
            Variant(
                tuple(step_ids),
                outcome,
                is_started,
                journeys,
                times,
                tuple(skipped or ()),
                shown,
                tuple(int(sum_ or 0) for sum_ in active[:passed]),
                tuple(known[:passed]),
                version,
            )
        )
    return found


def _within_of(rows: Sequence[asyncpg.Record], rule: FinishRule) -> VariantsWithin:
    old, young = [r for r in rows if r["had_time"]], [r for r in rows if not r["had_time"]]
    return VariantsWithin(
        [
            Variant(
                tuple(row["step_ids"]),
                outcome_of(
                    rule.is_finished(row["step_ids"], row["skipped"], row["version"]), is_recent=False
                ),
                row["is_started"],
                row["journeys"],
                tuple(int(sum_) for sum_ in row["since_began_ms"][: len(row["step_ids"])]),
                tuple(row["skipped"] or ()),
                version=row["version"],
            )
            for row in old
        ],
        sum(row["journeys"] for row in young),
        min((row["first_began_at"] for row in old), default=None),
        max((row["last_began_at"] for row in old), default=None),
    )


def _timed_of(rows: Sequence[asyncpg.Record], rule: FinishRule) -> list[Timed]:
    paths: dict[tuple[str, ...], tuple[str, ...]] = {}  # most take a path that others took, too
    found = []
    for step_ids, completed_at, started_at, skipped, shown_at, is_recent, version in rows:
        path = tuple(step_ids)
        outcome = outcome_of(rule.is_finished(path, skipped, version), is_recent)
        skips, shown = tuple(skipped or ()), tuple(shown_at or ())
        found.append(Timed(paths.setdefault(path, path), completed_at, outcome, started_at, skips, shown))
    return found

"""How far everything is: groups, services, dead letters, outbox. What is down is said, and the rest shown."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from aiokafka import TopicPartition
from aiokafka.errors import BrokerResponseError, KafkaError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from services.consumers.agreement import Agreement, agreement, name_partitions
from services.consumers.gone import CAUSES, NamedGone, find
from services.consumers.lag import GROUPS, Group, held_back_since, partitions_of, read_groups
from services.consumers.reader import reader
from services.consumers.stored_positions import TABLES, read_positions
from services.consumers.topic import TopicLog, describe_log, high_watermarks
from services.runtime.database import Connection, connected, fetch_one, load_queries
from services.runtime.database_errors import explained
from services.runtime.errors import ConfigurationError, MigrationError, StepstreamError
from services.runtime.kafka import admin_client, unreachable
from services.runtime.migrate import pending
from services.runtime.settings import Settings
from services.runtime.sources import LEAST_LOOKED_AT, LEAST_PERCENT
from services.runtime.text import format_duration, format_time, plural

SQL = load_queries(__file__)

#: What is read of the database, each part without the others.
_PARTS = {
    "status_newest_recorded": "the newest completion",
    "status_newest_counted": "the newest that is counted",
    "status_marks": "marks to count again",
    "status_outbox": "the outbox",
    "status_set_aside": "what was set aside",
    "status_waiting": "events that wait for a lock",
    "status_handled": "dead letters that are handled",
    "status_transactions": "the oldest transaction",
}

#: How long Kafka, and the database, may take to answer, in seconds.
_PATIENCE = 15.0
#: How long each part of the database may take.
_PART_SECONDS = 4.0
#: How long partitions and groups may have no broker, while they are made or handed over.
_BETWEEN_SECONDS = 8.0
#: How often it looks again where database, topic and groups do not seem to agree.
_LOOKS_MORE = 2
#: What keeps a part from being read, and not the others.
_UNREADABLE = (asyncpg.SyntaxOrAccessError, asyncpg.QueryCanceledError)
#: Services that keep connections to the database, which say who they are.
SERVICES = (*GROUPS, "outbox-relay", "walkthrough-mcp", "analytics-api")
#: A producer's transaction that is open for longer holds up others.
_LONG_TRANSACTION_MS = 60_000
#: A transaction in PostgreSQL that is open for longer keeps old rows; what reads for long is of minutes.
OLD_SNAPSHOT_SECONDS = 900
#: How many ranges of what is gone it names.
_SHOWN_GONE = 10
#: Not needed for counting, and maybe at a replica, where it cannot be seen.
_OPTIONAL = "analytics-api"


@dataclass
class Status:
    """What was seen; a part that could not be is None, and `problems` says why.

    `database` has what could be read of it. `kafka` is whether Kafka answered, with or without our topics.
    """

    at: int
    kafka: bool = False
    groups: list[Group] | None = None
    dead_letters: int | None = None
    database: dict[str, Any] | None = None
    migrations_pending: list[str] | None = None
    services: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unreadable: bool = False
    topic_log: TopicLog | None = None
    high_watermarks: Mapping[int, int] = field(default_factory=dict)
    #: When the oldest event came that an open transaction holds back, by partition.
    held_back_since: Mapping[int, int] = field(default_factory=dict)
    #: Whether database, topic and groups agree, and what is gone from Kafka that nobody has acknowledged.
    agreement: Agreement | None = None
    gone: list[NamedGone] = field(default_factory=list)

    @property
    def unreadable_batches(self) -> dict[int, tuple[str, list[str]]]:
        """What cannot be read next, and by whom, by partition."""
        found: dict[int, tuple[str, list[str]]] = {}
        for group in self.groups or ():
            for p in group.positions:
                if p.unreadable is not None:
                    found.setdefault(p.partition, (p.unreadable, []))[1].append(group.service)
        return found

    @property
    def held_back_long(self) -> dict[int, int]:
        """The partitions that a transaction holds back for longer than one should last, and since when."""
        return {
            p: since for p, since in self.held_back_since.items() if self.at - since > _LONG_TRANSACTION_MS
        }

    @property
    def is_incomplete(self) -> bool:
        """Whether something did not answer, is missing, could not be read, or is not migrated."""
        missing = self.groups is None or self.dead_letters is None or self.database is None
        return missing or self.unreadable or self.migrations_pending != []

    @property
    def is_apart(self) -> bool:
        """Whether they do not agree, something cannot be read, or is gone and nobody knows."""
        if self.unreadable_batches or self.held_back_long:
            return True
        return bool(self.gone) or (self.agreement is not None and bool(self.agreement.problems))


async def status(settings: Settings) -> Status:
    """Looks at Kafka and at the database, at the same time; neither needs the other, or a service."""
    seen = Status(int(time.time() * 1000))
    await asyncio.gather(_read_kafka(settings, seen), _read_database(settings, seen))
    await _read_agreement(settings, seen)
    for _ in range(_LOOKS_MORE):
        if seen.agreement is None or not seen.agreement.problems:
            break
        # What only came between two answers, under traffic, is gone at the next look; what is apart stays.
        again = Status(seen.at, database=seen.database, migrations_pending=seen.migrations_pending)
        await _read_kafka(settings, again)
        await _read_agreement(settings, again)
        if again.agreement is None:
            break
        seen.groups, seen.agreement, seen.gone = again.groups, again.agreement, again.gone
    _judge(seen)
    return seen


async def _read_kafka(settings: Settings, seen: Status) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            for part in (_read_groups, _read_dead_letters):
                with _shown(seen, ConfigurationError):  # a topic is missing: the other part is shown
                    await _PATIENTLY(part, settings, seen)
            seen.kafka = True
    except StepstreamError as error:
        seen.problems.append(str(error))
    except KafkaError as error:
        seen.problems.append(str(unreachable(settings, error)))
    except TimeoutError:
        seen.problems.append(f"Kafka does not answer within {_PATIENCE:g} s")


def _is_between_brokers(error: BaseException) -> bool:
    """Whether a partition or a group has no broker for a moment: it was just made, or is handed over."""
    error = error.__cause__ if isinstance(error, StepstreamError) and error.__cause__ else error
    return isinstance(error, BrokerResponseError) and error.retriable


_PATIENTLY = AsyncRetrying(
    retry=retry_if_exception(_is_between_brokers),
    stop=stop_after_delay(_BETWEEN_SECONDS),
    wait=wait_random_exponential(0.1, max=1),
    reraise=True,
)


@contextlib.contextmanager
def _shown(seen: Status, kind: type[StepstreamError]) -> Iterator[None]:
    """Makes an error of that kind a problem among others."""
    try:
        yield
    except kind as error:
        seen.problems.append(str(error))


async def _read_groups(settings: Settings, seen: Status) -> None:
    async with admin_client(settings) as admin:
        client = admin._client  # noqa: SLF001
        await partitions_of(admin, settings.topic)  # is there such a topic?
        seen.topic_log = await describe_log(client, settings.topic)
        seen.high_watermarks = await high_watermarks(client, settings.topic, seen.topic_log)
    seen.groups = await read_groups(settings)
    seen.held_back_since = await held_back_since(settings, seen.groups[0].positions, seen.high_watermarks)


async def _read_dead_letters(settings: Settings, seen: Status) -> None:
    seen.dead_letters = await _count_records(settings, settings.dead_letter_topic)


async def _count_records(settings: Settings, topic: str) -> int:
    async with admin_client(settings) as admin, reader(settings) as consumer:
        partitions: Sequence[TopicPartition] = await partitions_of(admin, topic)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        return int(sum(ends.values()) - sum(begins.values()))


async def _read_database(settings: Settings, seen: Status) -> None:
    timeout = {"statement_timeout": f"{_PART_SECONDS:g}s"}
    try:
        async with asyncio.timeout(_PATIENCE), connected(settings, server_settings=timeout) as db:
            names = await db.fetch(SQL["status_services"])
            seen.services = {r["service"]: r["connections"] for r in names}
            seen.database = {}
            await _read_migrations(db, seen)
            await _read_parts(db, settings, seen.database, seen)
    except StepstreamError as error:
        _could_not_read(str(error), seen)
    except TimeoutError:
        _could_not_read(f"PostgreSQL does not answer within {_PATIENCE:g} s", seen)


async def _read_migrations(db: Connection, seen: Status) -> None:
    with _shown(seen, MigrationError):  # an applied one was edited
        try:
            seen.migrations_pending = await pending(db)
        except _UNREADABLE as error:
            _could_not_read(f"which migrations are pending: {_reason(error)}", seen)
    if seen.migrations_pending:
        names = ", ".join(seen.migrations_pending)
        seen.problems.append(f"migrations are pending: {names}: run `stepstream migrate`")


async def _read_parts(db: Connection, settings: Settings, database: dict[str, Any], seen: Status) -> None:
    """Adds what can be read, part by part: it stays when the time is over."""
    for query, what in (("status_tables", "locked tables"), ("status_prepared", "prepared transactions")):
        database |= {
            name: json.loads(rows) for name, rows in (await _read(db, seen, what, SQL[query])).items()
        }
    for query, what in _PARTS.items():
        database |= await _read(db, seen, what, SQL[query])
    sources = await _read(
        db, seen, "events by source", SQL["status_sources"], settings.topic, LEAST_LOOKED_AT, LEAST_PERCENT
    )
    database |= {name: json.loads(rows) for name, rows in sources.items()}
    for rows, lockers, query in (
        ("waits_for", "lockers", "status_lockers"),
        ("journeys_wait_for", "count_lockers", "status_count_lockers"),
    ):
        ids = [part for row in database.get(rows) or () for part in row.split()[1:]]
        database[lockers] = []
        with contextlib.suppress(*_UNREADABLE):  # a table that is locked whole is told of already
            database[lockers] = [dict(r) for r in await db.fetch(SQL[query], ids)] if ids else []
    positions = await _read(db, seen, "locked positions", SQL["status_positions"], settings.topic)
    shards = await _read(db, seen, "locked shards of the outbox", SQL["status_shards"])
    old = await _read(db, seen, "open transactions", SQL["status_snapshots"], OLD_SNAPSHOT_SECONDS)
    database |= {name: json.loads(rows) for name, rows in {**positions, **shards, **old}.items()}


async def _read_agreement(settings: Settings, seen: Status) -> None:
    """Looks at the database once more, after Kafka: then it is never the older one, unless it went back."""
    if seen.database is None:
        return
    timeout = {"statement_timeout": f"{_PART_SECONDS:g}s"}
    try:
        async with asyncio.timeout(_PATIENCE), connected(settings, server_settings=timeout) as db:
            try:
                stored = {service: await read_positions(db, service, settings.topic) for service in GROUPS}
                seen.gone = await find(db)
            except _UNREADABLE as error:
                if not seen.migrations_pending:
                    _could_not_read(f"positions: {_reason(error)}", seen)
                return
    except (StepstreamError, TimeoutError) as error:
        _could_not_read(str(error) or f"PostgreSQL does not answer within {_PATIENCE:g} s", seen)
        return
    if seen.groups is not None and seen.topic_log is not None:
        seen.agreement = agreement(seen.groups, seen.topic_log, stored, seen.high_watermarks)


async def _read(db: Connection, seen: Status, what: str, query: str, *arguments: str | int) -> dict[str, Any]:
    """The one row of a query; nothing, where that cannot be read."""
    try:
        row = await fetch_one(db, query, *arguments)
    except _UNREADABLE as error:
        is_missing = isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError)
        if not (seen.migrations_pending and is_missing):  # that is said already
            _could_not_read(f"{what}: {_reason(error)}", seen)
        return {}
    return dict(row)


def _reason(error: Exception) -> str:
    if isinstance(error, asyncpg.QueryCanceledError):
        return f"no answer within {_PART_SECONDS:g} s: is a table locked, or the database very busy?"
    return str(explained(error))


def _could_not_read(problem: str, seen: Status) -> None:
    seen.unreadable = True
    seen.problems.append(problem)


def _judge(seen: Status) -> None:
    """What an operator should know without reading numbers."""
    for group in seen.groups or ():
        if not group.members:
            behind = f", behind by {plural(group.lag, 'event')}" if group.lag else ""
            seen.problems.append(f"no {group.service} is in its group ({group.state}){behind}")
        seen.services[group.service] = len(group.members)
    seen.problems += [
        f"{' and '.join(services)}: {what}. Other partitions go on. `stepstream skip --partition {p}` shows "
        "what it would leave behind"
        for p, (what, services) in sorted(seen.unreadable_batches.items())
    ]
    if seen.held_back_long:
        seen.problems.append(_describe_transaction(seen.held_back_long, seen.at))
    if seen.database is None:
        return
    for service in SERVICES[2:]:
        if not seen.services.get(service) and service != _OPTIONAL:
            seen.problems.append(f"no {service} is connected to the database")
    if seen.database.get("set_aside"):
        seen.problems.append(f"{seen.database['set_aside']:,} events of the outbox were set aside")
    if seen.database.get("events_waiting"):
        seen.problems.append(_describe_waiting(seen.database))
    if seen.database.get("journeys_waiting"):
        seen.problems.append(_describe_waiting_journeys(seen.database))
    seen.problems += [
        f"the table {row['name']} is locked whole ({row['mode']}"
        + (f", for {format_duration(row['seconds'])}" if row["seconds"] is not None else "")
        + f") by {_describe_locker(row)}: who needs it waits"
        for row in seen.database.get("tables_locked", ())
    ]
    seen.problems += [
        f"{_describe_locker(row)} is open for {format_duration(row['seconds'])}: it keeps what it has "
        "locked, and vacuum from old rows"
        for row in seen.database.get("prepared_transactions", ())
    ]
    seen.problems += [
        f"{_describe_locker(row)} has a transaction open for {format_duration(row['seconds'])}: vacuum "
        "removes nothing that was changed since, and counting gets slower. "
        f"`select pg_terminate_backend({row['pid']})` ends it"
        for row in seen.database.get("old_snapshots", ())
    ]
    seen.problems += [
        f"the row of partition {row['partition']} in {TABLES[row['service']]} is locked by "
        f"{_describe_lockers([row])}: the {row['service']} stands still there, and goes on with the others"
        for row in seen.database.get("positions_locked", ())
    ]
    seen.problems += [
        f"{plural(row['shards'], 'shard')} of the outbox are locked by {_describe_locker(row)}: no relay "
        "sends what is in them, and events of the same people wait"
        for row in seen.database.get("shards_locked", ())
    ]
    _judge_agreement(seen)


def _describe_transaction(since: Mapping[int, int], at: int) -> str:
    return (
        f"a producer's transaction has been open for {format_duration((at - min(since.values())) / 1000)} in "
        f"{name_partitions(sorted(since))}: what anybody sent there since waits for its end. It ends by "
        "itself after its transaction.timeout.ms; `kafka-transactions.sh describe-producers` names it, and "
        "`abort` ends it"
    )


def _judge_agreement(seen: Status) -> None:
    if seen.agreement is not None:
        seen.problems += seen.agreement.problems
    seen.problems += [_describe_gone(gone) for gone in seen.gone[:_SHOWN_GONE]]
    if len(seen.gone) > _SHOWN_GONE:
        more = plural(len(seen.gone) - _SHOWN_GONE, "more range")
        seen.problems.append(f"{more} of events gone: `stepstream gone list`")


def _describe_gone(gone: NamedGone) -> str:
    between = [format_time(at) for at in (gone.before_at, gone.after_at)]
    times = f", which came between {between[0]} and {between[1]}" if all(between) else ""
    return (
        f"partition {gone.partition}: events {gone.offsets}{times} are gone from {gone.topic} "
        f"({CAUSES[gone.cause]}). Seen? `stepstream gone acknowledge {gone.id}`"
    )


def _describe_waiting(database: Mapping[str, Any]) -> str:
    """Which events wait for a lock, on what, and who has it."""
    events = database["events_waiting"]
    return (
        f"{plural(events, 'event')} {'waits' if events == 1 else 'wait'} for what somebody else has locked, "
        f"the oldest for {format_duration(database['events_waiting_seconds'])}: "
        + _describe_locks(database["waits_for"], database["lockers"])
    )


def _describe_waiting_journeys(database: Mapping[str, Any]) -> str:
    """How many journeys wait for a lock, on what, and who has it."""
    journeys = database["journeys_waiting"]
    return (
        f"{plural(journeys, 'journey')} {'waits' if journeys == 1 else 'wait'} to be counted for what "
        f"somebody else has locked, the first for {format_duration(database['journeys_waiting_seconds'])}: "
        + _describe_locks(database["journeys_wait_for"], database["count_lockers"])
    )


def _describe_locks(rows: Sequence[str], lockers: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(rows) + (f"; locked by {_describe_lockers(lockers)}" if lockers else "")


def _describe_lockers(lockers: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(map(_describe_locker, lockers))


def _describe_locker(row: Mapping[str, Any]) -> str:
    """A process; or a prepared transaction, which has none, and is ended by its name."""
    if row.get("prepared") is not None:
        gid = row["prepared"].replace("'", "''")
        return f"the prepared transaction '{gid}' ({row['role']}; `rollback prepared '{gid}'` ends it)"
    return f"process {row['pid']} ({row['role']}, {row['application'] or 'no name'})"

"""`stepstream status`: everything on one page."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from services.operator_cli.gone import as_json as gone_json
from services.operator_cli.lag import format_wait, groups_json
from services.operator_cli.options import Output, OutputOption, current_settings, examples, make_table
from services.operator_cli.watch import EveryOption, WatchOption, show
from services.runtime.text import format_duration, format_time, plural

if TYPE_CHECKING:
    from services.consumers.agreement import Agreement
    from services.operations.status import Status

app = typer.Typer()

_UNKNOWN = "not known"
#: A transaction that is open for longer is told of.
_LONG_SECONDS = 60


@app.command(epilog=examples("status", "status -o json"))
def status(output: OutputOption = Output.TABLE, watch: WatchOption = False, every: EveryOption = 2.0) -> None:
    """See how far everything is: groups, dead letters, outbox, and which services are down.

    Works while services, Kafka or the database are down, and says which; also before `migrate`. Exit 1 when
    Kafka or the database does not answer, a part of either is missing or may not be read, or migrations are
    pending; exit 3 when the database, the topic and the groups' offsets do not agree, a batch cannot be read,
    or events are gone from Kafka and nobody has acknowledged that.
    """
    from services.operations.status import status as read_status

    settings = current_settings()

    async def once() -> "Status":
        return await read_status(settings)

    seen = show(once, _as_json, status_page, output, every if watch else None)
    if seen.is_incomplete:
        raise typer.Exit(1)
    if seen.is_apart:
        raise typer.Exit(3)


def _as_json(seen: "Status") -> dict[str, Any]:
    """For programs."""
    return {
        "at": format_time(seen.at),
        "kafka": seen.kafka,
        "database": seen.database is not None,
        "migrations_pending": seen.migrations_pending,
        "groups": None if seen.groups is None else groups_json(seen.groups, seen.at),
        "services": seen.services,
        "dead_letters": None
        if seen.database is None or seen.dead_letters is None
        else {"in_topic": seen.dead_letters, "handled": seen.database.get("handled")},
        "outbox": None
        if seen.database is None
        else {
            "waiting": seen.database.get("outbox"),
            "oldest_seconds": seen.database.get("outbox_seconds"),
            "set_aside": seen.database.get("set_aside"),
        },
        "sources": None
        if seen.database is None
        else {
            "refused": seen.database.get("refused_by_source"),
            "odd_partitions": seen.database.get("odd_partitions"),
        },
        "marks": None if seen.database is None else seen.database.get("marks"),
        "events_waiting": None
        if seen.database is None
        else {
            "events": seen.database.get("events_waiting"),
            "oldest_seconds": seen.database.get("events_waiting_seconds"),
            "rows": seen.database.get("waits_for"),
            "locked_by": seen.database.get("lockers", []),
        },
        "journeys_waiting": None
        if seen.database is None
        else {
            "journeys": seen.database.get("journeys_waiting"),
            "oldest_seconds": seen.database.get("journeys_waiting_seconds"),
            "rows": seen.database.get("journeys_wait_for"),
            "locked_by": seen.database.get("count_lockers", []),
        },
        "positions_locked": None if seen.database is None else seen.database.get("positions_locked"),
        "shards_locked": None if seen.database is None else seen.database.get("shards_locked"),
        "tables_locked": None if seen.database is None else seen.database.get("tables_locked"),
        "prepared_transactions": None
        if seen.database is None
        else seen.database.get("prepared_transactions"),
        "transactions": None
        if seen.database is None
        else {
            "oldest_seconds": seen.database.get("oldest_transaction_seconds"),
            "not_told": seen.database.get("transactions_not_told"),
        },
        "old_snapshots": None if seen.database is None else seen.database.get("old_snapshots"),
        "newest": None
        if seen.database is None
        else {
            "recorded": format_time(seen.database.get("newest_recorded")) or None,
            "counted": format_time(seen.database.get("newest_counted")) or None,
        },
        "held_back": None if seen.agreement is None else seen.agreement.held_back,
        "agree": None if seen.agreement is None else not seen.agreement.problems,
        "positions": None if seen.agreement is None else _positions_json(seen.agreement),
        "gone": [gone_json(gone) for gone in seen.gone],
        "problems": seen.problems,
    }


def _positions_json(seen: "Agreement") -> dict[str, Any]:
    """Where the services are as the database has it; digests in hexadecimal digits."""
    return {
        service: [
            {
                "partition": partition,
                "reads_from": p.reads_from,
                "next_offset": p.next_offset,
                "topic_id": p.topic_id,
                "leader_epoch": p.leader_epoch,
                "digest": {
                    "from_offset": p.digest.from_offset,
                    "events": p.digest.events,
                    "value": f"{p.digest.total:016x}",
                },
            }
            for partition, p in sorted(positions.items())
        ]
        for service, positions in seen.stored.items()
    }


def status_page(seen: "Status") -> RenderableType:
    """Everything on one page."""
    from services.operations.status import SERVICES

    parts: list[RenderableType] = []
    if seen.groups is not None:
        rows = [
            (g.service, g.state, len(g.members), g.lag, format_wait(g.waiting_since, seen.at))
            for g in seen.groups
        ]
        parts.append(make_table("", ("group", "state", "members", "lag", "oldest waits"), rows))
    facts = []
    if seen.database is not None:
        db = seen.database
        facts = [
            ("newest completion", _describe_newest(db, "newest_recorded")),
            ("newest counted", _describe_newest(db, "newest_counted")),
            ("marks to count again", f"{db['marks']:,}" if "marks" in db else _UNKNOWN),
            (
                "events that wait for a lock",
                f"{db['events_waiting']:,}" if "events_waiting" in db else _UNKNOWN,
            ),
            (
                "journeys that wait for a lock",
                f"{db['journeys_waiting']:,}" if "journeys_waiting" in db else _UNKNOWN,
            ),
            ("outbox", _describe_outbox(db)),
            *_describe_transactions(db),
            *((s, f"{seen.services.get(s, 0)} connections to the database") for s in SERVICES[2:]),
        ]
    if seen.agreement is not None and seen.agreement.held_back:
        facts.append(("held back", f"{seen.agreement.held_back:,} offsets, by producers' open transactions"))
    if seen.dead_letters is not None:
        done = (seen.database or {}).get("handled")
        handled = "" if done is None else f", {done:,} handled"
        facts.append(("dead letters", f"{seen.dead_letters:,} in the topic{handled}"))
    width = max((len(name) for name, _ in facts), default=0)
    parts += [Text(f"{name:<{width}}  {text}") for name, text in facts]
    parts += [Text(f"· {hint}", style="yellow") for hint in _hints(seen.database or {})]
    parts += [Text(f"! {problem}", style="bold red") for problem in seen.problems]
    if not seen.problems:
        parts.append(Text("all services are running", style="bold green"))
    return Lines(*parts)


def _hints(database: Mapping[str, Any]) -> list[str]:
    """What producers should mend: it costs them, or order, and harms nobody else."""
    hints = [
        f"{plural(row['events'], 'event')} of {row['source']} refused, the last at "
        f"{_describe_time(row['last_at'])}: {', '.join(sorted(row['classes']))}"
        for row in database.get("refused_by_source", ())
    ]
    for row in database.get("odd_partitions", ()):
        habits = [
            f"{row[name] / row['looked_at']:.0%} {habit}"
            for name, habit in (
                ("elsewhere", "not where their key belongs"),
                ("without_key", "without a key"),
            )
            if row[name]
        ]
        hints.append(
            f"events of {row['source']}: {' and '.join(habits)}: counted exactly, but a person's events may "
            "come out of order; its producer needs the partitioner murmur2 and the person as the key"
        )
    return hints


def _describe_time(at: str) -> str:
    """A time of PostgreSQL's JSON, as all times here."""
    return format_time(int(datetime.fromisoformat(at).timestamp() * 1000)) or at


def _describe_newest(database: Mapping[str, Any], column: str) -> str:
    return (format_time(database[column]) or "none") if column in database else _UNKNOWN


def _describe_transactions(database: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The line about open transactions, where one is not of a moment, or may not be."""
    oldest, not_told = (
        database.get(name) or 0 for name in ("oldest_transaction_seconds", "transactions_not_told")
    )
    told = [f"open for {format_duration(oldest)}"] if oldest >= _LONG_SECONDS else []
    if not_told:
        told.append(
            f"{plural(not_told, 'transaction')} of roles of which PostgreSQL does not tell since when: "
            "pg_read_all_stats lets it"
        )
    return [("oldest transaction", "; ".join(told))] if told else []


def _describe_outbox(database: Mapping[str, Any]) -> str:
    if "outbox" not in database:
        return _UNKNOWN
    oldest = f", the oldest for {format_duration(database['outbox_seconds'])}" if database["outbox"] else ""
    set_aside = f", {database['set_aside']:,} set aside" if database.get("set_aside") else ""
    return f"{database['outbox']:,} waiting{oldest}{set_aside}"

"""How far everything is: groups, services, dead letters, outbox. What is down is said, and the rest shown."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aiokafka import TopicPartition
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from services.operator_cli.options import make_table, many, told_duration, told_time
from services.runtime.database import connected, load_queries
from services.runtime.errors import MismatchError, StepstreamError
from services.runtime.kafka import admin_client
from services.runtime.lag import GROUPS, RECORDER, Group, look, partitions_of, reader
from services.runtime.settings import Settings

SQL = load_queries(__file__)

#: How long Kafka, and the database, may take to answer, in seconds.
_PATIENCE = 15.0
#: Services that keep connections to the database, which say who they are.
_SERVICES = (*GROUPS, "outbox-relay", "walkthrough-mcp", "analytics-api")
#: Not needed for counting, and maybe at a replica, where it cannot be seen.
_OPTIONAL = "analytics-api"


@dataclass
class Status:
    """What was seen; a part that could not be is None, and `problems` says why."""

    at: int
    groups: list[Group] | None = None
    dead_letters: int | None = None
    database: dict[str, Any] | None = None
    services: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def unreachable(self) -> bool:
        """Whether Kafka or the database did not answer."""
        return self.groups is None or self.database is None


async def status(settings: Settings) -> Status:
    """Looks at Kafka and at the database, at the same time; neither needs the other, or a service."""
    seen = Status(int(time.time() * 1000))
    await asyncio.gather(_look_at_kafka(settings, seen), _look_at_database(settings, seen))
    _judge(seen)
    return seen


async def _look_at_kafka(settings: Settings, seen: Status) -> None:
    try:
        async with asyncio.timeout(_PATIENCE):
            seen.groups = await look(settings)
            seen.dead_letters = await _count_records(settings, settings.dead_letter_topic)
    except StepstreamError as error:
        seen.problems.append(str(error))
    except TimeoutError:
        seen.problems.append(f"Kafka does not answer within {_PATIENCE:g} s")


async def _count_records(settings: Settings, topic: str) -> int:
    async with admin_client(settings) as admin, reader(settings) as consumer:
        partitions: Sequence[TopicPartition] = await partitions_of(admin, topic)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        return int(sum(ends.values()) - sum(begins.values()))


async def _look_at_database(settings: Settings, seen: Status) -> None:
    try:
        async with asyncio.timeout(_PATIENCE), connected(settings) as db:
            row = await db.fetchrow(SQL["status"], settings.topic)
            names = await db.fetch(SQL["status_services"])
    except StepstreamError as error:
        seen.problems.append(str(error))
    except TimeoutError:
        seen.problems.append(f"PostgreSQL does not answer within {_PATIENCE:g} s")
    else:
        assert row is not None  # noqa: S101 - one row, always
        seen.database = dict(row)
        seen.services = {r["service"]: r["connections"] for r in names}


def _judge(seen: Status) -> None:
    """What an operator should know without reading numbers."""
    for group in seen.groups or ():
        if not group.members:
            behind = f", behind by {many(group.lag, 'event')}" if group.lag else ""
            seen.problems.append(f"no {group.service} is in its group ({group.state}){behind}")
        seen.services[group.service] = len(group.members)
    if seen.database is None:
        return
    for service in _SERVICES[2:]:
        if not seen.services.get(service) and service != _OPTIONAL:
            seen.problems.append(f"no {service} is connected to the database")
    if seen.database["set_aside"]:
        seen.problems.append(f"{seen.database['set_aside']:,} events of the outbox were set aside")
    _judge_offsets(seen, dict(zip(seen.database["partitions"], seen.database["next_offsets"], strict=True)))


def _judge_offsets(seen: Status, recorded: Mapping[int, int]) -> None:
    """Do database and topic belong together?"""
    for group in seen.groups or ():
        for p in group.positions:
            known = recorded.get(p.partition, 0)
            if group.service == RECORDER and (p.committed or 0) > known:
                seen.problems.append(
                    f"partition {p.partition}: the group has passed {p.committed:,}, the database only "
                    f"{known:,}: "
                    "it is an older copy; replay both groups from when it was made"
                )
            if group.service == RECORDER and known > p.end:
                seen.problems.append(
                    f"partition {p.partition}: the database knows offsets up to {known:,}, the topic ends at "
                    f"{p.end:,}: it is not the topic of this database, or was made anew"
                )


def as_json(seen: Status) -> dict[str, Any]:
    """For programs."""
    return {
        "at": told_time(seen.at),
        "kafka": seen.groups is not None,
        "database": seen.database is not None,
        "groups": None if seen.groups is None else groups_json(seen.groups, seen.at),
        "services": seen.services,
        "dead_letters": None
        if seen.database is None or seen.dead_letters is None
        else {"in_topic": seen.dead_letters, "handled": seen.database["handled"]},
        "outbox": None
        if seen.database is None
        else {
            "waiting": seen.database["outbox"],
            "oldest_seconds": seen.database["outbox_seconds"],
            "set_aside": seen.database["set_aside"],
        },
        "marks": seen.database and seen.database["marks"],
        "newest": None
        if seen.database is None
        else {
            "recorded": told_time(seen.database["newest_recorded"]) or None,
            "counted": told_time(seen.database["newest_counted"]) or None,
        },
        "problems": seen.problems,
    }


def _group_json(group: Group, at: int) -> dict[str, Any]:
    return {
        "service": group.service,
        "group": group.group,
        "state": group.state,
        "members": group.members,
        "lag": group.lag,
        "lag_seconds": _seconds(group.waiting_since, at),
        "partitions": [
            {k: v for k, v in asdict(p).items() if k != "waiting_since"}
            | {"lag_seconds": _seconds(p.waiting_since, at)}
            for p in group.positions
        ],
    }


def _seconds(since: int | None, at: int) -> float:
    return 0.0 if since is None else max(0, at - since) / 1000


def groups_json(groups: Sequence[Group], at: int) -> list[dict[str, Any]]:
    """Groups for programs."""
    return [_group_json(group, at) for group in groups]


def lag_tables(groups: Sequence[Group], at: int) -> RenderableType:
    """Each group, partition by partition."""
    parts: list[RenderableType] = []
    for group in groups:
        rows = [
            (p.partition, p.committed, p.end, p.lag, _waited(p.waiting_since, at), p.member)
            for p in group.positions
        ]
        title = f"{group.group}: {group.state}, members {len(group.members)}, lag {group.lag:,}"
        parts.append(
            make_table(title, ("partition", "committed", "end", "lag", "oldest waits", "member"), rows)
        )
    return Lines(*parts)


def _waited(since: int | None, at: int) -> str:
    return "" if since is None else told_duration(_seconds(since, at))


def status_page(seen: Status) -> RenderableType:
    """Everything on one page."""
    parts: list[RenderableType] = []
    if seen.groups is not None:
        rows = [
            (g.service, g.state, len(g.members), g.lag, _waited(g.waiting_since, seen.at))
            for g in seen.groups
        ]
        parts.append(make_table("", ("group", "state", "members", "lag", "oldest waits"), rows))
    facts = []
    if seen.database is not None:
        db = seen.database
        facts = [
            ("newest completion", told_time(db["newest_recorded"]) or "none"),
            ("newest counted", told_time(db["newest_counted"]) or "none"),
            ("marks to count again", f"{db['marks']:,}"),
            (
                "outbox",
                f"{db['outbox']:,} waiting"
                + (f", the oldest for {told_duration(db['outbox_seconds'])}" if db["outbox"] else "")
                + (f", {db['set_aside']:,} set aside" if db["set_aside"] else ""),
            ),
            *((s, f"{seen.services.get(s, 0)} connections to the database") for s in _SERVICES[2:]),
        ]
    if seen.dead_letters is not None:
        handled = f", {seen.database['handled']:,} handled" if seen.database else ""
        facts.append(("dead letters", f"{seen.dead_letters:,} in the topic{handled}"))
    width = max((len(name) for name, _ in facts), default=0)
    parts += [Text(f"{name:<{width}}  {text}") for name, text in facts]
    parts += [Text(f"! {problem}", style="bold red") for problem in seen.problems]
    if not seen.problems:
        parts.append(Text("all services are running", style="bold green"))
    return Lines(*parts)


def check_lag(groups: Sequence[Group], at: int, events: int | None, seconds: float | None) -> None:
    """Raises MismatchError when a group's lag is above a limit."""
    for group in groups:
        waited = _seconds(group.waiting_since, at)
        if events is not None and group.lag > events:
            raise MismatchError(
                f"{group.service} is behind by {many(group.lag, 'event')}, more than {events:,}"
            )
        if seconds is not None and waited > seconds:
            raise MismatchError(
                f"{group.service}: the oldest event waits for {told_duration(waited)}, longer than "
                f"{told_duration(seconds)}"
            )

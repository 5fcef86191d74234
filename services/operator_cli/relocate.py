"""Positions moved by an operator's own hand: past what cannot be read, and to another cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from services.consumers.database_identity import read_identity
from services.consumers.gone import name_gone
from services.consumers.lag import AGGREGATOR, GROUPS, RECORDER, read_groups
from services.consumers.positions import Digest, Gone, Placement, Position, Seen, place
from services.consumers.reader import reader
from services.consumers.sent import forget_sent
from services.consumers.stored_positions import lock_positions, read_positions, set_positions
from services.consumers.topic import TopicLog, describe_log
from services.operator_cli.options import not_executed, print_json, print_table, say
from services.operator_cli.replay import commit_for, reads_on_at, refuse_a_group_with
from services.runtime.database import Connection, connected, load_queries
from services.runtime.errors import RefusedError, UsageError
from services.runtime.kafka import unreachable
from services.runtime.settings import Settings
from services.runtime.text import plural
from services.sankey_aggregator import store as aggregator_store

SQL = load_queries(__file__)

# --- skip ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EventSkip:
    """A service's position on a partition, and where it would be."""

    service: str
    topic: str
    partition: int
    present: int
    to: int
    members: int

    @property
    def offsets(self) -> int:
        """How many offsets are left behind."""
        return self.to - self.present


async def plan_skip(settings: Settings, service: str, partition: int, to: int) -> EventSkip:
    """Looks where the service is.

    Raises:
        UsageError: there is no such partition or offset, or the service has come further.
        StepstreamError: Kafka or the database cannot be reached.
    """
    (group,) = await read_groups(settings, [service], ages=False)
    found = next((p for p in group.positions if p.partition == partition), None)
    if found is None:
        raise UsageError(f"{settings.topic} has no partition {partition}")
    async with connected(settings) as db:
        stored = (await read_positions(db, service, settings.topic, [partition])).get(partition)
    present = reads_on_at(found, stored)
    if to > found.end:
        raise UsageError(f"partition {partition} ends at {found.end:,}: there is no offset {to:,} to go to")
    if to <= present:
        raise UsageError(
            f"{service} is at {present:,} on partition {partition}: there is nothing to skip up to {to:,}. "
            "To read events again, use `stepstream replay`"
        )
    return EventSkip(service, settings.topic, partition, present, to, len(group.members))


async def skip(settings: Settings, plan: EventSkip) -> None:
    """Leaves the offsets behind, and names them.

    Raises:
        RefusedError: the group has members, or the position has moved meanwhile.
    """
    refuse_a_group_with(plan.members, settings.group(plan.service), plan.service)
    async with (
        connected(settings, aggregator_store.prepare, aggregator_store.SERVER_SETTINGS) as db,
        db.transaction(),
    ):
        await lock_positions(db, plan.service, plan.topic, [plan.partition])
        stored = (await read_positions(db, plan.service, plan.topic, [plan.partition])).get(plan.partition)
        if stored is not None and stored.reads_from < plan.present:
            raise RefusedError(f"{plan.service} has moved meanwhile: look at the plan again")
        position = stored or Position(plan.present, plan.present, digest=Digest(plan.present))
        # What is behind, and was written already, is gone through again: its dead letters may be missing.
        after = replace(position, reads_from=plan.to)
        if plan.to > position.next_offset:
            after = replace(after, next_offset=plan.to, digest=Digest(plan.to))
        await set_positions(db, plan.service, plan.topic, {plan.partition: after})
        if plan.service == RECORDER:
            last = position.last.timestamp if position.last else None
            judged = min(position.next_offset, plan.to)
            known = judged if judged > plan.present else None
            gone = [Gone("skipped", plan.present, plan.to, last, judged_until=known)]
            await name_gone(db, plan.topic, {plan.partition: gone})
        else:  # what the recorder has of these events, no event will tell it
            await aggregator_store.mark_all(db)
        words = (await read_identity(db)).words
    tp = TopicPartition(plan.topic, plan.partition)
    await commit_for(settings, plan.service, {tp: plan.to}, words)


def show_skip(plan: EventSkip, *, as_json: bool, executed: bool) -> None:
    """Tells the plan, and whether it was carried out."""
    if as_json:
        print_json(
            {
                "service": plan.service,
                "topic": plan.topic,
                "partition": plan.partition,
                "present": plan.present,
                "to": plan.to,
                "offsets": plan.offsets,
                "members": plan.members,
                "executed": executed,
            }
        )
    else:
        columns = ("topic", "partition", f"{plan.service} is at", "goes to", "left behind")
        print_table("", columns, [(plan.topic, plan.partition, plan.present, plan.to, plan.offsets)])
    if not executed:
        not_executed()
        return
    say(f"[green]done[/]: {plural(plan.offsets, 'offset')} are left behind")
    if plan.service == RECORDER:
        say(
            f"`stepstream status` names them until somebody acknowledges them. Where the {AGGREGATOR} cannot "
            f"read them either, skip them for it, too: --group {AGGREGATOR}"
        )


# --- another cluster -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relocation:
    """What would become of the positions of each service."""

    topic: str
    from_clusters: list[str]
    to_cluster: str
    placements: Mapping[str, Mapping[int, Placement]]
    members: int

    @property
    def is_needed(self) -> bool:
        """Whether a position is of another cluster."""
        return bool(self.from_clusters)


async def plan_relocation(settings: Settings) -> Relocation:
    """Looks which cluster the positions are of, and which one answers.

    Raises:
        StepstreamError: Kafka or the database cannot be reached.
    """
    groups = await read_groups(settings, ages=False)
    async with reader(settings) as consumer:
        try:
            topic_log = await describe_log(consumer._client, settings.topic)  # noqa: SLF001
        except KafkaError as error:
            raise unreachable(settings, error) from error
    begins = {p.partition: p.begin for p in groups[0].positions}
    async with connected(settings) as db:
        stored = {service: await read_positions(db, service, settings.topic) for service in GROUPS}
    others = {
        service: {p: position for p, position in positions.items() if _is_elsewhere(position, topic_log)}
        for service, positions in stored.items()
    }
    return Relocation(
        settings.topic,
        sorted({position.cluster_id for positions in others.values() for position in positions.values()}),
        topic_log.cluster_id,
        {
            service: {p: place(position, _seen(topic_log, begins.get(p, 0), p)) for p, position in of.items()}
            for service, of in others.items()
        },
        sum(len(group.members) for group in groups),
    )


def _is_elsewhere(position: Position, topic_log: TopicLog) -> bool:
    return bool(position.cluster_id and topic_log.cluster_id) and position.cluster_id != topic_log.cluster_id


def _seen(topic_log: TopicLog, begin: int, partition: int) -> Seen:
    return Seen(begin, None, topic_log.cluster_id, topic_log.topic_id, topic_log.epochs.get(partition))


async def relocate(settings: Settings, plan: Relocation) -> None:
    """Makes all positions those of the new cluster's beginning.

    Raises:
        RefusedError: a group has members there.
    """
    refuse_a_group_with(plan.members, "of either service", "completion-recorder and sankey-aggregator")
    async with (
        connected(settings, aggregator_store.prepare, aggregator_store.SERVER_SETTINGS) as db,
        db.transaction(),
    ):
        for service, placements in plan.placements.items():
            await _store(db, plan.topic, service, placements)
        await aggregator_store.mark_all(db)
        # The new cluster's dead letters may be of the same places, and nobody has handled those.
        await db.execute(SQL["forget_handled"], plan.topic)


async def _store(db: Connection, topic: str, service: str, placements: Mapping[int, Placement]) -> None:
    await lock_positions(db, service, topic, list(placements))
    if service == RECORDER:
        await name_gone(db, topic, {p: new.gone for p, new in placements.items()})
        await forget_sent(db, topic, list(placements))  # else the next election finds that missing
    if placements:
        await set_positions(db, service, topic, {p: new.position for p, new in placements.items()})


def show_relocation(plan: Relocation, *, as_json: bool, executed: bool) -> None:
    """Tells the plan, and whether it was carried out."""
    rows: list[tuple[Any, ...]] = [
        (service, p, gone.from_offset, new.position.reads_from)
        for service, placements in plan.placements.items()
        for p, new in sorted(placements.items())
        for gone in new.gone[:1]
    ]
    if as_json:
        print_json(
            {
                "topic": plan.topic,
                "from_clusters": plan.from_clusters,
                "to_cluster": plan.to_cluster,
                "members": plan.members,
                "partitions": [
                    {"service": s, "partition": p, "read_in_the_old": old, "reads_from": new}
                    for s, p, old, new in rows
                ],
                "executed": executed,
            }
        )
    elif rows:
        columns = ("service", "partition", "read in the old cluster up to", "reads the new one from")
        print_table(f"{', '.join(plan.from_clusters)} → {plan.to_cluster}", columns, rows)
    if not plan.is_needed:
        say(f"[green]nothing to do[/]: no position is of another cluster than {plan.to_cluster}")
        return
    if not executed:
        not_executed()
        return
    say(
        "[green]done[/]: start the services again. They read all that this cluster holds; what they had "
        "before changes nothing. What the old cluster held after these offsets `stepstream status` names"
    )

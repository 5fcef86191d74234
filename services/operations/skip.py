"""Events left behind, up to an offset of the operator's choice: named as gone, passed by one service."""

from dataclasses import dataclass, replace

from aiokafka import TopicPartition

from services.consumers.database_identity import read_identity
from services.consumers.gone import name_gone
from services.consumers.lag import RECORDER, read_groups
from services.consumers.positions import Digest, Gone, Position
from services.consumers.stored_positions import lock_positions, read_positions, set_positions
from services.operations.offsets import bounded_move, commit_for, reads_on_at, refuse_members
from services.runtime.database import connected
from services.runtime.errors import RefusedError, UsageError
from services.runtime.settings import Settings
from services.sankey_aggregator import counting


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
    refuse_members(plan.members, settings.group(plan.service), plan.service)
    async with (
        connected(settings, counting.prepare, counting.SERVER_SETTINGS | bounded_move()) as db,
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
            await counting.mark_all(db)
        words = (await read_identity(db)).words
        # Where the broker refuses it nothing has changed; forward in Kafka alone, nobody believes it.
        tp = TopicPartition(plan.topic, plan.partition)
        await commit_for(settings, plan.service, {tp: plan.to}, words)

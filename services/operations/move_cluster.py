"""Positions moved to another cluster: its beginning, and what the old one held after them named as gone."""

from collections.abc import Mapping
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from services.completion_recorder.dead_letters import forget_handled
from services.consumers.gone import name_gone
from services.consumers.lag import GROUPS, RECORDER, read_groups
from services.consumers.positions import Placement, Position, Seen, decide
from services.consumers.reader import reader
from services.consumers.sent import forget_sent
from services.consumers.stored_positions import lock_positions, read_positions, set_positions
from services.consumers.topic import TopicLog, describe_log
from services.operations.offsets import bounded_move, refuse_members
from services.runtime.database import Connection, connected
from services.runtime.kafka import unreachable
from services.runtime.settings import Settings
from services.sankey_aggregator import counting


@dataclass(frozen=True, slots=True)
class ClusterMove:
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


async def plan_move(settings: Settings) -> ClusterMove:
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
    return ClusterMove(
        settings.topic,
        sorted({position.cluster_id for positions in others.values() for position in positions.values()}),
        topic_log.cluster_id,
        {
            service: {
                p: decide(position, _seen(topic_log, begins.get(p, 0), p)) for p, position in of.items()
            }
            for service, of in others.items()
        },
        sum(len(group.members) for group in groups),
    )


def _is_elsewhere(position: Position, topic_log: TopicLog) -> bool:
    return bool(position.cluster_id and topic_log.cluster_id) and position.cluster_id != topic_log.cluster_id


def _seen(topic_log: TopicLog, begin: int, partition: int) -> Seen:
    return Seen(begin, None, topic_log.cluster_id, topic_log.topic_id, topic_log.epochs.get(partition))


async def move(settings: Settings, plan: ClusterMove) -> None:
    """Makes all positions those of the new cluster's beginning.

    Raises:
        RefusedError: a group has members there.
    """
    refuse_members(plan.members, "of either service", "completion-recorder and sankey-aggregator")
    async with (
        connected(settings, counting.prepare, counting.SERVER_SETTINGS | bounded_move()) as db,
        db.transaction(),
    ):
        for service, placements in plan.placements.items():
            await _store(db, plan.topic, service, placements)
        await counting.mark_all(db)
        # The new cluster's dead letters may be of the same places, and nobody has handled those.
        await forget_handled(db, plan.topic)


async def _store(db: Connection, topic: str, service: str, placements: Mapping[int, Placement]) -> None:
    await lock_positions(db, service, topic, list(placements))
    if service == RECORDER:
        await name_gone(db, topic, {p: new.gone for p, new in placements.items()})
        await forget_sent(db, topic, list(placements))  # else the next election finds that missing
    if placements:
        await set_positions(db, service, topic, {p: new.position for p, new in placements.items()})

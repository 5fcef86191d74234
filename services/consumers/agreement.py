"""Whether the database, the topic and the groups' committed offsets agree, as seen in one look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from services.consumers.lag import AGGREGATOR, GROUPS, RECORDER, Group
from services.consumers.positions import Position
from services.consumers.topic import TopicLog

#: Positions by service and partition, as the database has them.
Stored: TypeAlias = Mapping[str, Mapping[int, Position]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was seen of topic and groups first, and of the database then, so that it is not the older one."""

    groups: Sequence[Group]
    topic_log: TopicLog
    stored: Stored
    #: Offsets that open transactions hold back from everybody who reads: events among them, maybe.
    held_back: int = 0
    #: Problems, for people: they pass within seconds where the services run.
    problems: Sequence[str] = field(default_factory=list)

    @property
    def lags(self) -> dict[str, int]:
        """How many offsets each service has yet to pass: by what it has committed, or by the database."""
        return {group.service: max(group.lag, self._stored_lag(group)) for group in self.groups}

    def _stored_lag(self, group: Group) -> int:
        stored = self.stored.get(group.service, {})
        lag = 0
        for p in group.positions:
            position = stored.get(p.partition)
            at = p.begin if position is None else max(position.reads_from, p.begin)
            lag += max(0, p.end - at)
        return lag

    @property
    def is_current(self) -> bool:
        """Whether all that was in the topic is recorded, counted and committed."""
        waits = any(self.lags.values()) or self.held_back
        return not waits and not self.problems and not self._is_being_looked_at()

    def _is_being_looked_at(self) -> bool:
        """Whether another leader took over, and a service has yet to see whether it has what was read."""
        return any(
            None not in (position.leader_epoch, epoch := self.topic_log.epochs.get(partition))
            and position.leader_epoch != epoch
            for positions in self.stored.values()
            for partition, position in positions.items()
        )


def agreement(
    groups: Sequence[Group],
    topic_log: TopicLog,
    stored: Stored,
    high_watermarks: Mapping[int, int] | None = None,
) -> Agreement:
    """Holds the three against each other; with high watermarks of before, also against open transactions."""
    held_back = sum(
        max(0, (high_watermarks or {}).get(p.partition, 0) - p.end)
        for group in groups[:1]
        for p in group.positions
    )
    problems = [
        *_of_another_log(topic_log, stored),
        *(problem for group in groups for problem in _of_offsets(group, stored.get(group.service, {}))),
        *_of_digests(stored),
    ]
    return Agreement(groups, topic_log, stored, held_back, problems)


def _of_another_log(topic_log: TopicLog, stored: Stored) -> list[str]:
    problems = []
    for service in GROUPS:
        for what, seen, known in (
            (
                "the Kafka cluster",
                topic_log.cluster_id,
                {p.cluster_id for p in stored.get(service, {}).values()},
            ),
            ("the topic", topic_log.topic_id, {p.topic_id for p in stored.get(service, {}).values()}),
        ):
            if seen and (others := known - {"", seen}):
                problems.append(
                    f"{what} is {seen}, and the positions of the {service} are of {', '.join(sorted(others))}"
                )
    return problems


def _of_offsets(group: Group, stored: Mapping[int, Position]) -> list[str]:
    problems = []
    for p in group.positions:
        position = stored.get(p.partition)
        if position is None:
            if p.committed:
                problems.append(
                    f"partition {p.partition}: {group.group} has committed {p.committed:,}, and this "
                    "database knows nothing of it: the service, once it runs, reads it from the beginning"
                )
            continue
        if (p.committed or 0) > position.reads_from:
            problems.append(
                f"partition {p.partition}: {group.group} has committed {p.committed:,}, and the database has "
                f"only what is before {position.reads_from:,}: the service, once it runs, reads on there"
            )
        # The end was seen before the database, which may have read on since; what was committed had not.
        if position.next_offset > p.end and (p.committed is None or p.committed > p.end):
            problems.append(
                f"partition {p.partition}: the database has what is before {position.next_offset:,}, and the "
                f"topic ends at {p.end:,}: it was cut, or made anew, or is not the topic of this database"
            )
    return problems


def _of_digests(stored: Stored) -> list[str]:
    recorded, counted = stored.get(RECORDER, {}), stored.get(AGGREGATOR, {})
    return [
        f"partition {partition}: the {RECORDER} and the {AGGREGATOR} have not read the same events before "
        f"{position.next_offset:,}: hold the tables against the topic: `stepstream verify --against-topic`"
        for partition, position in sorted(recorded.items())
        if partition in counted and position.agrees_with(counted[partition]) is False
    ]


def agreements(
    recorder: Mapping[int, Position], aggregator: Mapping[int, Position]
) -> dict[int, bool | None]:
    """Whether both have read the same, by partition."""
    return {p: recorder[p].agrees_with(aggregator[p]) for p in sorted(recorder.keys() & aggregator.keys())}


def why_apart(agrees: Mapping[int, bool | None]) -> str | None:
    """What to say where recorder and aggregator have read different events."""
    apart = [p for p, same in agrees.items() if same is False]
    if not apart:
        return None
    return (
        f"recorder and aggregator have read different events of {name_partitions(apart)}: events were "
        "changed, lost or left out for one of them. `stepstream verify --against-topic` says whether it was "
        "the recorder"
    )


def name_partitions(partitions: Sequence[int]) -> str:
    """Partitions by their numbers, in words."""
    noun = "partition" if len(partitions) == 1 else "partitions"
    return f"{noun} {', '.join(map(str, partitions))}"

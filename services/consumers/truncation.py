"""Whether a log was cut (KIP-320): after an election, records that were in it are looked for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.consumers.database_identity import last_in
from services.consumers.ownership import CommittedOffset
from services.consumers.positions import Fingerprint, Placement, Position, Seen
from services.consumers.records_at import are_still_there
from services.consumers.topic import TopicLog, ends_of_epochs
from services.runtime.kafka import Record
from services.runtime.settings import Settings

#: Of so many fetches between two looks the last records are known, and of the newest.
_MOST_FETCHES = 1_000


class LastRecords:
    """Records that were in the log: the last of each fetch since a partition was last looked at."""

    def __init__(self) -> None:
        #: The last records of when each partition was last seen to be the log that it was.
        self._checked: dict[int, Fingerprint | None] = {}
        #: The last record of each fetch since then, and of one before, read or not, in the order of time.
        self._fetched: dict[int, list[Fingerprint]] = {}

    def clear(self) -> None:
        """Others may have been at work meanwhile."""
        self._checked.clear()
        self._fetched.clear()

    def fetched(self, last: Record) -> None:
        """This record was in the log: if it is not there after an election, the log was cut."""
        known = self._fetched.setdefault(last.partition, [])
        del known[_MOST_FETCHES:]
        known.append(Fingerprint.of(last))

    def counts(self) -> dict[int, int]:
        """How many fetches are known of each partition."""
        return {p: len(fingerprints) for p, fingerprints in self._fetched.items()}

    def checked(self, partition: int, last: Fingerprint | None, fetches: int) -> None:
        """The log is what it was when so many fetches were known."""
        self._checked[partition] = last
        del self._fetched.get(partition, [])[: max(0, fetches - 1)]

    def placed(self, placements: Mapping[int, Placement]) -> None:
        """The log is as it was seen for these placements."""
        for p, placement in placements.items():
            self._checked[p] = placement.position.last
            if placement.other_log:
                self._fetched.pop(p, None)

    def known_behind(
        self, partition: int, position: Position, reported: Sequence[Fingerprint | None], end: int
    ) -> set[Fingerprint]:
        """Records that were in the log at this offset or later; some the relay or the group has told of.

        Of what was fetched the first that came: later ones were perhaps read behind a cut already.
        """
        fetched = next((f for f in self._fetched.get(partition, ()) if f.offset >= end), None)
        known = (position.last, self._checked.get(partition), fetched, *reported)
        return {f for f in known if f is not None and f.offset >= end}


class KnownRecords(NamedTuple):
    """Records that were in the log: those that were fetched, and the last that relays have sent."""

    fetched: LastRecords
    sent: Mapping[int, Fingerprint]


async def see(
    consumer: AIOKafkaConsumer,
    settings: Settings,
    topic_log: TopicLog,
    partitions: Collection[int],
    stored: Mapping[int, Position],
    committed: Mapping[TopicPartition, CommittedOffset],
    known: KnownRecords,
) -> dict[int, Seen]:
    """What Kafka says about these partitions of the topic.

    Args:
        consumer: of the service.
        settings: where Kafka is.
        topic_log: the topic's log as it is now.
        partitions: which.
        stored: where the service is on them, where it is known.
        committed: what the group has committed.
        known: records that were in the log.

    Raises:
        KafkaError: a broker does not answer.
    """
    tps = {p: TopicPartition(settings.topic, p) for p in partitions}
    begins = await consumer.beginning_offsets(list(tps.values()))
    seen = {
        p: Seen(
            begins[tp],
            committed[tp].offset if tp in committed else None,
            topic_log.cluster_id,
            topic_log.topic_id,
            topic_log.epochs.get(p),
        )
        for p, tp in tps.items()
    }
    elected = {
        p: position
        for p, position in stored.items()
        if position.topic_id in {"", topic_log.topic_id} and seen[p].is_later_epoch(position)
    }
    if not elected:
        return seen
    epochs = {p: position.leader_epoch or 0 for p, position in elected.items()}
    ends = await ends_of_epochs(consumer._client, settings.topic, topic_log, epochs)  # noqa: SLF001
    behind = {}
    for p, position in elected.items():
        said = last_in(committed[tps[p]].words) if tps[p] in committed else None
        behind[tps[p]] = known.fetched.known_behind(p, position, (known.sent.get(p), said), ends.get(p) or 0)
    same = await are_still_there(settings, behind, begins)
    return seen | {p: replace(seen[p], epoch_end=ends.get(p), same_record=same[tps[p]]) for p in elected}

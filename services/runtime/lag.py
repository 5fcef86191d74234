"""How far the consumer groups are."""

from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.runtime.kafka import admin_client
from services.runtime.settings import Settings

GROUPS = ("completion-recorder", "sankey-aggregator")


@dataclass(frozen=True, slots=True)
class Lag:
    """A group's progress, summed over the partitions of the topic."""

    group: str
    committed: int
    end: int

    @property
    def events(self) -> int:
        """Events that the group has yet to commit."""
        return self.end - self.committed


async def lags(settings: Settings) -> list[Lag]:
    """The lag of each group of Stepstream; a group that never committed is at the beginning.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap_servers)
    async with admin_client(settings) as admin:
        await consumer.start()
        try:
            described = await admin.describe_topics([settings.topic])
            partitions = [
                TopicPartition(settings.topic, p["partition"]) for t in described for p in t["partitions"]
            ]
            ends = await consumer.end_offsets(partitions)
            begins = await consumer.beginning_offsets(partitions)
            result = []
            for name in GROUPS:
                committed = await admin.list_consumer_group_offsets(settings.group(name))
                at = {
                    p: committed[p].offset if p in committed and committed[p].offset >= 0 else begins[p]
                    for p in partitions
                }
                result.append(Lag(name, sum(at.values()), sum(ends.values())))
            return result
        finally:
            await consumer.stop()

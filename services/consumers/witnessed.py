"""What relays alone know to have been in the log, because the database came from another server since."""

from collections.abc import Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.consumers.gone import name_gone
from services.consumers.placements import log_gone
from services.consumers.positions import Gone, Witnessed
from services.consumers.records_at import is_record, records_at, with_times
from services.consumers.sent import read_witnessed, settle_witnessed
from services.consumers.topic import TopicLog, ends_of_epochs, high_watermarks
from services.runtime.database import Pool
from services.runtime.settings import Settings


async def check_witnessed(
    consumer: AIOKafkaConsumer, pool: Pool, settings: Settings, owned: Sequence[int], topic_log: TopicLog
) -> None:
    """Names what was cut off these partitions and a relay alone knows of.

    Raises:
        KafkaError, PostgresError: somebody is away.
    """
    topic = settings.topic
    async with pool.acquire() as connection:
        witnessed = await read_witnessed(connection, topic, owned)
    if not witnessed:
        return
    begins = await consumer.beginning_offsets([TopicPartition(topic, w.partition) for w in witnessed])
    old = {
        one
        for one in witnessed
        if one.topic_id != topic_log.topic_id
        or one.record.offset < begins[TopicPartition(topic, one.partition)]
    }
    are_there = await _are_there(consumer, settings, [w for w in witnessed if w not in old], topic_log)
    for one in witnessed:
        there = False if one in old else are_there[one]
        if there is None:
            continue
        begin = begins[TopicPartition(topic, one.partition)]
        cut = [] if one in old or there else [await _cut_before(consumer, settings, one, begin, topic_log)]
        async with pool.acquire() as connection, connection.transaction():
            await name_gone(connection, topic, {one.partition: cut})
            await settle_witnessed(connection, topic, one, is_there=there)
        log_gone({one.partition: cut})


async def _are_there(
    consumer: AIOKafkaConsumer, settings: Settings, witnessed: Sequence[Witnessed], topic_log: TopicLog
) -> dict[Witnessed, bool | None]:
    """Whether records are in the log; None while a codec, or an open transaction, hides one."""
    if not witnessed:
        return {}
    topic = settings.topic
    ends = await high_watermarks(consumer._client, topic, topic_log)  # noqa: SLF001
    records = {one: (TopicPartition(topic, one.partition), one.record.offset) for one in witnessed}
    readable = await consumer.end_offsets([tp for tp, _ in records.values()])
    hidden = {
        one for one, (tp, offset) in records.items() if readable[tp] <= offset < ends.get(one.partition, 0)
    }
    found = await records_at(settings, (at for one, at in records.items() if one not in hidden))
    return {
        one: None if one in hidden or found[at] == "unreadable" else is_record(one.record, found[at])
        for one, at in records.items()
    }


async def _cut_before(
    consumer: AIOKafkaConsumer, settings: Settings, one: Witnessed, begin: int, topic_log: TopicLog
) -> Gone:
    """What is gone with a record that is not there any more."""
    client, epoch = consumer._client, {one.partition: one.leader_epoch}  # noqa: SLF001
    end = (await ends_of_epochs(client, settings.topic, topic_log, epoch))[one.partition]
    first = min(begin if end is None else end, one.record.offset)
    gone = await with_times(settings, {one.partition: [Gone("cut", first, None)]})
    return gone[one.partition][0]

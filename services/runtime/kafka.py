"""Kafka: topics, how consumers read, offsets, and the producer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    for_code,
)

from services.runtime.errors import StepstreamError
from services.runtime.settings import Settings

Record: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"
Offsets: TypeAlias = Mapping[TopicPartition, int]

#: A dead letter is its event and some headers more: the largest event has to fit.
DEAD_LETTER_MAX_BYTES = 2 * 1024 * 1024


async def ensure_topics(settings: Settings) -> list[str]:
    """Creates the topic of events and that of dead letters where they are missing; returns what it made."""
    dead_letter_options = {"max.message.bytes": str(DEAD_LETTER_MAX_BYTES)}
    wanted = [
        NewTopic(settings.topic, settings.topic_partitions, 1),
        NewTopic(settings.dead_letter_topic, settings.topic_partitions, 1, topic_configs=dead_letter_options),
    ]
    for topic in wanted:
        # The constructor refuses -1, the broker's own default, which Kafka has taken since 2.4.
        topic.replication_factor = settings.topic_replication_factor
    async with admin_client(settings) as admin:
        reply: Any = await admin.create_topics(wanted)
        made = []
        for name, code, *message in reply.topic_errors:
            error = for_code(code)
            if code == 0:
                made.append(name)
            elif error is not TopicAlreadyExistsError:
                raise StepstreamError(
                    f"topic {name} cannot be created: {error.__name__} {' '.join(filter(None, message))}"
                )
        return made


@contextlib.asynccontextmanager
async def admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for topics and groups.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    try:
        await admin.start()
    except KafkaConnectionError as error:
        await admin.close()
        raise unreachable(settings, error) from error
    try:
        yield admin
    finally:
        await admin.close()


def unreachable(settings: Settings, error: Exception) -> StepstreamError:
    """What to say when no broker answers."""
    return StepstreamError(f"Kafka at {', '.join(settings.kafka_bootstrap_servers)}: {error}")


def subscriber_options(settings: Settings) -> dict[str, Any]:
    """How both consumers read: from the start, by hand, in large batches under backlog."""
    return {
        "batch": True,
        "auto_offset_reset": "earliest",
        # Events of a producer's aborted transaction never happened.
        "isolation_level": "read_committed",
        "max_records": settings.poll_max_records,
        # Not a linger: FastStream waits this long once more after an empty poll.
        "batch_timeout_ms": 10,
        "fetch_max_wait_ms": 250,
        "fetch_max_bytes": 64 * 1024 * 1024,
        "max_partition_fetch_bytes": 16 * 1024 * 1024,
        "session_timeout_ms": int(settings.session_timeout_seconds * 1000),
        # aiokafka would take the session's timeout, which is shorter than a revoke may wait for a batch.
        "rebalance_timeout_ms": 30_000,
        "heartbeat_interval_ms": int(settings.session_timeout_seconds * 1000 / 4),
        # A slow batch, or a wait for the recorder, is no reason to leave the group; health looks at progress.
        "max_poll_interval_ms": 24 * 60 * 60 * 1000,
    }


def next_offsets(records: Iterable[Record]) -> dict[TopicPartition, int]:
    """Where each partition goes on after these records."""
    following: dict[TopicPartition, int] = {}
    for record in records:
        partition = TopicPartition(record.topic, record.partition)
        following[partition] = max(following.get(partition, 0), record.offset + 1)
    return following


async def commit_offsets(consumer: AIOKafkaConsumer, offsets: Offsets, timeout: float) -> Offsets:  # noqa: ASYNC109
    """Commits exactly these offsets, for the partitions still owned, and returns those.

    A partition that has moved to another member is left out: its new owner reads the records again,
    which changes nothing.

    Raises:
        TimeoutError: no answer in `timeout` seconds (aiokafka itself would retry for ever).
    """
    owned = {p: o for p, o in offsets.items() if p in consumer.assignment()}
    if not owned:
        return {}
    try:
        async with asyncio.timeout(timeout):
            await consumer.commit(owned)
    except (CommitFailedError, IllegalStateError, RebalanceInProgressError):
        return {}
    return owned


def make_producer(settings: Settings, **options: Any) -> AIOKafkaProducer:
    """An idempotent producer that waits for all replicas; Kafka's default murmur2 partitioner."""
    return AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        enable_idempotence=True,
        acks="all",
        **options,
    )


#: Headers that a dead letter carries after those of its event.
DEAD_LETTER_HEADERS = (
    "stepstream-topic",
    "stepstream-partition",
    "stepstream-offset",
    "stepstream-timestamp",
    "stepstream-error-class",
    "stepstream-error",
)


def dead_letter_headers(record: Record, error_class: str, message: str) -> list[tuple[str, bytes]]:
    """The record's own headers, then where it came from and why it was refused."""
    told = (record.topic, record.partition, record.offset, record.timestamp, error_class, message)
    return [
        *record.headers,
        *((name, str(value).encode()) for name, value in zip(DEAD_LETTER_HEADERS, told, strict=True)),
    ]


async def send_all(producer: AIOKafkaProducer, topic: str, letters: Sequence[dict[str, Any]]) -> None:
    """Sends key, value and headers of each, and returns when the brokers have acknowledged all of them."""
    await asyncio.gather(*[await producer.send(topic, **letter) for letter in letters])

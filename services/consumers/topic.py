"""Which log a topic is: its cluster, its id, and the leader epochs that tell whether it was cut.

aiokafka asks for neither topic ids nor epochs. The requests are Kafka's own: Metadata 12 (KIP-516) and
OffsetForLeaderEpoch 3 (KIP-320); a broker that is too old for them leaves these parts unknown.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, ClassVar

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    NodeNotReadyError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

#: Of requests for offsets: the end, and also what is not committed.
_LATEST = -1
_READ_UNCOMMITTED = 0
#: What Kafka answers for an epoch that it does not know.
_UNKNOWN_OFFSET = -1


class _Uuid(AbstractType[bytes]):
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _MetadataResponse(Response):
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataStruct]):
    API_KEY: ClassVar[int] = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_MetadataStruct]) -> _MetadataStruct:
        return request_struct_class([(bytes(16), self._topic, {})], False, False, {})


class _EpochResponse(Response):
    API_KEY = 23
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("end_offset", Int64),
                    ),
                ),
            ),
        ),
    )


class _EpochStruct(RequestStruct):
    API_KEY = 23
    API_VERSION = 3
    RESPONSE_TYPE = _EpochResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32)),
                ),
            ),
        ),
    )


class _EpochRequest(Request[_EpochStruct]):
    API_KEY: ClassVar[int] = 23

    def __init__(self, topic: str, epochs: Mapping[int, int]) -> None:
        self._topic = topic
        self._epochs = epochs

    def build(self, request_struct_class: type[_EpochStruct]) -> _EpochStruct:
        wanted = [(partition, -1, epoch) for partition, epoch in self._epochs.items()]
        return request_struct_class(-1, [(self._topic, wanted)])


@dataclass(frozen=True, slots=True)
class TopicLog:
    """A topic as a log: the ids of its cluster and of itself; leaders and their epochs by partition.

    What an old broker does not tell is empty.
    """

    cluster_id: str = ""
    topic_id: str = ""
    leaders: Mapping[int, int] = field(default_factory=dict)
    epochs: Mapping[int, int] = field(default_factory=dict)


async def describe_log(client: AIOKafkaClient, topic: str) -> TopicLog:
    """Asks any broker.

    Raises:
        KafkaError: no broker answers, or there is no such topic.
    """
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("no broker is known")
    try:
        answer: Any = await client.send(node, _MetadataRequest(topic))
    except (IncompatibleBrokerVersion, NotImplementedError):
        return TopicLog()
    for code, name, topic_id, _, partitions, *_ in answer.topics:
        if name == topic:
            if code:
                raise for_code(code)(f"topic {topic}")
            return TopicLog(
                answer.cluster_id or "",
                str(uuid.UUID(bytes=topic_id)),
                {p[1]: p[2] for p in partitions},
                {p[1]: p[3] for p in partitions if p[3] >= 0},
            )
    raise UnknownTopicOrPartitionError(f"topic {topic}")


async def high_watermarks(client: AIOKafkaClient, topic: str, log: TopicLog) -> dict[int, int]:
    """Where the partitions end, with what open transactions hold back from readers; empty for an old broker.

    Raises:
        KafkaError: a leader does not answer.
    """
    by_leader: dict[int, list[tuple[int, int]]] = {}
    for partition, leader in log.leaders.items():
        by_leader.setdefault(leader, []).append((partition, _LATEST))
    requests = (
        client.send(leader, OffsetRequest(-1, _READ_UNCOMMITTED, [(topic, wanted)]))
        for leader, wanted in by_leader.items()
    )
    answers: Any = await asyncio.gather(*requests)
    found: dict[int, int] = {}
    for answer in answers:
        for _, partitions in answer.topics:
            for partition, code, *_, end in partitions:
                if code:
                    error: type[KafkaError] = for_code(code)
                    raise error(f"partition {partition} of {topic}")
                found[partition] = end
    return found


async def ends_of_epochs(
    client: AIOKafkaClient, topic: str, log: TopicLog, epochs: Mapping[int, int]
) -> dict[int, int | None]:
    """Where these leader epochs end in the log as it is now, by partition.

    None where the log knows of no such epoch, and of no later one that follows.

    Raises:
        KafkaError: a leader does not answer.
    """
    by_leader: dict[int, dict[int, int]] = {}
    for partition, epoch in epochs.items():
        by_leader.setdefault(log.leaders[partition], {})[partition] = epoch
    answers = await asyncio.gather(
        *(client.send(leader, _EpochRequest(topic, wanted)) for leader, wanted in by_leader.items())
    )
    found: dict[int, int | None] = {}
    for answer in answers:
        for _, partitions in answer.topics:
            for code, partition, _, end in partitions:
                if code:
                    error: type[KafkaError] = for_code(code)
                    raise error(f"partition {partition} of {topic}")
                found[partition] = None if end == _UNKNOWN_OFFSET else end
    return found

"""The partition vectors, computed by one Kafka client, held against what another one does."""

import json

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from confluent_kafka import KafkaError, Message, Producer

from schemas.generate import FOLDER
from tests.support.world import World

pytestmark = pytest.mark.integration


async def test_librdkafka_sends_every_key_to_the_partition_of_the_vectors(world: World) -> None:
    vectors = json.loads((FOLDER / "partition-vectors.json").read_text("utf-8"))["vectors"]
    sizes = [int(size) for size in vectors[0]["partitions"]]
    assert sizes == [1, 6, 12]
    topics = {size: f"{world.settings.topic}-of-{size}" for size in sizes}
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka_bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(name, size, 1) for size, name in topics.items()])
    producer = Producer(
        {
            "bootstrap.servers": ",".join(world.settings.kafka_bootstrap_servers),
            "partitioner": "murmur2_random",
        }
    )
    got: dict[tuple[str, int], int | None] = {}

    def delivered(error: KafkaError | None, message: Message, key: str, size: int) -> None:
        assert error is None
        got[key, size] = message.partition()

    for vector in vectors:
        for size, topic in topics.items():
            producer.produce(
                topic,
                key=bytes.fromhex(vector["key_utf8_hex"]),
                value=b"",
                on_delivery=lambda e, m, k=vector["key"], s=size: delivered(e, m, k, s),
            )
    assert producer.flush(30) == 0
    await admin.delete_topics(list(topics.values()))
    await admin.close()
    assert got == {(v["key"], int(s)): p for v in vectors for s, p in v["partitions"].items()}
    assert {v["key"].encode().hex() for v in vectors} == {v["key_utf8_hex"] for v in vectors}

"""Sends the records of stdin with librdkafka: BOOTSTRAP TOPIC CODEC PARTITIONER plain|commit|abort."""

import sys
import uuid

from confluent_kafka import KafkaException, Producer
from records import records


def main(bootstrap: str, topic: str, codec: str, partitioner: str, end: str) -> None:
    settings = {"bootstrap.servers": bootstrap, "compression.type": codec, "linger.ms": 100}
    if partitioner == "murmur2":
        settings["partitioner"] = "murmur2_random"
    if end != "plain":
        settings["transactional.id"] = str(uuid.uuid4())
    producer = Producer(settings)
    failed: list[object] = []
    if end != "plain":
        producer.init_transactions()
        producer.begin_transaction()
    for key, value, headers in records():
        producer.produce(
            topic,
            value,
            key,
            headers=headers,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
    if producer.flush(60) or failed:
        sys.exit(f"not delivered: {failed[:1]}")
    if end == "commit":
        producer.commit_transaction()
    if end == "abort":
        producer.abort_transaction()


try:
    main(*sys.argv[1:])
except KafkaException as error:
    sys.exit(str(error))

"""Sends each FILE as an event, and says where it went: python clients/librdkafka.py FILE..."""

import functools
import json
import os
import sys
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer

topic = os.environ.get("STEPSTREAM_TOPIC", "walkthrough.progress.v1")
producer = Producer(
    {
        "bootstrap.servers": os.environ.get("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
        "enable.idempotence": True,  # and so acks=all
        "partitioner": "murmur2_random",  # its default is CRC32
    }
)
failed: list[str] = []


def report(file: str, error: KafkaError | None, sent: Message) -> None:
    """What became of a record."""
    if error:
        failed.append(f"{file}: not sent: {error}")
    else:
        print(f"{file}: partition {sent.partition()}, offset {sent.offset()}")


for file in sys.argv[1:]:
    try:
        value, told = Path(file).read_bytes(), functools.partial(report, file)
        key = json.loads(value).get("mcp_server_user_id")
        producer.produce(topic, value, key, headers={"ce_source": "/kit"}, on_delivery=told)
    except (OSError, ValueError, AttributeError, KafkaException) as refused:
        failed.append(f"{file}: not sent: {refused}")
if waiting := producer.flush(30):
    failed.append(f"{waiting} not sent: no acknowledgement within 30 s")
sys.exit("\n".join(failed) or 0)

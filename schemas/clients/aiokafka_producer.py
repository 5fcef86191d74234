"""Sends each FILE as an event, and says where it went: python clients/aiokafka_producer.py FILE..."""

import asyncio
import json
import os
import sys
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError


async def main(*files: str) -> int:
    """The number of files that were not sent."""
    topic, failed = os.environ.get("STEPSTREAM_TOPIC", "walkthrough.progress.v1"), 0
    servers = os.environ.get("STEPSTREAM_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092").split(",")
    # Idempotence brings acks=all; its partitioner is Kafka's murmur2.
    async with AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True) as producer:
        for file in files:
            try:
                value = Path(file).read_bytes()
                key = json.loads(value).get("mcp_server_user_id")
                sent = await producer.send_and_wait(
                    topic, value, key and key.encode(), headers=[("ce_source", b"/kit")]
                )
                print(f"{file}: partition {sent.partition}, offset {sent.offset}")
            except (OSError, ValueError, AttributeError, KafkaError) as error:
                print(f"{file}: not sent: {error}")
                failed += 1
    return failed


sys.exit(1 if asyncio.run(main(*sys.argv[1:])) else 0)

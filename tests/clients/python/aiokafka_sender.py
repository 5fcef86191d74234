"""Sends the records of stdin with aiokafka: BOOTSTRAP TOPIC CODEC PARTITIONER plain|commit|abort."""

import asyncio
import sys
import uuid

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from records import records


async def main(bootstrap: str, topic: str, codec: str, _partitioner: str, end: str) -> None:
    # The default partitioner is Kafka's rule.
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        compression_type=None if codec == "none" else codec,
        linger_ms=100,
        transactional_id=None if end == "plain" else str(uuid.uuid4()),
    )
    await producer.start()
    try:
        if end != "plain":
            await producer.begin_transaction()
        sent = [await producer.send(topic, value, key, headers=headers) for key, value, headers in records()]
        await asyncio.gather(*sent)
        if end == "commit":
            await producer.commit_transaction()
        if end == "abort":
            await producer.abort_transaction()
    finally:
        await producer.stop()


try:
    asyncio.run(main(*sys.argv[1:]))
except KafkaError as error:
    sys.exit(str(error))

"""Sending to Kafka: one way to have a producer, and to send many records with it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.runtime.kafka import admin_client, connection, describe_topics, unreachable
from services.runtime.settings import Settings

_STOP_SECONDS = 5.0


@contextlib.asynccontextmanager
async def producer(settings: Settings, topic: str | None = None, **options: Any) -> AsyncIterator["Producer"]:
    """What sends to Kafka while the block lasts; `options` are those of aiokafka's producer.

    It is made when it is first asked for. With `topic`, it is known then that there is such a topic.

    Raises:
        StepstreamError: an error of Kafka has left the block.
    """
    made = Producer(settings, topic, options)
    try:
        yield made
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await made.stop()


class _Null:
    """Stands for no value."""


NULL = _Null()


def _serialize(value: bytes | _Null | None) -> bytes | None:
    return None if isinstance(value, _Null) else value


class Producer:
    """An idempotent producer that waits for all replicas; it is made anew after every failure.

    A batch that failed leaves a gap in the producer's sequence numbers, and every later one would fail.
    """

    def __init__(self, settings: Settings, topic: str | None, options: Mapping[str, Any]) -> None:
        self._settings = settings
        self._topic = topic
        self._options = options
        self._producer: AIOKafkaProducer | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a producer, as far as is known."""
        return self._producer is not None

    async def start(self) -> AIOKafkaProducer:
        """The producer, with Kafka's default murmur2 partitioner; makes one where there is none.

        aiokafka refuses a record that has neither key nor value, which Kafka takes; as a value, `NULL` is
        none.

        Raises:
            KafkaError: Kafka cannot be reached, or does not allow it.
            ConfigurationError: there is no such topic.
        """
        if self._producer is None:
            made = AIOKafkaProducer(
                **connection(self._settings),
                metadata_max_age_ms=int(self._settings.metadata_max_age_seconds * 1000),
                enable_idempotence=True,
                acks="all",
                value_serializer=_serialize,
                **self._options,
            )
            try:
                await made.start()
                if self._topic is not None:
                    await _require_topic(made, self._settings, self._topic)
            except BaseException:
                await _end(made)
                raise
            self._producer = made
        return self._producer

    async def stop(self) -> None:
        """Ends the producer, if there is one; what it had not sent is not sent."""
        made, self._producer = self._producer, None
        if made is not None:
            await _end(made)


async def _require_topic(made: AIOKafkaProducer, settings: Settings, topic: str) -> None:
    metadata = await made.client.fetch_all_metadata()
    if topic not in metadata.topics():
        async with admin_client(settings) as admin:
            await describe_topics(admin, topic)


async def _end(made: AIOKafkaProducer) -> None:
    """Stops a producer in bounded time: its own stop waits for ever while Kafka is away."""
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(_STOP_SECONDS):
            await made.stop()
            return
    with contextlib.suppress(Exception):
        await made._sender.close()  # noqa: SLF001 - what stop would do after the wait
    with contextlib.suppress(Exception):
        await made.client.close()


async def send_all(
    sender: AIOKafkaProducer, topic: str, letters: Mapping[int, Sequence[Mapping[str, Any]]]
) -> None:
    """Sends key, value and headers of each, and returns when the brokers have acknowledged all of them.

    They come by a number that chooses their partition. Whole batches take a third of the time of one by one.
    """
    partitions = len(await sender.partitions_for(topic))
    await asyncio.gather(
        *(_send_batches(sender, topic, number % partitions, some) for number, some in letters.items())
    )


async def _send_batches(
    sender: AIOKafkaProducer, topic: str, partition: int, letters: Iterable[Mapping[str, Any]]
) -> None:
    batches = [sender.create_batch()]
    for letter in letters:
        if batches[-1].append(timestamp=None, **letter) is None:  # full
            batches.append(sender.create_batch())
            batches[-1].append(timestamp=None, **letter)
    sent = [await sender.send_batch(batch, topic, partition=partition) for batch in batches]
    await asyncio.gather(*sent)


async def send_each(
    sender: AIOKafkaProducer, topic: str, letters: Sequence[dict[str, Any]]
) -> list[Exception | None]:
    """As `send_all`, where one that is not taken harms no other: why not, of each; None is acknowledged."""

    async def send(letter: dict[str, Any]) -> Exception | None:
        try:
            await (await sender.send(topic, **letter))
        except (KafkaError, OSError, TimeoutError) as error:
            return error
        return None

    return await asyncio.gather(*(send(letter) for letter in letters))

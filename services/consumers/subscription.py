"""How a service subscribes: FastStream's broker, records as they are, a consumer that ends in time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from services.runtime.kafka import Record, tls_context
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.shell")

#: How long leaving the group may take.
_GOODBYE_SECONDS = 8.0


def make_broker(service: str, settings: Settings) -> KafkaBroker:
    """How the consumer of a service connects."""
    return KafkaBroker(
        settings.kafka_bootstrap_servers,
        client_id=f"stepstream-{service}",
        security=_security(settings),
        apply_types=False,
        graceful_timeout=settings.drain_timeout_seconds,
        # Joining a group may take as long as its rebalance or its session.
        request_timeout_ms=int(max(40, settings.session_timeout_seconds + 10) * 1000),
        metadata_max_age_ms=int(settings.metadata_max_age_seconds * 1000),
        allow_auto_create_topics=False,
        logger=None,
    )


def _security(settings: Settings) -> BaseSecurity | None:
    """TLS and sign-in as FastStream wants them."""
    context = tls_context(settings)
    if not settings.kafka_security_protocol.startswith("SASL"):
        return BaseSecurity(context, use_ssl=True) if context else None
    kinds = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    return kinds[settings.kafka_sasl_mechanism](
        settings.kafka_username,
        settings.read_kafka_password() or "",
        ssl_context=context,
        use_ssl=context is not None,
    )


async def parse_batch(records: tuple[Record, ...]) -> KafkaMessage:
    """Wraps a batch for FastStream without touching keys, values or headers.

    FastStream's own parser decodes every header as UTF-8, and one that is not fails the whole batch.
    """
    return KafkaMessage(
        raw_message=records,
        body=b"",
        message_id=f"{records[0].partition}:{records[0].offset}",
        consumer=_NeverCommits(),
    )


async def decode_batch(message: KafkaMessage) -> object:
    """The raw records: the handler reads the bytes itself."""
    return message.raw_message


class _NeverCommits:
    """Stands where FastStream keeps the consumer for acknowledging: `commit_offsets` is the only way."""

    async def commit(self) -> None:
        raise RuntimeError("offsets are committed by commit_offsets alone")

    def seek(self, partition: TopicPartition, offset: int) -> None:
        raise RuntimeError("the position is never moved by an acknowledgement")


def bound_the_end(consumer: AIOKafkaConsumer, finish: Callable[[], Awaitable[None]]) -> None:
    """Makes a consumer's stop do this first, and leave its group in bounded time: else 40 s with Kafka away.

    FastStream stops it when everything is handled; who does not get to say goodbye is missed by its silence.
    """
    stop: Any = consumer.stop
    if getattr(stop, "__func__", None) is not AIOKafkaConsumer.stop:
        return

    async def bounded() -> None:
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await finish()
                await stop()
        except TimeoutError:
            log.warning("Kafka does not answer: the group will miss this consumer after its session timeout")

    consumer.stop = bounded  # type: ignore[method-assign]


def dead_task(consumer: AIOKafkaConsumer, tasks: Collection["asyncio.Task[Any]"]) -> str | None:
    """Which of the tasks that feed the handler has ended; aiokafka shows its own nowhere."""
    fetcher, coordinator = consumer._fetcher, consumer._coordinator  # noqa: SLF001 - no other way to see them
    parts = {
        "fetching": fetcher is not None and fetcher._fetch_task.done(),  # noqa: SLF001
        "coordinating": coordinator is not None and coordinator._coordination_task.done(),  # noqa: SLF001
        "consuming": bool(tasks) and all(task.done() for task in tasks),
    }
    return next((name for name, dead in parts.items() if dead), None)

"""Kafka: how clients connect, topics, how consumers read, offsets, and what a dead letter says."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.codec import has_gzip, has_lz4, has_snappy, has_zstd
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    RebalanceInProgressError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from services.runtime.bounds import Seldom
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.kafka")


class Connection(TypedDict):
    """How a client of aiokafka connects."""

    bootstrap_servers: list[str]
    security_protocol: str
    sasl_mechanism: str
    sasl_plain_username: str | None
    sasl_plain_password: str | None
    ssl_context: ssl.SSLContext | None


Record: TypeAlias = "ConsumerRecord[bytes | None, bytes | None]"
Offsets: TypeAlias = Mapping[TopicPartition, int]

#: A dead letter is its event and some headers more: the largest event has to fit.
DEAD_LETTER_MAX_BYTES = 2 * 1024 * 1024
_CLEANUP = "cleanup.policy"
_KNOWN_SECONDS = 10.0
#: What Kafka answers to whoever has signed in, and may not do what is asked.
NOT_ALLOWED = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)
#: The codecs of Kafka, and whether this installation has what reads them.
_CODECS = {"gzip": has_gzip, "snappy": has_snappy, "lz4": has_lz4, "zstd": has_zstd}

_unfit = Seldom(log, "certificates for Kafka cannot be read, those before are used")
_unreadable = Seldom(log, "STEPSTREAM_KAFKA_PASSWORD_FILE cannot be read, the password before is used")


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
        await _known(admin, [topic.name for topic in wanted])
        await refuse_compacted(admin, [topic.name for topic in wanted])
        return made


async def refuse_compacted(admin: AIOKafkaAdminClient, topics: Sequence[str]) -> None:
    """Looks whether Kafka keeps each record of these topics for as long as it keeps any of its time.

    Compaction removes all but the last record of a key, and all steps of a person have one key. Where nobody
    may ask for the configuration, that is not known.

    Raises:
        ConfigurationError: one of them is compacted.
    """
    resources = [ConfigResource(ConfigResourceType.TOPIC, t, {_CLEANUP: None}) for t in topics]
    answers: Any = await admin.describe_configs(resources)
    for answer in answers:
        for code, _, _, name, configs in answer.resources:
            if code == 0 and any(key == _CLEANUP and "compact" in value for key, value, *_ in configs):
                raise ConfigurationError(
                    f"the topic {name} is compacted: Kafka removes all but the last event of a person, read "
                    f"or not. Set its {_CLEANUP} to delete; what is gone already has to be sent again"
                )


async def describe_topics(admin: AIOKafkaAdminClient, *topics: str) -> list[dict[str, Any]]:
    """What Kafka says of topics that there have to be. A broker that makes each that is asked for makes none.

    Raises:
        ConfigurationError: there is none of a name.
        TopicAuthorizationFailedError: Kafka does not tell us whether there is.
        KafkaError: it has something else against one of them.
    """
    request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
    answer = await admin._send_request(request)  # noqa: SLF001 - `describe_topics` there lets brokers make them
    described: list[dict[str, Any]] = answer.to_object()["topics"]
    codes = {topic["topic"]: topic["error_code"] for topic in described}
    if hidden := [t for t in topics if codes.get(t) == TopicAuthorizationFailedError.errno]:
        raise TopicAuthorizationFailedError(" and ".join(hidden))
    unknown = UnknownTopicOrPartitionError.errno
    if absent := [t for t in topics if codes.get(t, unknown) == unknown]:
        raise ConfigurationError(
            f"Kafka has no topic {' and no topic '.join(absent)}: run `stepstream migrate` first"
        )
    for topic in topics:
        if codes[topic]:
            raise for_code(codes[topic])(topic)
    return described


async def _known(admin: AIOKafkaAdminClient, topics: list[str]) -> None:
    """Waits until a broker shows the topics: the controller has made them before the brokers hear of it."""
    tries = AsyncRetrying(
        retry=retry_if_exception_type(UnknownTopicOrPartitionError),
        stop=stop_after_delay(_KNOWN_SECONDS),
        wait=wait_random_exponential(0.02, max=0.5),
        reraise=True,
    )
    async for attempt in tries:
        with attempt:
            described = await admin.describe_topics(topics)
            if any(topic["error_code"] for topic in described):
                raise UnknownTopicOrPartitionError(f"Kafka does not show {' and '.join(topics)} yet")


def connection(settings: Settings) -> Connection:
    """The arguments that connect any client of aiokafka: addresses, TLS and sign-in."""
    return {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_username or None,
        "sasl_plain_password": settings.read_kafka_password(),
        "ssl_context": tls_context(settings),
    }


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS that checks the broker's certificate and name; None where Kafka is spoken to without.

    Raises:
        ConfigurationError: a file holds no certificate, or no key that fits.
    """
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ca_file or None)
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"STEPSTREAM_KAFKA_CA_FILE: {settings.kafka_ca_file} holds no certificate: {error}"
        ) from None
    if settings.kafka_certificate_file:
        try:
            context.load_cert_chain(settings.kafka_certificate_file, settings.kafka_key_file)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"STEPSTREAM_KAFKA_CERTIFICATE_FILE and STEPSTREAM_KAFKA_KEY_FILE: {error}"
            ) from None
    return context


def renew_secrets(consumer: AIOKafkaConsumer, settings: Settings) -> None:
    """Gives a consumer that runs password and certificates as they are now, for its next connections.

    While a file cannot be read, what was in it before stays, and the log says so.
    """
    # aiokafka takes them once, and hands these attributes to each new connection.
    client = consumer._client  # noqa: SLF001
    try:
        if settings.kafka_password_file:
            client._sasl_plain_password = settings.read_kafka_password()  # noqa: SLF001
    except OSError as error:
        _unreadable.warn(str(error))
    try:
        if settings.kafka_ca_file or settings.kafka_certificate_file:
            client._ssl_context = tls_context(settings)  # noqa: SLF001
    except (OSError, ConfigurationError) as error:
        _unfit.warn(str(error))


@contextlib.asynccontextmanager
async def admin_client(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for topics and groups.

    Raises:
        StepstreamError: Kafka cannot be reached.
    """
    admin = AIOKafkaAdminClient(**connection(settings))
    try:
        await admin.start()
    except KafkaConnectionError as error:
        await admin.close()
        raise unreachable(settings, error) from error
    try:
        yield admin
    finally:
        await admin.close()


def check_codecs() -> None:
    """Looks whether records can be read, whichever codec a producer or a broker compressed them with.

    One record that cannot be read holds up every partition that is read with it.

    Raises:
        ConfigurationError: names the codecs that cannot be read, and the package that reads them.
    """
    if missing := [name for name, there in _CODECS.items() if not there()]:
        codecs = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        raise ConfigurationError(
            f"records that are compressed with {codecs} cannot be read: the Python package cramjam is "
            "missing, or cannot be loaded. Install it; requirements.txt names its version"
        )


def unreachable(settings: Settings, error: Exception) -> StepstreamError:
    """What to say when no broker answers, or one refuses."""
    hint = ""
    if isinstance(error, NOT_ALLOWED):
        user = f"The user {settings.kafka_username}" if settings.kafka_username else "Our user"
        hint = f". {user} lacks a right: docs/security.md has those of each service"
    elif settings.kafka_security_protocol != "PLAINTEXT":
        hint = (
            ". Are STEPSTREAM_KAFKA_SECURITY_PROTOCOL, user, password and STEPSTREAM_KAFKA_CA_FILE right? "
            "The lines before this one say what each broker answered"
        )
    return StepstreamError(f"Kafka at {', '.join(settings.kafka_bootstrap_servers)}: {error}{hint}")


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
        # What was fetched is handled first: a partition with a long backlog delays the others by this much.
        "max_partition_fetch_bytes": 512 * 1024,
        "session_timeout_ms": int(settings.session_timeout_seconds * 1000),
        # aiokafka would take the session's timeout, which is shorter than a revoke may wait for a batch.
        "rebalance_timeout_ms": 30_000,
        "heartbeat_interval_ms": int(settings.session_timeout_seconds * 1000 / 4),
        # A slow batch, or a wait for the recorder, is no reason to leave the group; health looks at progress.
        "max_poll_interval_ms": 24 * 60 * 60 * 1000,
    }


def next_offsets(records: Iterable[Record]) -> dict[TopicPartition, int]:
    """Where each partition goes on after these records, which are of one topic."""
    lasts: dict[int, Record] = {}
    for record in records:
        if (last := lasts.get(record.partition)) is None or record.offset > last.offset:
            lasts[record.partition] = record
    return {TopicPartition(last.topic, last.partition): last.offset + 1 for last in lasts.values()}


async def commit_offsets(
    consumer: AIOKafkaConsumer,
    offsets: Offsets,
    timeout: float,  # noqa: ASYNC109
    words: Mapping[TopicPartition, str],
) -> Offsets:
    """Commits exactly these offsets, for the partitions still owned, and returns those.

    What `words` says of a partition goes with its offset.

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
            await consumer.commit({p: (o, words.get(p, "")) for p, o in owned.items()})
    except (CommitFailedError, IllegalStateError, RebalanceInProgressError):
        return {}
    return owned


def kafka_may_return(error: BaseException) -> bool:
    """Whether waiting helps: a broker is away, slow, or hands its partitions over."""
    if isinstance(error, KafkaError):
        return error.retriable or isinstance(error, KafkaTimeoutError)
    return isinstance(error, OSError | TimeoutError)


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
    values = (record.topic, record.partition, record.offset, record.timestamp, error_class, message)
    return [
        *record.headers,
        *((name, str(value).encode()) for name, value in zip(DEAD_LETTER_HEADERS, values, strict=True)),
    ]

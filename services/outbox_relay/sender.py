"""What goes to Kafka: one message of a key at a time, and a refused one alone."""

import asyncio
import json
import logging
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    CorruptRecordException,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    PolicyViolationError,
    RecordListTooLargeError,
    UnknownError,
)

from services.consumers.positions import Fingerprint, Witnessed
from services.consumers.topic import TopicLog, describe_log
from services.runtime.producer import Producer
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.relay")

#: What Kafka says of a record, or of a batch for one of its records, that no other try will change.
REFUSALS = (
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    CorruptRecordException,
    InvalidTimestampError,
    PolicyViolationError,
)
#: A code that aiokafka has no name for. Kafka's INVALID_RECORD is one; troubles of the whole broker are, too.
_UNCLEAR = UnknownError
_LOAD_SECONDS = 1.0
#: Who waits so long for Kafka's answers does not know what became of Kafka meanwhile.
_SLOW_SECONDS = 1.0
#: How long leader epochs are believed to be what they were.
_EPOCHS_SECONDS = 5.0
#: Of so many times between two outages the last event of each partition is known.
_MOST_TIMES = 8


class UnreadableError(Exception):
    """A row of the outbox that no message can be made of."""


@dataclass(frozen=True, slots=True)
class Message:
    """A row of the outbox; `headers` is a JSON object of texts."""

    id: int
    key: str
    value: str
    headers: str

    def header_texts(self) -> list[tuple[str, str]]:
        """Names and values of the headers.

        Raises:
            UnreadableError: they are not what they should be. The outbox takes any JSON.
        """
        try:
            return [(name, str(value)) for name, value in json.loads(self.headers).items()]
        except (AttributeError, ValueError, RecursionError):
            raise UnreadableError("its headers are no JSON object of texts") from None

    def record(self) -> dict[str, object]:
        """The arguments of a producer's send.

        Raises:
            UnreadableError: its headers are not what they should be.
        """
        headers = [(name, value.encode()) for name, value in self.header_texts()]
        return {"key": self.key.encode(), "value": self.value.encode(), "headers": headers}


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that cannot be sent for what it is: Kafka does not take it, or nobody can read its row."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What Kafka has acknowledged in a partition, from the first offset to the last record.

    Where Kafka was perhaps away, the log was perhaps cut: before the first of these, where it does not follow
    on, or behind the last, where it is `interrupted` and others came then.
    """

    first_offset: int
    last: Fingerprint
    follows_on: bool = True
    interrupted: bool = False

    def and_then(self, following: Fingerprint, *, follows_on: bool) -> "Acknowledged":
        """With the next that is acknowledged."""
        if self.interrupted or not follows_on or following.offset <= self.last.offset:
            return replace(self, interrupted=True)
        return replace(self, last=following)


def waves(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Messages in order, at most one of each key in a wave.

    Kafka keeps a partition's order only while every batch succeeds: after one that it refused, a later one
    may still be taken. So a key's next message leaves when the one before is acknowledged.
    """
    queues: defaultdict[str, list[Message]] = defaultdict(list)
    for message in messages:
        queues[message.key].append(message)
    depth = max(map(len, queues.values()), default=0)
    for i in range(depth):
        yield [queue[i] for queue in queues.values() if i < len(queue)]


class Memory:
    """The last event acknowledged in each partition, before and after each outage and election.

    The database has forgotten the newest of them where a standby took its place that lacks commits.
    """

    def __init__(self) -> None:
        self._known: dict[int, dict[tuple[int, str, int], Fingerprint]] = {}

    def note(self, partition: int, acknowledged: Fingerprint, topic_log: TopicLog, outages: int) -> None:
        """This was acknowledged after so many outages, by the log as it was last described."""
        epoch = topic_log.epochs.get(partition)
        if epoch is None:  # an old broker: nothing tells where its log was cut
            return
        times = self._known.setdefault(partition, {})
        time_ = (outages, topic_log.topic_id, epoch)
        times[time_] = max(acknowledged, times.get(time_, acknowledged))
        if len(times) > _MOST_TIMES:
            del times[next(iter(times))]

    def all(self) -> list[Witnessed]:
        return [
            Witnessed(topic_id, partition, epoch, record)
            for partition, times in self._known.items()
            for (_, topic_id, epoch), record in times.items()
        ]


class Sender:
    """Sends through a producer that is made anew after every failure."""

    def __init__(self, settings: Settings, producer: Producer) -> None:
        self._settings = settings
        self._producer = producer
        self._acknowledged: dict[int, Acknowledged] = {}
        #: The last producer; how often Kafka was perhaps away; and that as of each partition's last.
        self._known: AIOKafkaProducer | None = None
        self._outages = 0
        self._seen: dict[int, int] = {}
        self.memory = Memory()
        #: The topic's log as it was before an event is sent; which producer asked for it, and when.
        self._log = TopicLog()
        self._log_of: AIOKafkaProducer | None = None
        self._log_at = -math.inf

    @property
    def connected(self) -> bool:
        """Whether there is a producer, as far as is known."""
        return self._producer.connected

    async def start(self) -> AIOKafkaProducer:
        """The producer; makes one where there is none.

        Raises:
            KafkaError: Kafka cannot be reached.
            ConfigurationError: there is no such topic.
        """
        producer = await self._producer.start()
        if producer is not self._log_of or time.monotonic() - self._log_at > _EPOCHS_SECONDS:
            async with asyncio.timeout(self._settings.relay_send_timeout_seconds):
                self._log = await describe_log(producer.client, self._settings.topic)
            self._log_of, self._log_at = producer, time.monotonic()
        return producer

    def take_acknowledged(self) -> dict[int, Acknowledged]:
        """What was acknowledged in each partition since this was asked for."""
        acknowledged, self._acknowledged = self._acknowledged, {}
        return acknowledged

    def keep_acknowledged(self, acknowledged: Mapping[int, Acknowledged]) -> None:
        """This was taken, and could not be noted: what is acknowledged next follows it."""
        self._acknowledged = {**acknowledged, **self._acknowledged}

    def _note(self, message: Message, place: Any) -> None:
        partition = place.partition
        if place.offset < 0:
            return
        crc = zlib.crc32(message.value.encode(), zlib.crc32(message.key.encode()))
        following = Fingerprint(place.offset, place.timestamp or 0, crc)
        self.memory.note(partition, following, self._log, self._outages)
        follows_on = self._seen.get(partition) == self._outages
        self._seen[partition] = self._outages
        before = self._acknowledged.get(partition)
        self._acknowledged[partition] = (
            Acknowledged(place.offset, following, follows_on)
            if before is None
            else before.and_then(following, follows_on=follows_on)
        )

    def _note_outage(self, producer: AIOKafkaProducer, began: float) -> None:
        """Kafka was perhaps away where the producer is another one, or waited long for its answers."""
        if producer is not self._known or time.monotonic() - began > _SLOW_SECONDS:
            self._outages += 1
            self._log_at = -math.inf
        self._known = producer

    async def stop(self) -> None:
        """Ends the producer, if there is one; what it had not sent yet waits in the outbox."""
        await self._producer.stop()

    async def send(self, messages: Sequence[Message], sent: list[int], refused: list[Refused]) -> None:
        """Sends in order per key; `sent` and `refused` grow as Kafka answers, also when an error ends it.

        After a while it leaves the rest for the next load, so that a long queue of one key delays no other.

        Raises:
            KafkaError: anything but a refusal; the messages in neither list may or may not have arrived.
            TimeoutError: Kafka did not answer in time.
        """
        began = time.monotonic()
        for wave in waves(messages):
            async with asyncio.timeout(self._settings.relay_send_timeout_seconds):
                doubtful = await self._send_wave(wave, sent, refused)
            await self._send_doubtful(doubtful, sent, refused)
            if time.monotonic() - began > _LOAD_SECONDS:
                return

    async def _send_doubtful(
        self, doubtful: Sequence[Message], sent: list[int], refused: list[Refused]
    ) -> None:
        """Sends each alone. What is unclear is the record's fault where Kafka takes others, else Kafka's."""
        unclear: list[tuple[Message, KafkaError]] = []
        if doubtful:
            await self.stop()
        for message in doubtful:
            try:
                async with asyncio.timeout(self._settings.relay_send_timeout_seconds):
                    await self._send_alone(message, sent, refused)
            except _UNCLEAR as error:
                unclear.append((message, error))
        if unclear and not sent:
            raise unclear[0][1]
        refused += [Refused(message, _reason(error)) for message, error in unclear]

    async def _send_wave(
        self, wave: Sequence[Message], sent: list[int], refused: list[Refused]
    ) -> list[Message]:
        """Returns those whose batch was refused, for one of them or for another."""
        producer, began = await self.start(), time.monotonic()
        under_way: list[tuple[Message, asyncio.Future[object]]] = []
        for message in wave:
            try:
                future = await producer.send(self._settings.topic, **message.record())
            except (MessageSizeTooLargeError, UnreadableError) as error:  # of this message alone
                refused.append(Refused(message, _reason(error)))
            else:
                under_way.append((message, future))
        doubtful, failure = [], None
        results = await asyncio.gather(*(future for _, future in under_way), return_exceptions=True)
        self._note_outage(producer, began)
        for (message, _), result in zip(under_way, results, strict=True):
            if not isinstance(result, BaseException):
                sent.append(message.id)
                self._note(message, result)
            elif isinstance(result, (*REFUSALS, _UNCLEAR)):
                doubtful.append(message)
            else:
                failure = result
        if failure is not None:
            raise failure
        return doubtful

    async def _send_alone(self, message: Message, sent: list[int], refused: list[Refused]) -> None:
        producer, began = await self.start(), time.monotonic()
        try:
            place = await producer.send_and_wait(self._settings.topic, **message.record())
        except REFUSALS as error:
            await self.stop()
            refused.append(Refused(message, _reason(error)))
        except _UNCLEAR:
            await self.stop()
            raise
        else:
            sent.append(message.id)
            self._note_outage(producer, began)
            self._note(message, place)


def _reason(error: KafkaError | UnreadableError) -> str:
    return f"{type(error).__name__}: {error}"

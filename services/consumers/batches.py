"""Batches as they are in Kafka: where one ends, what its header says, and why one cannot be read."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CorruptRecordException, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from services.consumers.header_names import read_records
from services.consumers.unpacking import TooLargeError, unpacked
from services.runtime.errors import StepstreamError

#: The class of a dead letter that is a whole batch.
ERROR_CLASS: Final = "unreadable-batch"
#: The codecs by the number in a batch's attributes.
_CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
_CODEC_MASK: Final = 0b111
#: Base offset, length, leader epoch, magic, checksum, attributes, last offset's delta, first and last
#: timestamp, producer, its epoch, base sequence, number of records.
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_BASE_AND_LENGTH: Final = struct.Struct(">qi")
#: The newest format that there is.
_MAGIC: Final = 2
_MOST_BYTES: Final = 64 * 1024 * 1024
#: In bytes: as many events as are taken at once, of half a KB.
_UNPACKED_AT_ONCE: Final = 32 * 1024 * 1024


class UnreadableError(StepstreamError):
    """A topic cannot be read, and where it goes on is not known."""


class _FormatError(Exception):
    """A batch in a format that comes after the newest."""


class Budget:
    """What may be unpacked for whoever asks for records once: many batches may each be just within the bound.

    The last batch may go beyond it, so that there is always one.
    """

    def __init__(self) -> None:
        self._until = 0
        self.renew()

    def renew(self) -> None:
        """Somebody asks anew."""
        self._until = unpacked.total + _UNPACKED_AT_ONCE

    @property
    def is_spent(self) -> bool:
        """Whether no other batch is to be opened."""
        return unpacked.total >= self._until


class BatchSequence:
    """The batches of a fetch; aiokafka would read a format of tomorrow as if it were today's."""

    def __init__(self, records: Any, budget: "Budget | None" = None) -> None:
        self._records = records
        self._budget = budget
        self._ahead: Any = None
        #: The one that was begun last, where its header can be read.
        self.current: Any = None

    def has_next(self) -> bool:
        """Whether there is one that may be opened now; the rest is fetched again."""
        if self._budget is not None and self._budget.is_spent:
            return False
        return self._ahead is not None or bool(self._records.has_next())

    def following(self) -> int | None:
        """Where the batch after this one begins, where one was fetched: all formats say that alike."""
        if self._ahead is None and self._records.has_next():
            try:
                self._ahead = self._records.next_batch()
            except CorruptRecordException:
                return None
        return getattr(self._ahead, "base_offset", None)

    def next_batch(self) -> Any:
        self.current = None
        batch, self._ahead = self._ahead or self._records.next_batch(), None
        magic = getattr(batch, "magic", None)
        if magic is not None and magic > _MAGIC:
            raise _FormatError(f"its format is {magic}, and this release knows formats up to {_MAGIC}")
        self.current = batch
        return batch


@dataclass(frozen=True, slots=True)
class Batch:
    """The header of a batch, as far as it can be believed, and all its bytes; `until` is exclusive.

    `cause` is why it cannot be read; None where it can.
    """

    first: int
    until: int
    records: int
    magic: int
    codec: str
    timestamp: int
    cause: str | None
    raw: bytes


async def fetch_batch(client: AIOKafkaClient, tp: TopicPartition, offset: int, end: int) -> Batch:
    """The batch with an offset; `end` is that of the partition.

    Raises:
        UnreadableError: there is no such thing, or its header is no header.
        KafkaError: its leader does not answer.
    """
    await client.force_metadata_update()
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader < 0:
        raise UnreadableError(f"partition {tp.partition} of {tp.topic} has no leader")
    wanted = [(tp.topic, [(tp.partition, offset, _MOST_BYTES)])]
    answer: Any = await client.send(leader, FetchRequest(500, 1, _MOST_BYTES, 0, wanted))
    ((_, ((_, code, *_, raw),)),) = answer.topics
    where = f"partition {tp.partition} of {tp.topic} at offset {offset:,}"
    if code:
        raise UnreadableError(f"{where}: its broker answers {for_code(code).__name__}")
    if not is_whole(raw or b"") or len(raw) < _HEADER.size:
        raise UnreadableError(f"{where}: its broker sends no whole batch")
    base, length, _, magic, _, attributes, delta, _, timestamp, *_, records = _HEADER.unpack_from(raw)
    size = _BASE_AND_LENGTH.size + length
    until, following = base + delta + 1, raw[size:]
    # The bytes that follow know better where this one ends: its own header may be what is broken.
    if len(following) >= _BASE_AND_LENGTH.size and (behind := _BASE_AND_LENGTH.unpack_from(following)[0]):
        until = behind if base < behind <= end else until
    if not base <= offset < until <= end:
        raise UnreadableError(
            f"{where}: its header is broken: it says that it has the offsets {base:,} to {until - 1:,}"
        )
    name = _codec_name(attributes)
    return Batch(base, until, records, magic, name, timestamp, _why_not(raw[:size]), raw[:size])


def is_whole(batches: bytes) -> bool:
    """Whether these bytes begin with all of a batch, as far as it says how long it is."""
    if len(batches) < _BASE_AND_LENGTH.size:
        return False
    _, length = _BASE_AND_LENGTH.unpack_from(batches)
    return bool(0 <= length <= len(batches) - _BASE_AND_LENGTH.size)


def codecs_of(batches: bytes) -> Iterator[tuple[int, str]]:
    """Of each whole batch the offset behind it, and its codec; of formats before 2 nothing is told."""
    at = 0
    while len(batches) - at >= _HEADER.size:
        base, length, _, magic, _, attributes, delta, *_ = _HEADER.unpack_from(batches, at)
        at += _BASE_AND_LENGTH.size + length
        if at > len(batches) or length <= 0:
            return
        if magic == _MAGIC:
            yield base + delta + 1, _codec_name(attributes)


def _codec_name(attributes: int) -> str:
    codec = attributes & _CODEC_MASK
    return _CODECS[codec] if codec < len(_CODECS) else str(codec)


def find_batch(batches: bytes, base_offset: int) -> bytes:
    """The batch that begins with this offset."""
    at = 0
    while at < len(batches):
        base, length = _BASE_AND_LENGTH.unpack_from(batches, at)
        end = at + _BASE_AND_LENGTH.size + length
        if base == base_offset:
            return batches[at:end]
        at = end
    raise ValueError(f"no batch begins with offset {base_offset}")


def _why_not(raw: bytes) -> str | None:
    try:
        batch = BatchSequence(MemoryRecords(raw)).next_batch()
        if not batch.validate_crc():
            raise CorruptRecordException("Invalid CRC")
        try:
            for _ in batch:
                pass
        except UnicodeDecodeError:
            for _ in read_records(raw):
                pass
    except Exception as error:  # noqa: BLE001 - each codec has errors of its own
        return explain(error)
    return None


def explain(error: Exception) -> str:
    """Why a batch cannot be read."""
    if isinstance(error, CorruptRecordException) and "CRC" in str(error):
        return "its checksum does not fit: its bytes are not those that were sent"
    if isinstance(error, _FormatError | TooLargeError):
        return str(error)
    name = type(error).__name__
    return f"{name}: {str(error).removeprefix(f'{name}: ')}"

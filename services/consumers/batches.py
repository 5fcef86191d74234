"""Batches that cannot be read: each is named, nobody moves past it, and other partitions go on.

aiokafka raises in the middle of what it hands out. What it had in hand of other partitions is lost with
that, though their positions have moved: the next batch begins behind events that nobody has seen. Here what
it hands out ends before the batch instead.
"""

import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException, IllegalStateError, KafkaError, UnknownError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from services.consumers.header_names import read_records
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
#: What a broker answers that cannot read its own file.
_BROKEN: Final = frozenset({CorruptRecordException.errno, UnknownError.errno})
#: How long a broker may send nothing of a partition that has more, with room in its answer.
_SILENCE_SECONDS: Final = 5.0
_ROOM_BYTES: Final = 1024 * 1024
#: When it is tried again, in seconds; the last one for ever.
_AGAIN_SECONDS: Final = (5.0, 10.0, 30.0)
_MOST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What of a partition cannot be read: from an offset on, up to `until`, exclusively, where that is known.

    `timestamp` is when the last of it came to Kafka, in milliseconds since the epoch, where that is known.
    """

    tp: TopicPartition
    offset: int
    until: int | None
    cause: str
    timestamp: int | None = None

    @property
    def offsets(self) -> str:
        """The range, for people."""
        if self.until is None:
            return f"from offset {self.offset:,} on"
        if self.until == self.offset + 1:
            return f"at offset {self.offset:,}"
        return f"at offsets {self.offset:,} to {self.until - 1:,}"

    def __str__(self) -> str:
        return f"partition {self.tp.partition} of {self.tp.topic} cannot be read {self.offsets}: {self.cause}"


class UnreadableError(StepstreamError):
    """A topic cannot be read, and where it goes on is not known."""


class _FormatError(Exception):
    """A batch in a format that comes after the newest."""


class _Held:
    """What is held, and when it is tried again."""

    def __init__(self, what: Unreadable) -> None:
        self.what = what
        self.tries = 0
        self.again_at = 0.0
        self.wait()

    def wait(self) -> None:
        """Until the next try."""
        self.again_at = time.monotonic() + _AGAIN_SECONDS[min(self.tries, len(_AGAIN_SECONDS) - 1)]
        self.tries += 1


class Reading:
    """What a consumer that is started fetches, up to what cannot be read.

    A partition with such a batch pauses there. It is tried again: its broker may be mended.

    Args:
        consumer: before it has fetched anything.
        tell: called once for each batch.
        passes_over: what ends somewhere is left out, and reading goes on behind it.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        tell: Callable[[Unreadable], None],
        *,
        passes_over: bool = False,
    ) -> None:
        self._consumer = consumer
        self._tell = tell
        self._passes_over = passes_over
        self._held: dict[TopicPartition, _Held] = {}
        self._silent: dict[TopicPartition, tuple[int, float]] = {}
        self._told: dict[TopicPartition, Unreadable] = {}
        #: What was fetched last, as it came.
        self._raw: dict[TopicPartition, bytes] = {}
        #: What was left out.
        self.passed: list[Unreadable] = []
        fetcher: Any = consumer._fetcher  # noqa: SLF001 - the one place where batches are opened
        fetcher._records = _Fetched(self)  # noqa: SLF001
        fetcher._client = _Client(fetcher._client, self._look_at)  # noqa: SLF001

    @property
    def held(self) -> dict[TopicPartition, Unreadable]:
        """The partitions that pause, and at what."""
        return {tp: held.what for tp, held in self._held.items()}

    def records(self, tp: TopicPartition, inner: PartitionRecords) -> Iterator[Any]:
        """The records of a fetch up to what cannot be read."""
        parts: Any = inner
        parts._records = batches = _Batches(parts._records)  # noqa: SLF001
        while True:
            try:
                try:
                    yield from parts._unpack_records()  # noqa: SLF001
                except UnicodeDecodeError:
                    yield from self._with_odd_names(tp, parts, batches.current)
                    continue
            except Exception as error:  # noqa: BLE001 - each codec has errors of its own
                found = self._describe(tp, parts.next_fetch_offset, error, batches)
                if not self._passes_over or found.until is None:
                    self._hold(found)
                    return
                self.passed.append(found)
                self._tell(found)
                parts.next_fetch_offset = found.until
            else:
                return

    def _with_odd_names(self, tp: TopicPartition, parts: Any, batch: Any) -> Iterator[Any]:
        """The rest of a batch that has header names which aiokafka does not read."""
        for record in read_records(_find(self._raw[tp], batch.base_offset)):
            if record.offset >= parts.next_fetch_offset:
                parts.next_fetch_offset = record.offset + 1
                yield parts._consumer_record(tp, record)  # noqa: SLF001
        parts.next_fetch_offset = batch.next_offset

    def _describe(self, tp: TopicPartition, offset: int, error: Exception, batches: "_Batches") -> Unreadable:
        """Where it ends the batch behind it knows better: its own header may be what is broken."""
        batch = batches.current
        said = None if batch is None else batch.next_offset
        for until in (batches.following(), said):
            if until is not None and offset < until <= self._end_of(tp):
                return Unreadable(tp, offset, until, explain(error), batch and batch.max_timestamp)
        return Unreadable(tp, offset, None, explain(error))

    def _end_of(self, tp: TopicPartition) -> int:
        return self._consumer.highwater(tp) or 0

    def _hold(self, found: Unreadable) -> None:
        try:
            self._consumer.pause(found.tp)
        except IllegalStateError:  # it has just moved to somebody else
            return
        known = self._held.get(found.tp)
        if known is None or known.what != found:
            self._held[found.tp] = _Held(found)
        if self._told.get(found.tp) != found:
            self._told[found.tp] = found
            self._tell(found)

    def _look_at(self, request: FetchRequest, response: Any) -> None:
        """Takes out of an answer what aiokafka would take for something else.

        It would ask a broker that cannot read its file again at once, for ever; and it would move past a
        batch that says that it is larger than what was sent.
        """
        asked = {
            TopicPartition(topic, partition): offset
            for topic, partitions in request.topics
            for partition, offset, _ in partitions
        }
        sent = sum(len(p[-1] or b"") for _, partitions in response.topics for p in partitions)
        room = sent < _ROOM_BYTES and not response.throttle_time_ms  # a quota empties answers, too
        response.topics = [
            (
                topic,
                [p for p in partitions if self._is_sound(TopicPartition(topic, p[0]), p, asked, room=room)],
            )
            for topic, partitions in response.topics
        ]

    def _is_sound(
        self, tp: TopicPartition, answer: Any, asked: dict[TopicPartition, int], *, room: bool
    ) -> bool:
        code, stable, batches, offset = answer[1], answer[3], answer[-1] or b"", asked[tp]
        cause = None
        if code in _BROKEN:
            error: type[KafkaError] = for_code(code)
            cause = f"its broker answers {error.__name__}: it cannot read its own file. Its log says more"
        elif not code and batches and not is_whole(batches):
            cause = "it says that it is larger than all that its broker has"
        elif not code and not batches and room and offset < stable:
            at, since = self._silent.setdefault(tp, (offset, time.monotonic()))
            if at != offset:
                del self._silent[tp]
            elif time.monotonic() - since > _SILENCE_SECONDS:
                cause = f"its broker sends nothing of it, and says that the partition goes on to {stable:,}"
        if code or batches:
            self._silent.pop(tp, None)
        if cause is not None:
            self._hold(Unreadable(tp, offset, None, cause))
        elif batches:
            self._raw[tp] = batches
        return cause is None

    # --- what its user does -----------------------------------------------------------------------------

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing pauses any more: what is there still will be met again."""
        for gone in self._held.keys() - set(partitions):
            del self._held[gone]
        self._silent.clear()

    async def go_on(self) -> list[Unreadable]:
        """Goes on with what has moved from where it was held; tries the rest now and then.

        Returns:
            What it is past.
        """
        owned = self._consumer.assignment()
        done = []
        for tp, held in list(self._held.items()):
            if tp not in owned:
                del self._held[tp]
                continue
            position = await self._consumer.position(tp)
            if position != held.what.offset:
                del self._held[tp]
                if position > held.what.offset:
                    done.append(held.what)
            elif time.monotonic() < held.again_at:
                continue
            else:
                held.wait()
            self._consumer.resume(tp)
        return done


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What aiokafka has fetched and not handed out, with records that end before what cannot be read."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            parts: Any = result._partition_records  # noqa: SLF001
            parts._records_iterator = self.reading.records(tp, parts)  # noqa: SLF001
        super().__setitem__(tp, result)


class _Batches:
    """The batches of a fetch; aiokafka would read a format of tomorrow as if it were today's."""

    def __init__(self, records: Any) -> None:
        self._records = records
        self._ahead: Any = None
        #: The one that was begun last, where its header can be read.
        self.current: Any = None

    def has_next(self) -> bool:
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


class _Client:
    """A client whose answers to fetches are looked at."""

    def __init__(self, client: AIOKafkaClient, look: Callable[[FetchRequest, Any], None]) -> None:
        self._client = client
        self._look = look

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node: int, request: Any) -> Any:
        response: Any = await self._client.send(node, request)
        if isinstance(request, FetchRequest):
            self._look(request, response)
        return response


def leave_out_the_unreadable(consumer: AIOKafkaConsumer, tell: Callable[[Unreadable], None]) -> None:
    """Makes a consumer that is started go past what it cannot read, or end there with words.

    Its `getmany` raises UnreadableError where it cannot go on. What it left out `unreadable_of` says.
    """
    reading = Reading(consumer, tell, passes_over=True)
    getmany: Any = consumer.getmany

    async def ending(*args: Any, **options: Any) -> Any:
        fetched = await getmany(*args, **options)
        if not fetched and (held := reading.held.values()):
            raise UnreadableError("; ".join(map(str, held)))
        return fetched

    consumer.getmany = ending  # type: ignore[method-assign]


def unreadable_of(consumer: AIOKafkaConsumer) -> list[Unreadable]:
    """What a consumer has left out, and where it stands."""
    fetcher: Any = consumer._fetcher  # noqa: SLF001
    reading: Reading = fetcher._records.reading  # noqa: SLF001
    return [*reading.passed, *reading.held.values()]


# --- a batch as it is ------------------------------------------------------------------------------------


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
    codec = attributes & _CODEC_MASK
    name = _CODECS[codec] if codec < len(_CODECS) else str(codec)
    return Batch(base, until, records, magic, name, timestamp, _why_not(raw[:size]), raw[:size])


def is_whole(batches: bytes) -> bool:
    """Whether these bytes begin with all of a batch, as far as it says how long it is."""
    if len(batches) < _BASE_AND_LENGTH.size:
        return False
    _, length = _BASE_AND_LENGTH.unpack_from(batches)
    return bool(0 <= length <= len(batches) - _BASE_AND_LENGTH.size)


def _find(batches: bytes, base_offset: int) -> bytes:
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
        batch = _Batches(MemoryRecords(raw)).next_batch()
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
    if isinstance(error, _FormatError):
        return str(error)
    name = type(error).__name__
    return f"{name}: {str(error).removeprefix(f'{name}: ')}"

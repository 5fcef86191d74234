"""What a consumer fetches, up to batches that cannot be read: nobody moves past one, other partitions go on.

aiokafka raises in the middle of what it hands out. What it had in hand of other partitions is lost with
that, though their positions have moved: the next batch begins behind events that nobody has seen. Here what
it hands out ends before the batch instead.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException, IllegalStateError, KafkaError, UnknownError, for_code
from aiokafka.protocol.fetch import FetchRequest

from services.consumers.batches import (
    BatchSequence,
    Budget,
    UnreadableError,
    explain,
    find_batch,
    is_whole,
)
from services.consumers.header_names import read_records

#: What a broker answers that cannot read its own file.
_BROKEN: Final = frozenset({CorruptRecordException.errno, UnknownError.errno})
#: How long a broker may send nothing of a partition that has more, with room in its answer.
_SILENCE_SECONDS: Final = 5.0
_ROOM_BYTES: Final = 1024 * 1024
#: Takes the batches of a partition as a broker has sent them.
Fetched: TypeAlias = Callable[[TopicPartition, bytes], None]
#: When it is tried again, in seconds; the last one for ever.
_AGAIN_SECONDS: Final = (5.0, 10.0, 30.0)


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
        fetched: called with the bytes of each partition of each answer.
        asks_anew: whether who asks for records has none yet: then as much may be unpacked again.
    """

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        tell: Callable[[Unreadable], None],
        *,
        passes_over: bool = False,
        fetched: Fetched = lambda *_: None,
        asks_anew: Callable[[], bool] = lambda: True,
    ) -> None:
        self._consumer = consumer
        self._tell = tell
        self._fetched = fetched
        self._passes_over = passes_over
        self._held: dict[TopicPartition, _Held] = {}
        self._silent: dict[TopicPartition, tuple[int, float]] = {}
        self._told: dict[TopicPartition, Unreadable] = {}
        #: What was fetched last, as it came.
        self._raw: dict[TopicPartition, bytes] = {}
        #: What was left out.
        self.passed: list[Unreadable] = []
        self._budget = Budget()
        self._asks_anew = asks_anew
        fetcher: Any = consumer._fetcher  # noqa: SLF001 - the one place where batches are opened
        fetcher.fetched_records = self._asking(fetcher.fetched_records)
        fetcher._records = _Handed(self)  # noqa: SLF001
        fetcher._client = _Client(fetcher._client, self._inspect)  # noqa: SLF001

    @property
    def held(self) -> dict[TopicPartition, Unreadable]:
        """The partitions that pause, and at what."""
        return {tp: held.what for tp, held in self._held.items()}

    def _asking(self, fetched_records: Any) -> Any:
        async def asking(*args: Any, **options: Any) -> Any:
            if self._asks_anew():
                self._budget.renew()
            return await fetched_records(*args, **options)

        return asking

    def within_budget(self, getall: Any) -> Any:
        """What takes the records of a fetch: none where others have had all that may be unpacked."""

        def taking(max_records: int | None = None) -> Any:
            return [] if self._budget.is_spent else getall(max_records)

        return taking

    def records(self, tp: TopicPartition, inner: PartitionRecords) -> Iterator[Any]:
        """The records of a fetch up to what cannot be read."""
        parts: Any = inner
        parts._records = batches = BatchSequence(parts._records, self._budget)  # noqa: SLF001
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
        for record in read_records(find_batch(self._raw[tp], batch.base_offset)):
            if record.offset >= parts.next_fetch_offset:
                parts.next_fetch_offset = record.offset + 1
                yield parts._consumer_record(tp, record)  # noqa: SLF001
        parts.next_fetch_offset = batch.next_offset

    def _describe(
        self, tp: TopicPartition, offset: int, error: Exception, batches: BatchSequence
    ) -> Unreadable:
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

    def _inspect(self, request: FetchRequest, response: Any) -> None:
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
            self._fetched(tp, batches)
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


class _Handed(OrderedDict[TopicPartition, Any]):
    """What aiokafka has fetched and not handed out, with records that end before what cannot be read."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def __setitem__(self, tp: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchResult):
            parts: Any = result._partition_records  # noqa: SLF001
            parts._records_iterator = self.reading.records(tp, parts)  # noqa: SLF001
            result.getall = self.reading.within_budget(result.getall)  # type: ignore[method-assign]
        super().__setitem__(tp, result)


class _Client:
    """A client whose answers to fetches are looked at."""

    def __init__(self, client: AIOKafkaClient, inspect: Callable[[FetchRequest, Any], None]) -> None:
        self._client = client
        self._inspect = inspect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node: int, request: Any) -> Any:
        response: Any = await self._client.send(node, request)
        if isinstance(request, FetchRequest):
            self._inspect(request, response)
        return response


def leave_out_the_unreadable(
    consumer: AIOKafkaConsumer, tell: Callable[[Unreadable], None], fetched: Fetched = lambda *_: None
) -> None:
    """Makes a consumer that is started go past what it cannot read, or end there with words.

    Its `getmany` raises UnreadableError where it cannot go on. What it left out `unreadable_of` says.
    """
    reading = Reading(consumer, tell, passes_over=True, fetched=fetched)
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

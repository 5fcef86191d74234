"""What a shell fetches: what comes while a batch is handled is the next batch, all of it.

FastStream calls `getmany` by itself, when it is done with a batch, so that is where it is done. aiokafka asks
a broker for nothing more while it has something that nobody has taken: what came meanwhile would be fetched
one batch later. And to take records out of what came over the network is work for the processor: it is done
while the database is busy.
"""

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from services.consumers.handling import BatchHandler

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

_Fetched: TypeAlias = dict[TopicPartition, list[ConsumerRecord[Any, Any]]]

#: How long a fetch waits for something.
_WAIT_MS = 250


class _Batch:
    """What was fetched in one go, or several, that follow on each other.

    Args:
        moment: of placing, when the first of it was fetched.
        records: what was fetched then.
    """

    def __init__(self, moment: int, records: _Fetched) -> None:
        self.moment = moment
        self.records = records

    @property
    def size(self) -> int:
        return sum(map(len, self.records.values()))

    def is_continued_by(self, fetched: _Fetched) -> bool:
        """Whether of each partition this begins where the batch ends: between the two nothing has moved."""
        return all(
            tp not in self.records or records[0].offset == self.records[tp][-1].offset + 1
            for tp, records in fetched.items()
        )

    def extend(self, fetched: _Fetched) -> None:
        for tp, records in fetched.items():
            self.records.setdefault(tp, []).extend(records)


class Fetches:
    """The fetches of a shell.

    A batch that is fetched ahead may be overtaken, as any may that waits to be handled: somebody moves where
    the consumer reads, or Kafka removes what comes next. Whether a batch follows on is looked at before it is
    handled, by its first offsets and by when they were fetched. So a batch ends where offsets do not follow.
    """

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        self._getmany: Any = None
        self._max_records = 0
        self._batch: _Batch | None = None
        #: What was fetched behind it, and does not continue it.
        self._following: _Batch | None = None
        self._collecting: asyncio.Task[None] | None = None

    def watch(self, consumer: AIOKafkaConsumer) -> None:
        """Replaces `getmany` of the consumer, once."""
        getmany: Any = consumer.getmany
        if getattr(getmany, "__func__", None) is AIOKafkaConsumer.getmany:
            self._getmany = getmany
            consumer.getmany = self._next  # type: ignore[assignment,method-assign]

    @property
    def are_of_one_batch(self) -> bool:
        """Whether what is fetched now is part of a batch of which there is something already."""
        return self._batch is not None

    def fetch_ahead(self) -> None:
        """Fetches the next batch in the background: of the one before all is known to follow on."""
        if self._collecting is None and self._max_records:
            self._collecting = asyncio.create_task(self._collect())
            self._collecting.add_done_callback(_retrieved)

    async def _collect(self) -> None:
        """Takes what comes, until the batch is full, or ends, or somebody asks for it."""
        while self._following is None:
            left = self._max_records - (0 if self._batch is None else self._batch.size)
            if left <= 0:
                break
            await self._fetch(left)

    async def _next(self, *_: TopicPartition, max_records: int, **_options: Any) -> _Fetched:
        """The next batch; nothing where nothing came for a while."""
        self._max_records = max_records
        if (collecting := self._collecting) is not None:
            # It takes records and notes them in one go: none is lost between the two.
            collecting.cancel()
            await asyncio.wait({collecting})
            self._collecting = None
        if self._batch is None:
            self._shell.in_hand.is_on_its_way = False
            await self._fetch(max_records)
        batch, self._batch, self._following = self._batch, self._following, None
        if batch is None:
            return {}
        self._shell.placing.is_next(batch.moment)
        return batch.records

    async def _fetch(self, at_most: int) -> None:
        """Takes what is there, or comes soon."""
        fetched: _Fetched = await self._getmany(timeout_ms=_WAIT_MS, max_records=at_most)
        self._shell.paused_partitions.show_unreadable()
        if not fetched:
            return
        self._shell.in_hand.is_on_its_way = True
        for records in fetched.values():
            self._shell.keeper.fetched(records[-1])
        if self._batch is not None and self._batch.is_continued_by(fetched):
            self._batch.extend(fetched)
            return
        batch = _Batch(self._shell.placing.moment, fetched)
        if self._batch is None:
            self._batch = batch
        else:
            self._following = batch


def _retrieved(task: "asyncio.Task[None]") -> None:
    """An error is FastStream's to see, where it asks again; else nobody's."""
    if not task.cancelled():
        task.exception()

"""What a shell fetches: the next batch while one is handled, and what it notes of each.

FastStream calls `getmany` by itself, so that is where it is done. To take records out of what came over the
network is work for the processor, and meanwhile the database would wait.
"""

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from services.consumers.handling import BatchHandler

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

_Fetched: TypeAlias = dict[TopicPartition, list[ConsumerRecord[Any, Any]]]


class Fetches:
    """The fetches of a shell.

    A batch that is fetched ahead may be overtaken, as any may that waits to be handled: somebody moves where
    the consumer reads. Whether it follows on is looked at before it is handled.
    """

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell
        self._getmany: Any = None
        self._options: dict[str, Any] = {}
        self._ahead: asyncio.Task[_Fetched] | None = None

    def watch(self, consumer: AIOKafkaConsumer) -> None:
        """Replaces `getmany` of the consumer, once."""
        getmany: Any = consumer.getmany
        if getattr(getmany, "__func__", None) is AIOKafkaConsumer.getmany:
            self._getmany = getmany
            consumer.getmany = self._next  # type: ignore[method-assign]

    def fetch_ahead(self) -> None:
        """Fetches the next batch in the background: of the one before all is known to follow on."""
        if self._ahead is None and self._options:
            self._ahead = self._begin()

    async def _next(self, *_: TopicPartition, **options: Any) -> _Fetched:
        self._options = options
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.done() and (ahead.cancelled() or ahead.exception() or ahead.result()):
            return await ahead
        self._shell.in_hand.is_on_its_way = False
        return await (self._begin() if ahead is None or ahead.done() else ahead)

    def _begin(self) -> "asyncio.Task[_Fetched]":
        task = asyncio.create_task(self._fetch())
        task.add_done_callback(_retrieved)
        return task

    async def _fetch(self) -> _Fetched:
        fetched: _Fetched = await self._getmany(**self._options)
        self._shell.paused_partitions.show_unreadable()
        self._shell.placing.fetched()
        self._shell.in_hand.is_on_its_way = bool(fetched)
        for records in fetched.values():
            self._shell.keeper.fetched(records[-1])
        return fetched


def _retrieved(task: "asyncio.Task[_Fetched]") -> None:
    """An error is FastStream's to see, where it asks again; else nobody's."""
    if not task.cancelled():
        task.exception()

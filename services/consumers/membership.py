"""Partitions come and go: what a consumer does when its group hands them over."""

import logging
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition

from services.consumers.handling import BatchHandler
from services.consumers.subscription import bound_the_end
from services.runtime.telemetry import REBALANCES

if TYPE_CHECKING:
    from services.consumers.shell import ConsumerShell

log = logging.getLogger("stepstream.shell")


class Membership(ConsumerRebalanceListener):
    """Ends the batch in hand before partitions go, and has those that come placed."""

    def __init__(self, shell: "ConsumerShell[BatchHandler]") -> None:
        self._shell = shell

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Waits for the batch in hand, a bounded time, then rolls it back.

        A handler that only waits gives up at once. When this returns, nothing more is written for the
        partitions that go.
        """
        if revoked:
            self._shell.interrupt.set()
            await self._shell.in_hand.end()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """New partitions: handlers may wait again."""
        shell = self._shell
        bound_the_end(shell.consumer)
        self._note_fetches(shell.consumer)
        shell.standing.assigned(shell.consumer, assigned)
        shell.keeper.forget()
        shell.placing.assigned()
        shell.reached.assigned(assigned)
        REBALANCES.labels(shell.service).inc()
        if not shell.stopping.is_set():
            shell.interrupt.clear()
            if assigned:
                shell.place_soon()
        log.info("%s has partitions %s", shell.service, sorted(p.partition for p in assigned))

    def _note_fetches(self, consumer: AIOKafkaConsumer) -> None:
        """Remembers of each batch when it was fetched: after how many placings."""
        getmany: Any = consumer.getmany
        if getattr(getmany, "__func__", None) is not AIOKafkaConsumer.getmany:
            return
        shell = self._shell

        async def noting(*args: Any, **options: Any) -> Any:
            shell.in_hand.is_on_its_way = False
            fetched = await getmany(*args, **options)
            shell.standing.show_unreadable()
            shell.placing.fetched()
            shell.in_hand.is_on_its_way = bool(fetched)
            for records in fetched.values():
                shell.keeper.fetched(records[-1])
            return fetched

        consumer.getmany = noting  # type: ignore[method-assign]

"""Partitions come and go: what a consumer does when its group hands them over."""

import logging
from typing import TYPE_CHECKING

from aiokafka import ConsumerRebalanceListener, TopicPartition

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
            await self._shell.commits.finish()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """New partitions: handlers may wait again."""
        shell = self._shell
        bound_the_end(shell.consumer, shell.commits.finish)
        shell.fetches.watch(shell.consumer)
        shell.paused_partitions.assigned(shell.consumer, assigned)
        shell.keeper.forget()
        shell.placing.assigned()
        shell.reached.assigned(assigned)
        REBALANCES.labels(shell.service).inc()
        if not shell.stopping.is_set():
            shell.interrupt.clear()
            if assigned:
                shell.place_soon()
        log.info("%s has partitions %s", shell.service, sorted(p.partition for p in assigned))

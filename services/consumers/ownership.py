"""Whose a consumer group is, by what goes with its committed offsets: each database needs its own groups."""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from services.consumers.database_identity import Ours, identity_in
from services.consumers.lag import Committed, committed_with
from services.runtime.database import Pool
from services.runtime.errors import RefusedError, StepstreamError
from services.runtime.kafka import admin_client, kafka_may_return, unreachable
from services.runtime.settings import Settings

log = logging.getLogger("stepstream.positions")

#: Between two looks whether another database's services have left the group.
_AGAIN_SECONDS = 0.5
#: How often in a row another database, or a later one, is met before the service ends.
_OFTEN = 3


class CommittedOffset(NamedTuple):
    """A committed offset, and what was said with it: whose it is, and the last record before it."""

    offset: int
    words: str

    @property
    def whose(self) -> str:
        return identity_in(self.words)


async def read_committed(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition]
) -> dict[TopicPartition, CommittedOffset]:
    """What the group has committed, in one request."""
    coordinator: Any = consumer._coordinator  # noqa: SLF001 - `committed` asks for one at a time
    found = await coordinator.fetch_committed_offsets(list(partitions))
    return {tp: CommittedOffset(o.offset, o.metadata or "") for tp, o in found.items() if o.offset >= 0}


class Ownership:
    """Sees to it that one database's services work in a group, and none that a failover has left behind."""

    def __init__(self, service: str, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        #: Offsets of other databases that were there when they were last looked at.
        self._met: dict[int, CommittedOffset] = {}
        self._conflicts = 0

    async def wait_for(self, ours: Ours, pause: Callable[[float], Awaitable[None]]) -> None:
        """Waits until the group is not another database's, and for a cluster that has just started.

        Raises:
            RefusedError: it is, and stays so.
            StepstreamError: Kafka cannot be reached.
        """
        patience = self._settings.session_timeout_seconds + 5
        logged = ""
        async with admin_client(self._settings) as admin:
            while True:
                problem: StepstreamError | None = None
                try:
                    problem = self._problem_of(
                        ours, await committed_with(admin, self._settings, self._service)
                    )
                except KafkaError as error:
                    problem = unreachable(self._settings, error)
                    if not kafka_may_return(error):
                        raise problem from error
                if problem is None:
                    return
                if patience <= 0:
                    raise problem
                if isinstance(problem, RefusedError):  # Kafka that has just started is waited for
                    patience -= _AGAIN_SECONDS
                if logged != str(problem):
                    logged = str(problem)
                    log.warning("%s. Waiting whether that changes", logged)
                await pause(_AGAIN_SECONDS)

    def _problem_of(self, ours: Ours, group: Committed) -> StepstreamError | None:
        relations = {ours.relation_to(words): identity_in(words) for words in group.words.values()}
        if "newer" in relations:
            return RefusedError(self._left_behind(ours, relations["newer"]))
        if "other" in relations and group.members and "same" not in relations:
            name = self._settings.group(self._service)
            return RefusedError(
                f"the group {name} works for another database ({relations['other']}; this one is "
                f"{ours.words}) and has {len(group.members)} members. Stop those first, or give the "
                "services of this database their own groups with STEPSTREAM_GROUP_PREFIX"
            )
        return None

    async def refuse_newer(
        self, pool: Pool, ours: Ours, committed: Mapping[TopicPartition, CommittedOffset]
    ) -> None:
        """Looks whether a failover has left this server behind.

        Raises:
            ReadOnlySQLTransactionError: the service of a later timeline has committed. New connections may
                find the primary.
        """
        for offset in committed.values():
            if ours.relation_to(offset.words) == "newer":
                await pool.expire_connections()
                raise asyncpg.ReadOnlySQLTransactionError(self._left_behind(ours, offset.whose))

    async def is_alone(
        self, pool: Pool, ours: Ours, committed: Mapping[TopicPartition, CommittedOffset]
    ) -> bool:
        """Looks whose offsets are committed, also of partitions that are not ours.

        Raises:
            RefusedError: another database's services work in this group, or those of a later timeline.
        """
        before, self._met = self._met, {}
        conflict = None
        for tp, offset in committed.items():
            relation = ours.relation_to(offset.words)
            if relation == "newer":
                conflict = self._left_behind(ours, offset.whose)
            elif relation in {"other", "older"}:
                self._met[tp.partition] = offset
                if relation == "other" and before.get(tp.partition, offset) != offset:
                    conflict = (
                        f"services of another database ({offset.whose}; this one is {ours.words}) work in "
                        f"the group {self._settings.group(self._service)}, too. Stop those, or these; each "
                        "database needs its own groups: STEPSTREAM_GROUP_PREFIX"
                    )
        if conflict is None:
            self._conflicts = 0
            return True
        self._conflicts += 1
        log.error("%s", conflict)
        if self._conflicts >= _OFTEN:
            raise RefusedError(conflict)
        # The connections may be the last ones to a server that a failover has left behind.
        await pool.expire_connections()
        return False

    def _left_behind(self, ours: Ours, words: str) -> str:
        return (
            f"the {self._service} of a later timeline of this database has been at work ({words}; this one "
            f"is {ours.words}): a failover has left this server behind. Is the host in "
            "STEPSTREAM_DATABASE_URL the primary?"
        )

"""What the handler of a batch is given, and how it gives up."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from services.consumers.stored_positions import Advance
from services.runtime.database import Pool
from services.runtime.kafka import Record


class Interrupted(Exception):  # noqa: N818 - no error: the batch is left for whoever comes next
    """The batch in hand is given up, uncommitted, because the service stops or loses its partitions."""


class BatchHandler(Protocol):
    """What a consumer does with a batch."""

    @property
    def pool(self) -> Pool:
        """The database where what it does is kept."""

    async def handle(self, records: Sequence[Record], batches: "Batches") -> None:
        """Handles a batch's records, and commits the offsets of those that it is done with.

        It may wait in the shell's `pause`, for what is away.

        Raises:
            Interrupted: the rest is left, uncommitted.
            MovedError: the rest is to be fetched again, from where the database is.
            PositionLockedError: somebody else has locked the positions of some partitions.
        """


class Batches(Protocol):
    """What a handler needs of the shell, or of whoever else feeds it."""

    def advance_over(self, records: Sequence[Record]) -> Advance | None:
        """How these records move positions on, to be written in the transaction of what they change.

        None where positions stay: all of it was read before.
        """

    async def commit(self, records: Sequence[Record], advance: Advance | None) -> None:
        """Their offsets may be committed to Kafka: all of them that must outlive a crash is committed."""

    async def recheck(self, records: Sequence[Record]) -> None:
        """Looks whether these records, which wait, are still what comes next.

        Raises:
            MovedError: the database or the log went elsewhere meanwhile; they are to be fetched again.
        """

    def leave(self, partition: int, why: str, may_go_on: Callable[[], Awaitable[bool]]) -> bool:
        """Leaves the records of a partition that are not committed, until they may go on.

        They come again then. Returns False where they cannot be left: then the handler goes on waiting.
        """

"""A batch in shares that are written at once: partitions are independent, so each is in one share.

Where events of a user are in several partitions, because a producer chose them otherwise, two shares meet at
that user's rows as two recorders would: one waits for the other, or sets aside what is locked.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from services.consumers.handling import Interrupted
from services.consumers.stored_positions import MovedError, PositionLockedError
from services.runtime.kafka import Record

#: After these the other shares go on: they are about some partitions, or end the batch for all.
_OF_A_SHARE = (Interrupted, MovedError, PositionLockedError)


def share_out(records: Sequence[Record], size: int, shares: int) -> list[list[Sequence[Record]]]:
    """Shares of a batch, each of them loads in the order of each partition.

    One load where the batch fits it.

    Args:
        records: of several partitions, at least one; those of a partition in its order.
        size: the most records of a load.
        shares: the most shares.
    """
    if len(records) <= size:
        return [[records]]
    parts: dict[int, list[Record]] = {}
    for record in records:
        parts.setdefault(record.partition, []).append(record)
    count = min(shares, len(parts), -(-len(records) // size))
    given: list[list[Record]] = [[] for _ in range(count)]
    for part in sorted(parts.values(), key=len, reverse=True):
        min(given, key=len).extend(part)
    return [_loads(share, size) for share in given]


def _loads(share: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """A small one first: until it is read, PostgreSQL has nothing to do."""
    first = min(len(share), -(-size // 4))
    return [share[:first], *(share[i : i + size] for i in range(first, len(share), size))]


async def at_once(shares: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs shares at once; what ends one for its own partitions ends the batch when all have ended.

    Raises:
        Interrupted: the batch ends.
        MovedError: some partitions are elsewhere.
        PositionLockedError: somebody else has locked the positions of some partitions.
        Exception: whatever else ends a share cancels the others.
    """
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(_ended(share)) for share in shares]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    ends = [task.result() for task in running]
    for kind in (Interrupted, MovedError):
        for end in ends:
            if isinstance(end, kind):
                raise end
    locked = [end for end in ends if isinstance(end, PositionLockedError)]
    if locked:
        raise PositionLockedError({p: why for end in locked for p, why in end.partitions.items()})


async def _ended(
    share: Coroutine[Any, Any, None],
) -> Interrupted | MovedError | PositionLockedError | None:
    try:
        await share
    except _OF_A_SHARE as end:
        return end
    return None

"""Counters for the library `limits`, in this process, whose number is bounded."""

import time

from cachetools import TLRUCache
from limits.aio.storage import Storage


class BoundedStorage(Storage):
    """Counters of `limits` in this process, at most so many; of more, those used longest ago go.

    The library's own storage has no bound, and looks at every counter at every request.

    Args:
        most: how many counters are kept.
    """

    STORAGE_SCHEME = None

    def __init__(self, most: int) -> None:
        super().__init__()
        self._counts: TLRUCache[str, list[float]] = TLRUCache(
            most, ttu=lambda _, count, __: count[1], timer=time.time
        )

    @property
    def base_exceptions(self) -> type[Exception]:
        """What may be wrong with the storage: nothing."""
        return ValueError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = [0, time.time() + expiry]
        count[0] += amount
        return int(count[0])

    async def get(self, key: str) -> int:
        count = self._counts.get(key)
        return int(count[0]) if count is not None else 0

    async def get_expiry(self, key: str) -> float:
        count = self._counts.get(key)
        return count[1] if count is not None else time.time()

    async def check(self) -> bool:
        return True

    async def reset(self) -> int:
        """Forgets every counter; returns how many there were."""
        many = len(self._counts)
        self._counts.clear()
        return many

    async def clear(self, key: str) -> None:
        self._counts.pop(key, None)

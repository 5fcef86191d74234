"""The process around a service: how it ends."""

import asyncio
from typing import Any

from services.runtime.process import Process
from services.runtime.settings import Settings

SETTINGS = Settings(
    kafka_bootstrap_servers="127.0.0.1:1",
    database_url="postgresql://127.0.0.1:1/none",
    drain_timeout_seconds=0.1,
)


class Nothing(Process[Any]):
    def opened(self) -> Any:
        raise NotImplementedError

    def application(self) -> Any:
        raise NotImplementedError


async def test_all_that_is_in_hand_shares_the_time_to_drain() -> None:
    """Whoever ends second does not begin to wait anew: the end would come too late to be a polite one."""
    process = Nothing("test", SETTINGS)
    async with process.beside(asyncio.Event().wait), process.beside(asyncio.Event().wait):
        assert process.seconds_to_drain == 0.1
    assert process.seconds_to_drain == 0

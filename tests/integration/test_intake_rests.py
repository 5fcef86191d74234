"""Kafka answers and takes nothing, again and again: what comes in by HTTP leaves it alone, each time for longer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from schemas import decode, encode
from services.analytics_api.intake import sending
from services.analytics_api.intake.sending import Outgoing, Sender
from services.runtime.kafka import admin_client
from services.runtime.process import Handler, Process, Stopped
from tests.support.world import World, completed, eventually, moment

pytestmark = pytest.mark.integration


class Hurried:
    """A process that sleeps for no time, and notes for how long it was to."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._is_ending = False

    async def sleep(self, seconds: float) -> None:
        """As that of a process."""
        self.slept.append(seconds)
        await asyncio.sleep(0)
        if self._is_ending:
            raise Stopped

    @contextlib.asynccontextmanager
    async def beside(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """As that of a process."""
        task = asyncio.ensure_future(work())
        try:
            yield
        finally:
            self._is_ending = True
            await task


async def takes(world: World, is_taking: bool) -> None:
    """Whether the topic takes anything: no batch is as small as that."""
    most = {"max.message.bytes": "1000000" if is_taking else "10"}
    async with admin_client(world.settings) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, world.settings.topic, most)])


def outgoing(at: int) -> list[Outgoing]:
    value = encode(completed("ann", "a", at))
    return [Outgoing.of(cast("Any", decode(value, moment(at) + 1_000)), value, "/test")]


async def test_a_kafka_that_comes_back_and_takes_nothing_is_left_alone_for_longer_each_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Hurried()
    sender = Sender(world.settings.model_copy(update={"api_acknowledge_seconds": 1.0}))
    async with sender.running(cast("Process[Handler]", process)):
        rests: list[float] = []

        async def goes_away(at: int) -> None:
            """It takes nothing; then it answers, and is back."""
            before = len(process.slept)
            events = outgoing(at)

            async def refuses() -> bool:
                return await sender.send(events) == events

            await eventually(refuses, "the topic takes nothing")
            await eventually(back, "it is back")
            rests.append(process.slept[before])

        async def back() -> bool:
            return not sender.is_away

        async def accepts() -> bool:
            return await sender.send(outgoing(0)) == []

        assert await accepts()
        await takes(world, is_taking=False)
        for at in range(1, 7):
            await goes_away(at)
        assert rests == [0, 5, 10, 20, 40, 60]
        await takes(world, is_taking=True)
        await eventually(accepts, "it takes something again")
        monkeypatch.setattr(sending, "_SOON_SECONDS", -1_000.0)  # as if it had been back for long
        await takes(world, is_taking=False)
        await goes_away(8)
        assert rests[-1] == 0

"""Services are killed, paused, joined by more of them, or have another clock."""

import asyncio
import random
import signal
from collections.abc import Sequence
from typing import Any

from tests.nemesis import tools
from tests.nemesis.deployment import CONSUMERS
from tests.nemesis.faults.base import Fault
from tests.support.world import AGGREGATOR, MCP, RECORDER, RELAY


class _Kill(Fault):
    service: str
    lasts = (2.0, 5.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"at": sorted(round(chance.uniform(0, 2), 2) for _ in range(chance.choice([1, 2, 3])))}

    async def inject(self) -> None:
        before = 0.0
        moments: Sequence[float] = self.choices["at"]
        for at in moments:
            await asyncio.sleep(at - before)
            before = at
            self.deployment.send(self.service, signal.SIGKILL)
            self.note(f"{self.service} is killed")


class KillRecorder(_Kill):
    name = "kill-recorder"
    what = "the recorder is killed (SIGKILL) at random moments"
    service = RECORDER


class KillAggregator(_Kill):
    name = "kill-aggregator"
    what = "the aggregator is killed (SIGKILL) at random moments"
    service = AGGREGATOR


class KillRelay(_Kill):
    name = "kill-relay"
    what = "the relay is killed (SIGKILL) at random moments"
    service = RELAY


class KillMcp(_Kill):
    name = "kill-mcp"
    what = "the MCP layer is killed (SIGKILL) at random moments, while it leads agents"
    service = MCP


class PauseConsumer(Fault):
    """A consumer stands still, for longer than its session or not, and goes on as if nothing had been."""

    name = "pause-consumer"
    what = (
        "the recorder or the aggregator is paused (SIGSTOP), perhaps for longer than its session, and goes on"
    )
    touches = frozenset({"groups"})
    lasts = (2.0, 9.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {"service": chance.choice(CONSUMERS)}

    async def inject(self) -> None:
        self._paused = self.deployment._fleet[self.choices["service"]]
        self._paused.process.send_signal(signal.SIGSTOP)

    async def heal(self) -> None:
        self._paused.process.send_signal(signal.SIGCONT)


class RebalanceStorm(Fault):
    """More instances join and leave, again and again."""

    name = "rebalance-storm"
    what = "more instances of both consumers join and leave, some of them killed"
    touches = frozenset({"groups"})
    lasts = (0.5, 1.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {
            "leave": [chance.choice(["SIGTERM", "SIGKILL"]) for _ in range(3)],
            "stay": [round(chance.uniform(0.8, 2.0), 1) for _ in range(3)],
        }

    async def inject(self) -> None:
        for leave, stay in zip(self.choices["leave"], self.choices["stay"], strict=True):
            guests = [self.deployment.start_another(name) for name in CONSUMERS]
            await asyncio.sleep(stay)
            for guest in guests:
                await asyncio.to_thread(guest.wait_until_it_hears_sigterm)
                guest.process.send_signal(signal.Signals[leave])
            for guest in guests:
                await asyncio.to_thread(guest.process.wait, 30)
            self.note(f"two more came and left ({leave})")


class OtherClock(Fault):
    """A service believes that it is an hour earlier or later."""

    name = "other-clock"
    what = "the clock of a service is an hour ahead or behind"
    lasts = (3.0, 5.0)
    touches = frozenset({"groups"})

    @classmethod
    def require(cls) -> None:
        tools.faketime()

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return {
            "service": chance.choice([*CONSUMERS, RELAY]),
            "seconds": chance.choice([-3600, 3600]),
        }

    async def inject(self) -> None:
        clock = {
            "LD_PRELOAD": str(await asyncio.to_thread(tools.faketime)),
            "FAKETIME": f"{self.choices['seconds']:+d}",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        await self._start_again(clock)

    async def heal(self) -> None:
        await self._start_again(None)

    async def _start_again(self, clock: dict[str, str] | None) -> None:
        name = self.choices["service"]
        await self.deployment.end(name)
        self.deployment.set_clock(name, clock)
        self.deployment.release(name)


FAULTS: tuple[type[Fault], ...] = (
    KillRecorder,
    KillAggregator,
    KillRelay,
    KillMcp,
    PauseConsumer,
    RebalanceStorm,
    OtherClock,
)

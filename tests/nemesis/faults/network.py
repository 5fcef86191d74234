"""Connections that stay open and say nothing, in one direction or both, and connections that are slow."""

import random
from collections.abc import Callable
from typing import Any

from tests.nemesis.deployment import SERVICES
from tests.nemesis.faults.base import Fault
from tests.support.proxy import Proxy

_DIRECTIONS = {
    "to the server": {"to_client": False},
    "to the client": {"to_server": False},
    "both ways": {},
}


class _Network(Fault):
    def proxies(self) -> list[Proxy]:
        """Those between the chosen services and the chosen server."""
        deployment, found = self.deployment, []
        for name in self.choices["services"]:
            if self.choices["server"] in {"PostgreSQL", "both"}:
                found.append(deployment.database_proxies[name])
            if self.choices["server"] in {"Kafka", "both"}:
                found += deployment.cluster.proxies_of(name)
        return found

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        services = chance.sample(SERVICES, chance.choice([1, 1, 2, 4]))
        return {"services": sorted(services), "server": chance.choice(["PostgreSQL", "Kafka", "both"])}


class HalfOpen(_Network):
    """The proxy accepts, and passes nothing on."""

    name = "half-open"
    what = "connections of some services to Kafka or PostgreSQL stay open and are silent, one way or both"
    lasts = (3.0, 8.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return _Network.draw(chance) | {
            "silent": chance.choice(sorted(_DIRECTIONS)),
            "ends": chance.choice(["what was held back arrives", "connections are cut"]),
        }

    async def inject(self) -> None:
        for proxy in self.proxies():
            proxy.freeze(**_DIRECTIONS[self.choices["silent"]])

    async def heal(self) -> None:
        for proxy in self.proxies():
            if self.choices["ends"] == "connections are cut":
                proxy.reset()
            proxy.thaw()


class SlowNetwork(_Network):
    """Round trips of 200 ms, with stalls."""

    name = "slow-network"
    what = "round trips of 200 ms to Kafka and PostgreSQL, with stalls of a second"
    lasts = (4.0, 7.0)

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        return _Network.draw(chance) | {"seed": chance.randrange(10**6)}

    async def inject(self) -> None:
        chance = random.Random(self.choices["seed"])

        def delay() -> float:
            return 1.0 if chance.random() < 0.03 else 0.1

        self._set(delay)

    async def heal(self) -> None:
        self._set(lambda: 0.0)

    def _set(self, delay: Callable[[], float]) -> None:
        for proxy in self.proxies():
            proxy.delay = delay


FAULTS: tuple[type[Fault], ...] = (HalfOpen, SlowNetwork)

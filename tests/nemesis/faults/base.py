"""What a fault is."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from tests.nemesis.deployment import Deployment
from tests.nemesis.history import History, Loss
from tests.nemesis.workload import Workload


class Fault(ABC):
    """Breaks something, and makes it whole again."""

    name: ClassVar[str]
    #: One sentence for people.
    what: ClassVar[str]
    #: What it asks of the deployment.
    needs: ClassVar[frozenset[str]] = frozenset()
    #: What no other fault of a pair may change as well.
    touches: ClassVar[frozenset[str]] = frozenset()
    #: Whether acknowledged events may be gone for good; they then have to be named.
    may_lose: ClassVar[bool] = False
    #: Whether the database forgets what was committed.
    forgets: ClassVar[bool] = False
    lasts: ClassVar[tuple[float, float]] = (2.0, 5.0)

    def __init__(self, deployment: Deployment, workload: Workload, choices: Mapping[str, Any]) -> None:
        self.deployment = deployment
        self.workload = workload
        self.choices = choices

    @staticmethod
    def draw(chance: random.Random) -> dict[str, Any]:
        """Its choices: targets, directions, amounts."""
        del chance
        return {}

    @classmethod  # noqa: B027 - most need nothing
    def require(cls) -> None:
        """Raises `Missing` where it cannot be made on this machine."""

    @abstractmethod
    async def inject(self) -> None:
        """Breaks it."""

    async def heal(self) -> None:  # noqa: B027 - some heal by themselves
        """Makes it whole, and returns when that is done."""

    @property
    def history(self) -> History:
        return self.workload.history

    def note(self, what: str) -> None:
        """Writes a line into the timeline."""
        self.deployment.timeline.note(what)

    async def note_loss(self, removed: Mapping[int, int] | None = None) -> None:
        """What was acknowledged until now may be gone; waits until acknowledgements under way are known.

        `removed` is the first offset of each partition that is gone, and may be filled in later; None is everything.
        """
        await asyncio.sleep(0.4)
        self.history.losses.append(Loss(self.name, time.time(), removed))

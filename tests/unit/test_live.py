"""A stream that begins while a look is under way is not told that its walkthrough is gone."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from services.analytics_api import live
from services.analytics_api.answers import Answers
from services.analytics_api.freshness import Backlog, Newest
from services.analytics_api.live import Changes
from services.analytics_api.models import Freshness
from services.analytics_api.store import Change
from tests.support.world import eventually


class Slow:
    """Answers of a database that has walkthroughs `a` and `b`, and takes its time while `pause` is not set."""

    def __init__(self) -> None:
        self.store = self
        self.pause = asyncio.Event()
        self.asked: list[list[str]] = []

    async def read_backlog(self) -> Backlog:
        return Backlog()

    async def changes(self, walkthroughs: Sequence[str]) -> dict[str, Change]:
        self.asked.append(list(walkthroughs))
        await self.pause.wait()
        return {w: Change("org", Newest(), w) for w in walkthroughs if w in {"a", "b"}}

    def fresh_of(
        self, organization: str, walkthrough: str, backlog: Backlog, newest: Newest, version: str
    ) -> Freshness:
        return backlog.freshness(newest, organization, walkthrough, version)


async def test_a_look_that_began_before_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_EVERY_SECONDS", 0.01)
    answers = Slow()
    changes = Changes(cast("Answers", cast("Any", answers)))

    async def is_asking() -> bool:
        return bool(answers.asked)

    async with changes.running():
        with changes.watching("a"):
            await eventually(is_asking, "a look is under way")
            with changes.watching("b"), changes.watching("gone"):
                nexts = [asyncio.create_task(changes.next(w, "org")) for w in ("a", "b", "gone")]
                await asyncio.sleep(0)
                answers.pause.set()
                a, b, gone = await asyncio.wait_for(asyncio.gather(*nexts), 5)
    assert answers.asked[0] == ["a"]
    assert a is not None
    assert b is not None
    assert b.version == "b"
    assert gone is None

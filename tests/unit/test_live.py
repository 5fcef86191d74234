"""Live streams: what a look that is under way says of a new one, and who has the places."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

import pytest

from services.analytics_api import live
from services.analytics_api.answers import Answers
from services.analytics_api.freshness import Backlog, Newest
from services.analytics_api.live import Changes, Place, Streams
from services.analytics_api.models import Freshness
from services.analytics_api.problems import ProblemError
from services.analytics_api.store import Change
from services.runtime.fair import Asker
from services.runtime.settings import Settings
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
                a, b, gone = await asyncio.wait_for(asyncio.gather(*nexts), 60)
    assert answers.asked[0] == ["a"]
    assert a is not None
    assert b is not None
    assert b.version == "b"
    assert gone is None


def open_streams(streams: Streams, stack: contextlib.ExitStack, key: str, count: int) -> list[Place]:
    """Of a key, that is named by its organization and a number."""
    askers = [Asker(key, key[0])] * count
    for asker in askers:
        streams.check(asker)
    return [stack.enter_context(streams.place(asker)) for asker in askers]


def test_where_all_streams_are_taken_a_new_organization_gets_one_of_who_has_most() -> None:
    streams = Streams(
        Settings(
            kafka_bootstrap_servers=["127.0.0.1:1"],
            database_url="postgresql://nowhere/none",
            api_streams=8,
            api_organization_streams=6,
        )
    )
    with contextlib.ExitStack() as stack:
        first = open_streams(streams, stack, "a1", 1)
        more = open_streams(streams, stack, "a2", 3)
        others = open_streams(streams, stack, "b1", 3) + open_streams(streams, stack, "b2", 1)
        (new,) = open_streams(streams, stack, "c1", 1)
        assert [place.is_lost for place in (*first, *more, *others, new)].count(True) == 1
        assert more[0].is_lost, "the oldest of the key that has most, of one that has most"
        open_streams(streams, stack, "c1", 1)
        assert others[0].is_lost
        for greedy in ("a1", "b1", "c2"):  # 3, 3 and 2: nobody takes what would be taken back
            with pytest.raises(ProblemError, match="ask again later"):
                streams.check(Asker(greedy, greedy[0]))
    with contextlib.ExitStack() as stack:
        kept = open_streams(streams, stack, "b1", 3) + open_streams(streams, stack, "b2", 3)
        kept += open_streams(streams, stack, "d1", 2)
        assert not any(place.is_lost for place in kept), "what ended is free, what was lost is so once"

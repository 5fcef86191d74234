"""Reading ahead in a thread, and how long sending took."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from services.operations import produce
from services.operations.in_thread import in_thread
from services.operations.produce import ProduceResult
from tests.support.world import PATIENCE, eventually


async def test_all_items_come_in_order_whatever_the_batches_are() -> None:
    got = [item async for batch in in_thread(range(50_000)) for item in batch]
    assert got == list(range(50_000))
    assert [batch async for batch in in_thread([])] == []


async def test_what_is_there_comes_while_the_next_is_waited_for() -> None:
    """And whoever reads no more does not wait for it."""
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield from range(3)
        go_on.wait(PATIENCE)
        yield 3

    batches = in_thread(items())
    got: list[int] = []
    async with asyncio.timeout(PATIENCE):
        while len(got) < 3:
            got += await anext(batches)
        await batches.aclose()
    assert got == [0, 1, 2]
    assert not go_on.is_set()
    go_on.set()


async def test_an_error_comes_after_what_came_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("cut off")

    batches = in_thread(items())
    assert await anext(batches) == [1]
    with pytest.raises(ValueError, match="cut off"):
        await anext(batches)


async def test_no_more_is_read_ahead_than_there_is_room_for() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100_000):
            read.append(number)
            yield number

    batches = in_thread(items())
    first = await anext(batches)

    async def is_full() -> bool:
        return len(read) >= len(first) + 5_000

    await eventually(is_full, "it has read ahead", every=0.01)
    assert len(read) <= len(first) + 5_001
    await batches.aclose()


def test_the_rate_is_of_the_time_in_which_it_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(produce.time, "monotonic", lambda: now[0])
    outcome = ProduceResult()
    clock = produce._Clock(outcome)
    for waited, sent in ((60.0, 2.0), (600.0, 3.0)):
        now[0] += waited
        clock.go_on()
        now[0] += sent
        clock.go_on()
        clock.pause()
    outcome.sent = 1_000
    assert outcome.seconds == 5.0
    assert outcome.rate == 200.0

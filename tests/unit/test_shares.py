"""A batch in shares: what each has, and what ends one."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from aiokafka import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from services.completion_recorder.shares import at_once, share_out
from services.consumers.handling import Interrupted
from services.consumers.stored_positions import MovedError, PositionLockedError
from services.runtime.kafka import Record


def batch(partitions: Sequence[int]) -> list[Record]:
    return [ConsumerRecord("t", p, i, 0, 0, None, None, None, 0, 0, ()) for i, p in enumerate(partitions)]


@given(st.lists(st.integers(0, 7), min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 5))
def test_each_partition_is_in_one_share_in_its_order(partitions: list[int], size: int, most: int) -> None:
    records = batch(partitions)
    shares = share_out(records, size, most)
    given_out = [list(itertools.chain.from_iterable(loads)) for loads in shares]
    assert sorted(r.offset for share in given_out for r in share) == list(range(len(records)))
    for partition in set(partitions):
        (mine,) = [share for share in given_out if any(r.partition == partition for r in share)]
        offsets = [r.offset for r in mine if r.partition == partition]
        assert offsets == sorted(offsets)
    assert all(0 < len(load) <= size for loads in shares for load in loads)
    assert 1 <= len(shares) <= most


def test_a_batch_that_fits_a_transaction_is_one() -> None:
    assert [[len(load) for load in loads] for loads in share_out(batch([0, 1, 2, 3]), 4, 2)] == [[4]]


def test_shares_have_about_as_much_each() -> None:
    shares = share_out(batch([0] * 5 + [1] * 4 + [2] * 3 + [3] * 2), 7, 2)
    assert [sum(map(len, loads)) for loads in shares] == [7, 7]


async def test_shares_run_at_once() -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def share(mine: asyncio.Event, other: asyncio.Event) -> None:
        mine.set()
        await other.wait()

    await at_once([share(first, second), share(second, first)])


async def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("end", [Interrupted(), MovedError("p 1"), PositionLockedError({1: "locked"})])
async def test_what_ends_one_share_lets_the_others_end_by_themselves(end: Exception) -> None:
    done = []

    async def goes_on() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        done.append(True)

    with pytest.raises(type(end)):
        await at_once([raising(end), goes_on()])
    assert done


async def test_all_positions_that_are_locked_are_told() -> None:
    with pytest.raises(PositionLockedError) as told:
        await at_once([raising(PositionLockedError({p: who})) for p, who in ((1, "by ann"), (2, "by bob"))])
    assert told.value.partitions == {1: "by ann", 2: "by bob"}


async def test_any_other_error_ends_all_shares_and_is_told_as_it_is() -> None:
    async def waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ZeroDivisionError):
        await at_once([raising(ZeroDivisionError()), waits()])


async def test_a_batch_that_is_cancelled_cancels_its_shares() -> None:
    begun, ended = asyncio.Event(), []

    async def waits() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(at_once([waits(), waits()]))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) == 2

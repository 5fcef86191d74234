"""What comes while a batch is in hand is the next batch, all of it."""

import asyncio
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from services.consumers.fetches import Fetches

ONE, TWO = TopicPartition("t", 0), TopicPartition("t", 1)


class Record(NamedTuple):
    """What of a record is looked at."""

    offset: int


class Consumer:
    """Hands out what it is given, as aiokafka does: what is there at once, else what comes."""

    def __init__(self) -> None:
        self.there: asyncio.Queue[dict[TopicPartition, list[Record]]] = asyncio.Queue()
        self.asked: list[int] = []
        self.error: Exception | None = None

    async def take(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        self.asked.append(max_records)
        if self.error is not None:
            raise self.error
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await self.there.get()
        except TimeoutError:
            return {}


class Shell:
    """What of a shell is told of fetches."""

    def __init__(self) -> None:
        self.last: list[Record] = []
        self.moments: list[int] = []
        self.in_hand = SimpleNamespace(is_on_its_way=False)
        self.placing = SimpleNamespace(moment=0, is_next=self.moments.append)
        self.paused_partitions = SimpleNamespace(show_unreadable=lambda: None)
        self.keeper = SimpleNamespace(fetched=self.last.append)


class Case:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.consumer, self.shell = Consumer(), Shell()
        self.fetches = Fetches(cast(Any, self.shell))
        real = AIOKafkaConsumer.__new__(AIOKafkaConsumer)
        monkeypatch.setattr(AIOKafkaConsumer, "__del__", lambda _: None, raising=False)
        self.fetches.watch(real)
        self.fetches._getmany = self.consumer.take
        self.getmany = real.getmany

    async def next(self, max_records: int = 10) -> dict[TopicPartition, list[int]]:
        """The offsets of the next batch."""
        found: Any = await self.getmany(timeout_ms=10, max_records=max_records)
        return {tp: [record.offset for record in records] for tp, records in found.items()}

    def comes(self, **of: list[int]) -> None:
        """These offsets of partitions `p0` and `p1` come, in one go."""
        self.consumer.there.put_nowait(
            {TopicPartition("t", int(p[1:])): [Record(n) for n in offsets] for p, offsets in of.items()}
        )

    async def take_one(self) -> None:
        """The first batch is in hand."""
        self.comes(p0=[0])
        await self.next()
        self.fetches.fetch_ahead()

    async def taken(self) -> None:
        """Until all that has come is taken."""
        while not self.consumer.there.empty():  # noqa: ASYNC110 - it is this loop that is watched
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(monkeypatch)


async def test_what_comes_in_parts_while_a_batch_is_in_hand_is_one_batch(case: Case) -> None:
    case.comes(p0=[0])
    assert await case.next() == {ONE: [0]}
    case.fetches.fetch_ahead()
    for part in ({"p0": [1]}, {"p1": [7, 8]}, {"p0": [2]}):
        case.comes(**part)
        await case.taken()
    assert case.shell.in_hand.is_on_its_way
    assert await case.next() == {ONE: [1, 2], TWO: [7, 8]}
    assert case.shell.last == [Record(0), Record(1), Record(8), Record(2)]


async def test_whether_a_batch_follows_on_is_as_of_its_first_fetch(case: Case) -> None:
    await case.take_one()
    case.comes(p0=[1])
    await case.taken()
    case.shell.placing.moment = 5  # something is sought
    case.comes(p1=[3])
    await case.taken()
    await case.next()
    assert case.shell.moments == [0, 0]


@pytest.mark.parametrize("then", [[5, 6], [1, 2], [0]])
async def test_a_batch_ends_where_offsets_do_not_follow(case: Case, then: list[int]) -> None:
    await case.take_one()
    case.comes(p0=[1], p1=[0])
    await case.taken()
    case.shell.placing.moment = 5
    case.comes(p0=then)
    await case.taken()
    case.comes(p0=[7])  # comes again, or is fetched with what is behind the gap
    await asyncio.sleep(0)
    assert await case.next() == {ONE: [1], TWO: [0]}
    assert case.shell.moments == [0, 0]
    assert case.shell.in_hand.is_on_its_way
    assert await case.next() == {ONE: then}
    assert case.shell.moments == [0, 0, 5]


async def test_what_follows_behind_such_an_end_is_collected_with_it(case: Case) -> None:
    await case.take_one()
    case.comes(p0=[1])
    case.comes(p0=[5])
    await case.taken()
    await case.next()
    case.fetches.fetch_ahead()
    case.comes(p0=[6], p1=[0])
    await case.taken()
    assert await case.next() == {ONE: [5, 6], TWO: [0]}


async def test_a_batch_has_no_more_records_than_were_asked_for(case: Case) -> None:
    case.comes(p0=[0])
    await case.next(max_records=4)
    case.fetches.fetch_ahead()
    case.comes(p0=[1, 2, 3])
    case.comes(p0=[4])
    await case.taken()
    case.comes(p0=[5])
    assert await case.next(max_records=4) == {ONE: [1, 2, 3, 4]}
    assert case.consumer.asked[-2:] == [4, 1]
    assert await case.next(max_records=4) == {ONE: [5]}


async def test_nothing_that_comes_is_lost_however_it_falls(case: Case) -> None:
    got: list[int] = []
    case.comes(p0=[0])
    for n in range(1, 200):
        got += (await case.next()).get(ONE, [])
        case.fetches.fetch_ahead()
        for _ in range(n % 7):
            await asyncio.sleep(0)
        case.comes(p0=[n])
        for _ in range(n % 5):
            await asyncio.sleep(0)
    while len(got) < 200:
        got += (await case.next()).get(ONE, [])
    assert got == [*range(200)]


async def test_an_error_while_a_batch_is_in_hand_is_told_when_the_next_is_asked_for(case: Case) -> None:
    case.comes(p0=[0])
    await case.next()
    case.consumer.error = ConnectionError("gone")
    case.fetches.fetch_ahead()
    await case.taken()
    with pytest.raises(ConnectionError, match="gone"):
        await case.next()
    case.consumer.error = None
    case.comes(p0=[1])
    assert await case.next() == {ONE: [1]}


async def test_after_an_error_what_was_fetched_before_it_is_handed_out(case: Case) -> None:
    await case.take_one()
    case.comes(p0=[1])
    await case.taken()
    case.consumer.error = ConnectionError("gone")
    assert await case.next() == {ONE: [1]}

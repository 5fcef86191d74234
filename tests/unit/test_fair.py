"""Who is answered next, what is kept of whom, and that nothing is kept of who is gone."""

import asyncio
import contextlib
import sys
from collections import Counter

import limits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.analytics_api.fair import Lane, Lanes, Rates, SharedCache, Shares
from services.analytics_api.problems import ProblemError
from services.runtime.fair import Asker, Line
from services.runtime.settings import Settings

ANN, BOB = Asker("ann", "a"), Asker("bob", "b")


def taken(line: Line[int]) -> list[tuple[Asker, int]]:
    found = []
    while (one := line.take()) is not None:
        found.append(one)
    return found


def test_one_alone_has_all_places_and_another_is_next_however_many_wait_before() -> None:
    line: Line[int] = Line(2)
    for n in range(12):
        line.join(ANN, n)
    assert taken(line) == [(ANN, 0), (ANN, 1)]
    line.join(BOB, 100)
    line.done(ANN)
    assert taken(line) == [(BOB, 100)]
    line.done(BOB)
    assert taken(line) == [(ANN, 2)]


def test_who_finds_a_free_place_and_nobody_waiting_passes_by_as_if_they_had_waited() -> None:
    line: Line[int] = Line(3, most_each=2)
    assert [line.pass_by(ANN), line.pass_by(ANN), line.pass_by(ANN)] == [True, True, False]
    assert (line.known(ANN), line.running) == ((2, 2), 2)
    line.join(ANN, 1)
    assert not line.pass_by(BOB), "somebody waits"
    line.join(BOB, 2)
    assert taken(line) == [(BOB, 2)]
    line.done(ANN)
    assert taken(line) == [(ANN, 1)]
    for asker in (ANN, ANN, BOB):
        line.done(asker)
    assert (line.known(ANN), line.known(BOB), line.running) == ((0, 0), (0, 0), 0)


def test_keys_of_an_organization_take_turns() -> None:
    line: Line[int] = Line(1)
    other = Asker("amy", "a")
    for n in range(3):
        line.join(ANN, n)
    line.join(other, 100)
    order = []
    while found := taken(line):
        order += [item for _, item in found]
        line.done(found[0][0])
    assert order == [0, 100, 1, 2]


def test_a_part_of_the_places_is_closed_to_one_organization() -> None:
    line: Line[int] = Line(4, most_each=3)
    for n in range(9):
        line.join(ANN, n)
    assert len(taken(line)) == 3
    line.join(BOB, 100)
    assert taken(line) == [(BOB, 100)]


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "done", "leave"]), st.integers(0, 3), st.integers(0, 2)),
        max_size=80,
    ),
    st.integers(1, 4),
)
def test_places_are_never_exceeded_nor_left_empty_and_nothing_stays_of_who_is_gone(
    acts: list[tuple[str, int, int]], places: int
) -> None:
    line: Line[int] = Line(places)
    waits: dict[int, Asker] = {}
    runs: list[Asker] = []
    for n, (act, organization, key) in enumerate(acts):
        asker = Asker(f"{organization}.{key}", str(organization))
        if act == "join":
            line.join(asker, n)
            waits[n] = asker
        elif act == "done" and runs:
            line.done(runs.pop(0))
        elif act == "leave" and waits:
            first = min(waits)
            line.leave(waits.pop(first), first)
        of = Counter(a.organization for a in runs)
        for taker, item in taken(line):
            assert waits.pop(item) == taker
            assert of[taker.organization] <= min(
                (of[a.organization] for a in waits.values()), default=of[taker.organization]
            )
            of[taker.organization] += 1
            runs.append(taker)
        assert len(runs) == line.running <= places
        assert len(runs) == places or not waits
    for item, asker in waits.items():
        line.leave(asker, item)
    for asker in runs:
        line.done(asker)
    assert [line._running, line._of, line._waiting, line._served] == [{}, {}, {}, {}]


class Plain:
    """A line by its rule alone, which looks at everybody for each place."""

    def __init__(self, places: int, most_each: int) -> None:
        self.places, self.most_each = places, most_each
        self.waiting: list[tuple[Asker, int]] = []
        self.running: list[Asker] = []
        self.turn = 0
        self.last: dict[str, int] = {}
        self.since: dict[str, int] = {}

    def of(self, organization: str) -> int:
        return sum(asker.organization == organization for asker in self.running)

    def take(self) -> tuple[Asker, int] | None:
        able = {a.organization for a, _ in self.waiting if self.of(a.organization) < self.most_each}
        if len(self.running) >= self.places or not able:
            return None
        organization = min(able, key=lambda o: (self.of(o), self.last.get(o, 0), self.since[o]))
        taken = next(one for one in self.waiting if one[0].organization == organization)
        self.waiting.remove(taken)
        self.running.append(taken[0])
        self.turn += 1
        self.last[organization] = self.turn
        return taken

    def forget(self) -> None:
        """Knows nothing of who neither runs nor waits, nor since when somebody waited who does not."""
        waiting = {asker.organization for asker, _ in self.waiting}
        self.since = {o: at for o, at in self.since.items() if o in waiting}
        self.last = {o: at for o, at in self.last.items() if o in waiting or self.of(o)}


@given(
    st.lists(st.tuples(st.sampled_from(["join", "join", "done", "leave"]), st.integers(0, 4)), max_size=80),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_line_takes_whom_a_look_at_everybody_would_take(
    acts: list[tuple[str, int]], places: int, most_each: int
) -> None:
    """With one key each, so that the turns are those of organizations."""
    line: Line[int] = Line(places, most_each)
    plain = Plain(places, most_each)
    for n, (act, organization) in enumerate(acts, start=1):
        asker = Asker("key", str(organization))
        if act == "join":
            line.join(asker, n)
            plain.waiting.append((asker, n))
            plain.since.setdefault(asker.organization, n)
        elif act == "done" and plain.running:
            gone = plain.running.pop(organization % len(plain.running))
            line.done(gone)
        elif act == "leave" and plain.waiting:
            left = plain.waiting.pop(organization % len(plain.waiting))
            line.leave(*left)
        plain.forget()
        while (expected := plain.take()) is not None:
            assert line.take() == expected
        assert line.take() is None


def test_what_a_place_costs_hardly_grows_with_how_many_wait() -> None:
    """Counted in calls, not in time."""

    def calls_with(many: int) -> int:
        line: Line[int] = Line(1)
        for n in range(many):
            line.join(Asker.stranger(str(n)), n)
        for n in range(many):
            line.join(Asker(str(n), "one"), n)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            for _ in range(200):
                found = line.take()
                assert found is not None
                line.done(found[0])
        finally:
            sys.setprofile(None)
        return calls

    assert calls_with(4_000) < 2 * calls_with(1_000)


async def test_who_goes_away_while_waiting_keeps_no_place() -> None:
    lane = Lane("small", 1)
    await lane.enter(ANN)
    waits = asyncio.create_task(lane.enter(BOB))
    await asyncio.sleep(0)
    lane.leave(ANN)  # it is Bob's turn, and at that moment he goes
    waits.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waits
    await asyncio.wait_for(lane.enter(ANN), 60)


async def test_who_waits_too_long_is_told_and_keeps_no_place() -> None:
    lane = Lane("small", 1)
    await lane.enter(ANN)
    with pytest.raises(TimeoutError):
        await lane.enter(BOB, 0)
    assert lane._line.known(BOB) == (0, 0)
    lane.leave(ANN)
    await lane.enter(BOB, 0)  # a place that is free takes no time


async def test_an_answer_that_has_begun_waits_where_another_is_refused() -> None:
    lane = Lane("large", 1, most_known=2)
    with pytest.raises(ProblemError):
        async with lane.place(ANN), lane.place(ANN):
            pass
    async with lane.place(ANN):
        going_on = asyncio.create_task(lane.enter(ANN, goes_on=True))
        await asyncio.sleep(0)
        assert not going_on.done()
    await going_on
    lane.leave(ANN)


def test_a_key_holds_half_of_what_its_organization_may() -> None:
    shares = Shares("questions", 4)
    with contextlib.ExitStack() as stack:
        for asker in (ANN, ANN, Asker("amy", "a"), Asker("amy", "a")):
            stack.enter_context(shares.held(asker))
        for asker in (ANN, Asker("new", "a")):
            with pytest.raises(ProblemError) as refused, shares.held(asker):
                pass
            assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "2"})
        with contextlib.ExitStack() as more:
            for asker in (BOB, *[Asker.stranger("127.0.0.1")] * 9):
                more.enter_context(shares.held(asker))
            assert shares.total == 14
    assert shares.total == 0


async def test_strangers_from_any_number_of_addresses_keep_nobody_waiting_whose_key_is_known() -> None:
    lanes = Lanes(
        Settings(
            kafka_bootstrap_servers=["127.0.0.1:1"],
            database_url="postgresql://nowhere/none",
            api_organization_questions=2,
        )
    )
    async with contextlib.AsyncExitStack() as stack:
        strangers = [
            await stack.enter_async_context(lanes.turn(Asker.stranger(f"10.0.0.{n}"))) for n in range(16)
        ]
        assert lanes.is_crowded
        with pytest.raises(ProblemError, match="too many questions wait"):
            await stack.enter_async_context(lanes.turn(Asker.stranger("10.0.0.99")))
        waiting = [asyncio.create_task(stranger.begin()) for stranger in strangers]
        await asyncio.sleep(0)
        known = await stack.enter_async_context(lanes.turn(ANN))
        await asyncio.wait_for(known.begin(), 60)
        assert [task.done() for task in waiting] == [True] + [False] * 15
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_ten_organizations_that_ask_for_all_they_may_shut_out_no_eleventh() -> None:
    lanes = Lanes(
        Settings(
            kafka_bootstrap_servers=["127.0.0.1:1"],
            database_url="postgresql://nowhere/none",
            api_organization_questions=12,
        )
    )
    async with contextlib.AsyncExitStack() as stack:

        async def ask(key: str, organization: str) -> None:
            await stack.enter_async_context(lanes.turn(Asker(key, organization)))

        for organization in range(10):
            for number in range(12):
                await ask(str(number % 2), str(organization))
        for _ in range(4):
            await ask("key", "eleventh")
        with pytest.raises(ProblemError, match="too many questions wait"):
            await ask("key", "eleventh")


async def test_a_stranger_whose_key_is_found_takes_its_turn_with_those_of_its_organization() -> None:
    lanes = Lanes(Settings(kafka_bootstrap_servers=["127.0.0.1:1"], database_url="postgresql://nowhere/none"))

    def places() -> tuple[int, int]:
        return lanes.strangers._line.running, lanes.small._line.running

    async def look() -> Asker:
        assert places() == (1, 0)
        return BOB

    async with lanes.turn(Asker.stranger("10.0.0.1")) as turn:
        await turn.begin()
        await turn.find(look)
        assert (turn.asker, places()) == (BOB, (0, 1))
    async with lanes.turn(Asker.stranger("10.0.0.1")) as posting:  # nobody keeps a place while a body comes
        await posting.find(look)
        assert (posting.asker, places()) == (BOB, (0, 0))


@pytest.mark.parametrize("writes", [False, True])
async def test_a_stranger_whose_key_is_found_is_counted_among_its_own_and_no_more_among_strangers(
    writes: bool,
) -> None:
    lanes = Lanes(
        Settings(
            kafka_bootstrap_servers=["127.0.0.1:1"],
            database_url="postgresql://nowhere/none",
            api_organization_questions=4,
            api_organization_writes=4,
        )
    )
    stranger = Asker.stranger("10.0.0.1")

    async def look() -> Asker:
        return BOB

    async with contextlib.AsyncExitStack() as stack:
        turns = [await stack.enter_async_context(lanes.turn(stranger, writes=writes)) for _ in range(8)]
        for turn in turns[:2]:
            await turn.find(look)
        for turn in turns[2:]:
            with pytest.raises(ProblemError, match="this API key has 2"):
                await turn.find(look)
        with pytest.raises(ProblemError, match="this API key has 2"):
            await stack.enter_async_context(lanes.turn(BOB, writes=writes))
        assert not lanes.is_crowded
        assert lanes._strangers.total == 6, "those that are refused are on their way out"
    assert lanes._strangers.total == lanes._asked.total == lanes._writing.total == 0


def test_rates_count_in_windows_and_only_of_so_many_names() -> None:
    rates, rate = Rates(most=3), limits.parse("2/minute")
    assert [rates.hit(rate, 0, "x"), rates.hit(rate, 10, "x"), rates.hit(rate, 20, "x")] == [None, None, 40]
    assert rates.hit(rate, 60, "x") is None
    for n in range(100):
        assert rates.hit(rate, 60, str(n)) is None
    assert len(rates._counts) == 3


def test_who_keeps_the_most_loses_first_and_a_small_one_keeps_what_it_has() -> None:
    cache: SharedCache[int] = SharedCache(10)
    cache.put("small", "x", 1, 2)
    for n in range(50):
        cache.put("greedy", n, n, 2)
    assert cache.get("small", "x") == 1
    assert [n for n in range(50) if cache.get("greedy", n) is not None] == [46, 47, 48, 49]
    cache.put("greedy", "all", 0, 11)
    assert cache.get("greedy", "all") is None
    cache.put("small", "x", 2, 3)
    assert cache.get("small", "x") == 2
    assert cache.get("greedy", 46) is None

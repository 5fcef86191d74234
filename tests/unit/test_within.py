"""People who have had the time: how many days are proposed, and what is called a difference of two sides."""

import csv
import gzip
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.journeys.comparison import Shares, compare
from services.journeys.flow import Outcome, Variant, View
from services.journeys.intervals import newcombe
from services.journeys.within import (
    MOST_DAYS,
    Began,
    Differences,
    differences,
    judged,
    propose,
    side_of,
)
from tests.support import logs

DAY = 86_400_000
#: A journey: when it began, and its steps with their times since then.
Walk = tuple[int, list[tuple[str, int]]]


# --- how many days -------------------------------------------------------------------------------------


def test_the_days_that_are_proposed_hold_nine_in_ten_of_those_who_finish() -> None:
    old = [Began(1, 40, days, 10) for days in (1, 1, 1, 1, 1, 2, 2, 3, 3, 30)] + [Began(1, 40, None, 50)]
    assert propose([old], 7) == (3, 40, 100)


def test_the_quick_ones_of_the_last_days_do_not_count_more() -> None:
    """Half began today and yesterday; only the quickest of them can have finished."""
    old = [Began(1, 30, days, 10) for days in (1, 2, 3, 4, 5, 6, 7, 8, 9, 20)]
    young = [Began(29, 1, 1, 50), Began(30, 0, 1, 50), Began(30, -1, None, 0)]
    assert propose([old + young], 7) == (9, 30, 100)


def test_each_side_keeps_half_of_its_people() -> None:
    week = [Began(day, 20 - day, 1 if day % 2 else 12, 10) for day in range(8, 22)]
    before, last = week[:7], week[7:]
    days, longest, _ = propose([before, last], 7)
    assert longest == 2, "of the last seven days, four are so long ago"
    assert days <= longest
    assert judged(last, longest).had_time * 2 >= sum(of.journeys for of in last)


def test_without_anybody_who_finished_or_began_there_is_a_number_all_the_same() -> None:
    assert propose([[Began(1, 3, None, 5)]], 7) == (3, 3, 0)
    assert propose([[], []], 7) == (7, MOST_DAYS, 0)
    assert propose([[Began(1, -1, None, 5)]], 7).days == 1, "they began today"


began = st.builds(
    Began,
    st.integers(0, 400),
    st.integers(-1, 400),
    st.none() | st.integers(1, 367),
    st.integers(1, 50),
)


@given(st.lists(st.lists(began, max_size=20), min_size=1, max_size=2))
def test_a_proposal_holds_what_its_words_say(sides: list[list[Began]]) -> None:
    days, longest, finished = propose(sides, 7)
    assert 1 <= days <= longest <= MOST_DAYS
    counted = [of for side in sides for of in side if of.age_days >= longest and of.finish_days]
    by = [sum(of.journeys for of in counted if (of.finish_days or 0) <= d) for d in (days - 1, days, longest)]
    assert finished == by[2]
    if finished:
        assert by[1] >= 0.9 * finished
        assert by[0] < 0.9 * finished
    if longest > 1:
        for side in sides:
            assert 2 * judged(side, longest).had_time >= sum(of.journeys for of in side)


# --- intervals and tests -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        # Newcombe 1998, table II, method 10, as p1 - p2; of B minus A the sides change about.
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((2, 7), (6, 7), 0.0582, 0.8062),
        ((0, 29), (5, 56), -0.0381, 0.1926),
        ((0, 20), (0, 10), -0.1611, 0.2775),
    ],
)
def test_the_interval_of_a_difference_is_newcombes(
    a: tuple[int, int], b: tuple[int, int], low: float, high: float
) -> None:
    assert newcombe(*a, *b) == pytest.approx((low, high), abs=1e-4)
    turned = newcombe(*b, *a)
    assert turned == pytest.approx((-high, -low), abs=1e-4)
    assert newcombe(0, 0, 3, 10) is None


def test_what_cannot_differ_is_not_tested_and_weakens_no_other_test() -> None:
    real = Shares(60, 50, 60, 25)
    nobody, all_of_both, none_of_both = Shares(0, 0, 9, 3), Shares(40, 40, 60, 60), Shares(40, 0, 60, 0)
    alone = compare([real])[0]
    found = compare([nobody, real, all_of_both, real, none_of_both], [True, True, True, False, True])
    assert found[1] == alone
    assert alone.is_significant
    for not_tested in (found[0], found[3]):
        assert (not_tested.p_value, not_tested.p_adjusted) == (None, None)
        assert not_tested.figures()["difference_low"] is None
        assert not not_tested.is_significant
    assert found[2].p_adjusted == found[4].p_adjusted == 1.0


def test_a_step_that_was_added_takes_completion_out_of_the_tests_too() -> None:
    a = [variant("ab", 40, 3), variant("a", 20, 3)]
    b = [variant("abc", 50, 3), variant("a", 10, 3)]
    sides = [side_of(View(), "abc", (), side) for side in (a, b)]
    tested, added = differences("abc", *sides), differences("abc", *sides, added={"c"})
    assert tested.completion.is_significant
    assert added.completion.p_value is None
    assert added.steps["c"].p_value is None
    assert added.steps["a"] == tested.steps["a"]
    assert [key for key, of in added.links.items() if of.p_value is None] == [(2, "b", "c", False)]


def variant(steps: str, journeys: int, of: int) -> Variant:
    outcome = Outcome.FINISHED if len(steps) == of else Outcome.DROPPED
    return Variant(tuple(steps), outcome, True, journeys, (0,) * len(steps))


# --- two halves of one population ----------------------------------------------------------------------


class Person:
    """A journey, at a time: what it had done in so many days, worked out once."""

    def __init__(self, walk: Walk, now: int, steps: int) -> None:
        self.at, self.passed = walk
        self.had_days = (now - self.at) // DAY
        finish = self.passed[-1][1] // DAY + 1 if len(self.passed) == steps else None
        self.began = (self.at // DAY, self.had_days, finish)
        self.paths: dict[int, tuple[str, ...]] = {}

    def path(self, days: int) -> tuple[str, ...]:
        if days not in self.paths:
            self.paths[days] = tuple(step for step, ms in self.passed if ms < days * DAY)
        return self.paths[days]


def as_they_stood(people: Sequence[Person], days: int, steps: int) -> list[Variant]:
    """Of those that had so many days, what each had done in them."""
    paths = Counter(person.path(days) for person in people if person.had_days >= days)
    return [
        Variant(path, Outcome.FINISHED if len(path) == steps else Outcome.DROPPED, True, n, (0,) * len(path))
        for path, n in paths.items()
    ]


def days_of(people: Sequence[Person]) -> list[Began]:
    return [Began(*key, n) for key, n in Counter(person.began for person in people).items()]


def called(found: Differences) -> tuple[int, int]:
    """How many links and drop-offs were called different, of how many."""
    return sum(of.is_significant for of in found.places), len(found.places)


def draws(walks: list[Walk], order: Sequence[str], now: int, times: int = 200) -> tuple[int, int, int]:
    """So many times two random halves: links called different, links in all, and completions called so."""
    chance, different, links, completions = random.Random(5), 0, 0, 0
    people, steps = [Person(walk, now, len(order)) for walk in walks], len(order)
    for _ in range(times):
        chance.shuffle(people)
        halves = people[: len(people) // 2], people[len(people) // 2 :]
        days = propose([days_of(half) for half in halves], 7).days
        a, b = (side_of(View(), order, (), as_they_stood(half, days, steps)) for half in halves)
        found = differences(order, a, b)
        counts = called(found)
        different, links = different + counts[0], links + counts[1]
        completions += found.completion.is_significant
    return different, links, completions


def process(chance: random.Random, began_at: int, now: int) -> Walk:
    """Somebody's way through five steps, as far as it is now: most go on within a day, some after many."""
    at, passed = 0, []
    order = list("abcde")
    if chance.random() < 0.3:
        x = chance.randrange(4)
        order[x], order[x + 1] = order[x + 1], order[x]
    for step in order:
        if chance.random() < 0.1:
            break
        at += int(chance.expovariate(1 / (0.6 * DAY)))
        if began_at + at > now:
            break
        passed.append((step, at))
    return began_at, passed


NOW = 20_000 * DAY


def test_of_two_halves_of_one_population_fewer_than_5_percent_of_links_are_called_different() -> None:
    """Half of them began in the last five days: their journeys are under way."""
    chance = random.Random(1)
    walks = [
        process(chance, NOW - int(chance.random() * days * DAY), NOW) for days in (5, 60) for _ in range(300)
    ]
    different, links, completions = draws(walks, "abcde", NOW)
    assert links > 200 * 20
    assert different < 0.05 * links
    assert completions < 0.1 * 200


def test_the_last_week_of_one_process_differs_from_the_one_before_no_more_often() -> None:
    """As they stand now nobody of the last week has stopped: that was called a difference each time."""
    chance, different, links, completions, as_they_stand = random.Random(2), 0, 0, 0, 0
    for _ in range(30):
        walks = [
            [process(chance, NOW - int((since + 7 * chance.random()) * DAY), NOW) for _ in range(250)]
            for since in (7, 0)
        ]
        people = [[Person(walk, NOW, 5) for walk in side] for side in walks]
        days = propose([days_of(side) for side in people], 7).days
        a, b = (side_of(View(), "abcde", (), as_they_stood(side, days, 5)) for side in people)
        found = differences("abcde", a, b)
        counts = called(found)
        different, links = different + counts[0], links + counts[1]
        completions += found.completion.is_significant
        now = [[as_it_stands(walk) for walk in side] for side in walks]
        as_they_stand += called(differences("abcde", *(side_of(View(), "abcde", (), n) for n in now)))[0] > 0
    assert as_they_stand == 30
    assert different < 0.05 * links
    assert completions <= 5


def as_it_stands(walk: Walk) -> Variant:
    """In progress for a week without activity, then dropped."""
    began_at, passed = walk
    active = began_at + (passed[-1][1] if passed else 0)
    recent = Outcome.IN_PROGRESS if NOW - active < 7 * DAY else Outcome.DROPPED
    return Variant(
        tuple(s for s, _ in passed),
        Outcome.FINISHED if len(passed) == 5 else recent,
        True,
        1,
        (0,) * len(passed),
    )


@logs.needs_logs
def test_of_two_halves_of_real_people_fewer_than_5_percent_of_links_are_called_different() -> None:
    """A tenth of the people of the log had not begun, and others were under way, when it is looked at."""
    cases: defaultdict[str, dict[str, int]] = defaultdict(dict)
    with gzip.open(logs.path("receipt"), "rt") as file:
        for row in csv.DictReader(file):
            at = int(row["ms"])
            first = cases[row["case"]].setdefault(row["activity"], at)
            cases[row["case"]][row["activity"]] = min(first, at)
    order = sorted({step for case in cases.values() for step in case})
    walks: list[Walk] = []
    for case in cases.values():
        passed = sorted(case.items(), key=lambda item: (item[1], item[0]))
        walks.append((passed[0][1], [(step, at - passed[0][1]) for step, at in passed]))
    now = sorted(at for at, _ in walks)[len(walks) * 9 // 10]
    seen = [(at, [p for p in passed if at + p[1] <= now]) for at, passed in walks if at <= now]
    different, links, completions = draws(seen, order, now)
    assert links > 200 * 30
    assert different < 0.05 * links
    assert completions == 0, "nobody does every step of a branching process"

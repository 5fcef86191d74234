"""Versions of a walkthrough: which one counts at a time, what an edit changed, and where a journey stands by it."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.journeys.versions import Change, StepThen, Version, Versions, changes, first_open

TODAY = [StepThen("a", "A"), StepThen("b", "B")]
TIMES = st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=6).map(sorted)
ORDERS = st.permutations("abcdef").flatmap(lambda order: st.integers(0, 6).map(lambda n: order[:n]))


def steps(order: str, content: str = "x") -> tuple[StepThen, ...]:
    return tuple(StepThen(step, step.upper(), content) for step in order)


def version(*of: StepThen) -> Version:
    return Version(1, None, None, of)


def edited(times: list[int]) -> Versions:
    return Versions.of([(at, steps("ab")) for at in times], TODAY)


@given(TIMES, st.integers(-5, 60))
def test_a_version_counts_from_its_edit_until_before_the_next_and_the_first_for_all_before(
    times: list[int], at: int
) -> None:
    found = edited(times).at(at)
    assert found.number == max([1, *(n for n, since in enumerate(times, start=1) if since <= at)])
    assert found.since == (None if found.number == 1 else times[found.number - 1])


@given(TIMES, st.data())
def test_the_windows_of_versions_hold_just_the_moments_of_these(
    times: list[int], data: st.DataObject
) -> None:
    versions = edited(times)
    numbers = data.draw(st.sets(st.integers(1, len(times)), min_size=1))
    windows = versions.windows(numbers)
    for at in range(-2, 54):
        inside = [(s is None or s <= at) and (u is None or at < u) for s, u in windows]
        assert sum(inside) == (versions.at(at).number in numbers)


def test_without_an_edit_that_is_known_there_is_one_version_with_todays_steps() -> None:
    versions = Versions.of([], TODAY)
    assert (versions.newest.number, versions.newest.order, versions.sinces) == (1, ("a", "b"), [])
    assert versions.windows([1]) == [(None, None)]
    assert versions.at(0) is versions.newest
    assert versions.numbered(2) is None


def test_the_newest_has_the_steps_of_today() -> None:
    versions = Versions.of([(5, steps("ba")), (9, steps("b"))], TODAY)
    assert [v.order for v in versions.all] == [("b", "a"), ("a", "b")]
    assert [s.content for s in versions.newest.steps] == [None, "x"]


@given(ORDERS, ORDERS)
def test_what_changed_leads_from_one_order_to_the_other_in_as_few_moves_as_can_be(
    before: list[str], after: list[str]
) -> None:
    made = changes(version(*steps("".join(before))), version(*steps("".join(after))))
    by = {kind: {c.step_id for c in made if c.kind == kind} for kind in ("added", "removed", "moved")}
    assert by["added"] == set(after) - set(before)
    assert by["removed"] == set(before) - set(after)
    assert len(made) == sum(map(len, by.values())), "nothing was renamed, and says something else"
    old = [step for step in before if step in after]
    new = [step for step in after if step in before]
    stay = [step for step in new if step not in by["moved"]]
    assert stay == [step for step in old if step not in by["moved"]]
    for more in combinations(new, len(stay) + 1):
        assert [step for step in old if step in more] != list(more), "these need no move"
    for change in made:
        assert change.from_place == (before.index(change.step_id) + 1 if change.step_id in before else None)
        assert change.to_place == (after.index(change.step_id) + 1 if change.step_id in after else None)


def test_a_step_may_be_renamed_and_say_something_else() -> None:
    was, now = StepThen("a", "A", "x"), StepThen("a", "B", "y")
    assert changes(version(was), version(now)) == [
        Change("renamed", "a", "B", 1, 1, "A"),
        Change("edited", "a", "B", 1, 1),
    ]
    assert changes(version(was), version(StepThen("a", "A", None))) == [], "what it says is not known"


def test_what_changed_is_said_in_words() -> None:
    versions = Versions.of(
        [
            (1, steps("abcde")),
            (2, steps("abecd")),
            (3, (*steps("abe"), StepThen("d", "D", "y"), StepThen("n", "N"))),
            (4, ()),
        ],
        [],
    )
    assert [versions.says(n) for n in (1, 2, 3)] == [
        "The first steps that are known.",
        "Moved “E” from place 5 to 3.",
        "Removed “C” from place 4; added “N” at place 5; changed what “D” says.",
    ]
    assert versions.says(2, lambda title: title * 2) == "Moved “EE” from place 5 to 3."


@pytest.mark.parametrize(
    ("then", "today", "passed", "stands"),
    [
        ("abc", "abc", "a", "b"),
        ("abc", "acb", "a", "b"),
        ("abc", "anbc", "a", "b"),
        ("abc", "ac", "a", "c"),
        ("ab", "abn", "ab", "n"),
        ("ab", "ab", "ab", None),
        ("", "ab", "", "a"),
    ],
)
def test_an_unfinished_journey_stands_by_the_order_of_its_time_as_far_as_that_is_left(
    then: str, today: str, passed: str, stands: str | None
) -> None:
    assert first_open(then, today, passed) == stands


def test_an_order_counts_since_the_last_edit_that_made_it() -> None:
    edits = [(1, steps("ab")), (2, steps("ba")), (3, steps("ba", "y")), (4, steps("bac")), (5, steps("ba"))]
    versions = Versions.of(edits, steps("ba"))
    assert [versions.order_since(version) for version in versions.all] == [None, 2, 2, 4, 5]
    alike = Versions.of([(1, steps("ab")), (2, steps("ab", "y"))], steps("ab"))
    assert alike.order_since(alike.newest) is None

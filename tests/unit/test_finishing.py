"""Finish rules, against a reading of their definition step by step."""

from hypothesis import example, given
from hypothesis import strategies as st

from services.journeys.finishing import FinishRule

STEPS = tuple("abcdef")
some = st.frozensets(st.sampled_from(STEPS))
paths = st.lists(st.sampled_from(STEPS), unique=True)


@given(some, some, some, paths, st.data())
def test_a_journey_is_finished_as_its_rule_says(
    optional: frozenset[str], goal: frozenset[str], ends: frozenset[str], path: list[str], data: st.DataObject
) -> None:
    skipped = data.draw(st.lists(st.booleans(), min_size=len(path), max_size=len(path)))
    rule = FinishRule(STEPS, optional, goal, ends)
    done = {step for step, skip in zip(path, skipped, strict=True) if not skip}
    by_steps = bool(done & goal) if goal else all(s in path for s in (set(STEPS) - optional or set(STEPS)))
    by_end = bool(path) and path[-1] in ends
    assert rule.is_finished(path, skipped) == (by_steps or by_end)
    if not any(skipped):
        assert rule.is_finished(path) == rule.is_finished(path, skipped)
    if not rule.needs_journeys:
        assert rule.is_finished_after(len(path), path[-1] if path else None) == (by_steps or by_end)


def test_without_steps_nobody_finishes() -> None:
    assert not FinishRule(()).is_finished(())
    assert not FinishRule(()).is_finished_after(0, None)


@example(list(STEPS), dict.fromkeys(STEPS, 2), 1)
@given(paths, st.dictionaries(st.sampled_from(STEPS), st.integers(2, 4)), st.integers(1, 4))
def test_a_step_that_was_added_later_is_not_asked_of_a_journey(
    path: list[str], added_in: dict[str, int], version: int
) -> None:
    there = {step for step in STEPS if added_in.get(step, 1) <= version}
    rule = FinishRule(STEPS, added_in=added_in)
    passed_all, passed_those = set(path) == set(STEPS), bool(there) and there <= set(path)
    assert rule.is_finished(path, None, version) == (passed_all or passed_those)
    assert rule.is_finished(path) == (set(path) == set(STEPS))
    assert [added_in.get(s, 1) for s in rule.required] == sorted(added_in.get(s, 1) for s in STEPS)
    assert rule.needs_journeys == bool(added_in)

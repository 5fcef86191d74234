"""The algebra of journeys: literal cases, and properties over any change in any order."""

from collections import Counter
from dataclasses import replace
from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from services.journeys import (
    Contributions,
    EndingKey,
    Flow,
    Journey,
    TransitionKey,
    accumulate,
    add,
    contributions,
    difference,
    utc_day,
)

DAY = 86_400_000


def journey(
    *steps: tuple[str, int], server: str | None = "srv", walkthrough: str = "wt", start: int | None = None
) -> Journey:
    there_is_one = bool(steps) or start is not None
    return Journey(
        walkthrough, server if there_is_one else None, [s for s, _ in steps], [t for _, t in steps], start
    )


def test_a_journey_contributes_one_transition_per_step_and_one_ending() -> None:
    got = contributions(journey(("a", 5), ("b", 15), ("c", DAY + 1)))
    first = date(1970, 1, 1)
    assert got.transitions == {
        TransitionKey("wt", "srv", first, 0, None, "a"): Flow(1, 0, 0),
        TransitionKey("wt", "srv", first, 1, "a", "b"): Flow(1, 10, 1),
        TransitionKey("wt", "srv", first, 2, "b", "c"): Flow(1, DAY - 14, 1),
    }
    assert got.endings == {EndingKey("wt", "srv", first, 3, "c", date(1970, 1, 2)): 1}


def test_without_steps_there_is_nothing_to_count() -> None:
    assert contributions(journey()) == Contributions()


def test_with_a_start_the_first_step_has_a_time_and_the_cohort_is_the_start_s() -> None:
    got = contributions(journey(("a", DAY + 5), ("b", DAY + 9), start=DAY - 1))
    first = date(1970, 1, 1)
    assert got.transitions == {
        TransitionKey("wt", "srv", first, 0, None, "a"): Flow(1, 6, 1),
        TransitionKey("wt", "srv", first, 1, "a", "b"): Flow(1, 4, 1),
    }
    assert got.endings == {EndingKey("wt", "srv", first, 2, "b", date(1970, 1, 2)): 1}


def test_somebody_who_opened_and_left_is_an_ending_without_steps() -> None:
    got = contributions(journey(start=5))
    day = date(1970, 1, 1)
    assert got.transitions == {}
    assert got.endings == {EndingKey("wt", "srv", day, 0, None, day): 1}


def test_a_start_that_becomes_known_gives_the_first_step_its_time() -> None:
    delta = difference(journey(("a", 9), ("b", 12)), journey(("a", 9), ("b", 12), start=2))
    assert {k.position: f for k, f in delta.transitions.items()} == {0: Flow(0, 7, 1)}
    assert delta.endings == {}


def test_a_late_step_between_two_takes_their_transition_away_and_adds_two() -> None:
    delta = difference(journey(("a", 1), ("c", 9)), journey(("a", 1), ("b", 4), ("c", 9)))
    day = date(1970, 1, 1)
    assert delta.transitions == {
        TransitionKey("wt", "srv", day, 1, "a", "c"): Flow(-1, -8, -1),
        TransitionKey("wt", "srv", day, 1, "a", "b"): Flow(1, 3, 1),
        TransitionKey("wt", "srv", day, 2, "b", "c"): Flow(1, 5, 1),
    }
    assert delta.endings == {
        EndingKey("wt", "srv", day, 2, "c", day): -1,
        EndingKey("wt", "srv", day, 3, "c", day): 1,
    }


def test_a_first_step_on_another_day_moves_the_whole_journey_to_that_cohort() -> None:
    old = journey(("a", DAY + 5), ("b", DAY + 6))
    new = journey(("z", 3), ("a", DAY + 5), ("b", DAY + 6))
    delta = difference(old, new)
    assert sum(f.journeys for k, f in delta.transitions.items() if k.began_on == date(1970, 1, 2)) == -2
    assert sum(f.journeys for k, f in delta.transitions.items() if k.began_on == date(1970, 1, 1)) == 3


def test_a_first_step_on_another_server_moves_the_whole_journey_there() -> None:
    steps = (("a", 1), ("b", 2))
    delta = difference(journey(*steps, server="one"), journey(*steps, server="two"))
    assert Counter(k.mcp_server_id for k in delta.transitions) == {"one": 2, "two": 2}


def test_the_same_journey_makes_no_difference() -> None:
    one = journey(("a", 1), ("b", 2))
    assert difference(one, one) == Contributions()


def test_only_the_time_of_a_step_changed() -> None:
    delta = difference(journey(("a", 1), ("b", 5)), journey(("a", 1), ("b", 7)))
    assert list(delta.transitions.values()) == [Flow(0, 2, 0)]
    assert delta.endings == {}


def test_a_skipped_step_is_a_link_of_its_own_and_no_step_done() -> None:
    got = contributions(replace(journey(("a", 5), ("b", 15), ("c", 20)), skipped=[False, True, False]))
    day = date(1970, 1, 1)
    assert got.transitions == {
        TransitionKey("wt", "srv", day, 0, None, "a"): Flow(1, 0, 0),
        TransitionKey("wt", "srv", day, 1, "a", "b", skipped=True): Flow(1, 10, 1),
        TransitionKey("wt", "srv", day, 2, "b", "c"): Flow(1, 5, 1),
    }
    assert got.endings == {EndingKey("wt", "srv", day, 2, "c", day, steps_skipped=1): 1}


def test_a_step_that_is_done_after_it_was_skipped_moves_from_one_link_to_the_other() -> None:
    steps = (("a", 5), ("b", 15))
    delta = difference(replace(journey(*steps), skipped=[False, True]), journey(*steps))
    day = date(1970, 1, 1)
    assert delta.transitions == {
        TransitionKey("wt", "srv", day, 1, "a", "b", skipped=True): Flow(-1, -10, -1),
        TransitionKey("wt", "srv", day, 1, "a", "b"): Flow(1, 10, 1),
    }


def test_time_since_a_step_was_shown_is_apart_from_the_time_since_the_step_before() -> None:
    got = contributions(replace(journey(("a", 5), ("b", 50)), shown_at=[None, 42]))
    assert [flow for _, flow in sorted(got.transitions.items())] == [Flow(1, 0, 0), Flow(1, 45, 1, 8, 1)]


def test_what_is_shown_is_part_of_where_somebody_stands() -> None:
    delta = difference(journey(("a", 5)), replace(journey(("a", 5)), shown_step_id="b"))
    day = date(1970, 1, 1)
    assert delta.transitions == {}
    assert delta.endings == {
        EndingKey("wt", "srv", day, 1, "a", day): -1,
        EndingKey("wt", "srv", day, 1, "a", day, shown_step_id="b"): 1,
    }


def test_somebody_who_was_only_shown_something_is_an_ending_without_steps() -> None:
    got = contributions(Journey("wt", "srv", (), (), first_shown_at=DAY + 3, shown_step_id="a"))
    day = date(1970, 1, 2)
    assert got.endings == {EndingKey("wt", "srv", day, 0, None, day, shown_step_id="a"): 1}


def test_days_are_utc() -> None:
    assert utc_day(DAY - 1) == date(1970, 1, 1)
    assert utc_day(DAY) == date(1970, 1, 2)
    assert utc_day(1_764_028_799_999) == date(2025, 11, 24)


# --- properties ------------------------------------------------------------------------------------------


def at_random(
    times: list[int],
    steps: list[str],
    server: str,
    opened: bool,
    skips: list[bool] | None,
    shown: list[int | None] | None,
    waiting: str | None,
) -> Journey:
    start, *rest = sorted(times)
    pairs = list(zip(steps, rest if opened else [start, *rest], strict=False))
    is_shown_alone = not pairs and not opened
    return replace(
        journey(*pairs, server=server, start=start if opened else None),
        mcp_server_id=server,
        skipped=None if skips is None else skips[: len(pairs)],
        shown_at=None
        if shown is None
        else [ago if ago is None else at - ago for (_, at), ago in zip(pairs, shown, strict=False)],
        shown_step_id=waiting,
        first_shown_at=start if is_shown_alone else None,
    )


journeys = st.builds(
    at_random,
    st.lists(st.integers(0, 5 * DAY), min_size=1, max_size=6),
    st.lists(st.sampled_from("abcdef"), unique=True, max_size=6),
    st.sampled_from(["one", "two"]),
    st.booleans(),
    st.none() | st.lists(st.booleans(), min_size=6, max_size=6),
    st.none() | st.lists(st.none() | st.integers(0, DAY), min_size=6, max_size=6),
    st.sampled_from([None, None, "x", "y"]),
)


def as_counter(c: Contributions) -> Counter[object]:
    counter: Counter[object] = Counter(c.endings)  # type: ignore[arg-type]
    for key, flow in c.transitions.items():
        counter[key, "journeys"] += flow.journeys
        counter[key, "elapsed"] += flow.elapsed_ms
        counter[key, "timed"] += flow.timed_journeys
        counter[key, "active"] += flow.active_ms
        counter[key, "known"] += flow.active_journeys
    return Counter({k: n for k, n in counter.items() if n})


@given(journeys, journeys)
def test_the_difference_is_what_separates_their_contributions(old: Journey, new: Journey) -> None:
    before = as_counter(contributions(old))
    before.update(as_counter(difference(old, new)))
    assert {k: n for k, n in before.items() if n} == dict(as_counter(contributions(new)))


@given(st.lists(journeys, max_size=8))
def test_deltas_along_any_history_sum_to_the_contributions_of_the_final_state(states: list[Journey]) -> None:
    total = Contributions()
    last = journey()
    for state in states:
        accumulate(total, last, state)
        last = state
    assert total == contributions(last)


@given(st.lists(st.tuples(st.integers(0, 3), journeys), max_size=12), st.randoms(use_true_random=False))
def test_any_order_batching_and_duplication_of_changes_gives_the_same_tables(
    history: list[tuple[int, Journey]], chance: object
) -> None:
    """Changes only say which journey to look at; each look counts its rows as they are then."""
    final = dict(history)

    def play(looks: list[list[int]]) -> Contributions:
        table, counted = Contributions(), {}
        for batch in looks:
            delta = Contributions()
            for who in set(batch):
                accumulate(delta, counted.get(who, journey()), final[who])
                counted[who] = final[who]
            add(table, delta)
        return table

    looks = [who for who, _ in history]
    doubled = looks + looks
    chance.shuffle(doubled)  # type: ignore[attr-defined]
    cut = chance.randint(0, len(doubled))  # type: ignore[attr-defined]
    assert play([[who] for who in looks]) == play([doubled[:cut], doubled[cut:]]) == play([looks])


@given(st.lists(journeys, max_size=30))
def test_at_every_node_of_every_cohort_in_equals_out_plus_ended(everybody: list[Journey]) -> None:
    total = Contributions()
    for one in everybody:
        add(total, contributions(one))
    balance: Counter[object] = Counter()
    for t, flow in total.transitions.items():
        balance[t[:3], t.position, t.to_step_id] += flow.journeys
        if t.position:
            balance[t[:3], t.position - 1, t.from_step_id] -= flow.journeys
    for e, count in total.endings.items():
        if passed := e.steps_done + e.steps_skipped:
            balance[e[:3], passed - 1, e.step_id] -= count
    assert not any(balance.values())
    went = sum(f.journeys for t, f in total.transitions.items() if t.position == 0)
    left = sum(n for e, n in total.endings.items() if e.steps_done + e.steps_skipped == 0)
    assert went == sum(1 for j in everybody if j.step_ids)
    assert went + left == sum(total.endings.values()) == sum(1 for j in everybody if j.began_at is not None)


@given(journeys, journeys)
def test_amounts_that_come_to_nothing_are_left_out(old: Journey, new: Journey) -> None:
    total = difference(old, new)
    accumulate(total, new, old)
    assert total == Contributions()

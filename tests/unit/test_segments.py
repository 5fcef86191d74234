"""What a segment asks for: texts as they are written, and what of them is text of a statement."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.analytics_api.figures.breakdowns import parts_by_version
from services.analytics_api.models import BreakdownQuestion, CompareQuestion, VersionedCohort
from services.analytics_api.selecting import ALL, Only, selected
from services.journeys.comparison import Shares
from services.journeys.segments import (
    KINDS,
    Condition,
    Segment,
    compare_segments,
    parsed,
    passed_before,
    written,
)
from services.journeys.versions import first_open

QUERY = "select count(*) from sankey_journeys where walkthrough_id = $1 and ($2::bigint is null or began_at >= $2)"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60)
KEYS = TEXT.filter(lambda key: ":" not in key)


@given(st.sampled_from(KINDS), TEXT, KEYS, st.booleans())
def test_what_is_written_is_read_again(kind: str, value: str, key: str, is_not: bool) -> None:
    key = key if kind == "metadata" else ""
    assert parsed(written(kind, value, key, is_not=is_not)) == (kind, key, value, is_not)  # type: ignore[arg-type]


@given(st.permutations(["agent:b", "agent:a", "did:x", "metadata.k:1", "not_metadata.k:2", "metadata.j:1"]))
def test_the_order_in_which_it_is_written_makes_no_difference(texts: list[str]) -> None:
    segment = Segment.of([*texts, *texts[:2]])
    assert segment.conditions == (
        Condition("agent", "", ("a", "b")),
        Condition("metadata", "j", ("1",)),
        Condition("metadata", "k", ("1",)),
        Condition("metadata", "k", ("2",), is_not=True),
        Condition("did", "", ("x",)),
    )
    assert segment.steps == ("x",)


@pytest.mark.parametrize(
    "text", ["", "agent", "Agent:x", "did:", "not_did:", "metadata:x", "metadata.:x", "x:y"]
)
def test_a_text_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no segment"):
        parsed(text)


@pytest.mark.parametrize(
    "texts", [["agent:a\0b"], ["agent:\ud800"], ["agent:" + "x" * 195], [f"agent:{n}" for n in range(21)]]
)
def test_texts_have_bounds(texts: list[str]) -> None:
    with pytest.raises(ValidationError):
        VersionedCohort(segment=texts)
    with pytest.raises(ValidationError):
        CompareQuestion(segment_a=texts)


@given(st.lists(st.tuples(st.sampled_from(KINDS), TEXT, KEYS, st.booleans()), min_size=1, max_size=8))
def test_what_people_wrote_is_an_argument_and_never_text_of_the_statement(
    given_: list[tuple[str, str, str, bool]],
) -> None:
    segment = Segment.of(
        written(kind, f"v{value}", f"k{key}", is_not=is_not)
        for kind, value, key, is_not in given_  # type: ignore[arg-type]
    )
    query, arguments = selected(QUERY, ["wt", 5], Only(((None, 7), (9, None)), segment))
    plain, _ = selected(QUERY, ["wt", 5], Only(((None, 7), (9, None)), _harmless(segment)))
    assert query == plain, "other values, the same statement"
    numbers = {int(n) for n in re.findall(r"\$(\d+)", query)}
    assert numbers == set(range(1, len(arguments) + 1))
    assert arguments[:2] == ["wt", 5]
    assert [a for a in arguments[2:] if isinstance(a, list)] == [list(c.values) for c in segment.conditions]


def _harmless(segment: Segment) -> Segment:
    return Segment(tuple(Condition(c.kind, "k", ("x",), c.is_not) for c in segment.conditions))


def test_everybody_is_read_as_before() -> None:
    assert selected(QUERY, ["wt", None], ALL) == (QUERY, ["wt", None])
    assert Only(segment=Segment.of([])).is_all


# --- what tells journeys apart -------------------------------------------------------------------------


def halves(chance: random.Random, people: int, rate: float) -> list[tuple[str, Shares]]:
    """By a key that means nothing, of two values: each against the other."""
    counts = {"x": [0, 0], "y": [0, 0]}
    for _ in range(people):
        side = counts[chance.choice("xy")]
        side[0] += 1
        side[1] += chance.random() < rate
    (of_x, in_x), (of_y, in_y) = counts["x"], counts["y"]
    return [("x", Shares(of_y, in_y, of_x, in_x)), ("y", Shares(of_x, in_x, of_y, in_y))]


@pytest.mark.parametrize(("people", "rate"), [(300, 0.3), (900, 0.1), (5_000, 0.4)])
def test_a_key_that_means_nothing_tells_nobody_apart(people: int, rate: float) -> None:
    chance, called = random.Random(2), 0
    for _ in range(200):
        called += any(
            told.compared.is_significant
            for _, told in compare_segments(halves(chance, people, rate), is_loss=True)
        )
    assert called <= 20, "10 are expected, of a fair test"


def test_many_keys_that_mean_nothing_tell_nobody_apart_either() -> None:
    chance, called = random.Random(1), 0
    for _ in range(50):
        family = [of for _ in range(20) for of in halves(chance, 400, 0.3)]
        called += any(told.compared.is_significant for _, told in compare_segments(family, is_loss=False))
    assert called <= 0.1 * 50


def test_what_is_certain_comes_first_and_of_that_what_loses_most() -> None:
    found = compare_segments(
        [
            ("few", Shares(1_000, 100, 20, 20)),
            ("chance", Shares(1_000, 100, 1_000, 110)),
            ("gains", Shares(500, 250, 2_000, 200)),
            ("loses little", Shares(2_000, 200, 100, 60)),
            ("loses much", Shares(2_000, 200, 1_000, 300)),
        ],
        is_loss=True,
    )
    assert [name for name, _ in found] == ["loses much", "loses little", "gains", "chance", "few"]
    loses = {name: told.loses for name, told in found}
    assert loses == pytest.approx(
        {"loses much": 200, "loses little": 50, "gains": -800, "chance": 10, "few": 18}
    )
    by_name = dict(found)
    assert by_name["few"].compared.p_value is None, "too few to test"
    assert [name for name, told in found if told.compared.is_significant] == [
        "loses much",
        "loses little",
        "gains",
    ]
    finished = dict(compare_segments([("a", Shares(100, 80, 100, 40))], is_loss=False))
    assert finished["a"].loses == pytest.approx(40), "to finish is no loss, not to finish is"


@given(st.permutations("abcde"), st.permutations("abcdx"), st.sets(st.sampled_from("abcdex")))
def test_who_stands_at_a_step_has_passed_those_before_it(
    today: list[str], then: list[str], passed: set[str]
) -> None:
    at = first_open(then, today, passed)
    for step in today:
        stands = step not in passed and set(passed_before(step, then, today)) <= passed
        assert stands == (step == at)


def test_versions_with_most_journeys_are_parts_the_newest_first_and_the_others_one() -> None:
    question = BreakdownQuestion(by="version", most=2)
    told = parts_by_version(question, {1: 40, 2: 0, 3: 3, 4: 40, 5: 7})
    assert [(part.value, part.journeys, part.version) for part in told.parts] == [
        ("4", 40, (4,)),
        ("1", 40, (1,)),
        (None, 10, (3, 5)),
    ]
    assert told.others == 2

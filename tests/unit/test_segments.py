"""What a segment asks for: texts as they are written, and what of them is text of a statement."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.analytics_api.models import CompareQuestion, VersionedCohort
from services.analytics_api.selecting import ALL, Only, selected
from services.journeys.segments import KINDS, Condition, Segment, parsed, written

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

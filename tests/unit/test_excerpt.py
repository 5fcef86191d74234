"""Content in parts: joined they are the whole, none is too large, and lines stay in one piece where they can."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.walkthrough_mcp.excerpt import LEAST_BYTES, excerpt

TEXTS = st.dictionaries(
    st.sampled_from("abcd"), st.text(st.sampled_from("x é€😀\r\n")) | st.text(), max_size=4
)


@given(TEXTS, st.integers(LEAST_BYTES, 60))
def test_the_parts_joined_are_the_whole_and_none_is_too_large(texts: dict[str, str], limit: int) -> None:
    parts = [excerpt(texts, limit, part) for part in range(1, excerpt(texts, limit).parts + 1)]
    assert {name: "".join(p.texts.get(name, "") for p in parts) for name in texts} == texts
    for number, part in enumerate(parts, start=1):
        assert (part.part, part.parts) == (number, len(parts))
        assert sum(len(text.encode()) for text in part.texts.values()) <= limit
    if any(texts.values()):
        assert all(any(part.texts.values()) for part in parts), "none is empty"


@given(TEXTS, st.integers(LEAST_BYTES, 60))
def test_a_line_is_split_only_where_it_is_larger_than_a_part(texts: dict[str, str], limit: int) -> None:
    in_parts: Counter[tuple[str, int]] = Counter()
    for number in range(1, excerpt(texts, limit).parts + 1):
        for name, piece in excerpt(texts, limit, number).texts.items():
            in_parts[name, number] = len(piece)
    for name, text in texts.items():
        ends, at = set(), 0
        for number in sorted(n for of, n in in_parts if of == name):
            at += in_parts[name, number]
            ends.add(at)
        begins = 0
        for line in text.split("\n"):
            whole = line + "\n"
            if len(whole.encode()) <= limit and begins + len(whole) <= len(text):
                assert not any(begins < end < begins + len(whole) for end in ends)
            begins += len(whole)


def test_what_fits_is_one_part_and_a_part_that_there_is_not_is_the_last() -> None:
    assert excerpt({"a": "x\ny"}, 32).texts == {"a": "x\ny"}
    assert excerpt({}, 32).parts == 1
    assert excerpt({"a": "one\ntwo\nsix\n"}, 8).parts == 2
    assert excerpt({"a": "one\ntwo\nsix\n"}, 8, 9) == excerpt({"a": "one\ntwo\nsix\n"}, 8, 2)
    assert excerpt({"a": "one\ntwo\nsix\n"}, 8, 0).texts == {"a": "one\ntwo\n"}

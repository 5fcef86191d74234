"""Answers for agents: what fits into a budget, and what is said of the rest."""

import json

from hypothesis import given
from hypothesis import strategies as st

from services.analytics_api.briefs import Brief, cut
from services.analytics_api.models import Freshness
from services.analytics_api.tools import TOOLS

FRESH = Freshness(newest_event_at=1, groups=[], marks=0, events_waiting=0, looked_at=1, current=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROWS = st.lists(st.tuples(TEXTS, st.integers(0, 10**6), st.none() | st.floats(0, 1)), max_size=60)


@given(ROWS, st.integers(200, 4_000))
def test_pages_hold_each_row_once_and_keep_to_the_budget(
    rows: list[tuple[str, int, float | None]], most: int
) -> None:
    brief = Brief(
        "Title", FRESH, {"journeys": 3}, ("a", "b", "c"), rows, {row[0]: "id" for row in rows}, "ask"
    )
    alone = cut(Brief("Title", FRESH, {"journeys": 3}, ("a", "b", "c")), most).size + 400
    seen: list[list[object]] = []
    while len(seen) < len(rows):
        page = cut(brief, most, len(seen))
        assert page.size <= max(most, alone)
        assert page.rows == len(page.values["rows"])
        assert all(str(row[1]) in page.text for row in page.values["rows"])
        if not page.rows:
            assert cut(brief, most + 5_000, len(seen)).rows, (
                "only a row that is larger than the budget has no room"
            )
            return
        seen += page.values["rows"]
        assert (page.values["read_on"] is None) == (len(seen) == len(rows) == page.rows)
        if len(seen) < len(rows):
            assert f"offset {len(seen)}" in page.text
    assert seen == [list(row) for row in rows]


def test_a_line_or_a_bar_in_a_title_stays_in_its_cell() -> None:
    text = cut(Brief("Title", FRESH, {}, ("step",), [("a | b",)]), 4_000).text
    assert r"| a \| b |" in text


def test_the_list_of_tools_is_short_enough_to_be_read_first() -> None:
    listed = [
        tool.described().model_dump(mode="json", by_alias=True, exclude_none=True) for tool in TOOLS.values()
    ]
    assert len(json.dumps(listed, separators=(",", ":"))) <= 14_000, "4,000 tokens"
    assert "$ref" not in json.dumps(listed)
    for tool in listed:
        assert {"max_bytes", "offset"} <= tool["inputSchema"]["properties"].keys()

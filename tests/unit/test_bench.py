"""What the bench makes of its rounds, and what it holds the tables against."""

import pytest

from benchmarks.suite import report
from benchmarks.suite.results import Measurement, Spread, summarise
from benchmarks.suite.sections import rotated
from benchmarks.suite.workloads import again, distinct, expected, row_of, wrong_share

ENVIRONMENT = {
    "cpu": "C",
    "cores": 2,
    "memory_gib": 4,
    "kernel": "6",
    "python": "3.11",
    "postgresql": "18",
    "kafka": "4",
    "commit": "abcdef0123456789",
    "load_at_start": [0.1, 0, 0],
    "load_at_end": [1.5, 0, 0],
    "bench": {"rounds": 3, "events": 1000},
}


def one(line: str, rate: float, against: str | None = None, **more: float) -> Measurement:
    return Measurement("recorder", "distinct", line, {"rate": rate, **more}, against)


def test_a_spread_has_the_median_and_both_ends():
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)


def test_a_ratio_is_of_two_measurements_of_one_round():
    rounds = [
        [one("COPY", 100), one("ours", 50, "COPY")],
        [one("COPY", 10), one("ours", 9, "COPY")],
        [one("COPY", 40), one("ours", 28, "COPY")],
    ]
    copy, ours = summarise(rounds)
    assert copy.ratio is None
    assert ours.ratio == Spread(0.7, 0.5, 0.9, 3)  # of the medians it would be 28 / 40
    assert ours.values["rate"] == Spread(28, 9, 50, 3)


def test_what_has_no_floor_in_its_round_has_no_ratio():
    (ours,) = summarise([[one("ours", 50, "COPY")]])
    assert ours.ratio is None


def test_delays_are_put_in_relation_by_their_median():
    delays = [
        Measurement("freshness", "c", "floor", {"p50_ms": 2.0, "p99_ms": 9.0}),
        Measurement("freshness", "c", "row", {"p50_ms": 30.0, "p99_ms": 90.0}, "floor", "p50_ms"),
    ]
    assert summarise([delays])[1].ratio == Spread(15.0, 15.0, 15.0, 1)


def test_a_table_has_the_columns_that_something_fills():
    head, rows = report.table(summarise([[one("COPY", 1000.4), one("ours", 500.2, "COPY", wrong=0.0)]]))
    assert head == ["case", "what", "a second", "to its floor", "wrong rows"]
    assert rows == [
        ["distinct", "COPY", "1,000", "", ""],
        ["distinct", "ours (to COPY)", "500", "0.50", "0.0%"],
    ]


def test_the_spread_is_told_where_there_are_rounds():
    _, rows = report.table(summarise([[one("COPY", 1000)], [one("COPY", 3000)], [one("COPY", 1500)]]))
    assert rows == [["distinct", "COPY", "1,500 (1,000 to 3,000)"]]


def test_the_page_gets_the_tables_between_its_markers_again_and_again():
    text = report.markdown(summarise([[one("COPY", 1000)]]), ENVIRONMENT)
    page = report.put_between("before\n<!-- bench -->\nold\n<!-- /bench -->\nbehind\n", text)
    assert page.startswith("before\n<!-- bench -->\nC, 2 cores")
    assert "| distinct | COPY | 1,000 |" in page
    assert "old" not in page
    assert page.endswith("<!-- /bench -->\nbehind\n")
    assert report.put_between(page, text) == page


def test_a_page_without_markers_is_left_alone():
    with pytest.raises(ValueError, match="once, in this order"):
        report.put_between("a page", "text")


def test_the_real_page_has_the_markers():
    from benchmarks.bench import PAGE

    assert report.put_between(PAGE.read_text(), "x")


def test_lines_take_turns_at_being_first():
    assert [rotated("abc", number) for number in range(4)] == [
        list("abc"),
        list("bca"),
        list("cab"),
        list("abc"),
    ]


def test_events_that_come_again_change_no_row():
    first = distinct(800, 1)
    twice = again(first, 1)
    assert len(twice.events) == 1600
    assert expected(twice.events) == expected(first.events)
    assert (
        len({(e["event_id"], e["completed_at"]) for e in twice.events}) == 1200
    )  # half of them are the same


def test_rows_that_are_missing_or_of_a_later_event_are_wrong():
    events = distinct(800, 1).events
    right = {row_of(e)[1:4:2]: (e["completed_at"], row_of(e)[0]) for e in events}
    assert wrong_share(events, right) == 0
    (key, (at, of)), *rest = right.items()
    assert wrong_share(events, dict(rest)) == 1 / 800
    assert wrong_share(events, right | {key: (at + 1, of)}) == 1 / 800
    assert wrong_share(events, right | {("nobody", "nothing"): (at, of)}) == 1 / 801

"""What `dlq` prints of dead letters: all that people are shown of many, and little of it held."""

import json

import pytest
from aiokafka import ConsumerRecord

from services.completion_recorder.dead_letters import Failure, Letter, Source
from services.completion_recorder.letter_summary import Tally
from services.operator_cli.letter_tables import (
    Chosen,
    Listing,
    end_json,
    letter_json,
    show_summary,
)
from services.operator_cli.options import JsonList


def letter(at: int, error_class: str = "not-json") -> Letter:
    record = ConsumerRecord("t.dlq", 0, at, 0, 0, b"ann", None, None, 0, 0, ())
    return Letter(record, [Failure(Source("t", 0, at), at * 1_000, error_class, "an error")], [])


def test_of_many_letters_the_newest_are_shown_and_all_are_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    listing = Listing()
    for at in range(2_000):  # in another order than that of time
        listing.add([letter(at * 7 % 2_000, f"forged-{at}" if at % 2 else "not-json")])
    listing.show()
    shown = capsys.readouterr().out
    assert "not-json            1,000   1970-01-01T00:00:00Z" in shown
    assert "and 1,980 more; -o json lists them all" in shown
    ids = [line.split()[0] for line in shown.splitlines() if line.startswith(" 0:")]
    assert ids == [f"0:{at}" for at in range(1_999, 1_979, -1)]
    assert "(other classes)       901   1970-01-01T" in shown


def test_what_programs_get_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = Chosen()
    chosen.add(letter(at) for at in range(200_000))
    chosen.show({"matching": chosen.count})
    end_json()
    assert json.loads(capsys.readouterr().out) == {
        "matching": 200_000,
        "ids": [f"0:{at}" for at in range(200_000)],
    }
    for parts in ([], [[]], [[1]], [[1, 2], [], ["é"]]):
        found = JsonList()
        for part in parts:
            found.add(part)
        found.end()
        assert json.loads(capsys.readouterr().out) == [value for part in parts for value in part]


def test_records_of_any_time_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A producer that takes microseconds for milliseconds is in the year 58880."""
    listing = Listing()
    records = [letter(at) for at in (0, (2**63 - 1) // 1_000, -(2**63) // 1_000)]
    listing.add(records)
    listing.show()
    shown = capsys.readouterr().out
    assert "after 9999" in shown
    assert "before 0001" in shown
    assert {letter_json(one)["came_at"] for one in records} == {
        "1970-01-01T00:00:00Z",
        "after 9999",
        "before 0001",
    }


@pytest.mark.parametrize("width", [80, 120, 200])
def test_an_error_in_the_summary_has_the_width_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    error = "event: Invalid JSON: " + "EOF while parsing, " * 8
    place = Source("walkthrough.progress.v1", 2, 123_456)
    show_summary([Tally("/shop/installer", "not-json", 2, 0, 0, place, error)], as_json=False)
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if "EOF" in line]
    assert len(lines) <= -(-len(error) // (width - 45))

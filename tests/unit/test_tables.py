"""Tables of other people's texts: nothing in them is a formula, whatever a spreadsheet separates cells by."""

import csv
import io

import pytest

from services.analytics_api.models import Event, Freshness, Session
from services.analytics_api.tables import csv_of

PLAIN = ["a step", "a; b", "1 + 1 = 2", "a-b", "e@example.com", "first\nsecond", ""]
FORMULAS = [
    "=1+1",
    "  =1+1",
    "\t=1+1",
    "-1+1",
    "@SUM(A1)",
    "a;=1+1;",
    "a; +1;",
    "a\n=1+1",
    "a\r\n@x",
    ";=1+1",
    "\uff1d1+1",
    "a;\uff20SUM(A1)",
    'a;"=1+1;',
    'a; ""=1+1;',
    "a;\u3000=1+1",
    'a\n"+1\n',
]
#: As on any keyboard, and as a Japanese one writes them.
SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def titled(title: str) -> Session:
    event = Event.model_construct(**dict.fromkeys(Event.model_fields))
    fresh = Freshness.model_construct()
    return Session.model_construct(events=[event.model_copy(update={"step": title})], freshness=fresh)


@pytest.mark.parametrize("title", PLAIN)
def test_a_text_that_is_no_formula_stays_as_it_is(title: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_of(titled(title)), newline=""))
    assert title in row.values()


@pytest.mark.parametrize("title", FORMULAS)
def test_no_cell_begins_as_a_formula_with_commas_or_with_semicolons(title: str) -> None:
    written = csv_of(titled(title))
    for delimiter in ",;":
        for cells in csv.reader(io.StringIO(written, newline=""), delimiter=delimiter):
            assert not any(cell.lstrip().startswith(SIGNS) for cell in cells)

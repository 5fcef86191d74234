"""What is kept of what was refused: as little as is shown, and all the counts."""

from services.operations.tally import OTHER, Refused, Tally


def test_all_are_counted_and_told_and_the_first_of_each_kind_are_kept() -> None:
    told: list[Refused] = []
    tally = Tally(tell=told.append)
    for line in reversed(range(1, 10_001)):
        tally.add("not-json", f"line {line}", "no JSON")
    tally.add("too-early", "line 20000", "too early")
    assert (tally.total, tally.counts["not-json"], len(told)) == (10_001, 10_000, 10_001)
    shown = tally.first(20)
    assert [one.place for one in shown] == [*(f"line {n}" for n in range(1, 20)), "line 20000"]
    assert sum(map(len, tally._first.values())) == 21


def test_kinds_are_bounded_too() -> None:
    tally = Tally()
    for line in range(1_000):
        tally.add(f"kind {line}", f"line {line}", "bad")
    assert tally.total == 1_000
    assert len(tally.counts) <= 51
    assert tally.counts[OTHER] == 950

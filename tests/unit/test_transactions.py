"""How long the oldest transaction has been open, as far as somebody can see who may not see all."""

from services.sankey_aggregator.transactions import Open


def test_where_postgresql_tells_it_is_as_old_as_that() -> None:
    transactions = Open()
    assert transactions.oldest([("3/1", 40.0), ("4/9", 7.0)], 1000.0) == 40.0
    assert transactions.oldest([("4/9", 12.0)], 1005.0) == 12.0


def test_where_postgresql_does_not_tell_it_is_as_old_as_it_was_seen() -> None:
    transactions = Open()
    assert transactions.oldest([("3/1", None)], 1000.0) == 0.0
    assert transactions.oldest([("3/1", None), ("4/9", 2.0)], 1060.0) == 60.0
    assert transactions.oldest([("3/2", None)], 1065.0) == 0.0, "the same session has begun another"


def test_without_any_none_is_old() -> None:
    assert Open().oldest([], 1000.0) == 0.0

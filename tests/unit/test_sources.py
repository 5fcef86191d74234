"""The source of a record."""

import pytest

from services.runtime.sources import NO_SOURCE, source_of


@pytest.mark.parametrize(
    ("headers", "source"),
    [
        ([], NO_SOURCE),
        ([("ce_source", b"/shop/installer")], "/shop/installer"),
        ([("ce_source", "Zoë".encode())], "Zoë"),
        ([("ce_source", b"first"), ("other", b"x"), ("ce_source", b"last")], "last"),
        ([("CE_SOURCE", b"x")], NO_SOURCE),
        ([("ce_source", b"")], NO_SOURCE),
        ([("ce_source", None)], NO_SOURCE),
        ([("ce_source", b"\xff")], NO_SOURCE),
        ([("ce_source", b"a\x1b[2J")], NO_SOURCE),
        ([("ce_source", "a\u202eb".encode())], NO_SOURCE),
        ([("ce_source", b"x" * 100)], "x" * 100),
        ([("ce_source", b"x" * 101)], NO_SOURCE),
        ([("ce_source", ("💥" * 100).encode())], "💥" * 100),
        ([("ce_source", b"x" * 1_000_000)], NO_SOURCE),
    ],
)
def test_the_source_is_the_header_where_it_can_be_told(
    headers: list[tuple[str, bytes | None]], source: str
) -> None:
    assert source_of(headers) == source

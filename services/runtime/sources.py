"""Who sent a record, by its own word."""

from collections.abc import Iterable
from typing import Final

#: The header that names the source, and what a record without one has.
SOURCE_HEADER: Final = "ce_source"
NO_SOURCE: Final = "(no source)"
#: What sources are together, beyond the most that are told apart.
OTHERS: Final = "(other sources)"
MAX_SOURCE: Final = 100


def source_of(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """The source of a record: its `ce_source`, the last one where there are several.

    What is not UTF-8, not printable, empty or longer than 100 characters is no source: `(no source)`.
    """
    given = None
    for name, value in headers:
        if name == SOURCE_HEADER:
            given = value
    # A character has at most 4 bytes: what is longer need not be decoded.
    if not given or len(given) > 4 * MAX_SOURCE:
        return NO_SOURCE
    try:
        source = given.decode()
    except UnicodeDecodeError:
        return NO_SOURCE
    return source if source.isprintable() and len(source) <= MAX_SOURCE else NO_SOURCE

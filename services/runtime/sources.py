"""Who sent a record: the source that CloudEvents headers name."""

from collections.abc import Iterable
from typing import Final

#: Of records whose producer does not say who it is.
NO_SOURCE: Final = "(no source)"
#: Of those beyond the most that are told apart.
OTHERS: Final = "(others)"
_HEADER: Final = "ce_source"
_MOST_CHARACTERS: Final = 100


def source_of(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """The `ce_source` of a record, if it is text that can be shown; at most 100 characters of it.

    Source: CloudEvents 1.0.2, Kafka Protocol Binding, section 3.2.3.
    """
    for name, value in headers:
        if name == _HEADER and value:
            try:
                text = value[: 4 * _MOST_CHARACTERS].decode()
            except UnicodeDecodeError:
                return NO_SOURCE
            return text[:_MOST_CHARACTERS] if text.isprintable() else NO_SOURCE
    return NO_SOURCE

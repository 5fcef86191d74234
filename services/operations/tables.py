"""Tables of text: what separates their columns, as their first line shows it."""

import csv
from collections.abc import Collection
from typing import Final

SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def delimiter_of(head: str, wanted: Collection[str]) -> str:
    """By which of the usual separators the first line has the most columns that are wanted, or at all."""

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([head.strip("\r\n")], delimiter=delimiter), [])]
        except csv.Error:
            return 0, 0
        return len(set(wanted).intersection(names)), len(names)

    return max(SEPARATORS, key=found)


def told(delimiter: str) -> str:
    """What is said of a separator that nobody has named."""
    return f"its columns are separated by {SEPARATORS[delimiter]}; --delimiter says another one"

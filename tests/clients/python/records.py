"""What both senders share: the records of stdin."""

import sys
from base64 import b64decode
from collections.abc import Iterator


def records() -> Iterator[tuple[bytes | None, bytes, list[tuple[str, bytes]]]]:
    """Key, value and headers of each line: base64, apart by tabs; a key of "-" is none."""
    for line in sys.stdin:
        key, value, *rest = line.rstrip("\n").split("\t")
        names = [b64decode(name).decode(errors="replace") for name in rest[::2]]
        headers = list(zip(names, map(b64decode, rest[1::2]), strict=True))
        yield None if key == "-" else b64decode(key), b64decode(value), headers

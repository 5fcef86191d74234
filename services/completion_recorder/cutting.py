"""Dead letters of records that are too large for one: cut, with headers that say what they were.

Compressed, a record of many MB fits into the topic. Its letter holds the first part of the value; the record
itself stays at its offset for as long as Kafka keeps it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.consumers.positions import checksum
from services.runtime.kafka import DEAD_LETTER_MAX_BYTES, Record, dead_letter_headers
from services.runtime.producer import NULL

#: Headers of a letter that was cut, after all others: what was cut, and of the record as it was the bytes
#: of value and key (-1 is none), how many headers, the value's SHA-256, and the CRC-32 of key and value.
CUT_HEADERS: Final = (
    "stepstream-cut",
    "stepstream-cut-value-bytes",
    "stepstream-cut-key-bytes",
    "stepstream-cut-headers",
    "stepstream-cut-value-sha256",
    "stepstream-cut-crc32",
)
#: The parts that may be cut.
_PARTS: Final = frozenset({"value", "key", "headers"})
#: Of a key, and of headers, no more is kept where not all of the record fits.
_MOST_KEY_BYTES: Final = 64 * 1024
_MOST_HEADER_BYTES: Final = 256 * 1024
#: Around key, value and headers: the batch, the record, and what a record's lengths take.
_AROUND_BYTES: Final = 256
#: The lengths of a header's name and value, at most.
_LENGTHS_BYTES: Final = 10


@dataclass(frozen=True, slots=True)
class Cut:
    """What the record was whose letter was cut."""

    parts: tuple[str, ...]
    value_bytes: int
    key_bytes: int
    headers: int
    value_sha256: str
    checksum: int


def letter_of(record: Record, error_class: str, message: str) -> dict[str, Any]:
    """A record as a dead letter, byte for byte, but for one that does not fit."""
    headers = dead_letter_headers(record, error_class, message)
    key, value = record.key, record.value
    if size_of(key, value, headers) > DEAD_LETTER_MAX_BYTES:
        key, value, headers = _cut(record, headers[len(record.headers) :])
    return {"key": key, "value": NULL if value is None else value, "headers": headers}


def size_of(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """How many bytes a record has, or some fewer."""
    return _AROUND_BYTES + len(key or b"") + len(value or b"") + sum(_header_size(*h) for h in headers)


def _header_size(name: str, value: bytes | None) -> int:
    return _LENGTHS_BYTES + len(name.encode()) + len(value or b"")


def _cut(
    record: Record, ours: Sequence[tuple[str, bytes]]
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]:
    """Key, value and headers that fit: of the headers those that have room, in their order."""
    key, value = record.key, record.value
    kept, room = [], _MOST_HEADER_BYTES
    for header in record.headers:
        size = _header_size(*header)
        if size <= room:
            kept.append(header)
            room -= size
    key = key if key is None else key[:_MOST_KEY_BYTES]
    told = [*ours, *_told(record, sorted(_PARTS))]
    left = DEAD_LETTER_MAX_BYTES - size_of(key, None, [*kept, *told])
    value = value if value is None else value[:left]
    parts = [
        name
        for name, is_cut in (
            ("value", value != record.value),
            ("key", key != record.key),
            ("headers", len(kept) < len(record.headers)),
        )
        if is_cut
    ]
    return key, value, [*kept, *ours, *_told(record, parts)]


def _told(record: Record, parts: Sequence[str]) -> list[tuple[str, bytes]]:
    key, value = record.key, record.value
    values = (
        " ".join(parts),
        -1 if value is None else len(value),
        -1 if key is None else len(key),
        len(record.headers),
        hashlib.sha256(value or b"").hexdigest(),
        checksum(record),
    )
    return [(name, str(v).encode()) for name, v in zip(CUT_HEADERS, values, strict=True)]


def read_cut(headers: Sequence[tuple[str, bytes | None]]) -> Cut | None:
    """What the last headers of a letter say of its record; None where they say nothing of a cut.

    Only what comes after the recorder's own headers counts: those before are its producer's.
    """
    if tuple(name for name, _ in headers) != CUT_HEADERS:
        return None
    parts, value_bytes, key_bytes, number, digest, crc = (
        (value or b"").decode(errors="replace") for _, value in headers
    )
    try:
        said = Cut(tuple(parts.split()), int(value_bytes), int(key_bytes), int(number), digest, int(crc))
    except ValueError:
        return None
    return said if said.parts and _PARTS.issuperset(said.parts) else None

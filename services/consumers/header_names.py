"""Batches with header names that are not UTF-8: brokers take them from any client, and aiokafka does not.

Headers are not relied on: such a name is kept as text that shows its bytes.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from aiokafka.record.util import decode_varint

from services.consumers.unpacking import gzip_decode, lz4_decode, snappy_decode, zstd_decode

#: Base offset, attributes, delta of the last offset, first and last timestamp, number of records.
_HEADER: Final = struct.Struct(">q13xhiqq14xi")
_LOG_APPEND_TIME: Final = 0x08
_CODEC_MASK: Final = 0b111
_DECODERS: Final = (bytes, gzip_decode, snappy_decode, lz4_decode, zstd_decode)


class _Record(NamedTuple):
    """As aiokafka has a record."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


def read_records(batch: bytes) -> Iterator[_Record]:
    """The records of a whole batch of format 2, whose checksum was looked at.

    Raises:
        Exception: it is not what it says; each codec has errors of its own.
    """
    base, attributes, _, first, newest, count = _HEADER.unpack_from(batch)
    decode: Any = _DECODERS[attributes & _CODEC_MASK]
    source = _Source(bytearray(decode(batch[_HEADER.size :])))
    appended = bool(attributes & _LOG_APPEND_TIME)
    for _ in range(count):
        source.number()  # its length
        source.number()  # its attributes, of which there are none
        timestamp, offset = first + source.number(), base + source.number()
        key, value = source.field(), source.field()
        headers = [
            ((source.field() or b"").decode(errors="backslashreplace"), source.field())
            for _ in range(source.number())
        ]
        yield _Record(offset, newest if appended else timestamp, int(appended), key, value, headers)


class _Source:
    """Bytes, read from the front."""

    def __init__(self, data: bytearray) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        value, self._at = decode_varint(self._data, self._at)
        return value

    def field(self) -> bytes | None:
        size = self.number()
        if size < 0:
            return None
        self._at += size
        if self._at > len(self._data):
            raise ValueError("it ends in the middle of a record")
        return bytes(self._data[self._at - size : self._at])

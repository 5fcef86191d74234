"""Batches are unpacked within a bound: a few KB may hold hundreds of MB, and no header of a batch says so.

aiokafka unpacks a batch whole, whatever comes out. Its functions for that are replaced here, for all that
this process reads.
"""

import contextlib
import gzip
import io
import mmap
import struct
import sys
from typing import Any, Final

import aiokafka.codec as codecs
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint

with contextlib.suppress(ImportError):  # `check_codecs` says so
    import cramjam

#: A batch has no more bytes when it is unpacked.
MOST_BYTES: Final = 16 * 1024 * 1024
#: The records of a batch have no more headers: each takes two bytes of it, and this much memory.
MOST_HEADERS: Final = 300_000
_HEADER_BYTES: Final = 128
#: What is larger than batches of events are counts several times: each copy of it is as large.
_USUAL_BYTES: Final = 1024 * 1024
_LARGE_WEIGHT: Final = 4
_PIECE_BYTES: Final = 256 * 1024
#: The frames of snappy that Java's library writes: this, and its two versions; then blocks with their length.
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES: Final = 16
_BLOCK_LENGTH: Final = struct.Struct(">i")
#: What cramjam says where the room is full.
_FULL: Final = "whole buffer"


class TooLargeError(Exception):
    """A batch has more than it may have when it is unpacked."""

    def __init__(self, what: str = f"it unpacks to more than {MOST_BYTES:,} bytes") -> None:
        super().__init__(what)


class _Unpacked:
    """How many bytes came out in all and what their headers take, for `Budget`."""

    total = 0


unpacked: Final = _Unpacked()


def _gzip(payload: Any) -> bytes:
    pieces, size = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(payload)) as file:
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            if size > MOST_BYTES:
                raise TooLargeError
            pieces.append(piece)
    return b"".join(pieces)


def _streamed(codec: Any, payload: Any) -> bytes:
    """Unpacked into room that takes memory only as far as it is written to."""
    with mmap.mmap(-1, MOST_BYTES) as room:
        try:
            size = codec.decompress_into(payload, room)
        except cramjam.DecompressionError as error:
            if _FULL in str(error):
                raise TooLargeError from None
            raise
        return room[:size]


def _lz4(payload: Any) -> bytes:
    return _streamed(cramjam.lz4, payload)


def _zstd(payload: Any) -> bytes:
    return _streamed(cramjam.zstd, payload)


def _snappy(payload: Any) -> bytes:
    """A block of snappy says how large it is; more does not come out of it."""
    data = memoryview(payload)
    if bytes(data[: len(_XERIAL)]) != _XERIAL:
        return _block(data, MOST_BYTES)
    pieces, left, at = [], MOST_BYTES, _XERIAL_HEADER_BYTES
    while at < len(data):
        (length,) = _BLOCK_LENGTH.unpack_from(data, at)
        at += _BLOCK_LENGTH.size
        if not 0 < length <= len(data) - at:
            raise ValueError(f"a block of snappy says that it has {length:,} bytes")
        pieces.append(_block(data[at : at + length], left))
        left -= len(pieces[-1])
        at += length
    return b"".join(pieces)


def _block(data: memoryview, most: int) -> bytes:
    packed = bytes(data)
    if cramjam.snappy.decompress_raw_len(packed) > most:
        raise TooLargeError
    return bytes(cramjam.snappy.decompress_raw(packed))


def _counted(unpack: Any, *, has_headers: bool = True) -> Any:
    def counting(payload: Any) -> bytes:
        data: bytes = unpack(payload)
        weight = 1 if len(data) <= _USUAL_BYTES else _LARGE_WEIGHT
        unpacked.total += weight * len(data) + (_HEADER_BYTES * _count_headers(data) if has_headers else 0)
        return data

    return counting


def _count_headers(data: bytes) -> int:
    """How many headers records have, up to what is no record: whoever reads that will say so.

    Raises:
        TooLargeError: they have too many.
    """
    buffer, at, end, found = bytearray(data), 0, len(data), 0
    try:
        while at < end:
            length, at = decode_varint(buffer, at)
            following = at + length
            _, at = decode_varint(buffer, at)  # attributes
            _, at = decode_varint(buffer, at)  # its time
            _, at = decode_varint(buffer, at)  # its offset
            size, at = decode_varint(buffer, at)  # key
            if size > 0:
                at += size
            size, at = decode_varint(buffer, at)  # value
            if size > 0:
                at += size
            count, at = decode_varint(buffer, at)
            found += count
            if found > MOST_HEADERS:
                raise TooLargeError(f"its records have more than {MOST_HEADERS:,} headers")
            if count < 0 or following < at:
                break
            at = following
    except (IndexError, ValueError):
        pass
    return found


_UNPACK: Final = {"gzip": _gzip, "snappy": _snappy, "lz4": _lz4, "zstd": _zstd}
gzip_decode, snappy_decode, lz4_decode, zstd_decode = (_counted(unpack) for unpack in _UNPACK.values())


def _bound() -> None:
    """Replaces what both of aiokafka's readers of batches unpack with: formats from 2 on, and before."""
    for batch, has_headers in ((DefaultRecordBatch, True), (LegacyRecordBatch, False)):
        module = sys.modules[batch.__module__]
        for name, unpack in _UNPACK.items():
            if hasattr(module, f"{name}_decode"):
                setattr(module, f"{name}_decode", _counted(unpack, has_headers=has_headers))


if codecs.has_zstd():
    _bound()

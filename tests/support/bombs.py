"""Batches that unpack to far more than they take in a topic, as a hostile producer may send them."""

import struct
import time
import zlib
from collections.abc import Iterator
from typing import Final

import cramjam
from aiokafka import TopicPartition
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint

from services.consumers.reader import reader
from tests.support.world import World

#: In the order of the number that a batch's attributes hold.
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
_HEADER: Final = struct.Struct(">hiqqqhii")
_SNAPPY_HEADER: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
_PIECE: Final = 1024 * 1024


def _varint(number: int) -> bytes:
    out = bytearray()
    encode_varint(number, out.append)
    return bytes(out)


def record(number: int, value_bytes: int, headers: int = 0) -> Iterator[bytes]:
    """A record of a batch with a value of zeros, and with headers that have neither name nor value."""
    before = b"\x00" + _varint(0) + _varint(number) + _varint(-1) + _varint(value_bytes)
    after = _varint(headers)
    yield _varint(len(before) + value_bytes + len(after) + 2 * headers) + before
    for left in range(value_bytes, 0, -_PIECE):
        yield bytes(min(left, _PIECE))
    yield after + bytes(2 * headers)


def _packed(pieces: Iterator[bytes], codec: str) -> bytes:
    """Compressed as it comes: all of it is never in memory."""
    if codec == "gzip":
        packer = zlib.compressobj(wbits=31)
        return b"".join(map(packer.compress, pieces)) + packer.flush()
    if codec == "snappy":
        blocks = (bytes(cramjam.snappy.compress_raw(piece)) for piece in pieces if piece)
        return _SNAPPY_HEADER + b"".join(struct.pack(">i", len(block)) + block for block in blocks)
    if codec == "lz4":
        lz4 = cramjam.lz4.Compressor(level=1, content_checksum=False, block_linked=False)
        for piece in pieces:
            lz4.compress(piece)
        return bytes(lz4.finish())
    zstd = cramjam.zstd.Compressor()
    for piece in pieces:
        zstd.compress(piece)
    return bytes(zstd.finish())


def batch_of(records: Iterator[bytes], count: int, codec: str) -> bytes:
    """A batch of so many records."""
    now = int(time.time() * 1000)
    signed = _HEADER.pack(CODECS.index(codec), count - 1, now, now, -1, -1, -1, count) + _packed(
        records, codec
    )
    rest = struct.pack(">ibI", -1, 2, calc_crc32c(signed)) + signed
    return struct.pack(">qi", 0, len(rest)) + rest


def bomb(codec: str, value_bytes: int) -> bytes:
    """A batch of one record with so many zeros."""
    return batch_of(record(0, value_bytes), 1, codec)


async def produce_raw(world: World, partition: int, batch: bytes) -> None:
    """Hands a batch to the broker as it is."""
    tp = TopicPartition(world.settings.topic, partition)
    async with reader(world.settings) as consumer:
        await consumer.end_offsets([tp])  # it knows the leader then
        client = consumer._client
        request = ProduceRequest(
            transactional_id=None,
            required_acks=-1,
            timeout=60_000,
            topics=[(tp.topic, [(partition, batch)])],
        )
        answer = await client.send(client.cluster.leader_for_partition(tp), request)
        ((_, ((_, error, *_),)),) = answer.topics
        assert error == 0, error

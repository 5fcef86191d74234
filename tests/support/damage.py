"""Batches that nobody can read, written into a broker's files while it runs; and odd ones that it takes.

Kafka keeps no copy of a batch: it sends what is in the file.
"""

import gzip
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.support.cluster import Broker
from tests.support.world import Message

#: Where a batch of Kafka's format 2 has its fields.
_LENGTH, _MAGIC, _CRC, _ATTRIBUTES, _RECORDS = 8, 16, 17, 21, 61
_BEFORE_LENGTH = 12

Damage = Callable[[bytearray], None]


@dataclass(frozen=True)
class Stored:
    """A batch in a file: where it is, and its offsets; `until` is exclusive."""

    file: Path
    at: int
    size: int
    first: int
    until: int

    def read(self) -> bytes:
        """Its bytes."""
        with self.file.open("rb") as file:
            file.seek(self.at)
            return file.read(self.size)

    def write(self, batch: bytes) -> None:
        """Puts these bytes, as many, in its place."""
        assert len(batch) == self.size
        with self.file.open("r+b") as file:
            file.seek(self.at)
            file.write(batch)


def stored_batches(broker: Broker, topic: str, partition: int) -> list[Stored]:
    """The batches of a partition, in order."""
    folder = broker.folder / "data" / f"{topic}-{partition}"
    return [batch for file in sorted(folder.glob("*.log")) for batch in _batches(file)]


def _batches(file: Path) -> Iterator[Stored]:
    data, at = file.read_bytes(), 0
    while at + _RECORDS <= len(data):
        first, length, last = *struct.unpack_from(">qi", data, at), *struct.unpack_from(">i", data, at + 23)
        yield Stored(file, at, _BEFORE_LENGTH + length, first, first + last + 1)
        at += _BEFORE_LENGTH + length


def damaged(batch: Stored, damage: Damage) -> bytes:
    """Damages a batch; returns what it was."""
    before = batch.read()
    now = bytearray(before)
    damage(now)
    batch.write(bytes(now))
    return before


def _sign(batch: bytearray) -> None:
    """Makes the checksum fit."""
    struct.pack_into(">I", batch, _CRC, calc_crc32c(bytes(batch[_ATTRIBUTES:])))


def flipped_bit(batch: bytearray) -> None:
    """As a disk does it."""
    batch[_RECORDS + 9] ^= 0x10


def codec_of_tomorrow(batch: bytearray) -> None:
    """A codec whose number nobody knows yet."""
    batch[_ATTRIBUTES + 1] = batch[_ATTRIBUTES + 1] & ~0b111 | 5
    _sign(batch)


def magic_of_tomorrow(batch: bytearray) -> None:
    """A format that comes after today's; the checksum does not cover its number."""
    batch[_MAGIC] = 3


def broken_payload(batch: bytearray) -> None:
    """Says that it is compressed with zstd, and is not."""
    batch[_ATTRIBUTES + 1] = batch[_ATTRIBUTES + 1] & ~0b111 | 4
    _sign(batch)


def broken_record(batch: bytearray) -> None:
    """The last record ends in the middle of nowhere; those before it are whole."""
    del batch[-1]
    batch.append(0x7F)
    _sign(batch)


def length_beyond_the_end(batch: bytearray) -> None:
    """Its length says more than there is."""
    struct.pack_into(">i", batch, _LENGTH, 2**28)


def length_of_nothing(batch: bytearray) -> None:
    """Its length says less than a header has: its broker finds nothing behind it either."""
    struct.pack_into(">i", batch, _LENGTH, 3)


def with_odd_header_names(messages: Sequence[Message], *, compressed: bool) -> bytes:
    """A batch of these, in which each has a header whose name is not UTF-8.

    It is of now: Kafka removes what is older than a week when it next looks, every five minutes.
    """
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 2**20)
    now = int(time.time() * 1000)
    for number, message in enumerate(messages):
        builder.append(number, now + number, message.key, message.value, [("odd12", b"value")])
    batch = bytearray(bytes(builder.build()).replace(b"odd12", b"odd\xff\xfe"))
    if compressed:
        batch[_RECORDS:] = gzip.compress(bytes(batch[_RECORDS:]))
        batch[_ATTRIBUTES + 1] |= 1
        struct.pack_into(">i", batch, _LENGTH, len(batch) - _BEFORE_LENGTH)
    _sign(batch)
    return bytes(batch)

"""Files of events, or of records with key and headers, as what would come from Kafka.

A file is NDJSON, a JSON array, or objects one after another that are written over several lines; it may be
compressed with gzip. A line may be an event, or a record: as `stepstream dlq export` writes it, or
`kcat -J`. Values are kept byte for byte, but for one that is an object inside of a record.
"""

import base64
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, NamedTuple, cast

from aiokafka import ConsumerRecord

from services.runtime.errors import UsageError
from services.runtime.files import reading
from services.runtime.kafka import Record

_CHUNK: Final = 256 * 1024
#: A line or element is not read further than this, in bytes: no record of Kafka is so large.
MAX_VALUE: Final = 16 * 1024 * 1024
_GZIP: Final = b"\x1f\x8b"
_MARKS_OF_UTF_16: Final = (b"\xff\xfe", b"\xfe\xff")
_STRUCTURE: Final = re.compile(rb'["{}\[\],]')
_IN_STRING: Final = re.compile(rb'["\\]')


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a record beside its value."""

    key: bool = False
    headers: bool = False
    partition: bool = False
    timestamp: bool = False


class Item(NamedTuple):
    """A record, where it is for people, and what is known of it; its codec is None where nobody says it."""

    place: str
    record: Record
    known: Known
    codec: str | None = None


_VALUE_ALONE: Final = Known()


def read_items(
    stream: BinaryIO, name: str, progress: Callable[[int], None] = lambda _: None
) -> Iterator[Item]:
    """What a file holds, one by one, as `read_values` finds it."""
    for number, (place, value) in enumerate(read_values(stream, name, progress), start=1):
        yield read_item(value, place, number)


def read_values(
    stream: BinaryIO, name: str, progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, bytes]]:
    """The place of each line, or of each element or object, and its bytes; empty lines are left out.

    Args:
        stream: the file.
        name: what errors call it.
        progress: told how many bytes more were read.

    Raises:
        UsageError: it cannot be read, is UTF-16, or gzip that is broken or cut off.
    """
    chunks = _chunks(stream, name, progress)
    first = next(chunks, b"")
    if len(first) == 1:
        first += next(chunks, b"")
    chunks = _put_back(first, chunks)
    if first.startswith(_GZIP):
        chunks = _unzipped(chunks, name)
        first = next(chunks, b"")
        chunks = _put_back(first, chunks)
    if first.startswith(_MARKS_OF_UTF_16):
        raise UsageError(f"{name}: it is UTF-16: write it in UTF-8 (`iconv -f UTF-16 -t UTF-8`)")
    begin = first.lstrip()
    if begin.startswith(b"["):
        word, values = "element", _not_blank(split_values(chunks, is_array=True))
    elif begin.partition(b"\n")[0].strip() == b"{":
        word, values = "object", _not_blank(split_values(chunks, is_array=False))
    else:
        word, values = "line", _lines(chunks)
    for number, value in enumerate(values, start=1):
        if value := value.strip(b" \t\r\n"):
            yield f"{word} {number}", value


def _chunks(stream: BinaryIO, name: str, progress: Callable[[int], None]) -> Iterator[bytes]:
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    while chunk := reading(name, lambda: read(_CHUNK)):
        progress(len(chunk))
        yield chunk


def _put_back(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _unzipped(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The content of one gzip member after another."""
    member = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            left = chunk
            while left:
                if member.eof:
                    member = zlib.decompressobj(wbits=31)
                if plain := member.decompress(left, _CHUNK):
                    yield plain
                left = member.unconsumed_tail or member.unused_data
    except zlib.error as error:
        raise UsageError(f"{name}: its gzip is broken: {error}") from None
    if not member.eof:
        raise UsageError(f"{name}: its gzip is cut off: the file is not whole")


def _not_blank(values: Iterable[bytes]) -> Iterator[bytes]:
    return (value for value in values if value.strip())


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    held = _Held()
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            yield held.take(part)
        held.add(rest)
    yield held.take(b"")


class _Held:
    """What came of a value so far, up to the most that is read of one."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """One part more; past the most nothing is kept of it."""
        self._parts.append(part[: max(0, MAX_VALUE + 1 - self._size)])
        self._size += len(part)

    def take(self, last: bytes) -> bytes:
        """The value, with its last part."""
        self.add(last)
        value = b"".join(self._parts)
        self._parts, self._size = [], 0
        return value


def split_values(chunks: Iterable[bytes], *, is_array: bool) -> Iterator[bytes]:
    """The elements of a JSON array, or the objects that follow one another, byte for byte.

    What is no JSON is not found here: it is part of some value, which is then none.
    """
    splitter = _Splitter(is_array=is_array)
    for chunk in chunks:
        yield from splitter.feed(chunk)
    yield splitter.end()


class _Splitter:
    """Splits where a value ends, by brackets and commas outside of strings."""

    def __init__(self, *, is_array: bool) -> None:
        #: How deep the values are.
        self._level = 1 if is_array else 0
        self._depth = 0
        self._in_string = False
        #: Whether the next byte is escaped.
        self._skip = False
        self._held = _Held()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The values that end in a chunk."""
        at, begin, self._skip = int(self._skip), 0, False
        while found := (_IN_STRING if self._in_string else _STRUCTURE).search(chunk, at):
            char, at = found[0], found.end()
            if char == b"\\":
                at += 1
                self._skip = at > len(chunk)
            elif char == b'"':
                self._in_string = not self._in_string
            elif (ends := self._passes(char)) is not None:
                # Brackets are part of an object, and none of an element that is behind one.
                yield self._held.take(chunk[begin : at - ends])
                begin = at
        self._held.add(chunk[begin:])

    def end(self) -> bytes:
        """What is left."""
        return self._held.take(b"")

    def _passes(self, char: bytes) -> int | None:
        """How many bytes of a bracket or comma are not the value's, where one ends or begins with it."""
        before = self._depth
        if char == b",":
            return 1 if before == self._level == 1 else None
        if char in b"{[":
            self._depth += 1
            return 1 if before == 0 and self._level else None
        self._depth = max(0, before - 1)
        if self._level:
            return 1 if before <= 1 else None
        return 0 if before == 1 else None


# --- lines ----------------------------------------------------------------------------------------------


def read_item(value: bytes, place: str, number: int) -> Item:
    """An event, or the record that a line describes."""
    found = (
        _described(value) if b'"partition"' in value or b'"key' in value or b'"headers"' in value else None
    )
    if found is None:
        return Item(place, _record(number, value), _VALUE_ALONE)
    return _of_kcat(found, place, number) if "payload" in found else _of_export(found, place, number)


def _described(line: bytes) -> dict[str, Any] | None:
    """What describes a record; None for an event, and for what is no JSON."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or "type" in said:
        return None
    has_place = type(said.get("partition")) is int and type(said.get("offset")) is int
    if "payload" in said:
        return said if has_place else None
    has_more = has_place or not said.keys().isdisjoint({"key", "key_base64", "headers"})
    return said if has_more and not said.keys().isdisjoint({"value", "value_base64"}) else None


def _of_export(said: Mapping[str, Any], place: str, number: int) -> Item:
    headers = said.get("headers")
    pairs = [
        (str(header.get("name", "")), _bytes(header, "value"))
        for header in (headers if isinstance(headers, list) else ())
        if isinstance(header, dict)
    ]
    return _item(said, place, number, (_bytes(said, "key"), _bytes(said, "value")), pairs)


def _of_kcat(said: Mapping[str, Any], place: str, number: int) -> Item:
    given = said.get("headers")
    flat = given if isinstance(given, list) else []
    pairs = [(str(name), _text(value)) for name, value in zip(flat[::2], flat[1::2], strict=False)]
    return _item(said, place, number, (_text(said.get("key")), _text(said.get("payload"))), pairs)


def _item(
    said: Mapping[str, Any],
    place: str,
    number: int,
    pair: tuple[bytes | None, bytes | None],
    headers: list[tuple[str, bytes | None]],
) -> Item:
    key, value = pair
    partition, timestamp = _number(said.get("partition")), _number(said.get("ts", said.get("timestamp")))
    known = Known(
        key="key" in said or "key_base64" in said,
        headers="headers" in said,
        partition=partition is not None,
        timestamp=timestamp is not None,
    )
    record = _record(number, value, key, partition or 0, timestamp or 0, headers)
    return Item(place, record, known)


def _record(
    number: int,
    value: bytes | None,
    key: bytes | None = None,
    partition: int = 0,
    timestamp: int = 0,
    headers: Sequence[tuple[str, bytes | None]] = (),
) -> Record:
    given = cast("Sequence[tuple[str, bytes]]", headers)  # None is what Kafka has for a header without value
    return ConsumerRecord("", partition, number, timestamp, 0, key, value, None, 0, 0, given)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _bytes(said: Mapping[str, Any], name: str) -> bytes | None:
    """What is under a name, or in base64 under `NAME_base64`."""
    encoded = said.get(f"{name}_base64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:  # no base64, or not even ASCII
            return encoded.encode()
    return _text(said.get(name))


def _text(value: object) -> bytes | None:
    """A text, or what stands for its JSON, as bytes."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")

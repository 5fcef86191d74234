"""The body of a request that brings something: read within bounds, decompressed, and split into its items."""

import json
import sys
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

from pydantic_core import from_json

from services.analytics_api.problems import ProblemError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: A batch at most, as it is sent and decompressed; and one item of it.
MOST_BYTES: Final = 500 * 1024
MOST_ITEM_BYTES: Final = 32 * 1024
#: Half a megabyte of items that say something has no more.
MOST_ITEMS: Final = 5_000

JSON: Final = "application/json"
NDJSON: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_GZIP: Final = frozenset({"gzip", "x-gzip"})
#: The window that a client may use with the content coding `zstd`: 8 MB (RFC 9659).
_WINDOW_LOG: Final = 23
#: So many parts a body has that was compressed part by part; to begin with one takes its time.
_MOST_MEMBERS: Final = 1_000
#: What is read without a thread, which costs batches of a hundred events half of their rate.
_QUICK_BYTES: Final = 65_536
#: So many items, objects or arrays, lines and values such a body has at most; batches that mean something
#: have fewer. To judge ten times as many takes a tenth of a second.
QUICK_ITEMS: Final = 700
_QUICK_VALUES: Final = 5_000
#: What the fast parser says of what it refuses, and is JSON all the same.
_OTHER_JSON: Final = ("hex escape", "recursion limit")
#: In a rate, so many bytes count as an item; of a body that nothing can be made of, a tenth of that.
_ITEM_BYTES: Final = 1_024
_BAD_ITEM_BYTES: Final = 102
#: What a body begins with that is compressed.
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
#: What JSON has for blanks.
_BLANKS: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Item:
    """One of a batch: what the JSON says, or why it is none.

    `index` counts from 0, `line` from 1. Of NDJSON alone there is a line, and `raw`, that line as it came.
    """

    index: int
    value: Any
    line: int | None = None
    raw: bytes | None = None
    problem: str | None = None

    @property
    def place(self) -> dict[str, int]:
        """Where it stands, as an answer says it."""
        return {"index": self.index} if self.line is None else {"index": self.index, "line": self.line}


def too_large(what: str) -> ProblemError:
    """More than one request may bring."""
    return ProblemError(413, "Too large", f"{what}: send it in several requests")


def unreadable(what: str) -> ProblemError:
    """A body that nothing can be made of as a whole: nothing of it was taken."""
    return ProblemError(400, "Unreadable", f"{what}; nothing was taken")


def _unsupported(what: str) -> ProblemError:
    return ProblemError(415, "Not supported", what)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a body is, by its headers."""

    is_lines: bool
    encoding: str

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Kind":
        """The kind of a request's body; a length that is too large is refused before anything is read.

        Raises:
            ProblemError: 415, it is neither JSON nor NDJSON, or compressed in a way that is not known; 413.
        """
        media_type, _, parameters = headers.get("content-type", "").partition(";")
        media_type = media_type.strip().lower()
        if media_type != JSON and media_type not in NDJSON:
            raise _unsupported(
                f"the header Content-Type is {media_type[:100] or 'missing'}: send {JSON}, or "
                "application/x-ndjson with one a line"
            )
        charset = parameters.lower().replace('"', "").replace(" ", "")
        if charset.startswith("charset=") and charset not in {"charset=utf-8", "charset=utf8"}:
            raise _unsupported("JSON is UTF-8: leave the charset out")
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in _GZIP | {"identity", "", "zstd"}:
            raise _unsupported(f"the header Content-Encoding is {encoding[:100]}: send gzip or zstd, or none")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > MOST_BYTES:
            raise _too_many_bytes("the body has")
        return cls(media_type != JSON, encoding)


@dataclass(frozen=True)
class Body:
    """A body as it was sent, and what it is."""

    kind: Kind
    content: bytes

    @cached_property
    def is_quick(self) -> bool:
        """Whether it takes little time to read it: some milliseconds at worst."""
        content = self.content
        return (
            len(content) <= _QUICK_BYTES
            and self.kind.encoding in {"identity", ""}
            and content.count(b"{") + content.count(b"[") <= 2 * QUICK_ITEMS
            and content.count(b",") <= _QUICK_VALUES
            and not (self.kind.is_lines and content.count(b"\n") > QUICK_ITEMS)
        )

    @property
    def cost(self) -> int:
        """What it counts in a rate, by its length, however few items it has."""
        return cost_of(len(self.content))

    @property
    def cost_if_bad(self) -> int:
        """The same, if nothing can be made of it; compressed, it may have been as long as may be."""
        is_plain = self.kind.encoding in {"identity", ""}
        return (len(self.content) if is_plain else MOST_BYTES) // _BAD_ITEM_BYTES


def cost_of(length: int) -> int:
    """What a body of that length counts in a rate."""
    return length // _ITEM_BYTES


def _too_many_bytes(what: str) -> ProblemError:
    return too_large(f"{what} more than {MOST_BYTES:,} bytes, which are the most of a batch")


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    """A whole body as it was sent.

    Raises:
        ProblemError: 413; no more is read.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MOST_BYTES:
            raise _too_many_bytes("the body has")
        parts.append(chunk)
    return b"".join(parts)


def items_of(body: bytes, kind: Kind, name: str, most: int = MOST_ITEMS) -> list[Item]:
    """The items of a body, in order.

    Args:
        body: as it was sent.
        kind: what it is.
        name: what the items are, which is the name that a wrapper around them has: `events`.
        most: how many there may be.

    Raises:
        ProblemError: 400, it is no JSON as a whole, or has no items; 413.
    """
    plain = decompressed(body, kind.encoding)
    for magic, packed in _MAGIC.items():
        if plain.startswith(magic):
            raise unreadable(
                f"the body is compressed with {packed}: say so by the header Content-Encoding: {packed}"
            )
    items = _lines_of(plain, name, most) if kind.is_lines else _values_of(plain, name, most)
    if not items:
        raise unreadable(f"the body has no {name}")
    return items


def _lines_of(body: bytes, name: str, most: int) -> list[Item]:
    items: list[Item] = []
    for number, text in enumerate(body.split(b"\n"), 1):
        line = text.strip(_BLANKS)
        if not line:
            continue
        if len(items) == most:
            raise _too_many_items(name, most)
        index = len(items)
        try:
            items.append(Item(index, _parsed(line), number, line))
        except ValueError as error:
            problem = f"the line is no JSON: {error}{_behind(hint_of_joined(line))}"
            items.append(Item(index, None, number, line, problem))
    return items


def hint_of_joined(text: bytes) -> str:
    """Why several objects stand in one line, where they do."""
    return "`curl -d` joins lines: use --data-binary" if b"}{" in text else ""


def _behind(hint: str) -> str:
    return f"; {hint}" if hint else ""


def _values_of(body: bytes, name: str, most: int) -> list[Item]:
    try:
        value = _parsed(body)
    except ValueError as error:
        hint = _behind(hint_of_joined(body))
        if b"}\n{" in body or b"}\r\n{" in body:
            hint = " (one a line is application/x-ndjson)"
        raise unreadable(f"the body is no JSON: {error}{hint}") from None
    if isinstance(value, dict) and name in value:
        value = value[name]
        if not isinstance(value, list):
            raise unreadable(f"`{name}` is no array")
    elif isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise unreadable(f'the body is neither an object, nor an array, nor {{"{name}": […]}}')
    if len(value) > most:
        raise _too_many_items(name, most)
    return [Item(index, one) for index, one in enumerate(value)]


def _too_many_items(name: str, most: int) -> ProblemError:
    return too_large(f"the body has more than {most:,} {name}")


def _parsed(text: bytes) -> Any:
    """What JSON says.

    The fast parser refuses halves of surrogate pairs, and what is nested deep, which is JSON all the same: as
    a part of a batch it is that item's fault, and not the batch's.

    Raises:
        ValueError: it is no JSON, in words.
    """
    try:
        return from_json(text)
    except ValueError as error:
        if not any(other in str(error) for other in _OTHER_JSON):
            raise
        try:
            return json.loads(text.decode())
        except (ValueError, RecursionError):
            raise ValueError(str(error)) from None


# --- compression -----------------------------------------------------------------------------------------


def decompressed(body: bytes, encoding: str) -> bytes:
    """A body without its compression: no more is ever decompressed than may be taken.

    Raises:
        ProblemError: 400, it is not what the header says, or was cut off; 413.
    """
    if encoding in {"identity", ""} or not body:
        return body
    name = "zstd" if encoding == "zstd" else "gzip"
    parts: list[bytes] = []
    size = 0
    try:
        for part in _members(body, name):
            size += len(part)
            if size > MOST_BYTES:
                raise _too_many_bytes("decompressed, the body has")
            parts.append(part)
    except (zlib.error, zstd.ZstdError) as error:
        raise unreadable(f"the body is not compressed with {name}: {error}") from None
    except EOFError:
        raise unreadable(f"the body, compressed with {name}, is cut off") from None
    return b"".join(parts)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _new(name: str) -> "_Decompressor":
    if name == "zstd":
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
    return zlib.decompressobj(wbits=31)


def _members(body: bytes, name: str) -> Iterator[bytes]:
    """What each member, or frame, of a compressed body holds: one byte more than may be taken at most.

    Raises:
        EOFError: the last one has no end.
    """
    for _ in range(_MOST_MEMBERS):
        member = _new(name)
        yield member.decompress(body, MOST_BYTES + 1)
        if not member.eof:
            raise EOFError
        body = member.unused_data.lstrip(b"\0") if name == "gzip" else member.unused_data
        if not body:
            return
    raise unreadable(f"the body has more than {_MOST_MEMBERS:,} parts, each compressed by itself")

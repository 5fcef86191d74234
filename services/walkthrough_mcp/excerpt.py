"""Parts of a step's content that are no larger than an answer may be. Joined, they are the whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: No code point of UTF-8 is longer, so that each part gets on.
LEAST_BYTES = 4


@dataclass(frozen=True, slots=True)
class Excerpt:
    """One part of some texts: what of each text is in it, `part` of `parts`, from 1."""

    texts: Mapping[str, str]
    part: int
    parts: int


def excerpt(texts: Mapping[str, str], limit: int, part: int = 1) -> Excerpt:
    """A part of some texts, which follow one another.

    Args:
        texts: by name, in their order.
        limit: how large a part may be, in bytes of UTF-8; at least `LEAST_BYTES`.
        part: which one, from 1; of one behind the last, the last.

    A part never ends within a code point, and within a line only where that line alone is larger.
    """
    parts = list(_parts(texts, limit)) or [{}]
    part = min(max(part, 1), len(parts))
    return Excerpt(parts[part - 1], part, len(parts))


def _parts(texts: Mapping[str, str], limit: int) -> Iterator[dict[str, str]]:
    current: dict[str, str] = {}
    room = limit
    for name, text in texts.items():
        whole, start = text.encode(), 0
        while start < len(whole):
            end = _end(whole, start, room, may_split_line=not current)
            if end > start:
                current[name] = whole[start:end].decode()
                start, room = end, room - (end - start)
            if start < len(whole):
                yield current
                current, room = {}, limit
    if current:
        yield current


def _end(text: bytes, start: int, room: int, *, may_split_line: bool) -> int:
    """Where a piece of at most so many bytes ends: behind the whole, a line, or else a code point."""
    end = start + room
    if end >= len(text):
        return len(text)
    behind_line = text.rfind(b"\n", start, end) + 1
    if behind_line or not may_split_line:
        return max(behind_line, start)
    while text[end] & 0xC0 == 0x80:  # a code point goes on
        end -= 1
    return end

"""What a producer has probably done where a value is no event: for its dead letter, without content."""

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from pydantic_core import from_json

#: What a value begins with, and what that says.
_BEGINNINGS: Final = (
    (b"Obj\x01", "it is an Avro object container"),
    (b"\x1f\x8b", "it is compressed with gzip"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd"),
    (b"\x04\x22\x4d\x18", "it is compressed with lz4"),
    (b"\xff\x06\x00\x00sNaPpY", "it is compressed with snappy"),
    (b"\x82SNAPPY\x00", "it is compressed with snappy"),
    (b"\x78\x01", "it is compressed with zlib"),
    (b"\x78\x9c", "it is compressed with zlib"),
    (b"\x78\xda", "it is compressed with zlib"),
    (b"\xac\xed\x00\x05", "it is a serialized Java object"),
    (b"[object ", "it is what JavaScript makes of an object as text; send JSON.stringify of it"),
    (b"undefined", "it is JavaScript's undefined; send JSON"),
    (b"<", "it is XML or HTML; send JSON"),
    (b"/", "it begins with a comment; JSON has none"),
    (b"\xef\xbb\xbf", "it begins with a byte order mark; send UTF-8 without one"),
    (b"{'", "its quotes are single ones, as Python's repr writes them; JSON has double quotes"),
    (b"eyJ", "it is JSON in base64; send the JSON itself"),
)
#: What the parser says, and what that says.
_OF_PROBLEMS: Final = (
    ("EOF while parsing", "the text ends too early: it was perhaps cut off"),
    ("trailing characters", "there is something behind the first JSON value; a record holds one event"),
    ("hex escape", "it holds half of a surrogate pair: a text was perhaps cut in the middle of a character"),
    ("surrogate", "it holds half of a surrogate pair: a text was perhaps cut in the middle of a character"),
    ("recursion", "it is nested too deep: some 200 objects and arrays in one another are the most"),
)
#: What operators send, and no producer.
_OF_OPERATORS: Final = frozenset({"user-erased", "step-corrected"})
_COMPRESSION: Final = "; leave that to the producer's compression.type"
#: An event that is wrapped is under one of these names.
_WRAPPERS: Final = ("payload", "data", "value", "event", "message", "body", "record", "after")
#: Names that are told are of this kind; other ones could be content.
_A_NAME: Final = re.compile(r"[A-Za-z0-9_.\- ]{1,40}")
_A_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
#: Tue Nov 24 2026 09:00:00 GMT+0000 (Coordinated Universal Time)
_JAVASCRIPT: Final = re.compile(
    r"\w{3} (\w{3}) (\d\d) (\d{4}) (\d\d:\d\d:\d\d) GMT([+-]\d{4})(?: \([\w ]*\))?"
)
#: So many names that the contract does not know are looked at.
_NAMES: Final = 20
#: How alike a misspelt name is, from 0 to 1, as difflib measures.
_ALIKE: Final = 0.8
#: Times outside of these years are not guessed at, in milliseconds: the beginning of 2000, and of 2100.
_PLAUSIBLE_MS: Final = (946_684_800_000, 4_102_444_800_000)
#: Below the bound a number of today is in units of which so many milliseconds are one.
_UNITS: Final = ((1e11, 1000.0), (1e14, 1.0), (1e17, 1e-3), (1e20, 1e-6))


def likely(
    value: bytes, problems: Sequence[Mapping[str, Any]], fields: Mapping[str, Sequence[str]]
) -> list[str]:
    """The likely causes, the first one first; none where nothing is known.

    Args:
        value: the record's value.
        problems: pydantic's errors, not empty.
        fields: for each type of event the names of its fields.
    """
    kind = problems[0]["type"]
    if kind == "json_invalid":
        cause = _of_bytes(value, problems[0]["msg"])
        return [cause] if cause else []
    found = from_json(value)
    if not isinstance(found, dict):
        cause = _of_another_value(found)
        return [cause] if cause else []
    if kind == "union_tag_invalid":
        return [_of_type(found["type"], tuple(fields))]
    if kind == "union_tag_not_found":
        return list(_of_missing(found, ("type",), fields)) or [_types(fields)]
    missing = tuple(str(p["loc"][-1]) for p in problems if p["type"] == "missing")
    return [*_of_missing(found, missing, fields), *_of_fields(found, problems)]


def event_id(value: bytes) -> str | None:
    """The event id in a value that need not be an event: framed, encoded twice, wrapped, cut off or misnamed.

    In lower case; None where none can be seen that is a UUID.
    """
    if _is_utf_16(value):
        value = value.decode("utf-16-be" if value[0] == 0 else "utf-16", errors="replace").encode()
    # A frame or a mark in front is left out; a string that holds JSON begins with a quote.
    found: Any = value if value.startswith(b'"') else value[max(0, value.find(b"{", 0, 16)) :]
    try:
        while isinstance(found, str | bytes):
            found = from_json(found, allow_partial=True)
    except ValueError:
        return None
    inner = [held for _, held in _inner(found)] if isinstance(found, dict) else []
    for held in (found, *inner):
        for name, given in held.items() if isinstance(held, dict) else ():
            if _plain(name) == "eventid" and isinstance(given, str) and _A_UUID.fullmatch(given):
                return given.lower()
    return None


# --- no JSON --------------------------------------------------------------------------------------------


def _of_bytes(value: bytes, problem: str) -> str | None:
    for beginning, told in _BEGINNINGS:
        if value.startswith(beginning):
            return told + (_COMPRESSION if "compressed" in told else "")
    if _is_utf_16(value):
        return "it is UTF-16; send UTF-8"
    if frame := _frame(value):
        told, size = frame
        is_json = value[size:].startswith(b"{")
        behind = "JSON, which goes without the frame" if is_json else "perhaps Avro or Protobuf"
        return f"it begins with a schema registry's frame, {told}, and behind that is {behind}"
    if "EOF while parsing" in problem and not value.strip():
        return "it is white space"
    return next((told for part, told in _OF_PROBLEMS if part in problem), None) or _of_text(value)


def _of_text(value: bytes) -> str | None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        if value.lstrip().startswith((b"{", b"[")):
            return f"it is not UTF-8 from byte {error.start} on: perhaps Latin-1 or Windows-1252"
        return "it is no text: perhaps MessagePack, Protobuf or another binary form; send JSON"
    return None


def _frame(value: bytes) -> tuple[str, int] | None:
    """What a schema registry has put in front of a value, and its size in bytes."""
    if value[0] == 0 and len(value) > 5:
        schema = int.from_bytes(value[1:5], "big")
        if schema or value[5:6] == b"{":
            return f"schema id {schema}", 5
    # AWS Glue: version 3, how it is compressed, and a UUID.
    if value[0] == 3 and len(value) > 18 and value[1] in {0, 5}:
        return f"schema version {UUID(bytes=value[2:18])}", 18
    return None


def _is_utf_16(value: bytes) -> bool:
    """With a mark, or an object or array of ASCII without."""
    if value[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        return len(value) % 2 == 0
    return bool(re.match(rb"\x00[{\[]\x00[^\x00]|[{\[]\x00[^\x00]\x00", value))


# --- JSON that is no event ------------------------------------------------------------------------------


def _of_another_value(found: object) -> str | None:
    if isinstance(found, list):
        return f"it is an array of {len(found)}; a record holds one event"
    if not isinstance(found, str):
        return None
    if found.lstrip().startswith(("{", "[")):
        return "it is a string that holds JSON: it was encoded twice"
    return "it is a string that holds JSON in base64" if found.startswith("eyJ") else None


def _of_type(given: object, known: tuple[str, ...]) -> str:
    alike = _alike(_safe_names([given]), known) if isinstance(given, str) else {}
    return f"`{next(iter(alike))}` is perhaps meant" if alike else _types(known)


def _types(known: Iterable[str]) -> str:
    return f"there are {', '.join(kind for kind in known if kind not in _OF_OPERATORS)}"


def _of_missing(
    found: Mapping[str, Any], missing: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Under which other name a field is, or in what the event is wrapped."""
    known = {name for names in fields.values() for name in names}
    strange = _safe_names(name for name in found if name not in known)
    yield from _of_times_of_other_types(found, missing, fields)
    if renamed := _alike(strange, tuple(missing)):
        told = ", ".join(f"{name} is perhaps `{given}`" for name, given in renamed.items())
        yield f"names are other ones here: {told}"
    for wrapper, inner in _inner(found) if len(renamed) < len(missing) else ():
        held = isinstance(inner, str) and inner.lstrip().startswith("{")
        if held or (isinstance(inner, dict) and any(name in inner for name in missing)):
            yield f"the event is perhaps inside `{wrapper}`; send that alone" + (", as JSON" if held else "")
            return


def _of_times_of_other_types(
    found: Mapping[str, Any], missing: Sequence[str], fields: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Under the name of another type's time the time is, say `completed_at` for `skipped_at`."""
    own = fields.get(str(found.get("type")), ())
    others = {name for names in fields.values() for name in names if name.endswith("_at")} - set(own)
    given = next((name for name in found if name in others), None)
    wanted = next((name for name in missing if name.endswith("_at")), None)
    if given and wanted:
        yield f"you sent `{given}`; it is `{wanted}` in this type"


def _inner(found: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is under the names of wrappers, and in those under such names once more."""
    for wrapper in _WRAPPERS:
        inner = found.get(wrapper)
        yield wrapper, inner
        if isinstance(inner, dict):
            yield from ((f"{wrapper}.{within}", inner.get(within)) for within in _WRAPPERS)


def _safe_names(names: Iterable[object]) -> tuple[str, ...]:
    """The first of them that can be told."""
    told: list[str] = []
    for name in names:
        if isinstance(name, str) and _A_NAME.fullmatch(name):
            told.append(name)
            if len(told) == _NAMES:
                break
    return tuple(told)


@lru_cache(maxsize=512)
def _alike(given: tuple[str, ...], wanted: tuple[str, ...]) -> dict[str, str]:
    """For each wanted name the given one that is another way to write it, or nearly the same."""
    left = {_plain(name): name for name in reversed(given)}
    found: dict[str, str] = {}
    for cutoff in (1.0, _ALIKE):
        for name in wanted:
            if name not in found and (close := difflib.get_close_matches(_plain(name), left, 1, cutoff)):
                found[name] = left.pop(close[0])
    return {name: found[name] for name in wanted if name in found}


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


# --- fields ---------------------------------------------------------------------------------------------


def _of_fields(found: Mapping[str, Any], problems: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for problem in problems:
        name = str(problem["loc"][-1])
        given = found.get(name)
        if name.endswith("_at") and problem["type"] != "missing":
            told = _of_time(given)
            if told:
                yield f"{name} {told}"
        elif problem["type"] == "string_type" and type(given) is int:
            yield f"{name} is a number; ids are text, in quotes"
        elif name == "metadata" and isinstance(given, str) and given.lstrip().startswith("{"):
            yield "metadata is a string that holds JSON: it was encoded twice"


def _of_time(given: object) -> str | None:
    if isinstance(given, float) and not math.isfinite(given):
        return "is a number that JSON does not have, or too large"
    ms, zone = _milliseconds(given)
    form, instead = _form_of_number(given)
    would_be = "" if ms is None else f"would be {ms} in milliseconds{zone}"
    return (" and ".join(filter(None, (form, would_be))) + instead) or None


def _form_of_number(given: object) -> tuple[str, str]:
    """How a number is written that is no whole one, and what to do about that."""
    if isinstance(given, float):
        return ("is written with a fraction or an exponent" if given.is_integer() else "has a fraction"), ""
    try:
        is_number = isinstance(given, str) and len(given) <= 80 and math.isfinite(float(given))
    except ValueError:
        is_number = False
    return ("is text", ": send it without quotes") if is_number else ("", "")


def _milliseconds(given: object) -> tuple[int | None, str]:
    """A time in milliseconds since the epoch, where one can be seen in it, and what that supposes."""
    if isinstance(given, str) and len(given) <= 80:
        try:
            return _milliseconds(float(given))
        except ValueError:
            return _of_iso(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e20:
        return None, ""
    unit = next(unit for bound, unit in _UNITS if given < bound)
    return _plausible(int(given) if unit == 1 else int(given * unit)), ""


def _of_iso(text: str) -> tuple[int | None, str]:
    try:
        moment = _parsed(text)
        utc = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return _plausible(round(utc.timestamp() * 1000)), "" if moment.tzinfo else ", if it is in UTC"
    except (ValueError, OverflowError, TypeError, IndexError):
        return None, ""


def _parsed(text: str) -> datetime:
    """A time as RFC 3339, as HTTP writes it, or as JavaScript does.

    Raises:
        ValueError: it is none.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        if found := _JAVASCRIPT.fullmatch(text):
            return datetime.strptime(" ".join(found.groups()), "%b %d %Y %H:%M:%S %z")
        return parsedate_to_datetime(text)


def _plausible(ms: int) -> int | None:
    return ms if _PLAUSIBLE_MS[0] <= ms < _PLAUSIBLE_MS[1] else None

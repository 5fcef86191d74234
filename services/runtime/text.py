"""How counts, times and durations are written in what people read."""

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

#: What has a calendar date, in milliseconds: the beginning of the year 1, and the end of 9999.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999

#: What JSON leaves as it is and some terminals obey: DEL, and the controls beyond ASCII.
_CONTROLS: Final = re.compile("[\x7f-\x9f]")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON for programs, and for terminals: no control character is sent as it is."""
    text = json.dumps(value, default=str, ensure_ascii=False, indent=indent)
    return _CONTROLS.sub(lambda control: f"\\u{ord(control[0]):04x}", text)


def format_time(ms: float | None) -> str:
    """A time in milliseconds as RFC 3339 in UTC, to the second.

    A producer may give its records any: outside of the years 1 to 9999 it is `before 0001` or `after 9999`.
    """
    if ms is None:
        return ""
    if not _FIRST_MS <= ms <= _LAST_MS:
        return "after 9999" if ms > 0 else "before 0001"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """A duration in its two largest units."""
    parts = []
    rest = int(seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"


def plural(count: int, noun: str) -> str:
    """A number and its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

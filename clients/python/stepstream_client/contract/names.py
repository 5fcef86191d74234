# Written by `make generate` from schemas/names.py.
"""Which field is meant by a name that is none: written otherwise, or what others call the same."""

import difflib
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

_PERSON: Final = ("distinct_id", "mcp_server_user_id")
_SESSION: Final = ("session_id", "mcp_server_session_id")
_TIME: Final = ("completed_at", "started_at", "shown_at", "skipped_at")
#: What others call it, in letters alone.
_CALLED: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(("userid", "user", "personid", "person", "customerid", "visitorid"), _PERSON),
    **dict.fromkeys(("session", "mcpsessionid", "sid"), _SESSION),
    **dict.fromkeys(("serverid", "server"), ("mcp_server_id",)),
    **dict.fromkeys(("walkthrough", "guideid", "tourid"), ("walkthrough_id",)),
    **dict.fromkeys(("step",), ("step_id",)),
    **dict.fromkeys(("uuid", "messageid"), ("event_id",)),
    "id": ("event_id", "distinct_id"),
    **dict.fromkeys(("timestamp", "time", "at", "ts", "occurredat", "happenedat"), _TIME),
    **dict.fromkeys(("meta", "properties", "props"), ("metadata",)),
    **dict.fromkeys(("eventtype", "kind", "event"), ("type",)),
}
#: How alike two names are at least that are nearly the same.
_ALIKE: Final = 0.85


#: So many names that nobody knows are looked at, of so many characters at most.
_NAMES: Final = 20
_LONGEST: Final = 40


def hints(given: Iterable[object], missing: Iterable[str], known: Container[object]) -> list[str]:
    """Which names that are given, and that nobody knows, perhaps stand for the fields that are missing.

    Args:
        given: the names of an object.
        missing: the fields that it lacks.
        known: names that stand for themselves.
    """
    wanted = tuple(sorted(missing))
    strange = (
        name for name in given if isinstance(name, str) and name not in known and len(name) <= _LONGEST
    )
    looked_at = [name for _, name in zip(range(_NAMES), strange, strict=False)]
    found = ((name, meant_by(name, wanted)) for name in looked_at)
    return [f"`{name}` is perhaps {' or '.join(meant)}" for name, meant in found if meant]


@lru_cache(maxsize=1_024)
def meant_by(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the known fields a name may stand for; none where nobody can tell."""
    by_letters = {_letters(field): field for field in known}
    letters = _letters(name)
    if letters in by_letters:
        return (by_letters[letters],)
    if called := tuple(field for field in _CALLED.get(letters, ()) if field in by_letters.values()):
        return called
    return tuple(by_letters[one] for one in difflib.get_close_matches(letters, by_letters, 1, _ALIKE))


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())

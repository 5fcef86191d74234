"""Which field is meant by a name that is none: written otherwise, or what others call the same."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
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
    **dict.fromkeys(("id", "uuid", "messageid"), ("event_id",)),
    **dict.fromkeys(("timestamp", "time", "at", "ts", "occurredat", "happenedat"), _TIME),
    **dict.fromkeys(("meta", "properties", "props"), ("metadata",)),
    **dict.fromkeys(("eventtype", "kind", "event"), ("type",)),
}
#: How alike two names are at least that are nearly the same.
_ALIKE: Final = 0.85


def meant_by(name: str, known: Iterable[str]) -> tuple[str, ...]:
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

"""What agents may write for an id: a title or name that is nearly right, of what their organization has."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context, Store
from services.runtime.titles import Titles, one_line

#: Arguments that hold one step, several, or steps behind a colon.
_STEP: Final = ("start_at", "end_at", "next_step")
_STEPS: Final = ("exclude", "step", "from_step")
_BEHIND_COLON: Final = ("through", "path")
#: Of these only what is behind the colon of `did:` and `not_did:` is a step.
_SEGMENTS: Final = ("segment", "segment_a", "segment_b")
_DID: Final = ("did:", "not_did:")
_SERVERS: Final = ("server", "server_a", "server_b")
#: Longer names are nobody's, and so many of one argument are looked up.
_MOST: Final = 500
_MOST_NAMES: Final = 200
#: So many names of one call that are no ids: each is looked up among all titles, while all others wait.
_MOST_LOOKED_UP: Final = 20
#: So many are named where several may be meant.
_MOST_TOLD: Final = 10


class _Lookups:
    """Counts the names of one call that are compared with titles."""

    def __init__(self) -> None:
        self._left = _MOST_LOOKED_UP

    def count(self, where: str) -> None:
        """Counts one.

        Raises:
            ProblemError: there were too many.
        """
        if not self._left:
            raise unanswerable(f"more than {_MOST_LOOKED_UP} names are no ids; name the rest by id", where)
        self._left -= 1


class _Known:
    """Ids with titles, among which the names of one call are looked up."""

    def __init__(self, known: Sequence[tuple[str, str]]) -> None:
        self.known = known
        self.ids = {identifier for identifier, _ in known}
        self.titles = Titles([title for _, title in known])


async def with_walkthrough_and_servers(
    store: Store, organization: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Arguments with ids for the names of a walkthrough and of servers; what means nothing stays as it is.

    Raises:
        ProblemError: a name means several, or there are too many that are no ids.
    """
    found, lookups = dict(arguments), _Lookups()
    if "walkthrough_id" in found:
        known = _Known([(row["id"], row["title"]) for row in await store.titles(organization)])
        found["walkthrough_id"] = _found(lookups, "walkthrough_id", known, found["walkthrough_id"])
    if any(found.get(name) for name in _SERVERS):
        servers = await store.servers(organization)
        slugs = {server.slug: server.id for server in servers}
        known = _Known([(server.id, server.name) for server in servers])
        for name in _SERVERS:
            if name in found:
                found[name] = _each(found[name], partial(_server, lookups, name, slugs, known))
    return found


def with_steps(context: Context, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments with ids for the titles of steps; what means nothing stays as it is.

    Raises:
        ProblemError: a title means several, or there are too many that are no ids.
    """
    known = _Known([(step.id, step.title) for step in context.steps])
    found, lookups = dict(arguments), _Lookups()
    for name in _STEP:
        if name in found:
            found[name] = _found(lookups, name, known, found[name])
    for name in _STEPS:
        if name in found:
            found[name] = _each(found[name], partial(_found, lookups, name, known))
    for name in _BEHIND_COLON:
        if name in found:
            found[name] = _each(found[name], partial(_found_behind_colon, lookups, name, known))
    for name in _SEGMENTS:
        if name in found:
            found[name] = _each(found[name], partial(_found_in_segment, lookups, name, known))
    return found


def _each(given: Any, find: Callable[[str], Any]) -> Any:
    """Of a list, or what should be one; validation judges what is none."""
    if isinstance(given, str):
        return [find(given)]
    if not isinstance(given, list) or len(given) > _MOST_NAMES:
        return given
    return [find(text) if isinstance(text, str) else text for text in given]


def _server(lookups: _Lookups, where: str, slugs: Mapping[str, str], known: _Known, given: str) -> Any:
    return slugs.get(given) or _found(lookups, where, known, given)


def _found_behind_colon(lookups: _Lookups, where: str, known: _Known, text: str) -> str:
    before, colon, step = text.partition(":")
    return f"{before}:{_found(lookups, where, known, step)}" if colon else text


def _found_in_segment(lookups: _Lookups, where: str, known: _Known, text: str) -> str:
    return _found_behind_colon(lookups, where, known, text) if text.startswith(_DID) else text


def _found(lookups: _Lookups, where: str, known: _Known, given: Any) -> Any:
    if not isinstance(given, str) or len(given) > _MOST or given in known.ids:
        return given
    lookups.count(where)
    places = known.titles.meant(given)
    if len(places) > 1:
        several = [known.known[place] for place in places[:_MOST_TOLD]]
        told = [f"“{one_line(title, 60)}” ({identifier})" for identifier, title in several]
        rest = f", and {len(places) - _MOST_TOLD} more" if len(places) > _MOST_TOLD else ""
        raise unanswerable(f"several may be meant: {', '.join(told)}{rest}; name one by id", where)
    return known.known[places[0]][0] if places else given

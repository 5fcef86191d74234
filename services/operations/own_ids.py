"""Events in the form of HTTP, by ids of their organization's own, as what Kafka would get of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from pydantic_core import from_json, to_json

from services.analytics_api.registering import find_people, find_servers, own_session_id, problem_of_own_id
from services.operations.event_files import Item
from services.runtime.database import Connection

_USER, _SESSION, _SERVER = "mcp_server_user_id", "mcp_server_session_id", "mcp_server_id"
#: The organization's own name of something, by the field of the contract.
OWN: Final = {_USER: "distinct_id", _SESSION: "session_id"}
#: No id of the platform: stands for what there is not.
_NOBODY: Final = "?"


class Named(NamedTuple):
    """An item by the platform's ids, and what it calls the fields that were named otherwise."""

    item: Item
    names: Mapping[str, str]


async def by_platform_ids(db: Connection, organization: str, items: Sequence[Item]) -> list[Named]:
    """Items with the ids here in the place of those of an organization's own; others stay as they are."""
    given = [_fields_of(item) for item in items]
    own = {id_ for one in given if one is not None and (id_ := _own_id(one, _USER)) is not None}
    people = await find_people(db, organization, own)
    servers = await find_servers(db, organization, (), None)
    named = []
    for item, one in zip(items, given, strict=True):
        if one is None:
            named.append(Named(item, {}))
            continue
        names = {name: own for name, own in OWN.items() if _own_id(one, name) is not None}
        made = dict(one)
        if _USER in names:
            made[_USER] = people.get(one[OWN[_USER]], _NOBODY)
        if _SESSION in names:
            made[_SESSION] = own_session_id(organization, one[OWN[_SESSION]])
        if _SERVER not in one and servers.only is not None:
            made[_SERVER] = servers.only
        named.append(Named(item._replace(record=replace(item.record, value=to_json(made))), names))
    return named


def is_of_http(value: bytes | None) -> bool:
    """Whether a value has an id of its organization's own in the place of the platform's."""
    found = _parsed(value)
    return found is not None and any(own in found and name not in found for name, own in OWN.items())


def _fields_of(item: Item) -> dict[str, Any] | None:
    """The fields of an item that leaves something to the HTTP route; None of any other."""
    found = _parsed(item.record.value)
    if found is None or all(name in found for name in (*OWN, _SERVER)):
        return None
    return found


def _parsed(value: bytes | None) -> dict[str, Any] | None:
    try:
        found = from_json(value or b"")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _own_id(fields: Mapping[str, Any], name: str) -> str | None:
    own = fields.get(OWN[name])
    is_one = name not in fields and isinstance(own, str) and problem_of_own_id(own) is None
    return own if is_one else None

"""What the database has of the events of a batch; and the outbox, where they wait while Kafka is away."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from services.analytics_api import registering
from services.analytics_api.intake.sending import Outgoing
from services.analytics_api.intake.verdicts import Found, Holder, Read, Wanted
from services.runtime.database import Connection, load_queries

SQL: Final = dict(load_queries(__file__))
_PEOPLE: Final = registering.SQL["find_people"].rstrip("; \n")
_USERS: Final = registering.SQL["known_users"].rstrip("; \n").replace("$2", "$3")
SQL["find_references"] = (
    f"with people as (\n{_PEOPLE}\n),\nusers as (\n{_USERS}\n)\n" + SQL["find_references"]
)
#: What the ids of rows begin with.
_PREFIXES: Final = {"step-completed": "wtsc_", "walkthrough-started": "wtst_"}
#: Completions that do not count because an earlier one does.
_LATER: Final = "later"


async def find_references(
    db: Connection, organization: str, wanted: Wanted, allowed: Collection[str] | None
) -> Found:
    """What an organization has of what events refer to: one round trip.

    `allowed` are the servers of the key; None is each of the organization.
    """
    rows = await db.fetch(
        SQL["find_references"],
        organization,
        list(wanted.distinct_ids),
        list(wanted.users),
        list(wanted.sessions),
        list(wanted.servers),
        list(wanted.walkthroughs),
        list(wanted.steps),
        ["wtsc_" + event_id for event_id in wanted.completions],
        ["wtst_" + event_id for event_id in wanted.starts],
        wanted.only_server,
        None if allowed is None else list(allowed),
    )
    found, only = Found(), []
    holders: list[tuple[str, str, Holder]] = []
    for kind, id_, one, two, at in rows:
        if kind == "people":
            found.people[id_] = one
            found.users.add(one)
        elif kind == "users":
            found.users.add(id_)
        elif kind == "sessions":
            found.sessions[id_] = one, two
        elif kind == "servers":
            found.servers[id_] = one
        elif kind == "only":
            only.append((id_, one))
        elif kind == "walkthroughs":
            found.walkthroughs.add(id_)
        elif kind == "steps":
            found.steps[id_] = one
        else:
            holders.append((kind, id_, Holder(one, two, at)))
    found.holders = _holders(holders)
    if len(only) == 1:
        ((found.only_server, slug),) = only
        found.servers[found.only_server] = slug
    return found


def _holders(rows: Iterable[tuple[str, str, Holder]]) -> dict[tuple[str, str], Holder]:
    """Whose the ids are, by type and id: where a completion that counts has one, too, it is that one's."""
    found = {}
    for kind, id_, holder in sorted(rows, key=lambda row: row[0] != _LATER):
        type_ = "step-completed" if kind == _LATER else kind
        found[type_, id_.removeprefix(_PREFIXES[type_])] = holder
    return found


async def find_surpassed(db: Connection, reads: Sequence[Read]) -> set[int]:
    """Those of these completions and starts that change nothing, by index: see the statement."""
    rows = [
        (r.item.index, kind, *r.of_what, r.event.happened_at, _PREFIXES[kind] + r.event.event_id)
        for r in reads
        for kind in (r.event.type,)
    ]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return {row["number"] for row in await db.fetch(SQL["find_surpassed"], *columns)}


async def put_in_outbox(db: Connection, events: Sequence[Outgoing]) -> None:
    """Writes events into the outbox, in their order."""
    rows = [(e.key.decode(), e.value.decode(), e.headers_as_json(), e.type) for e in events]
    await db.execute(SQL["put_in_outbox"], *(list(column) for column in zip(*rows, strict=True)))


async def count_outbox(db: Connection, most: int) -> int:
    """How many events wait in the outbox, as far as it matters whether they are more than `most`."""
    return int(await db.fetchval(SQL["count_outbox"], most))

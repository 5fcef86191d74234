"""Sources of two organizations, good and bad: what each organization may see of what is refused."""

import json
import time
from typing import Any

from tests.support.crowd import FOREIGN
from tests.support.world import RECORDER, Message, World, completed, eventually

OURS: dict[str, Any] = {"mcp_server_id": "srv_1"}
THEIRS: dict[str, Any] = {
    "mcp_server_id": FOREIGN["server"],
    "walkthrough_id": FOREIGN["walkthrough"],
    "mcp_server_session_id": FOREIGN["session"],
}
GARBAGE = b'{"type": "step-completed", "card": "4111", "amount": 12}'


def sent(source: str | None, value: bytes | dict[str, Any], key: bytes | None = b"k") -> Message:
    given = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Message(key, given, [] if source is None else [("ce_source", source.encode())])


def step(source: str | None, person: str, of_step: str, **of: Any) -> Message:
    return sent(source, completed(person, of_step, int(time.time() * 1000), **of), person.encode())


async def _two_organizations(world: World) -> None:
    """Ours offers a walkthrough on srv_1; theirs has one of its own."""
    await world.offer()
    await world.people(["ann"])
    await world.db.execute(
        """
        insert into organization (id, name, created_at) values ('org_b', 'b', now());
        insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)
        values ('srv_b', 'org_b', 'srv_b', 'x', 'srv_b');
        insert into walkthroughs (id, organization_id, title, status) values ('wt_b', 'org_b', 'b', 'published');
        insert into walkthrough_steps (id, walkthrough_id, title, content_fields)
        values ('b_1', 'wt_b', 'b 1', '{}');
        insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ('b', 'srv_b', 'wt_b');
        """
    )
    await world.people(["bea"], "srv_b")


#: /ours sends nothing of anybody else's, and most of it without a key.
OF_OURS = [
    *[step("/ours", "ann", name, **OURS) for name in "abcde"],
    *[sent("/ours", GARBAGE, None) for _ in range(20)],
    sent("/ours", b"no json"),
    # Of one class, and only one of them names somebody.
    sent("/ours", {"type": "x"}),
    sent("/ours", {"type": "x", "mcp_server_id": "srv_1"}),
    *[step("/ours", "nobody", "a", **OURS) for _ in range(2)],
]
MESSAGES = [
    *OF_OURS,
    # /shared is both organizations', and what says nothing of who sent it is everybody's.
    *[step(source, "ann", "a", **OURS) for source in ("/shared", None)],
    *[step(source, "bea", "b_1", **THEIRS) for source in ("/shared", None)],
    *[sent(source, b"garbage") for source in ("/shared", None)],
    *[step(source, "nobody", "a", **OURS) for source in ("/shared", None)],
    *[step("/shared", "nobody", "b_1", **THEIRS) for _ in range(3)],
    # Of /blended only ours was recorded; what was refused says that it is theirs, too.
    step("/blended", "ann", "b", **OURS),
    step("/blended", "nobody", "b_1", **THEIRS),
    sent("/blended", b"garbage"),
    # /theirs is theirs, and names us once. Nothing of /stranger was ever recorded.
    step("/theirs", "bea", "b_1", **THEIRS),
    sent("/theirs", b"garbage"),
    step("/theirs", "nobody", "a", **OURS),
    sent("/stranger", b"garbage"),
]
#: Readable events of /ours name one organization, and those of four others name both.
ORGANIZATIONS = 9


async def refuse(world: World) -> None:
    """Fills the database, and has the recorder read all of the messages."""
    await _two_organizations(world)
    await world.produce(MESSAGES)
    world.start(RECORDER)

    async def is_counted() -> bool:
        counted = await world.db.fetchrow(
            """
            select
              (select coalesce(sum(events), 0) from event_sources) as events,
              (select count(*) from source_organizations) as organizations
            """
        )
        return tuple(counted) == (len(MESSAGES), ORGANIZATIONS)

    await eventually(is_counted, "all events are recorded and counted, and whose sources they are is known")

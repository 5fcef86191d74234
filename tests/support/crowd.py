"""People in a walkthrough over two servers, some weeks of them, and a second organization beside them."""

import random
import time
from typing import Any

from tests.support.figures import DAY
from tests.support.world import World, completed

WALKTHROUGH, STEPS = "wt_a", ("a", "b", "c", "d", "e")
SERVERS = ("srv_1", "srv_2")
#: What belongs to somebody else.
FOREIGN = {"walkthrough": "wt_b", "server": "srv_b", "session": "s_bea", "person": "bea"}


async def gather(world: World, people: int = 160, seed: int = 3) -> None:
    """Fills the database, and counts."""
    for server in SERVERS:
        await world.offer(WALKTHROUGH, STEPS, server)
    chance = random.Random(seed)
    now = int(time.time() * 1000)
    events: list[dict[str, Any]] = []
    starts: list[tuple[Any, ...]] = []
    names = [f"u{i:03}" for i in range(people)]
    for server in SERVERS:
        await world.people([n for i, n in enumerate(names) if SERVERS[i % 2] == server], server)
    await world.db.executemany(
        "insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date,"
        " mcp_server_user_id) values ('later_' || $1, 'srv_1', current_date, $1)",
        [(name,) for name in names],
    )
    for i, name in enumerate(names):
        at = now - 30 * DAY + chance.randrange(28 * DAY)
        is_started = chance.random() < 0.7
        if is_started:
            starts.append((f"wtst_{name}", name, WALKTHROUGH, SERVERS[i % 2], f"s_{name}", at))
        order = list(STEPS)
        if chance.random() < 0.4:
            x, y = chance.sample(range(5), 2)
            order[x], order[y] = order[y], order[x]
        stay = chance.choice(
            [0, 1, 2, 2, 3, 3, 3, 5, 5, 5, 5] if i % 2 else [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5]
        )
        session = f"s_{name}"
        for step in order[: stay if is_started else max(stay, 1)]:
            pause = chance.choice(
                [chance.randrange(60_000), chance.randrange(3_600_000), chance.randrange(2 * DAY)]
            )
            at = min(at + pause, now)
            if pause > 3_600_000:
                session = f"later_{name}"
            events.append(
                completed(name, step, at, mcp_server_id=SERVERS[i % 2], mcp_server_session_id=session)
            )
    await _do_or_skip(world, events, random.Random(seed + 1))
    await world.db.executemany(
        "insert into walkthrough_starts (id, mcp_server_user_id, walkthrough_id, mcp_server_id,"
        " mcp_server_session_id, started_at) values ($1, $2, $3, $4, $5, $6)",
        starts,
    )
    await _somebody_else(world, now)
    await world.drain_marks()
    await world.db.execute("analyze")


async def _do_or_skip(world: World, events: list[dict[str, Any]], chance: random.Random) -> None:
    """Some of the steps were skipped, and one of these was done in the end; half of the people were shown them."""
    done, skips, showings = [], [], []
    for event in events:
        user, step, at = event["mcp_server_user_id"], event["step_id"], event["completed_at"]
        where = event["mcp_server_id"], event["mcp_server_session_id"]
        skipped = chance.random() < 0.15
        if skipped:
            skips.append((f"wtss_{user}{step}", user, WALKTHROUGH, step, *where, at - 500))
        if not skipped or chance.random() < 0.2:
            done.append(event)
        if int(user[1:]) % 4 < 2:
            ago = chance.choice([0, 5_000, 600_000, 3 * DAY])
            again = chance.choice([0, 1_000, DAY])
            at -= 500
            showings.append(
                (
                    f"1{user}{step}",
                    f"2{user}{step}",
                    user,
                    WALKTHROUGH,
                    step,
                    *where,
                    at - ago,
                    at - ago + again,
                )
            )
            following = chance.choice(STEPS)
            showings.append(
                (f"3{user}{step}", f"4{user}{step}", user, WALKTHROUGH, following, *where, at, at)
            )
    await world.insert(*done)
    await world.db.executemany(
        "insert into walkthrough_step_skips (id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id,"
        " mcp_server_session_id, skipped_at) values ($1, $2, $3, $4, $5, $6, $7)",
        skips,
    )
    await world.db.executemany(
        "insert into walkthrough_step_showings (first_id, last_id, mcp_server_user_id, walkthrough_id, step_id,"
        " mcp_server_id, mcp_server_session_id, first_shown_at, last_shown_at)"
        " values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
        showings,
    )


async def _somebody_else(world: World, now: int) -> None:
    """An organization with a walkthrough of its own, where somebody of ours was too."""
    await world.db.execute(
        """
        insert into organization (id, name, created_at) values ('org_b', 'b', now());
        insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)
        values ('srv_b', 'org_b', 'srv_b', 'x', 'srv_b');
        insert into walkthroughs (id, organization_id, title, status)
        values ('wt_b', 'org_b', '=secret', 'published');
        insert into walkthrough_steps (id, walkthrough_id, title, content_fields)
        values ('b_1', 'wt_b', 'b 1', '{}');
        insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ('b', 'srv_b', 'wt_b');
        """
    )
    await world.people(["bea"], "srv_b")
    await world.insert(
        *[
            completed(
                user,
                "b_1",
                now - 1000,
                walkthrough_id="wt_b",
                mcp_server_id="srv_b",
                mcp_server_session_id="s_bea",
            )
            for user in ("bea", "u001")
        ]
    )

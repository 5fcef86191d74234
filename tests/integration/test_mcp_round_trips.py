"""What a call asks of the database: how often, that it misses no change, and that none comes between."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.runtime import database
from services.runtime.database import Pool, keep_as_it_is, open_pool
from services.walkthrough_mcp import store
from services.walkthrough_mcp.guide import CallEffect, CallOutcome, Offer, advance, outline, start
from services.walkthrough_mcp.people import Caller
from services.walkthrough_mcp.snapshots import Names, OfferCache
from tests.support.agents import HELLO, agent, post
from tests.support.world import MCP, PATIENCE, World

pytestmark = pytest.mark.integration


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of services in this process, the begin and commit of transactions too."""
    seen: list[str] = []
    note = database._note

    def noted(refusals: Any, statement: Any) -> None:
        if "stepstream_migrations" not in statement.query:  # asked now and then, by nobody's call
            seen.append(statement.query)
        note(refusals, statement)

    monkeypatch.setattr(database, "_note", noted)
    return seen


@pytest.mark.parametrize("size", [3, 300])
@pytest.mark.parametrize(
    ("path", "generation", "names_step", "round_trips"),
    [
        pytest.param("/ann", "2026-07-28", True, 2, id="address"),
        pytest.param("/ann", "2026-07-28", False, 3, id="address-without-a-step"),
        pytest.param("", "legacy", True, 2, id="session"),
        pytest.param("", "2026-07-28", True, 3, id="visitor"),
    ],
)
async def test_a_step_costs_so_many_round_trips_however_much_there_is(
    world: World,
    statements: list[str],
    path: str,
    generation: str,
    names_step: bool,
    round_trips: int,
    size: int,
) -> None:
    """A look and a save; another look where only the call says who it is, or where times decide."""
    steps = [f"s{i:03}" for i in range(size)]
    await world.offer(steps=steps)
    for other in range(size // 20):
        await world.offer(f"wt_{other}", [f"{other}_{i}" for i in range(5)])
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1{path}", generation) as who:
        visitor = (await who.start(name="wt_a"))["visitor"]
        names = {"visitor": visitor} if generation == "2026-07-28" and visitor else {}
        await who.next(current_step_id=steps[0], **names)
        statements.clear()
        names |= {"current_step_id": steps[1]} if names_step else {}
        assert (await who.next(**names))["outcome"] == "advanced"
        assert len(statements) == round_trips, statements


async def test_a_server_that_has_not_changed_introduces_itself_by_one_round_trip(
    world: World, statements: list[str]
) -> None:
    await world.offer()
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    told = (await post(url, HELLO)).json()["result"]["instructions"]
    statements.clear()
    again = (await post(url, HELLO)).json()["result"]["instructions"]
    assert len(statements) == 1, statements
    assert "“wt_a”" in told
    assert again == told


A, AB, BA = ["title of a"], ["title of a", "title of b"], ["title of b", "title of a"]
ADD = (
    "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
    """ values ('new', 'wt_a', 'title of new', '{"version": "v1"}', 9)"""
)
#: A statement, and the walkthroughs on offer after it, in order, with the titles of their steps.
CHANGES: list[tuple[str, dict[str, list[str]]]] = [
    ("select 1", {"wt_a": AB}),
    ("update walkthrough_steps set display_order = 5 where id = 'a'", {"wt_a": BA}),
    ("update walkthrough_steps set display_order = 0 where id = 'a'", {"wt_a": AB}),
    (ADD, {"wt_a": [*AB, "title of new"]}),
    ("update walkthrough_steps set title = 'newer' where id = 'new'", {"wt_a": [*AB, "newer"]}),
    ("delete from walkthrough_steps where id = 'new'", {"wt_a": AB}),
    ("update walkthroughs set title = 'W' where id = 'wt_a'", {"W": AB}),
    ("update walkthroughs set status = 'archived' where id = 'wt_a'", {}),
    ("update walkthroughs set status = 'published' where id = 'wt_a'", {"W": AB}),
    ("update mcp_server_walkthroughs set is_enabled = 'false'", {}),
    ("update mcp_server_walkthroughs set is_enabled = 'true'", {"W": AB}),
    (
        "insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ('m', 'srv_1', 'wt_c')",
        {"W": AB, "wt_c": ["title of c"]},
    ),
    (
        "update mcp_server_walkthroughs set display_order = 5 where walkthrough_id = 'wt_a'",
        {"wt_c": ["title of c"], "W": AB},
    ),
    ("update walkthroughs set organization_id = 'other' where id = 'wt_c'", {"W": AB}),
    ("update mcp_servers set organization_id = 'other' where id = 'srv_1'", {"wt_c": ["title of c"]}),
    ("update mcp_servers set organization_id = 'org' where id = 'srv_1'", {"W": AB}),
    ("delete from walkthrough_steps where id = 'b'", {"W": A}),
    ("delete from walkthrough_steps where id = 'a'", {}),
    ("delete from walkthroughs where id = 'wt_a'", {}),
]


async def test_each_change_of_what_is_offered_is_seen_by_the_next_call_and_introduction(world: World) -> None:
    """Also one of the platform, by plain SQL, that keeps no time of it."""
    await world.offer(steps="ab")
    await world.offer("wt_c", "c", "srv_2")
    await world.db.execute("insert into organization (id, name, created_at) values ('other', 'other', now())")
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with agent(f"{url}/ann") as ann:
        for statement, offered in CHANGES:
            await world.db.execute(statement)
            told = (await post(url, HELLO)).json()["result"]["instructions"]
            assert [line[3:-1] for line in told.splitlines() if line.startswith("- “")] == list(offered), (
                statement
            )
            for title, steps in offered.items():
                outlined = (await ann.call("get_outline", name=title))["outline"]
                assert [step["title"] for step in outlined] == steps, statement


async def test_what_is_kept_of_offers_is_never_what_was_there_for_a_moment_between(world: World) -> None:
    """A step that comes and goes leaves the version as it was before; it must not stay with that."""
    await world.offer(steps="ab")
    pool, cache = await pool_of(world), OfferCache()
    found = await store.enter(pool, Names("srv_1", "ann"))
    assert found is not None
    server, before = found
    assert before is not None
    await world.db.execute(ADD)
    # Seen before, and read after.
    assert len((await looked(pool, Caller(server, tracking_id="ann", snapshot=before), cache))[0].steps) == 3
    await world.db.execute("delete from walkthrough_steps where id = 'new'")
    found = await store.enter(pool, Names("srv_1", "ann"))
    assert found is not None
    assert found[1] is not None
    assert found[1].version == before.version
    assert (
        len((await looked(pool, Caller(server, tracking_id="ann", snapshot=found[1]), cache))[0].steps) == 2
    )


async def pool_of(world: World) -> Pool:
    pool = await open_pool(world.settings_of(MCP), server_settings=store.SERVER_SETTINGS, reset=keep_as_it_is)
    world.pools.append(pool)
    return pool


async def looked(pool: Pool, caller: Caller, cache: OfferCache) -> tuple[Offer, ...]:
    call = store.Call(caller, lambda offers, _: outline(offers, None), time.monotonic(), cache=cache)
    return (await store.call(pool, call)).offers


def go_on(offers: tuple[Offer, ...], saw_current: bool) -> CallEffect:
    return advance(offers, "a", saw_current=saw_current)


async def other_call(world: World, pool: Pool, call: store.Call) -> None:
    await store.call(pool, call)


async def call_at_another_server(world: World, pool: Pool, call: store.Call) -> None:
    server = await store.find_server(pool, "srv_2")
    assert server is not None
    await store.call(pool, store.Call(Caller(server, tracking_id="ann"), go_on, time.monotonic()))


async def edit(world: World, pool: Pool, call: store.Call) -> None:
    await world.db.execute(
        """update walkthrough_progress set completed_steps = '["a"]', current_step_id = 'b'"""
    )


async def deletion(world: World, pool: Pool, call: store.Call) -> None:
    await world.db.execute("delete from mcp_server_user")


@pytest.mark.parametrize(
    ("between", "outcome", "done"),
    [
        pytest.param(other_call, CallOutcome.REPEATED, ["a"], id="another-call"),
        pytest.param(call_at_another_server, CallOutcome.REPEATED, ["a"], id="call-at-another-server"),
        pytest.param(edit, CallOutcome.REPEATED, ["a"], id="edit"),
        pytest.param(deletion, CallOutcome.NOT_STARTED, [], id="deletion"),
    ],
)
async def test_what_comes_between_look_and_save_is_seen(
    world: World,
    between: Callable[[World, Pool, store.Call], Awaitable[None]],
    outcome: CallOutcome,
    done: list[str],
) -> None:
    """A call that was looked at before is decided anew."""
    await world.offer(steps="abc")
    await world.offer(steps="abc", server="srv_2")
    pool = await pool_of(world)
    for slug in ("srv_1", "srv_2"):
        server = await store.find_server(pool, slug)
        assert server is not None
        begin = store.Call(
            Caller(server, tracking_id="ann"), lambda o, _: start(o, None, restart=False), time.monotonic()
        )
        await store.call(pool, begin)
    found = await store.enter(pool, Names("srv_1", "ann"))
    assert found is not None
    call = store.Call(Caller(found[0], tracking_id="ann", snapshot=found[1]), go_on, time.monotonic())
    await between(world, pool, call)
    assert (await store.call(pool, call)).move.outcome == outcome
    rows = await world.db.fetch("select jsonb_array_elements_text(completed_steps) from walkthrough_progress")
    assert [row[0] for row in rows] == done
    events = await world.db.fetchval("select count(*) from outbox where type = 'step-completed'")
    assert events == (1 if between in {other_call, call_at_another_server} else 0)


async def test_calls_of_a_person_in_many_processes_at_once_all_get_through(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds that another was faster, many times; all get on, in the end."""
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", PATIENCE)  # nobody promises who is next
    await world.offer(steps=[f"s{i:02}" for i in range(40)])
    pools = [await pool_of(world) for _ in range(4)]
    server = await store.find_server(pools[0], "srv_1")
    assert server is not None
    caller = Caller(server, tracking_id="ann")
    begin = store.Call(caller, lambda o, _: start(o, None, restart=False), time.monotonic())
    await store.call(pools[0], begin)

    async def walk(pool: Pool, steps: range) -> None:
        for number in steps:
            call = store.Call(caller, lambda o, _, n=number: advance(o, f"s{n:02}"), time.monotonic())  # type: ignore[misc]
            await store.call(pool, call)

    await asyncio.gather(*(walk(pool, range(40)) for pool in pools for _ in range(3)))
    rows = await world.db.fetch(
        "select value::jsonb ->> 'step_id' as step from outbox where type = 'step-completed' order by id"
    )
    assert [row["step"] for row in rows] == [f"s{i:02}" for i in range(40)]

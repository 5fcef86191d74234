"""One organization that wants everything: what the others, and its own small questions, still get."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from prometheus_client import REGISTRY

from services.analytics_api import store
from services.runtime.api_keys import new_key, text_of
from services.walkthrough_mcp import store as store_of_mcp
from services.walkthrough_mcp.people import Server
from services.walkthrough_mcp.routes import McpEndpoint
from services.walkthrough_mcp.snapshots import Names, Snapshot
from tests.support.agents import GENERATIONS, Agent, agent, post
from tests.support.crowd import STEPS, WALKTHROUGH, gather
from tests.support.world import PATIENCE, Api, World, completed, eventually

pytestmark = pytest.mark.integration
WT = f"walkthroughs/{WALKTHROUGH}"
#: A service whose questions wait for as long as a test holds them up.
HELD: dict[str, Any] = {"api_statement_seconds": 120, "api_lock_seconds": 120}
#: The other organization's.
WT_B = "walkthroughs/wt_b"


@pytest.fixture
def large_reads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a hundred journeys on a read is large; trends of our walkthrough wait for a lock.

    The service has to be started with HELD: by default it waits for a lock for half a second.
    """
    monkeypatch.setattr(store, "_LARGE_JOURNEYS", 100)
    slow = store.SQL["active_people"].replace(
        "from sankey_journeys as journey",
        f"from pg_advisory_xact_lock_shared(case when $1 = '{WALKTHROUGH}' then 7 else 8 end),"
        " sankey_journeys as journey",
    )
    monkeypatch.setitem(store.SQL, "active_people", slow)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def large_questions(world: World, api: Api, count: int) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """So many large questions, each another one, that are answered after the block."""
    async with world.connection() as lock:
        await lock.execute("select pg_advisory_lock(7)")
        days = [f"2026-01-{day:02}" for day in range(1, count + 1)]
        yield [asyncio.create_task(api.ask(f"{WT}/trends", from_=day, to="2026-12-31")) for day in days]


def waiting(lane: str) -> float:
    return REGISTRY.get_sample_value("stepstream_api_waiting", {"lane": lane}) or 0


async def other(world: World, api: Api, organization: str) -> Api:
    """The same service, asked by another organization or with another key."""
    theirs = Api(world, api.url)
    world.clients.append(theirs.http)
    theirs.key = await world.make_key(organization)
    return theirs


async def test_small_questions_are_answered_while_large_ones_wait(
    world: World, large_reads_wait: None
) -> None:
    await gather(world)
    api = await world.start_api(api_large_reads=2, **HELD)
    theirs = await other(world, api, "org_b")
    async with large_questions(world, api, 12) as large:

        async def all_wait() -> bool:
            return waiting("large") == 10

        await eventually(all_wait, "two large questions run and ten wait")
        for path in ("sankey", "steps", "trends", "journeys", "funnel"):
            await theirs.get(f"{WT_B}/{path}")
        await theirs.get("organization")
        await api.get(f"{WT}/sankey")
        await api.get("organization")
        assert not any(task.done() for task in large)
    assert [(await task).status_code for task in large] == [200] * 12


async def test_messages_of_agents_take_turns_before_they_are_read(
    world: World, large_reads_wait: None
) -> None:
    await gather(world)
    api = await world.start_api(**HELD)
    theirs = await other(world, api, "org_b")

    async def send(by: Api, message: bytes) -> int:
        headers = {
            "Authorization": f"Bearer {by.key}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
        }
        return (await by.http.post("/mcp/analytics", content=message, headers=headers)).status_code

    listing = b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
    await theirs.get("organization")  # the key is known: it is no stranger's
    async with world.connection() as lock:
        await lock.execute("select pg_advisory_lock(8)")
        days = ["2026-01-01", "2026-01-02"]
        asked = [asyncio.create_task(theirs.ask(f"{WT_B}/trends", from_=day)) for day in days]

        async def they_run() -> bool:
            return await lock.fetchval(
                "select count(*) = 2 from pg_locks where locktype = 'advisory' and not granted"
            )

        await eventually(they_run, "two questions have all places of their organization")
        messages = [asyncio.create_task(send(theirs, text)) for text in (listing, b"[" * 60_000)]

        async def both_wait() -> bool:
            assert not any(task.done() for task in messages)
            return waiting("small") == 2

        await eventually(both_wait, "a message that is good and one that is not wait for a place")
        assert await send(api, listing) == 200
        assert not any(task.done() for task in (*asked, *messages))
    assert [await task for task in messages] == [200, 400]
    assert [(await task).status_code for task in asked] == [200, 200]


async def test_large_questions_over_the_share_of_their_key_are_refused_and_another_key_has_its_own(
    world: World, large_reads_wait: None
) -> None:
    await gather(world)
    api = await world.start_api(api_large_reads=2, api_organization_large_reads=4, **HELD)
    colleague = await other(world, api, "org")
    async with large_questions(world, api, 3) as large:
        done, _ = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["title"] == "Too many questions that read many journeys"
        assert "this API key has 2" in refused.json()["detail"]
        asked = asyncio.create_task(colleague.ask(f"{WT}/trends"))

        async def it_waits() -> bool:
            return waiting("large") == 1

        await eventually(it_waits, "the colleague's question waits for its turn")
    assert (await asked).status_code == 200
    assert sorted([(await task).status_code for task in large]) == [200, 200, 429]


async def test_live_streams_have_shares_for_keys_and_organizations(world: World) -> None:
    await gather(world)
    api = await world.start_api(api_organization_streams=4, api_streams=4)
    keys = [api, await other(world, api, "org"), await other(world, api, "org")]

    async def open_stream(stack: contextlib.AsyncExitStack, by: Api, path: str = WT) -> Any:
        headers = {"Authorization": f"Bearer {by.key}"}
        return await stack.enter_async_context(by.http.stream("GET", f"/v1/{path}/live", headers=headers))

    async with contextlib.AsyncExitStack() as stack:
        streams = [await open_stream(stack, by) for by in (keys[0], keys[0], keys[1], keys[1])]
        assert [stream.status_code for stream in streams] == [200] * 4
        for by, told in ((keys[0], "your organization has 4"), (keys[2], "your organization has 4")):
            refused = await by.ask(f"{WT}/live")
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
            assert told in refused.json()["detail"]
        theirs = await other(world, api, "org_b")
        assert (await open_stream(stack, theirs, WT_B)).status_code == 200
        # All were taken: it ends, whole, and its client returns.
        await asyncio.wait_for(streams[0].aread(), PATIENCE)

    async def is_free_again() -> bool:
        async with contextlib.AsyncExitStack() as stack:
            return bool((await open_stream(stack, keys[2])).status_code == 200)

    await eventually(is_free_again, "the places of streams that ended are free")


async def test_wrong_keys_cost_a_few_look_ups_and_shut_out_nobody_at_their_address(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    look_up = store.Store.key

    async def counted(self: store.Store, identifier: str) -> store.StoredKey | None:
        looked_up.append(identifier)
        return await look_up(self, identifier)

    monkeypatch.setattr(store.Store, "key", counted)
    await world.offer(WALKTHROUGH, STEPS)
    api = await world.start_api(api_failure_rate="5/minute")
    await api.get("organization")
    unused = await world.make_key("org")
    wrong = [text_of(*new_key()) for _ in range(200)]
    looked_up.clear()
    codes = [(await api.ask("organization", key=key)).status_code for key in wrong]
    assert codes[-1] == 429
    assert set(codes) == {401, 429}
    assert len(looked_up) <= 5
    refused = await api.ask("organization", key=wrong[0])
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    for key in (api.key, unused):  # one that was used before, and one that was not
        assert (await api.ask("organization", key=key)).status_code == 200
    # Who knows a key's id guesses no more often.
    looked_up.clear()
    guesses = [f"{unused[:-3]}{n:03}" for n in range(20)]
    assert {(await api.ask("organization", key=key)).status_code for key in guesses} == {401, 429}
    assert len(looked_up) <= 5
    assert (await api.ask("organization", key=unused)).status_code == 200


async def test_an_organization_has_a_rate_for_all_its_keys(world: World) -> None:
    await world.offer(WALKTHROUGH, STEPS)
    await world.people(["ann"])
    await world.insert(completed("ann", "a", 1000))
    api = await world.start_api(api_organization_rate="3/minute")
    colleague = await other(world, api, "org")
    codes = [(await by.ask("organization")).status_code for by in (api, colleague, api, colleague)]
    assert codes == [200, 200, 200, 429]


class HeldCalls:
    """Calls at `srv_1` of walkthrough-mcp, each of which keeps its connection until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        #: Servers whose calls have had a connection, in order.
        self.served: list[str] = []
        #: Servers that requests were for, in order.
        self.asked: list[str] = []
        self._free = asyncio.Semaphore(0)
        self._call = store_of_mcp._call
        monkeypatch.setattr(store_of_mcp, "_call", self._held)
        find = McpEndpoint._find_server

        async def noted(endpoint: McpEndpoint, names: Names, address: str) -> tuple[Server, Snapshot | None]:
            self.asked.append(names.slug)
            return await find(endpoint, names, address)

        monkeypatch.setattr(McpEndpoint, "_find_server", noted)

    async def _held(self, connection: Any, given: Any, *rest: Any) -> Any:
        self.served.append(given.caller.server.slug)
        if given.caller.server.slug == "srv_1":
            await self._free.acquire()
        return await self._call(connection, given, *rest)

    def let_go(self, calls: int = 1) -> None:
        for _ in range(calls):
            self._free.release()


@contextlib.asynccontextmanager
async def agents_of_two(world: World, **settings: Any) -> AsyncIterator[tuple[Agent, Agent, str]]:
    """Agents of two organizations at `srv_1` and `srv_b`, whose calls are each of a new person; and where."""
    await world.offer()
    await world.db.execute("insert into organization (id, name, created_at) values ('org_b', 'b', now())")
    await world.offer("wt_b", "xyz", "srv_b")
    await world.db.execute("update mcp_servers set organization_id = 'org_b' where id = 'srv_b'")
    await world.db.execute("update walkthroughs set organization_id = 'org_b' where id = 'wt_b'")
    base = f"http://127.0.0.1:{(await world.start_mcp(**settings)).port}/mcp"
    async with agent(f"{base}/srv_1") as ours, agent(f"{base}/srv_b") as theirs:
        await theirs.start()
        yield ours, theirs, base


async def test_a_call_waits_for_one_call_of_another_organization_and_not_for_its_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agents_of_two(world, mcp_database_pool_size=2) as (ours, theirs, _):
        held = HeldCalls(monkeypatch)
        busy = [asyncio.create_task(ours.start()) for _ in range(12)]

        async def all_have_come() -> bool:
            return len(held.asked) == 12 and bool(held.served)

        await eventually(all_have_come, "some run and the rest waits")
        before = len(held.served)
        asked = asyncio.create_task(theirs.start())

        async def it_has_come() -> bool:
            return held.asked[-1] == "srv_b"

        await eventually(it_has_come, "the other organization's call has come")
        while "srv_b" not in held.served:
            served = len(held.served)
            held.let_go()

            async def another_is_served(served: int = served) -> bool:
                return len(held.served) > served

            await eventually(another_is_served, "the next call has a connection")
        assert len(held.served) - before <= 3
        await asked
        held.let_go(12)
        assert [(await call)["outcome"] for call in busy] == ["started"] * 12


async def test_calls_of_one_address_leave_room_for_others_at_the_same_server(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address may have more connections than a server may have calls."""
    settings = {"mcp_database_pool_size": 4, "mcp_organization_calls": 16}
    async with agents_of_two(world, **settings) as (ours, _, base):
        held = HeldCalls(monkeypatch)
        calls = [asyncio.create_task(ours.start()) for _ in range(8)]
        done: set[asyncio.Task[Any]] = set()

        async def six_are_refused() -> bool:
            done.update(call for call in calls if call.done())
            return len(done) == 6

        await eventually(six_are_refused, "all but two are refused")
        for call in done:
            assert "calls of this address at this server run or wait as may at once (2)" in str(
                call.exception()
            )
        transport = httpx2.AsyncHTTPTransport(local_address="127.0.0.5")
        async with httpx2.AsyncClient(transport=transport, timeout=PATIENCE) as http:
            other = streamable_http_client(f"{base}/srv_1", http_client=http)
            async with Client(other, mode=GENERATIONS[0], cache=None) as client:
                held.let_go(9)
                result = await client.call_tool("start_walkthrough", {})
                assert result.structured_content["outcome"] == "started"
        assert sorted([(await call)["outcome"] for call in set(calls) - done]) == ["started"] * 2


async def test_calls_over_the_share_of_a_server_are_refused_and_another_organization_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with agents_of_two(world, mcp_database_pool_size=3, mcp_organization_calls=2) as (
        ours,
        theirs,
        base,
    ):
        held = HeldCalls(monkeypatch)
        both_there, call = asyncio.Barrier(2), store_of_mcp.call

        async def together(*arguments: Any) -> store_of_mcp.Done:
            if arguments[1].caller.server.slug == "srv_1":
                await both_there.wait()
            return await call(*arguments)

        monkeypatch.setattr(store_of_mcp, "call", together)
        calls = [asyncio.create_task(ours.start()) for _ in range(2)]
        done, running = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        error = done.pop().exception()
        assert isinstance(error, MCPError)
        assert error.error.data == {"reason": "busy"}
        assert "calls of this server run or wait as may at once (1)" in str(error)
        refused = await post(f"{base}/srv_1", {})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
        assert refused.json()["error"]["data"] == {"reason": "busy"}
        assert (await theirs.start())["outcome"] == "started"
        held.let_go()
        assert (await running.pop())["outcome"] == "started"

"""walkthrough-mcp as agents use it: the SDK's client over real HTTP, in both generations of the protocol."""

import asyncio
import itertools
import json
import random
from collections import Counter
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from schemas import StepCompleted, WalkthroughStarted, decode
from services.walkthrough_mcp.prose import Guidance
from tests.support.agents import GENERATIONS, HELLO, agent, post
from tests.support.proxy import round_robin
from tests.support.world import PATIENCE, RELAY, World, completed, eventually, metric

pytestmark = pytest.mark.integration

both_generations = pytest.mark.parametrize("generation", GENERATIONS)


async def outbox(world: World) -> list[StepCompleted | WalkthroughStarted]:
    """What people did, without what they were shown."""
    rows = await world.db.fetch("select key, value, type from outbox where type <> 'step-shown' order by id")
    events = [decode(row["value"].encode(), 2**62) for row in rows]
    assert [json.loads(row["value"])["type"] for row in rows] == [row["type"] for row in rows]
    assert all(e.mcp_server_user_id == row["key"] for e, row in zip(events, rows, strict=True))
    return events


async def steps_done(world: World) -> list[str]:
    return [e.step_id for e in await outbox(world) if isinstance(e, StepCompleted)]


@both_generations
async def test_an_agent_leads_a_person_from_the_first_step_to_the_last(world: World, generation: str) -> None:
    await world.offer(steps="abc")
    service = await world.start_mcp(process=True)
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", generation) as ann:
        answer = await ann.start()
        assert answer["outcome"] == "started"
        for number, step in enumerate("abc", start=1):
            assert answer["step"] == {
                "id": step,
                "title": f"title of {step}",
                "number": number,
                "introduction_for_agent": f"introduction of {step}",
                "context_for_agent": f"context of {step}",
                "content_for_user": f"content of {step}",
                "operations_for_agent": f"operations of {step}",
                "optional": False,
                "part": 1,
                "content_parts": 1,
                "read_on": None,
            }
            for part in ("introduction", "context", "content", "operations"):
                assert f"{part} of {step}" in ann.texts[-1]
            assert answer["then"] == [
                f'When the person has done this step, and not before, call get_next_step with current_step_id "{step}".'
            ]
            assert answer["then"][0] in ann.texts[-1]
            assert answer["progress"]["percent"] == (0, 33, 66)[number - 1]
            answer = await ann.next(current_step_id=step)
        assert answer["outcome"] == "finished"
        assert answer["progress"]["is_finished"]
        assert (await ann.next(current_step_id="c"))["outcome"] == "already-finished"
    start, *steps = await outbox(world)
    assert isinstance(start, WalkthroughStarted)
    told = [(e.step_id, json.loads(e.metadata or "")) for e in steps if isinstance(e, StepCompleted)]
    assert told == [
        ("a", {"stepOrder": 0, "isLastStep": False}),
        ("b", {"stepOrder": 1, "isLastStep": False}),
        ("c", {"stepOrder": 2, "isLastStep": True}),
    ]
    times = [e.happened_at for e in (start, *steps)]
    assert times == sorted(set(times))
    progress = await world.db.fetchrow("select * from walkthrough_progress")
    assert progress["current_step_id"] is None
    assert json.loads(progress["completed_steps"]) == ["a", "b", "c"]
    assert (progress["started_at"], progress["completed_at"]) == (times[0], times[-1])
    assert service.terminate() == 0


@both_generations
async def test_the_tools_tell_an_agent_how_to_use_them(world: World, generation: str) -> None:
    await world.offer()
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with agent(f"{url}/ann", generation) as ann:
        tools = {tool.name: tool for tool in (await ann.client.list_tools()).tools}
        assert set(tools) == {"start_walkthrough", "get_next_step", "skip_step", "get_outline", "show_step"}
        for tool in tools.values():
            assert tool.title
            assert tool.description
            assert tool.annotations
            assert tool.annotations.destructive_hint is False
            assert tool.annotations.read_only_hint is (tool.name in {"get_outline", "show_step"})
        schemas = [tool.output_schema for tool in tools.values() if tool.output_schema]
        assert schemas == [Guidance.model_json_schema()], "all answer alike, and one says how"
        assert set(tools["start_walkthrough"].input_schema["properties"]) == {"name", "restart"}
        assert set(tools["get_next_step"].input_schema["properties"]) == {"current_step_id"}
        await world.db.execute("update mcp_servers set walkthrough_tools_enabled = 'false'")
        assert (await ann.client.list_tools()).tools == []
        assert (await ann.start())["outcome"] == "nothing-offered"


async def test_a_large_step_is_cut_and_says_how_to_read_on(world: World) -> None:
    await world.offer()
    lines = "\n".join(f"line {n}" for n in range(60_000))
    await world.db.execute(
        "update walkthrough_steps set content_fields = content_fields || jsonb_build_object('contentForUser', $1::text)",
        lines,
    )
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        for call in (ann.start(), ann.next(current_step_id="a")):
            step = (await call)["step"]
            assert 30_000 < len(step["content_for_user"]) < 32_768
            assert lines.startswith(step["content_for_user"])
            assert (step["part"], step["content_parts"]) == (1, len(lines) // 32_768 + 1)
            assert f'show_step(step_id="{step["id"]}", part=2)' in step["read_on"]
            assert step["read_on"] in ann.texts[-1]
            assert len(ann.texts[-1]) < 34_000


@both_generations
async def test_several_on_offer_are_listed_and_the_named_one_starts(world: World, generation: str) -> None:
    await world.offer("wt_a", "abcd")
    await world.offer("wt_b", "xy")
    await world.offer("wt_draft", "d")
    await world.offer("wt_off", "o")
    await world.db.execute("update walkthroughs set status = 'draft' where id = 'wt_draft'")
    await world.db.execute(
        "update mcp_server_walkthroughs set is_enabled = 'false' where walkthrough_id = 'wt_off'"
    )
    await world.db.execute(
        "update walkthroughs set title = 'Use it', description = 'For more.', type = 'installer',"
        " estimated_duration_minutes = 7, tags = '[\"x\"]' where id = 'wt_b'"
    )
    await world.db.execute(
        "insert into walkthroughs (id, organization_id, title, status) values ('wt_e', 'org', 'empty', 'published')"
    )
    await world.db.execute("insert into mcp_server_walkthroughs values ('m', 'srv_1', 'wt_e')")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", generation) as ann:
        answer = await ann.start()
        assert answer["outcome"] == "listed"
        assert await world.db.fetchval("select count(*) from mcp_server_user") == 0, (
            "looking around makes nobody"
        )
        assert {w["id"] for w in answer["walkthroughs"]} == {"wt_a", "wt_b"}
        assert (await ann.next())["outcome"] == "not-started"
        assert (await ann.start(name="use IT"))["step"]["id"] == "x"
        assert (await ann.next(current_step_id="x"))["step"]["id"] == "y"
        unknown = await ann.start(name="Something else")
        assert unknown["outcome"] == "unknown-name"
        (listed,) = [w for w in unknown["walkthroughs"] if w["id"] == "wt_b"]
        assert listed == {
            "id": "wt_b",
            "title": "Use it",
            "description": "For more.",
            "type": "installer",
            "total_steps": 2,
            "percent_done": 50,
            "started": True,
            "completed": False,
            "estimated_minutes": 7,
            "tags": ["x"],
        }
        # Both are under way now: a step says which is meant, else the one used last goes on.
        assert (await ann.start(name="wt_a"))["step"]["id"] == "a"
        assert (await ann.next(current_step_id="y"))["outcome"] == "finished"
        assert (await ann.next(current_step_id="a"))["step"]["id"] == "b"
        assert (await ann.next())["step"]["id"] == "c"


async def test_a_title_that_is_nearly_right_starts_and_one_of_several_is_asked_for(world: World) -> None:
    for number, title in enumerate(("Install Bun", "Install Node", "Deploy")):
        await world.offer(f"wt_{number}", [f"s{number}"])
        await world.db.execute("update walkthroughs set title = $1 where id = $2", title, f"wt_{number}")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        asked = await ann.start(name="Install")
        assert asked["outcome"] == "ambiguous-name"
        assert [w["title"] for w in asked["walkthroughs"]] == ["Install Bun", "Install Node"]
        assert "Ask the person" in asked["message"]
        assert "Deploy" not in ann.texts[-1]
        for name, step in (("Bun", "s0"), ("instal node", "s1"), ("deploi!", "s2")):
            assert (await ann.start(name=name))["step"]["id"] == step


async def test_progress_that_a_failover_lost_follows_the_completions(world: World) -> None:
    """The event was sent, and came back from Kafka; what the person did is not asked for again."""
    await world.offer(steps="abcd")
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", GENERATIONS[0]) as ann:
        await ann.start()
        await ann.next(current_step_id="a")
        before = await world.db.fetchrow("select * from walkthrough_progress")
        await ann.next(current_step_id="b")
        *_, done = await outbox(world)
        assert isinstance(done, StepCompleted)
        await world.db.execute(
            "update walkthrough_progress set completed_steps = $1, current_step_id = $2, last_activity_at = $3",
            *(before[name] for name in ("completed_steps", "current_step_id", "last_activity_at")),
        )
        user = done.mcp_server_user_id
        await world.insert(
            completed(user, "b", done.completed_at, mcp_server_session_id=done.mcp_server_session_id)
        )
        assert (await ann.start())["step"]["id"] == "c"
        assert (await ann.next(current_step_id="b"))["step"]["id"] == "c"
        assert (await ann.next(current_step_id="c"))["step"]["id"] == "d"
        # Begun anew, the walkthrough begins at its first step.
        assert (await ann.start(restart=True))["step"]["id"] == "a"
        # Lost as a whole, it is what is recorded.
        await world.db.execute("delete from walkthrough_progress")
        again = await ann.start()
        assert (again["outcome"], again["step"]["id"]) == ("started", "a")
        assert (await ann.next(current_step_id="a"))["step"]["id"] == "c"


@both_generations
async def test_resuming_retrying_and_restarting(world: World, generation: str) -> None:
    await world.offer(steps="abc")
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1/ann"
    async with agent(url, generation) as ann:
        await ann.start()
        await ann.next(current_step_id="a")
        again = await ann.next(current_step_id="a")
        assert (again["outcome"], again["step"]["id"]) == ("repeated", "b")
    async with agent(url, generation) as later:
        assert (await later.start())["outcome"] == "resumed"
        changed = await later.next(current_step_id="never-heard-of")
        assert (changed["outcome"], changed["step"]["id"]) == ("changed", "b")
        assert (await later.next())["step"]["id"] == "c"
        anew = await later.start(restart=True)
        assert (anew["outcome"], anew["step"]["id"], anew["progress"]["percent"]) == ("restarted", "a", 0)
        assert (await later.next(current_step_id="a"))["step"]["id"] == "b"
    kinds = Counter(e.type for e in await outbox(world))
    assert kinds == {"walkthrough-started": 1, "step-completed": 3}
    world.start_both()
    world.start(RELAY)
    await world.relayed()
    await world.drained()
    # The first completion of a step stays the one that counts.
    done = [e for e in await world.events() if b'"step-completed"' in (e.value or b"")]
    first = next(e for e in done if b'"step_id":"a"' in (e.value or b""))
    assert (await world.completions())[await user_of(world, "ann"), "a"][1] in (first.value or b"").decode()
    assert await world.transitions() == {(0, None, "a"): 1, (1, "a", "b"): 1}
    await world.assert_exact()


async def user_of(world: World, tracking_id: str) -> str:
    return str(await world.db.fetchval("select id from mcp_server_user where distinct_id = $1", tracking_id))


CHANGES: dict[str, list[str]] = {
    "the order is reversed": ["update walkthrough_steps set display_order = -display_order"],
    "the current one moves to the end": [
        "update walkthrough_steps set display_order = 99 where id = '{current}'"
    ],
    "the last one moves to the front": ["update walkthrough_steps set display_order = -1 where id = 'd'"],
    "one is added in front": ["insert into walkthrough_steps values ('n', 'wt_a', 'n', '{{}}', -5)"],
    "one is added at the end": ["insert into walkthrough_steps values ('n', 'wt_a', 'n', '{{}}', 50)"],
    "the current one is deleted": ["delete from walkthrough_steps where id = '{current}'"],
    "a done one is deleted": ["delete from walkthrough_steps where id = 'a'"],
    "the last one is deleted": ["delete from walkthrough_steps where id = 'd'"],
    "the current one is deleted and one is added in front": [
        "delete from walkthrough_steps where id = '{current}'",
        "insert into walkthrough_steps values ('n', 'wt_a', 'n', '{{}}', -5)",
    ],
    "all but the last are deleted": ["delete from walkthrough_steps where id <> 'd'"],
}


@pytest.mark.parametrize("named", [True, False], ids=["with the step's id", "without"])
async def test_steps_that_change_under_a_person_s_feet(world: World, named: bool) -> None:
    """Each change after each number of steps; what is done is compared with a model of three lines."""
    await world.offer(steps="abcd")
    service = await world.start_mcp(mcp_together_ms=0)
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    for change, so_far in itertools.product(CHANGES, range(4)):
        await world.db.execute("delete from walkthrough_steps; delete from outbox")
        await world.offer(steps="abcd")
        async with agent(f"{url}/{change}, {so_far}") as person:
            answer = await person.start()
            for _ in range(so_far):
                answer = await person.next(current_step_id=answer["step"]["id"])
            current = answer["step"]["id"]
            done = list("abcd")[:so_far]
            for statement in CHANGES[change]:
                await world.db.execute(statement.format(current=current))
            rows = await world.db.fetch("select id from walkthrough_steps order by display_order, id")
            steps = [row["id"] for row in rows]

            answer = await person.next(**({"current_step_id": current} if named else {}))
            # The model: the step that was shown counts if it is still there; then the first one not done.
            if current in steps:
                done.append(current)
            waiting = [s for s in steps if s not in done]
            while waiting:
                assert answer["step"]["id"] == waiting[0], (change, so_far)
                done.append(waiting.pop(0))
                answer = await person.next(**({"current_step_id": done[-1]} if named else {}))
            assert answer["outcome"] in {"finished", "already-finished"}, (change, so_far)
            assert answer["progress"]["is_finished"]
            assert await steps_done(world) == done, (change, so_far)


async def test_calls_at_the_same_moment_complete_a_step_once(world: World) -> None:
    """Named or not: none of them has seen the step after the one that the first of them completes."""
    steps = [f"s{i:02}" for i in range(60)]
    await world.offer(steps=steps)
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1/ann"
    async with agent(url) as ann, agent(url, "legacy") as twin:
        current = (await ann.start())["step"]["id"]
        for round_ in range(6):
            names = {"current_step_id": current} if round_ % 2 else {}
            calls = [who.next(**names) for who in (ann, twin) for _ in range(6)]
            answers = await asyncio.gather(*calls)
            outcomes = Counter(a["outcome"] for a in answers)
            assert outcomes["advanced"] >= 1
            if names:
                assert outcomes == {"advanced": 1, "repeated": 11}
            current = (await ann.start())["step"]["id"]
            assert current == steps[len(await steps_done(world))]
    done = await steps_done(world)
    assert len(done) == len(set(done)), "no step twice"


async def test_two_unnamed_calls_that_overlap_complete_one_step(world: World) -> None:
    """The second waits for the lock that the first holds, so it cannot have seen what the first shows."""
    await world.offer(steps="abc")
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1/ann"
    async with agent(url) as ann, agent(url) as twin:
        await ann.start()
        other = await asyncpg.connect(world.settings.dsn)
        blocker = other.transaction()
        await blocker.start()
        await other.execute("select from mcp_server_user for update")
        calls = [asyncio.create_task(who.next()) for who in (ann, twin)]

        async def both_wait() -> bool:
            return await metric(service, "stepstream_mcp_calls_under_way") == 2

        await eventually(both_wait, "both calls wait")
        await blocker.rollback()
        await other.close()
        answers = await asyncio.gather(*calls)
    assert sorted(a["outcome"] for a in answers) == ["advanced", "repeated"]
    assert {a["step"]["id"] for a in answers} == {"b"}
    assert await steps_done(world) == ["a"]


async def test_first_calls_at_the_same_moment_make_one_person_and_one_start(world: World) -> None:
    await world.offer()
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1/ann"
    async with agent(url) as one, agent(url) as two, agent(url, "legacy") as three:
        answers = await asyncio.gather(*(who.start() for who in (one, two, three) for _ in range(4)))
    assert Counter(a["outcome"] for a in answers) == {"started": 1, "resumed": 11}
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 1
    assert await world.db.fetchval("select count(*) from walkthrough_progress") == 1
    assert [e.type for e in await outbox(world)] == ["walkthrough-started"]


async def test_sessions_of_the_transport_are_kept_under_their_id(world: World) -> None:
    await world.offer()
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", "legacy") as ann:
        await ann.start()
        await ann.next()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", "legacy") as ann:
        await ann.next()
    sessions = [e.mcp_server_session_id for e in await outbox(world)]
    assert sessions[0] == sessions[1] != sessions[2]
    rows = await world.db.fetch("select * from mcp_server_session")
    assert {r["mcp_server_session_id"] for r in rows} == set(sessions)
    assert {r["mcp_server_user_id"] for r in rows} == {await user_of(world, "ann")}
    assert {r["mcp_server_slug"] for r in rows} == {"srv_1"}


async def test_a_known_person_s_session_is_in_no_process(world: World) -> None:
    """Any process takes it, also one that was started later; it stays one session in the records."""
    await world.offer(steps="abcdef")
    ports = [(await world.start_mcp()).port for _ in range(2)]
    async with round_robin(*ports) as (proxy, url), agent(f"{url}/mcp/srv_1/ann", "legacy") as ann:
        step = (await ann.start())["step"]["id"]
        for number in range(6):
            if number == 3:
                proxy.aim((await world.start_mcp()).port)
                proxy.turns = None
            proxy.cut()
            assert (await ann.client.list_tools()).tools
            answer = await ann.next(current_step_id=step)
            step = answer["step"]["id"] if answer["step"] else ""
        assert answer["outcome"] == "finished"
    sessions = {e.mcp_server_session_id for e in await outbox(world)}
    assert len(sessions) == 1
    row = await world.db.fetchrow("select * from mcp_server_session")
    assert {row["mcp_server_session_id"]} == sessions


async def test_a_known_person_who_names_the_session_of_another_has_one_of_their_own(world: World) -> None:
    await world.offer(steps="abc")
    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1"
    async with agent(f"{url}/ann", "legacy") as ann:
        await ann.start()
    (session,) = {e.mcp_server_session_id for e in await outbox(world)}
    version = {"mcp-protocol-version": "2025-11-25"}
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "start_walkthrough"}}
    for name, named in (("bob", session), ("cat", "no-id-of-ours" * 20), ("dan", "A" * 32)):
        answer = await post(f"{url}/{name}", call, **version, **{"mcp-session-id": named})
        assert answer.json()["result"]["structuredContent"]["outcome"] == "started"
    sessions = await world.db.fetch("select * from mcp_server_session")
    assert len({row["mcp_server_user_id"] for row in sessions}) == 4
    assert [e.mcp_server_session_id for e in await outbox(world)].count(session) == 1
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        stream = await http.get(f"{url}/ann", headers={"accept": "text/event-stream"})
    assert (stream.status_code, stream.headers["allow"]) == (405, "POST")


async def test_without_a_transport_session_one_lasts_until_half_an_hour_of_silence(world: World) -> None:
    await world.offer(steps="abcdef")
    await world.offer("wt_b", "xyz", "srv_2")
    service = await world.start_mcp()
    base = f"http://127.0.0.1:{service.port}/mcp"
    half_an_hour = 30 * 60 * 1000

    async def silence(ms: int) -> None:
        await world.db.execute("update mcp_live_sessions set last_activity_at = last_activity_at - $1", ms)

    async with agent(f"{base}/srv_1/ann") as ann:
        await ann.start()
        await silence(half_an_hour - 60_000)
        await ann.next()
        await silence(half_an_hour - 60_000)
        await ann.next()
        await silence(half_an_hour)
        await ann.next()
    async with agent(f"{base}/srv_2/ann") as elsewhere:
        await elsewhere.start()
    async with agent(f"{base}/srv_1/bob") as bob:
        await bob.start()
    sessions = [e.mcp_server_session_id for e in await outbox(world)]
    assert len(set(sessions[:3])) == 1
    assert len(set(sessions)) == 4, "a new one after the silence, on another server, and for another person"
    await world.db.execute("delete from mcp_server_session where mcp_server_session_id = $1", sessions[3])
    async with agent(f"{base}/srv_1/ann") as ann:
        await ann.next()
    assert (await outbox(world))[-1].mcp_server_session_id not in sessions


@both_generations
async def test_without_a_tracking_id_everybody_new_gets_an_id_to_come_back_with(
    world: World, generation: str
) -> None:
    """Every answer names it. A session says who calls as well; without, the tool asks for the id."""
    await world.offer(steps="abc")
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with agent(url, generation) as one, agent(url, generation) as two:
        for who in (one, two):
            start_, next_, *_ = (tool.input_schema for tool in (await who.client.list_tools()).tools)
            assert "visitor" in start_["properties"]
            assert next_.get("required", []) == ([] if generation == "legacy" else ["visitor"])
            visitor = (await who.start())["visitor"]
            assert f'"{visitor}"' in who.texts[-1]
            answer = await who.next(**({} if generation == "legacy" else {"visitor": visitor}))
            assert (answer["step"]["id"], answer["visitor"]) == ("b", visitor)
        assert await world.db.fetchval("select count(*) from mcp_server_user") == 2
        wrong = await one.raw("get_next_step", visitor="visitor_guessed")
        assert wrong.is_error
        assert "leave it out" in one.texts[-1]
    assert await steps_done(world) == ["a", "a"]


@both_generations
async def test_a_visitor_is_the_same_person_after_a_restart_and_in_every_session(
    world: World, generation: str
) -> None:
    await world.offer(steps="abcd")
    visitor = ""
    for number, step in enumerate(("a", "b", "c", "d")):
        service = await world.start_mcp()
        url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
        async with agent(url, generation) as who:
            names = {"visitor": visitor} if visitor else {}
            answer = await who.start(**names)
            assert answer["step"]["id"] == step
            visitor = answer["visitor"]
        async with agent(url, GENERATIONS[number % 2]) as who:
            answer = await who.next(visitor=visitor)
            assert (answer["visitor"], answer["progress"]["completed_steps"]) == (visitor, number + 1)
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 1
    assert await steps_done(world) == list("abcd")


@both_generations
async def test_who_forgets_the_visitor_id_is_asked_for_it_and_is_not_told_to_begin(
    world: World, generation: str
) -> None:
    await world.offer(steps="abc")
    await world.offer("wt_b", "xy")
    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1"
    async with agent(url, generation) as one:
        visitor = (await one.start(name="wt_a"))["visitor"]
    async with agent(url, generation) as again:
        for answer in (await again.next(), await again.start(), await again.next(current_step_id="a")):
            assert answer["outcome"] in {"not-started", "listed"}
            assert "`visitor`" in answer["message"]
            assert "earlier answer" in answer["message"]
        assert await world.db.fetchval("select count(*) from mcp_server_user") == 1
        # Whoever begins all the same hears how to be who they were.
        begun = await again.start(name="wt_a")
        assert begun["outcome"] == "started"
        assert "earlier answer" in begun["message"]
        # The session is that of somebody else by now; the id is what counts.
        assert (await again.next(visitor=visitor))["step"]["id"] == "b"
        assert (await again.next(visitor=visitor))["step"]["id"] == "c"
    events = [e for e in await outbox(world) if isinstance(e, StepCompleted)]
    assert len({e.mcp_server_user_id for e in events}) == 1
    for event in events:
        row = await world.db.fetchrow(
            "select * from mcp_server_session where mcp_server_session_id = $1", event.mcp_server_session_id
        )
        assert row["mcp_server_user_id"] == event.mcp_server_user_id


async def test_a_visitor_id_of_another_server_is_as_unknown_as_any(world: World) -> None:
    """Also while its person is locked by a call there, and with as much progress in the same walkthrough."""
    await world.offer(steps="abc")
    await world.offer(steps="abc", server="srv_2")
    base = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp"
    async with agent(f"{base}/srv_1") as one, agent(f"{base}/srv_2") as two:
        visitor = (await one.start())["visitor"]
        for guessed in (visitor, "visitor_guessed"):
            for tool in ("start_walkthrough", "get_next_step"):
                assert (await two.raw(tool, visitor=guessed)).is_error
        async with world.connection() as other, other.transaction():
            await other.execute("select from mcp_server_user for update")
            assert (await two.raw("start_walkthrough", visitor=visitor)).is_error
        assert len(set(two.texts)) == 1
        assert "leave it out" in two.texts[0]
        assert (await one.next(visitor=visitor))["step"]["id"] == "b"
    assert await world.db.fetchval("select count(*) from mcp_server_user") == 1


async def test_problems_with_arguments_are_answers_that_name_the_field(world: World) -> None:
    await world.offer()
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        for tool, arguments, told in (
            ("start_walkthrough", {"name": 5}, "name: Input should be a valid string"),
            ("start_walkthrough", {"restart": "perhaps"}, "restart: "),
            ("get_next_step", {"step": "a"}, "step: Extra inputs are not permitted"),
            ("get_next_step", {"current_step_id": "x" * 300}, "current_step_id: "),
        ):
            result = await ann.raw(tool, **arguments)
            assert result.is_error
            assert told in ann.texts[-1]
        with pytest.raises(MCPError, match="start_walkthrough, get_next_step, skip_step, get_outline"):
            await ann.raw("delete_everything")
        odd = await ann.start(name="\0 ' \" 😀 é")
        assert odd["outcome"] == "unknown-name"
        odd = await ann.next(current_step_id="\0")
        assert odd["outcome"] == "not-started"


@both_generations
async def test_other_errors_are_the_protocol_s_and_say_nothing_of_the_inside(
    world: World, generation: str
) -> None:
    await world.offer()
    service = await world.start_mcp(process=True)
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", generation) as ann:
        await ann.start()
        await world.db.execute("alter table walkthrough_progress rename to elsewhere")
        with pytest.raises(MCPError) as caught:
            await ann.next()
        assert "elsewhere" not in str(caught.value)
        assert "walkthrough_progress" not in str(caught.value)
        assert caught.value.error.code == -32603
        assert "walkthrough_progress" in service.log.read_text()
        await world.db.execute("alter table elsewhere rename to walkthrough_progress")
        assert (await ann.next())["outcome"] == "advanced"


async def test_the_database_is_cut_off_and_calls_go_on_afterwards(world: World) -> None:
    await world.offer(steps="abcdefgh")
    service = await world.start_mcp()
    told: list[str] = []
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        answer = await ann.start()
        for _ in range(8):
            await world.db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            current = answer["step"]["id"]

            async def go_on(current: str = current) -> Any:
                try:
                    return await ann.next(current_step_id=current)
                except MCPError as error:
                    told.append(str(error))

            answer = await eventually(go_on, "the call goes through")
    assert await steps_done(world) == list("abcdefgh")
    assert all("Try the same call again" in message for message in told), told


async def test_the_events_arrive_with_cloudevents_headers_and_the_call_s_trace(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(process=True)
    world.start(RELAY)
    trace = "0af7651916cd43dd8448eb211c80319c"
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        await ann.start()
        await ann.client.call_tool(
            "get_next_step",
            {"current_step_id": "a"},
            meta={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},  # type: ignore[typeddict-unknown-key]
        )
    await world.relayed()
    records = sorted(await world.events(), key=lambda r: r.offset)
    kinds = [json.loads(record.value or b"")["type"] for record in records]
    assert kinds == ["walkthrough-started", "step-shown", "step-completed", "step-shown"]
    for record in records:
        assert record.value
        event = json.loads(record.value)
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["ce_id"] == event["event_id"]
        assert headers["ce_type"] == event["type"]
        assert headers["ce_source"] == "/mcp/srv_1"
        assert headers["ce_specversion"] == "1.0"
        assert headers["ce_time"].endswith("+00:00")
        assert headers["content-type"] == "application/json"
        version, trace_id, span, _ = headers["traceparent"].split("-")
        assert (version, len(trace_id), len(span)) == ("00", 32, 16)
        assert int(trace_id, 16)
        assert event["event_id"][14] == "7", "a UUID of version 7"
    for record in records[2:]:
        assert dict(record.headers)["traceparent"].split(b"-")[1] == trace.encode()


async def test_a_thousand_requests_from_one_person_are_too_many(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_person_rate="20/minute")
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    answers = [(await post(f"{url}/ann", {})).status_code for _ in range(30)]
    assert answers.count(429) == 10
    refused = await post(f"{url}/ann", {})
    assert refused.headers["retry-after"]
    assert "Wait" in refused.json()["error"]["message"]
    assert (await post(f"{url}/bob", {})).status_code != 429


async def test_a_greedy_stranger_or_visitor_keeps_nobody_else_of_its_address_out(world: World) -> None:
    await world.offer()
    service = await world.start_mcp(mcp_person_rate="5/minute")
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with agent(url) as ann, agent(url) as bob:
        visitor = (await ann.start())["visitor"]
        for _ in range(20):
            await bob.start()
        for _ in range(5):
            await ann.call("start_walkthrough", visitor=visitor)
        with pytest.raises(MCPError, match="More than 5 requests in 60 seconds"):
            await ann.call("start_walkthrough", visitor=visitor)
        assert (await bob.start())["outcome"] == "started"
    async with agent(url, "legacy") as cat:
        assert (await cat.start())["outcome"] == "started"


async def test_new_people_are_bounded_and_who_is_known_goes_on(world: World) -> None:
    """Neither without an id, nor with tracking ids made up, nor in sessions: a first call is a first call."""
    await world.offer()
    await world.offer("wt_b", "xyz", "srv_2")
    service = await world.start_mcp(mcp_new_people_rate="2/minute")
    url = f"http://127.0.0.1:{service.port}/mcp"
    async with agent(f"{url}/srv_1") as ann, agent(f"{url}/srv_1/bob") as bob:
        visitor = (await ann.start())["visitor"]
        await bob.start()
        for path, mode in (("srv_1", "auto"), ("srv_1/cat", "auto"), ("srv_1", "legacy")):
            async with agent(f"{url}/{path}", mode) as stranger:
                with pytest.raises(MCPError, match="More than 2 new people in 60 seconds") as refused:
                    await stranger.start()
                assert refused.value.error.data == {"reason": "too_many_requests", "retry_after": 60}
        assert (await ann.call("start_walkthrough", visitor=visitor))["outcome"] == "resumed"
        assert (await bob.start())["outcome"] == "resumed"
    async with agent(f"{url}/srv_2") as other:
        assert (await other.start())["outcome"] == "started"
    async with world.connection() as connection:
        assert await connection.fetchval("select count(*) from mcp_server_user") == 3


async def test_a_hundred_older_clients_of_one_address_get_on_after_a_restart_and_a_greedy_one_does_not(
    world: World,
) -> None:
    """Each comes with the session that it had, hears that it is gone, and opens another."""
    await world.offer(steps="ab")
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}

    async def ask(url: str, session: str) -> int:
        return (await post(url, listing, **{"mcp-session-id": session})).status_code

    url = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1"
    openings = await asyncio.gather(*(post(url, HELLO) for _ in range(100)))
    sessions = [opened.headers["mcp-session-id"] for opened in openings]
    assert Counter(await asyncio.gather(*(ask(url, s) for s in sessions))) == {200: 100}
    url = f"http://127.0.0.1:{(await world.start_mcp(mcp_person_rate='3/minute')).port}/mcp/srv_1"
    codes = Counter(await asyncio.gather(*(ask(url, s) for s in sessions for _ in range(3))))
    assert codes == {404: 300}
    assert [await ask(url, sessions[0]) for _ in range(2)] == [429, 429]
    anew = (await post(url, HELLO)).headers["mcp-session-id"]
    assert [await ask(url, anew) for _ in range(4)] == [200, 200, 200, 429]


async def test_a_rate_that_cannot_be_read_is_named(world: World) -> None:
    refused = world.command("run", "walkthrough-mcp", "--port", "0", mcp_person_rate="often")
    assert refused.returncode == 2
    assert "STEPSTREAM_MCP_PERSON_RATE: `often`" in refused.stderr


async def test_blanks_around_the_value_of_a_header_are_no_part_of_it(world: World) -> None:
    """HTTP allows them (RFC 9110, section 5.5), and some clients and proxies send them."""
    await world.offer(steps="ab")
    service = await world.start_mcp()
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {"name": "start_walkthrough", "arguments": {}, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(
        f"POST /mcp/srv_1/ann HTTP/1.1\r\nhost: \t127.0.0.1:{service.port} \t\r\nconnection: close\r\n"
        "content-type: application/json \r\naccept: application/json, text/event-stream\t\r\n"
        "mcp-protocol-version: 2026-07-28 \r\nmcp-method: \ttools/call\t\r\n"
        "mcp-name: start_walkthrough \t \r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 200 "), answer
    assert '"outcome":"started"' in answer


async def test_what_is_too_large_or_from_another_host_or_no_server_is_refused(world: World) -> None:
    await world.offer()
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1/ann"
    assert (await post(url, b"x" * 70_000)).status_code == 413
    assert (await post(url, {}, host="evil.example")).status_code == 421
    assert (await post(url, {}, origin="https://evil.example")).status_code == 403
    missing = await post(f"http://127.0.0.1:{service.port}/mcp/nothing/ann", {})
    assert (missing.status_code, missing.json()["error"]["data"]["reason"]) == (404, "not_found")
    assert (await post(f"http://127.0.0.1:{service.port}/mcp/a%00b", {})).status_code == 404
    assert (await post(f"http://127.0.0.1:{service.port}/mcp/srv_1/" + "x" * 300, {})).status_code == 404
    assert (await post(f"http://127.0.0.1:{service.port}/mcp/srv_1/a%00b", {})).status_code == 404
    assert (await post(url, b"\xff not json")).status_code in {400, 404}


async def test_what_a_session_would_keep_is_refused_where_it_is_much(world: World) -> None:
    """With 64 KB of small values a thousand sessions, which one address may have, took 1.4 GB."""
    await world.offer()
    service = await world.start_mcp()
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1/ann"
    version = {"mcp-protocol-version": "2025-11-25"}
    many = {"experimental": {"x": {"y": [{}] * 5_000}}}
    icon = {"name": "test", "version": "1", "icons": [{"src": "data:image/png;base64," + "A" * 20_000}]}
    greeting = HELLO | {"params": {**HELLO["params"], "capabilities": many}}
    for header in (version, {}):
        assert (await post(url, greeting, **header)).status_code == 413
    opened = await post(url, HELLO | {"params": {**HELLO["params"], "clientInfo": icon}}, **version)
    assert opened.status_code == 200
    session = version | {"mcp-session-id": opened.headers["mcp-session-id"]}
    for body in ({"params": many}, {"params": {"x": "y" * 40_000}}):
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", **body}
        assert (await post(url, message, **session)).status_code == 413
    assert (await post(url, {"jsonrpc": "2.0", "id": 2, "method": "ping"}, **session)).status_code == 200


async def test_nobody_gets_into_another_person_s_session(world: World) -> None:
    """An anonymous session belongs to its server; whoever is known by a tracking id is that person in any."""
    await world.offer()
    await world.offer("wt_a", server="srv_2")
    service = await world.start_mcp(process=True)
    base = f"http://127.0.0.1:{service.port}/mcp"
    opened = await post(f"{base}/srv_1/ann-secret", HELLO)
    session = opened.headers["mcp-session-id"]
    anonymous = (await post(f"{base}/srv_1", HELLO)).headers["mcp-session-id"]
    ask = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
    version = {"mcp-protocol-version": "2025-11-25"}
    assert (
        await post(f"{base}/srv_1/ann-secret", ask, **version, **{"mcp-session-id": session})
    ).status_code == 200
    begin = {**ask, "method": "tools/call", "params": {"name": "start_walkthrough"}}
    for place in ("srv_1/ann-secret", "srv_1/bob"):
        begun = await post(f"{base}/{place}", begin, **version, **{"mcp-session-id": session})
        assert begun.json()["result"]["structuredContent"]["outcome"] == "started", place
    for place, named in (("srv_1", session), ("srv_2", session), ("srv_2", anonymous)):
        refused = await post(f"{base}/{place}", ask, **version, **{"mcp-session-id": named})
        assert refused.status_code == 404, place
    log = service.log.read_text()
    assert not any(secret in log for secret in (session, anonymous, "ann-secret"))
    # The newest protocol has no sessions: an id that somebody sends along means nothing.
    async with agent(f"{base}/srv_1") as stranger:
        assert (await stranger.start())["outcome"] == "started"


async def test_a_tracking_id_of_somebody_who_signs_in_opens_nothing(world: World) -> None:
    await world.offer()
    await world.db.execute(
        "insert into mcp_server_user (id, distinct_id, upstream_sub) values ('mcpu_1', 'ann', 'sub-1')"
    )
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann") as ann:
        with pytest.raises(MCPError, match="signs in"):
            await ann.start()


async def test_tracking_ids_are_taken_as_they_are(world: World) -> None:
    await world.offer()
    service = await world.start_mcp()
    for tracking_id in ("a/b", "zoë", "x y", "%2e", "山田", "ends%2F"):
        given = tracking_id if tracking_id == "ends%2F" else quote(tracking_id)
        async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/{given}") as who:
            await who.start()
    for not_utf_8 in ("M%FCller", "M%F6ller", "M%EF%BF%BDller"):  # else these would be one person
        async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/{not_utf_8}") as who:
            with pytest.raises(MCPError, match="UTF-8"):
                await who.start()
    found = {r["distinct_id"] for r in await world.db.fetch("select distinct_id from mcp_server_user")}
    assert found == {"a/b", "zoë", "x y", "%2e", "山田", "ends/"}


async def test_a_slash_behind_an_address_is_no_part_of_it(world: World) -> None:
    await world.offer()
    base = f"http://127.0.0.1:{(await world.start_mcp()).port}/mcp/srv_1"
    async with agent(f"{base}/ann/") as ann, agent(f"{base}/") as somebody:
        await ann.start()
        visitor = (await somebody.start())["visitor"]
    found = {r["distinct_id"] for r in await world.db.fetch("select distinct_id from mcp_server_user")}
    assert found == {"ann", visitor}


async def test_deletions_by_the_platform_while_agents_call_harm_neither(world: World) -> None:
    """Steps, walkthroughs and users vanish under many calls: no call fails, no deletion is cancelled."""
    await world.offer(steps="abcdefgh")
    service = await world.start_mcp(mcp_person_rate="")
    url = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    chance = random.Random(4)
    stop = asyncio.Event()
    failures: list[str] = []

    async def person(number: int) -> None:
        async with agent(f"{url}/p{number}", chance.choice(GENERATIONS)) as who:
            while not stop.is_set():
                try:
                    await who.start(restart=chance.random() < 0.3)
                    await who.next()
                except Exception as error:
                    failures.append(repr(error))

    people = [asyncio.create_task(person(n)) for n in range(12)]
    for turn in range(60):
        step = chance.choice("abcdefgh")
        await world.db.execute("delete from walkthrough_steps where id = $1", step)
        await world.offer(steps="abcdefgh")
        if turn % 10 == 0:
            await world.db.execute("delete from walkthroughs where id = 'wt_a'")
            await world.offer(steps="abcdefgh")
        if turn % 7 == 0:
            await world.db.execute("delete from mcp_server_user where distinct_id = $1", f"p{turn % 12}")
    stop.set()
    await asyncio.gather(*people)
    assert failures == []


async def test_on_a_platform_without_a_key_of_progress_the_row_used_last_goes_on(world: World) -> None:
    """An existing platform may hold several rows for a person and walkthrough; none is added to them."""
    await world.offer(steps="abcd")
    await world.db.execute(
        "alter table walkthrough_progress drop constraint walkthrough_progress_mcp_server_user_id_walkthrough_id_key"
    )
    await world.db.execute("insert into mcp_server_user (id, distinct_id) values ('mcpu_1', 'ann')")
    await world.db.executemany(
        "insert into walkthrough_progress (id, mcp_server_user_id, walkthrough_id, completed_steps, current_step_id,"
        " started_at, last_activity_at) values ($1, 'mcpu_1', 'wt_a', $2, $3, 1, $4)",
        [("wtp_1", '["a"]', "b", 5), ("wtp_2", '["a", "b", "gone"]', "c", 9), ("wtp_3", "[]", "a", None)],
    )
    service = await world.start_mcp()
    base = f"http://127.0.0.1:{service.port}/mcp/srv_1"
    async with agent(f"{base}/ann") as ann:
        answer = await ann.start()
        assert (answer["step"]["id"], answer["progress"]["percent"]) == ("c", 50)
        assert (await ann.next(current_step_id="c"))["step"]["id"] == "d"
    assert await world.db.fetchval("select count(*) from walkthrough_progress") == 3
    async with agent(f"{base}/bob") as one, agent(f"{base}/bob", "legacy") as two:
        await asyncio.gather(*(who.start() for who in (one, two) for _ in range(5)))
    assert await world.db.fetchval("select count(*) from walkthrough_progress") == 4


@both_generations
async def test_steps_are_looked_up_and_read_on_and_nothing_changes(world: World, generation: str) -> None:
    await world.offer(steps="abc")
    long = {"contentForUser": "\n".join(f"line {i}" for i in range(30_000))}
    await world.db.execute(
        "update walkthrough_steps set content_fields = content_fields || $1 where id = 'b'", json.dumps(long)
    )
    service = await world.start_mcp()
    async with agent(f"http://127.0.0.1:{service.port}/mcp/srv_1/ann", generation) as ann:
        outline = await ann.call("get_outline")
        assert [s["state"] for s in outline["outline"]] == ["open"] * 3
        assert "call start_walkthrough" in outline["then"][0]
        assert await world.db.fetchval("select count(*) from mcp_server_user") == 0
        await ann.start()
        await ann.next(current_step_id="a")
        tables = ("walkthrough_progress", "mcp_live_sessions", "outbox")
        before = [await world.db.fetch(f"select * from {table} order by 1") for table in tables]
        outline = await ann.call("get_outline")
        assert [s["state"] for s in outline["outline"]] == ["done", "current", "open"]
        again = await ann.call("show_step", step_id="title of A")
        assert again["outcome"] == "shown-again"
        assert again["step"]["content_for_user"] == "content of a"
        assert again["progress"]["current_step_id"] == "b"
        assert 'current_step_id "b"' in ann.texts[-1]
        parts = [await ann.call("show_step", step_id="b")]
        while (part := parts[-1]["step"])["part"] < part["content_parts"]:
            assert f'show_step(step_id="b", part={part["part"] + 1})' in ann.texts[-1]
            parts.append(await ann.call("show_step", step_id="b", part=part["part"] + 1))
        assert "".join(p["step"]["content_for_user"] for p in parts) == long["contentForUser"]
        unknown = await ann.call("show_step", step_id="nowhere")
        assert (unknown["outcome"], len(unknown["outline"])) == ("unknown-step", 3)
        assert [await world.db.fetch(f"select * from {table} order by 1") for table in tables] == before

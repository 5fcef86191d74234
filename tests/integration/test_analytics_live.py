"""Live streams, MCP tools, the OpenAPI document, and what happens when the database is away."""

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from services.analytics_api import freshness, live
from services.analytics_api.freshness import Marks, Newest
from services.analytics_api.generate import FILE, document
from services.analytics_api.keys import Grant
from services.analytics_api.keys import create as make_key
from services.analytics_api.models import Freshness
from services.analytics_api.tools import TOOLS
from services.devstack.processes import free_port
from tests.support import times
from tests.support.agents import post
from tests.support.crowd import STEPS, WALKTHROUGH, gather
from tests.support.figures import Figures
from tests.support.issuer import Issuer
from tests.support.logs import NAMES, copy_completions, needs_logs, oracle, path
from tests.support.proxy import proxied
from tests.support.world import API, PATIENCE, Api, World, completed, eventually, moment

pytestmark = pytest.mark.integration
WT = f"walkthroughs/{WALKTHROUGH}"


class Heard:
    """The events of a stream, as they come."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.last_id: str | None = None

    async def next(self, name: str) -> dict[str, Any]:
        """The data of the next event of that name."""
        event, data = "", ""
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: "):
                    data = line[6:]
                elif line.startswith("id: "):
                    self.last_id = line[4:]
                elif line == "" and event:
                    if event == name:
                        return dict(json.loads(data))
                    event = ""
        raise AssertionError(f"the stream ended without {name}")


@contextlib.asynccontextmanager
async def listening(api: Api, last_id: str | None = None) -> AsyncIterator[Heard]:
    headers = {"Authorization": f"Bearer {api.key}"} | ({"Last-Event-ID": last_id} if last_id else {})
    async with api.http.stream("GET", f"/v1/{WT}/live", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Heard(response.aiter_lines())


async def begin(world: World) -> Api:
    await world.offer(WALKTHROUGH, STEPS)
    await world.people(["ann", "bob", "cem"])
    await world.insert(completed("ann", "a", 1000))
    await world.drain_marks()
    return await world.start_api()


async def test_a_stream_tells_of_each_change_and_whoever_comes_back_of_what_they_missed(world: World) -> None:
    api = await begin(world)
    async with listening(api) as heard:
        first = await heard.next("changed")
        assert first["newest_event_at"] == moment(1000)
        assert first["version"] == heard.last_id == (await api.get(f"{WT}/sankey"))["freshness"]["version"]
        await world.insert(completed("bob", "a", 2000))
        await world.drain_marks()
        second = await heard.next("changed")
        assert second["newest_event_at"] == moment(2000)
        assert second["version"] != first["version"]
        seen = heard.last_id
    # Away, and something happens: also what is older than all that was counted, and a deletion.
    await world.insert(completed("cem", "a", 500))
    await world.drain_marks()
    async with listening(api, seen) as heard:
        third = await heard.next("changed")
        assert third["version"] != second["version"]
    # Away, and nothing happens: nothing is told until something does.
    async with listening(api, heard.last_id) as heard:
        await world.db.execute("delete from walkthrough_step_completions where mcp_server_user_id = 'cem'")
        await world.drain_marks()
        assert (await heard.next("changed"))["version"] != third["version"]
        # What no count shows, but a summary does.
        await world.db.execute(
            "update walkthrough_step_completions set mcp_server_session_id = 's_cem'"
            " where mcp_server_user_id = 'bob'"
        )
        await world.drain_marks()
        await heard.next("changed")
        await world.db.execute("update walkthrough_steps set title = 'new' where id = 'a'")
        changed = await heard.next("changed")
        assert changed["version"] == (await api.get(f"{WT}/sankey"))["freshness"]["version"]


async def test_a_stream_ends_when_its_key_is_revoked_and_when_the_walkthrough_is_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_KEY_SECONDS", 0.1)
    api = await begin(world)
    async with listening(api) as heard:
        await heard.next("changed")
        await world.db.execute("update api_keys set revoked_at = now() where id = $1", api.key.split("_")[1])
        assert await heard.next("gone") == {}
    api.key = await world.make_key("org")
    async with listening(api) as heard:
        await heard.next("changed")
        await world.db.execute("delete from walkthroughs where id = $1", WALKTHROUGH)
        await heard.next("gone")
    assert (await api.ask(f"{WT}/live")).status_code == 404


async def test_a_stream_ends_when_the_walkthrough_moves_to_another_organization(world: World) -> None:
    api = await begin(world)
    await world.db.execute("insert into organization (id, name, created_at) values ('org_b', 'b', now())")
    async with listening(api) as heard:
        await heard.next("changed")
        await world.db.execute("update walkthroughs set organization_id = 'org_b' where id = $1", WALKTHROUGH)
        assert await heard.next("gone") == {}
    assert (await api.ask(f"{WT}/live")).status_code == 404


async def test_no_more_streams_than_allowed(world: World) -> None:
    await begin(world)
    api = await world.start_api(api_streams=1)
    async with listening(api) as heard:
        await heard.next("changed")
        assert (await api.ask(f"{WT}/live")).status_code == 503
        # The service ends though a stream is open.
        server, task = world.serving.pop()
        server.should_exit = True
        await asyncio.wait_for(task, PATIENCE)


async def test_sigterm_ends_a_process_that_streams(world: World) -> None:
    await begin(world)
    api = await world.start_api(process=True)
    async with listening(api) as heard:
        await heard.next("changed")
        assert await asyncio.to_thread(world.services[-1].terminate) == 0


async def test_waiting_events_and_marks_are_told(world: World) -> None:
    api = await begin(world)

    async def is_current() -> bool:
        return (await api.get(f"{WT}/sankey"))["freshness"]["current"] is True

    await eventually(is_current, "nothing waits", 20)
    await world.produce([completed("bob", "a", 2000), completed("bob", "b", 3000)])
    await world.insert(completed("ann", "b", 1500))

    async def is_behind() -> bool:
        fresh = (await api.get(f"{WT}/sankey"))["freshness"]
        lags = {g["group"]: g["lag"] for g in fresh["groups"]}
        return bool(
            fresh["current"] is False
            and lags == {"completion-recorder": 2, "sankey-aggregator": 2}
            and fresh["marks"] == 1
        )

    await eventually(is_behind, "it says what waits", 20)


async def test_who_asks_after_a_while_is_told_of_a_look_of_now(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freshness, "_ASKED_SECONDS", 0.1)
    monkeypatch.setattr(freshness, "_WAIT_SECONDS", 30.0)
    marks = 0

    async def count_marks() -> Marks:
        return Marks(marks, on_replica=False, stored={})

    async def rests() -> bool:
        return not watch.is_watching

    async def look() -> Freshness:
        return (await watch.read_backlog()).freshness(Newest(), "org")

    async def is_current() -> bool:
        # A topic that was just made has partitions without a leader for a moment, and no look is known then.
        return (await look()).current is True

    watch = freshness.FreshnessWatch(world.settings, count_marks)
    async with watch.running():
        await eventually(is_current, "the topic's partitions have leaders")
        await eventually(rests, "nobody asks any more")
        await world.produce([completed("bob", "a", 2000)])
        fresh = await look()
        assert (fresh.current, [g.lag for g in fresh.groups]) == (False, [1, 1])
        await eventually(rests, "nobody asks any more")
        marks = 3
        assert (await look()).marks == 3


async def test_with_kafka_away_figures_are_answered_and_their_freshness_is_not_known(world: World) -> None:
    await begin(world)
    api = await world.start_api(kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")
    answer = await api.get(f"{WT}/sankey")
    assert answer["journeys"] == 1
    fresh = answer["freshness"]
    assert fresh["current"] is None
    assert [g["lag"] for g in fresh["groups"]] == [None, None]
    assert "Kafka" in fresh["problem"]
    assert (await api.http.get("/health/ready")).status_code == 200


async def test_no_answer_names_another_organizations_server(world: World) -> None:
    """Neither one that offers our walkthrough, nor one of which an earlier version recorded something."""
    await gather(world)
    api = await world.start_api()
    await world.db.execute("insert into organization (id, name, created_at) values ('org_x', 'x', now())")
    await world.db.execute(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ('srv_x', 'org_x', 'a secret', 'x', 'srv_x')"
    )
    await world.db.execute(
        "insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id) values ('x', 'srv_x', $1)",
        WALKTHROUGH,
    )
    await world.people(["xan"], "srv_x")
    await world.insert(completed("xan", STEPS[0], 10**12, walkthrough_id=WALKTHROUGH, mcp_server_id="srv_x"))
    ours = await world.db.fetchval(
        "update walkthrough_step_completions set mcp_server_id = 'srv_x', mcp_server_session_id = 's_xan'"
        " where id = (select (array_agg(id order by completed_at desc))[1] from walkthrough_step_completions"
        " where walkthrough_id = $1 group by mcp_server_user_id order by count(*) desc limit 1)"
        " returning mcp_server_user_id",
        WALKTHROUGH,
    )
    await world.drain_marks()
    for route in (WT, *(f"{WT}/{name}" for name in ("sankey", "funnel", "steps", "endings", "trends"))):
        assert "srv_x" not in (await api.ask(route)).text, route
        assert (await api.ask(route, server="srv_x")).status_code == 404, route
    page, own = await api.ask(f"{WT}/journeys", limit=500), await api.ask(f"{WT}/journeys/{ours}")
    assert (page.status_code, own.status_code) == (200, 200)
    for told in (page.text, own.text):
        assert not {"srv_x", "s_xan", "xan"} & set(re.findall(r"\w+", told))
    assert len(own.json()["events"]) > 0
    assert (await api.ask(f"{WT}/journeys/xan")).status_code == 404
    (row, *_) = (await api.get("organization"))["walkthroughs"]
    assert "srv_x" not in {server["mcp_server_id"] for server in row["servers"]}


def titled(step: str | None, otherwise: str = "(start)") -> str:
    return otherwise if step is None else f"title of {step}"


def sankey_rows(route: dict[str, Any]) -> list[tuple[Any, ...]]:
    label = {
        node["id"]: {"start": "(start)", "other": "(other steps)"}.get(node["kind"], titled(node["step_id"]))
        for node in route["nodes"]
    }
    links = [
        (n["position"], label[n["source"]], label[n["target"]] + " (skipped)" * n["skipped"], n["journeys"])
        for n in route["links"]
    ]
    ends: Counter[tuple[Any, ...]] = Counter()
    for e in route["endings"]:
        ends[e["steps_done"] + e["steps_skipped"], label[e["node"]], f"({e['outcome']})"] += e["journeys"]
    return links + [(*end, journeys) for end, journeys in ends.items()]


def compared_rows(route: dict[str, Any]) -> list[tuple[Any, ...]]:
    links = [
        (
            n["position"],
            titled(n["from_step_id"]),
            titled(n["to_step_id"]) + " (skipped)" * n["skipped"],
            f"{n['in_a']}/{n['of_a']}",
        )
        for n in route["links"]
    ]
    drops = [
        (d["position"] + 1, titled(d["step_id"]), "(not gone on)", f"{d['in_a']}/{d['of_a']}")
        for d in route["drops"]
    ]
    steps = [("any", titled(s["step_id"]), "(did it)", f"{s['in_a']}/{s['of_a']}") for s in route["steps"]]
    return links + drops + steps


def trend_rows(route: dict[str, Any]) -> list[tuple[Any, ...]]:
    figures = (
        "started",
        "finished",
        "had_time",
        "finished_within",
        "complete",
        "finished_then",
        "active_people",
    )
    known = ("started", "finished_then", "active_people")
    return [(p["since"], *(p[f] for f in figures)) for p in route["points"] if any(p[f] for f in known)]


#: What each tool's table says, from what the route answers.
ROWS_OF: dict[str, Callable[[dict[str, Any]], list[tuple[Any, ...]]]] = {
    "get_overview": lambda route: [
        (w["walkthrough_id"], w["started"], w["finished"], w["dropped"]) for w in route["walkthroughs"]
    ],
    "diagnose": lambda route: (
        [
            (f["kind"], f["step_id"] and titled(f["step_id"]), f["says"], f["people"])
            for f in route["findings"]
        ]
        + [("not_concluded", None, why, None) for why in route["unknown"]]
    ),
    "get_summary": lambda route: [
        (n, titled(s["id"]), s["id"]) for n, s in enumerate(route["walkthrough"]["steps"], start=1)
    ],
    "get_sankey": sankey_rows,
    "get_funnel": lambda route: [
        (s["place"], titled(s["step_id"]), s["completed"], s["through"]) for s in route["stages"]
    ],
    "get_steps": lambda route: [
        (s["place"], titled(s["step_id"]), s["reached"], s["completed"], s["dropped_here"])
        for s in route["steps"]
    ],
    "get_endings": lambda route: [
        (e["outcome"], titled(e["step_id"]), e["journeys"]) for e in route["endings"]
    ],
    "get_paths": lambda route: [
        (
            " → ".join(titled(s) + " (skipped)" * (s in p["skipped_step_ids"]) for s in p["step_ids"])
            or "(nothing)",
            p["outcome"],
            p["journeys"],
        )
        for p in route["paths"]
    ],
    "get_trends": trend_rows,
    "compare": compared_rows,
    "find_journeys": lambda route: [
        (j["mcp_server_user_id"], j["outcome"], j["steps_done"], titled(j["next_step_id"], "–"))
        for j in route["journeys"]
    ],
    "get_journey": lambda route: [
        (e["kind"], titled(e["step_id"], "–"), e["reason"]) for e in route["events"]
    ],
    "get_session": lambda route: [
        (e["kind"], e["step_id"] and titled(e["step_id"]), e["reason"]) for e in route["events"]
    ],
}
#: Which columns these are.
COMPARED = {
    "get_overview": ("id", "started", "finished", "dropped"),
    "diagnose": ("finding", "step", "says", "people"),
    "get_summary": ("place", "step", "id"),
    "get_sankey": ("position", "from", "to", "journeys"),
    "get_funnel": ("place", "step", "did_it", "passed_all_up_to_it"),
    "get_steps": ("place", "step", "reached", "completed", "dropped_here"),
    "get_endings": ("outcome", "last_step_done", "journeys"),
    "get_paths": ("path", "outcome", "journeys"),
    "get_trends": (
        *("since", "started", "finished_of_those", "had_time", "finished_within", "complete"),
        *("finished_then", "active_people"),
    ),
    "compare": ("position", "from", "to", "a"),
    "find_journeys": ("person", "outcome", "steps_done", "next_step"),
    "get_journey": ("what", "step", "reason"),
    "get_session": ("what", "step", "reason"),
}


async def tell_of_times(agent: Client, api: Api) -> None:
    """A tool names what it leaves out of paths, and has the medians of links where they are asked for."""
    route = await api.get(f"{WT}/paths", limit=2)
    call = {"walkthrough_id": WALKTHROUGH, "limit": 2, "max_bytes": 100_000}
    answer = (await agent.call_tool("get_paths", call)).structured_content
    assert answer["facts"]["other_paths"] == route["other"]["paths"] > 0
    assert answer["facts"]["journeys_on_other_paths"] == route["other"]["journeys"]
    assert answer["ids"] == {titled(s): s for p in route["paths"] for s in p["step_ids"]}
    path = [
        f"{'skipped' if s in route['paths'][0]['skipped_step_ids'] else 'done'}:{titled(s)}" for s in STEPS
    ]
    people = await agent.call_tool(
        "find_journeys", {"walkthrough_id": WALKTHROUGH, "path": path, "max_bytes": 100_000}
    )
    assert not people.is_error, people.content
    timed = {"walkthrough_id": WALKTHROUGH, "times": True, "max_bytes": 100_000}
    answer = (await agent.call_tool("get_sankey", timed)).structured_content
    assert answer["columns"][5:] == [
        *("mean_time", "mean_active_time", "median_time", "p90_time"),
        *("median_active_time", "p90_active_time"),
    ]
    assert any(row[7] is not None for row in answer["rows"])


async def test_the_tools_tell_what_the_routes_do_and_need_the_same_key(world: World) -> None:
    await gather(world)
    user = str(
        await world.db.fetchval(
            "update walkthrough_step_skips set reason = 'does|it ' || step_id returning mcp_server_user_id"
        )
    )
    await world.drain_marks()
    api = await world.start_api()  # a look from before would find marks
    asked: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
        "get_overview": ({}, "organization", {}),
        "diagnose": ({"days": 10}, f"{WT}/diagnose", {"days": 10}),
        "get_summary": ({"server": ["srv_1"]}, WT, {"server": "srv_1"}),
        "get_sankey": ({"exclude": ["b"], "nodes": 2}, f"{WT}/sankey", {"exclude": "b", "nodes": 2}),
        "get_funnel": ({}, f"{WT}/funnel", {}),
        "get_steps": ({"from": "2020-01-01"}, f"{WT}/steps", {"from": "2020-01-01"}),
        "get_endings": ({"start_at": "a"}, f"{WT}/endings", {"start_at": "a"}),
        "get_paths": ({"limit": 30}, f"{WT}/paths", {"limit": 30}),
        "get_trends": ({"by": "week"}, f"{WT}/trends", {"by": "week"}),
        "compare": (
            {"server_a": ["srv_1"], "server_b": ["srv_2"]},
            f"{WT}/compare",
            {"server_a": "srv_1", "server_b": "srv_2"},
        ),
        "find_journeys": ({"outcome": ["finished"]}, f"{WT}/journeys", {"outcome": "finished"}),
        "get_journey": ({"mcp_server_user_id": user}, f"{WT}/journeys/{user}", {}),
        "get_session": ({"mcp_server_session_id": f"s_{user}"}, f"sessions/s_{user}", {}),
    }
    assert asked.keys() == TOOLS.keys()
    for mode in ("2026-07-28", "legacy"):
        http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {api.key}"}, timeout=PATIENCE)
        transport = streamable_http_client(f"{api.url}/mcp/analytics", http_client=http)
        async with http, Client(transport, mode=mode, cache=None) as agent:
            listed = {tool.name: tool for tool in (await agent.list_tools()).tools}
            assert listed.keys() == TOOLS.keys()
            assert all(tool.annotations.read_only_hint for tool in listed.values())
            for name, (arguments, route, query) in asked.items():
                of = {} if name in {"get_overview", "get_session"} else {"walkthrough_id": WALKTHROUGH}
                result = await agent.call_tool(name, {**of, **arguments, "max_bytes": 100_000})
                assert not result.is_error, result.content
                answer, told = result.structured_content, await api.get(route, **query)
                assert answer["current"] is True
                assert answer["read_on"] is None
                places = [answer["columns"].index(column) for column in COMPARED[name]]
                rows = [tuple(row[place] for place in places) for row in answer["rows"]]
                assert Counter(rows) == Counter(ROWS_OF[name](told)), name
                assert all(str(row[0]) in result.content[0].text for row in rows)
                assert result.content[0].text.count("does\\|it") == sum(
                    event["reason"] is not None for event in told.get("events", ())
                )
                assert answer["facts"].get("started", told.get("started")) == told.get("started")
                if name == "compare":
                    said = [*[f["says"] for f in told["findings"]], *told["unknown"], told["says"]]
                    assert set(said) <= set(answer["facts"].values()), "the same sentences"
                    assert all(sentence in result.content[0].text for sentence in said)
                for figure in ("within_days", "had_time", "finished_within"):
                    assert answer["facts"].get(figure) == told.get(figure)
            await tell_of_times(agent, api)
            for arguments, told_of in (
                ({"walkthrough_id": "wt_b"}, "no walkthrough with the id `wt_b`"),
                ({}, "walkthrough_id"),
                ({"walkthrough_id": WALKTHROUGH, "positons": 3}, "positons"),
                ({"walkthrough_id": WALKTHROUGH, "start_at": "zz"}, "no step `zz`"),
                ({"walkthrough_id": WALKTHROUGH, "server": ["srv_1", "a\0b"]}, "server.1"),
            ):
                result = await agent.call_tool("get_sankey", arguments)
                assert result.is_error
                assert told_of in result.content[0].text
    response = await api.http.post("/mcp/analytics", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert response.status_code == 401
    wanted = {"Authorization": f"Bearer {api.key}", "Accept": "text/event-stream"}
    async with api.http.stream("GET", "/mcp/analytics", headers=wanted) as stream:
        assert (stream.status_code, stream.headers["allow"]) == (405, "POST"), "no stream is open for ever"


async def test_an_agent_names_things_by_title_and_hears_what_is_left_out(world: World) -> None:
    await gather(world)
    api = await world.start_api()
    await world.db.execute("update walkthroughs set title = 'Install Bun' where id = $1", WALKTHROUGH)
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {api.key}"}, timeout=PATIENCE)
    async with (
        http,
        Client(streamable_http_client(f"{api.url}/mcp/analytics", http_client=http), cache=None) as agent,
    ):

        async def ask(tool: str, **arguments: Any) -> dict[str, Any]:
            result = await agent.call_tool(tool, {"walkthrough_id": "bun", **arguments})
            assert not result.is_error, result.content
            text, values = result.content[0].text, result.structured_content
            size = len(text.encode()) + len(json.dumps(values, ensure_ascii=False).encode())
            assert size <= arguments.get("max_bytes", 8_000) + 400
            answer: dict[str, Any] = values
            return answer

        whole = (await ask("get_sankey", max_bytes=100_000))["rows"]
        by_id = await ask("get_sankey", start_at="b", server=["srv_1"], max_bytes=100_000)
        by_title = await ask("get_sankey", start_at="Title of B", server=["srv 1"], max_bytes=100_000)
        assert by_id == by_title
        assert by_id["rows"] != whole
        pages: list[list[Any]] = []
        while len(pages) < len(whole):
            page = await ask("get_sankey", min_share=0, max_bytes=2_000, offset=len(pages))
            assert page["rows"]
            pages += page["rows"]
        assert pages == whole, "page by page it is all of it"
        folded = await ask("get_sankey", max_bytes=3_200)
        assert folded["read_on"] is None
        assert len(folded["rows"]) < len(whole)
        assert folded["facts"]["folded_below_share"] > 0
        coming: Counter[tuple[int, str]] = Counter()
        going: Counter[tuple[int, str]] = Counter()
        for position, source, target, journeys, *_ in folded["rows"]:
            going[position - 1, source] += journeys
            if not target.startswith("(") or target.startswith("(other steps)"):
                coming[position, target.removesuffix(" (skipped)")] += journeys
        assert going.pop((-1, "(start)")) == folded["facts"]["journeys"]
        assert coming == going, "what comes to a node goes on from it, or ends there"
        people: list[Any] = []
        after: dict[str, Any] = {}
        while after is not None:
            page = await ask("find_journeys", max_bytes=3_000, **after)
            people += [row[0] for row in page["rows"]]
            after = {"after": page["facts"]["next"]} if "next" in page["facts"] else None
        assert sorted(people) == sorted(
            j["mcp_server_user_id"] for j in (await api.get(f"{WT}/journeys", limit=500))["journeys"]
        )
        unclear = await agent.call_tool("get_sankey", {"walkthrough_id": "bun", "start_at": "title"})
        assert unclear.is_error
        assert "several may be meant: “title of a” (a)" in unclear.content[0].text


async def test_an_agent_signs_in_and_sees_what_its_organization_has(world: World, issuer: Issuer) -> None:
    await gather(world, people=20)
    port = free_port()
    public = f"http://127.0.0.1:{port}"
    await world.start(
        API, port, api_public_url=public, api_oauth_issuer=issuer.url, api_oauth_scopes="figures"
    ).ready()
    resource = f"{public}/mcp/analytics"

    async def answered(token: str, path: str = "/mcp/analytics") -> httpx2.Response:
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        return await post(f"{public}{path}", call, authorization=f"Bearer {token}")

    async with httpx2.AsyncClient(base_url=public, timeout=PATIENCE) as http:
        told = (await http.get("/.well-known/oauth-protected-resource/mcp/analytics")).json()
        assert (told["resource"], told["authorization_servers"]) == (resource, [issuer.url])
        assert told["scopes_supported"] == ["figures"]
        stranger = await http.post("/mcp/analytics", json={})
        assert stranger.status_code == 401
        assert f'resource_metadata="{public}/.well-known' in stranger.headers["www-authenticate"]
        assert "error=" not in stranger.headers["www-authenticate"]
    for claims, status, why in (
        ({"organization_id": "org"}, 200, ""),
        ({"organization_id": ["org"]}, 200, ""),
        ({"organization_id": ["org", "other"]}, 403, "names 2 organizations"),
        ({"organization_id": "nobody"}, 403, "no organization that there is"),
        ({}, 403, "no claim `organization_id`"),
        ({"organization_id": "org", "aud": f"{public}/v1"}, 401, "its aud is not this server"),
        ({"organization_id": "org", "exp": 1}, 401, "It has expired"),
    ):
        answer = await answered(issuer.token(resource, **claims))
        assert (answer.status_code, why in answer.text) == (status, True), answer.text
        if status == 401:
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    good = issuer.token(resource, organization_id="org")
    headers = {"Authorization": f"Bearer {good}"}
    async with httpx2.AsyncClient(base_url=public, headers=headers, timeout=PATIENCE) as http:
        assert (await http.get(f"/v1/{WT}")).status_code == 401, "a token opens the tools alone"
        transport = streamable_http_client(resource, http_client=http)
        async with Client(transport, cache=None) as agent:
            mine = await agent.call_tool("get_summary", {"walkthrough_id": WALKTHROUGH})
            assert mine.structured_content["facts"]["started"] == 20
            theirs = await agent.call_tool("get_summary", {"walkthrough_id": "wt_b"})
            assert theirs.is_error
    key = await world.make_key("org")
    assert (await answered(key)).status_code == 200, "keys go on"


async def test_a_step_that_was_added_meanwhile_is_no_change_of_what_people_do(world: World) -> None:
    """Nobody of the earlier period could do it, or finish with it."""
    await gather(world)
    api = await world.start_api()
    # Steps that were imported after people did them are not new.
    await world.db.execute("update walkthrough_steps set created_at = extract(epoch from now()) * 1000")
    before = await api.get(f"{WT}/diagnose", days=10)
    assert before["completion"] is not None
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order, created_at)"
        " values ('f', $1, 'title of f', '{}', 100, extract(epoch from now()) * 1000)",
        WALKTHROUGH,
    )
    after = await api.get(f"{WT}/diagnose", days=10)
    assert after["completion"] is None
    assert [c["step_id"] for c in after["changes"]] == [c["step_id"] for c in before["changes"]]
    assert any("“title of f”" in why for why in after["unknown"])


async def test_while_the_database_is_away_it_says_so_and_then_answers_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await begin(world)
    async with proxied(world.settings.dsn) as (proxy, url):
        api = await world.start_api(database_url=url)
        assert (await api.ask(f"{WT}/sankey")).status_code == 200
        await proxy.refuse()
        for route in (f"{WT}/sankey", "organization"):
            response = await api.ask(route)
            assert (response.status_code, response.json()["title"]) == (503, "Database away")
            assert response.headers["retry-after"]
        await asyncio.gather(*(api.ask("organization") for _ in range(40)))
        lines = [r for r in caplog.records if r.getMessage().startswith("questions failed, the database")]
        assert 1 <= len(lines) < 20, "a line a second, and not a line a question"
        assert (await api.http.get("/health/live")).status_code == 200
        assert (await api.http.get("/health/ready")).status_code == 503
        await proxy.listen()

        async def answers() -> bool:
            return (await api.ask(f"{WT}/sankey")).status_code == 200

        await eventually(answers, "it answers again", 30)


async def test_connections_cut_under_questions_are_a_database_away_and_no_fault(world: World) -> None:
    api = await begin(world)
    await api.get(f"{WT}/sankey")  # a key that was never good has few look-ups
    titles: Counter[str] = Counter()
    over = False

    async def ask() -> None:
        while not over:
            response = await api.ask(f"{WT}/sankey")
            titles["answered" if response.status_code == 200 else response.json()["title"]] += 1

    asking = [asyncio.create_task(ask()) for _ in range(6)]
    while titles.total() < 300:
        await world.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'stepstream analytics-api'"
        )
        await asyncio.sleep(0)
    over = True
    await asyncio.gather(*asking)
    assert titles["Database away"] > 0
    assert titles.keys() <= {"answered", "Database away"}

    async def answers() -> bool:
        return (await api.ask(f"{WT}/sankey")).status_code == 200

    await eventually(answers, "it answers again", 30)


async def test_a_question_that_takes_too_long_is_given_up(world: World) -> None:
    await begin(world)
    api = await world.start_api(api_statement_seconds=1, api_lock_seconds=60)
    async with world.connection() as other, other.transaction():
        await other.execute("lock table sankey_transitions in access exclusive mode")
        response = await api.ask(f"{WT}/sankey")
    assert response.status_code == 503
    assert "fewer days" in response.json()["detail"]
    assert (await api.ask(f"{WT}/sankey")).status_code == 200


def test_the_openapi_document_that_is_checked_in_is_that_of_the_routes() -> None:
    assert FILE.read_text(encoding="utf-8") == document()


async def test_every_answer_is_as_the_openapi_document_says(world: World) -> None:
    # Each worker would import it to collect this file: a second and a half.
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    await gather(world, 40)
    api = await world.start_api(api_key_rate="", api_failure_rate="")
    grant = Grant(may_write=True)
    api.key = (await make_key(world.db, "org", "reads and writes", None, grant)).text
    loaded = schemathesis.openapi.from_dict(json.loads(document()))
    loaded.config.update(base_url=api.url)
    named = {"walkthrough_id": WALKTHROUGH, "server_id": "srv_1", "session_id": "s_u001", "user_id": "u001"}
    answered: Counter[int] = Counter()

    def tried(operation: Any) -> None:
        @settings(max_examples=15, database=None, deadline=None, derandomize=True)
        @given(operation.as_strategy(), st.booleans())
        def check(case: schemathesis.Case, is_there: bool) -> None:
            if is_there:
                case.path_parameters = {k: named[k] for k in case.path_parameters}
            headers = {**case.headers, "Authorization": f"Bearer {api.key}"}
            # A schema cannot say that days are in order, nor that a step is one of the walkthrough's.
            response = case.call_and_validate(
                headers=headers, timeout=30, excluded_checks=[positive_data_acceptance]
            )
            answered[response.status_code] += 1

        check()

    for result in loaded.get_all_operations():
        operation = result.ok()
        if not operation.path.endswith("/live"):  # that one has no end
            await asyncio.to_thread(tried, operation)
    assert answered[200] > 20, answered
    assert set(answered) <= {200, 207, 400, 401, 403, 404, 415, 422}, answered


# --- the real logs -------------------------------------------------------------------------------------


@needs_logs
@pytest.mark.parametrize("name", NAMES)
async def test_a_real_log_comes_back_as_the_independent_count_and_under_every_filter(
    world: World, name: str
) -> None:
    eventlog = oracle()
    events = list(eventlog.events(path(name)))
    await world.db.execute(eventlog.rows(path(name)))
    _, cells = eventlog.expected(events)
    await copy_completions(world, events)
    api = await world.start_api(organization=await world.db.fetchval("select id from organization"))
    walkthrough = events[0]["walkthrough_id"]
    answer = await api.get(f"walkthroughs/{walkthrough}/sankey")
    assert {(x["position"], x["from_step_id"], x["to_step_id"]): x["journeys"] for x in answer["links"]} == {
        k: n for k, n in cells.items() if k[2] is not None
    }
    ends: Counter[Any] = Counter()
    for e in answer["endings"]:
        ends[e["steps_done"], e["step_id"]] += e["journeys"]
    assert ends == {(p, a): n for (p, a, b), n in cells.items() if b is None}
    truth = await Figures.read(world.db, walkthrough)
    steps = [s for s, _ in Counter(x for w in truth.walks for x in w.steps).most_common(4)]
    for view in (
        {"start_at": steps[1]},
        {"end_at": steps[2]},
        {"exclude": steps[:2]},
        {"start_at": steps[0], "exclude": [steps[3]]},
        {"through": [f"1:{steps[1]}"]},
    ):
        answer = await api.get(f"walkthroughs/{walkthrough}/sankey", **view)
        assert {
            (x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]): (
                x["journeys"],
                x["timed_journeys"],
            )
            for x in answer["links"]
        } == {k: (n, timed) for k, (n, _, timed) in truth.links(**view).items()}, view
    rows = await world.db.fetch(times.PATHS, walkthrough, len(truth.order))
    paths = await api.get(f"walkthroughs/{walkthrough}/paths", limit=500)
    assert paths["journeys"] == len(truth.walks) == sum(row["journeys"] for row in rows)
    assert paths["all_paths"] == len(rows)
    assert paths["other"]["paths"] == max(0, len(rows) - 500)
    assert paths["other"]["journeys"] == paths["journeys"] - sum(p["journeys"] for p in paths["paths"])
    assert paths["times"]["exact"] is True
    wanted = {(tuple(row["path"]), row["outcome"]): row for row in rows}
    for got in paths["paths"]:
        row = wanted[times.path_of(got)]
        for figure in ("journeys", "median_ms", "p90_ms"):
            assert got[figure] == pytest.approx(row[figure]), (figure, row["path"])
    assert min(p["journeys"] for p in paths["paths"]) >= sorted(r["journeys"] for r in rows)[-500:][0]
    got = {s["step_id"]: s for s in (await api.get(f"walkthroughs/{walkthrough}/steps"))["steps"]}
    for step, figures in truth.steps().items():
        for figure, value in figures.items():
            expected = pytest.approx(value) if isinstance(value, float) else value
            assert got[step][figure] == expected, (step, figure)

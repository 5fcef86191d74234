"""Figures by version, against a plain walk over the rows: a walkthrough that was edited twice while people came."""

import csv
import io
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.support.crowd import STEPS, WALKTHROUGH, gather
from tests.support.figures import DAY, Figures, Walk, day_of
from tests.support.world import PATIENCE, Api, World

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
WT = f"walkthroughs/{WALKTHROUGH}"
#: The display order of each version; `x` is removed by the first edit, and the second renames a step.
ORDERS = ("abxcde", "abecd", "abecd")


@dataclass
class Edited:
    """What is true of it: the figures, and when the second and third version began."""

    figures: Figures
    sinces: tuple[int, int]

    def number(self, at: int) -> int:
        return 1 + sum(since <= at for since in self.sinces)

    def began_with(self, *numbers: int) -> Figures:
        return self.figures.only(lambda w: self.number(w.began_at) in numbers)

    def stands_at(self, walk: Walk) -> str | None:
        if self.figures.outcome(walk) == "finished":
            return None
        if walk.shown is not None:
            return walk.shown
        then = ORDERS[self.number(walk.last_at) - 1]
        return next(step for step in then if step not in {*walk.steps, "x"})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    made = await World.make(*addresses, template)
    try:
        await made.offer(WALKTHROUGH, STEPS)
        await made.db.execute(
            "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
            f" values ('x', '{WALKTHROUGH}', 'title of x', '{{}}', 1)"
        )
        await gather(made)
        yield made
    finally:
        await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def truth(world: World) -> Edited:
    """The edits are made now, and dated back to the very moments at which somebody began."""
    began = sorted(w.began_at for w in (await Figures.read(world.db, WALKTHROUGH)).walks)
    sinces = began[len(began) // 3], began[2 * len(began) // 3]
    for edit, since in zip(
        (
            "delete from walkthrough_steps where id = 'x';"
            "update walkthrough_steps set display_order = case id when 'e' then 15 else 10 * display_order end",
            "update walkthrough_steps set title = 'new' where id = 'b'",
        ),
        sinces,
        strict=True,
    ):
        await world.db.execute(edit)
        await world.db.execute(
            "update walkthrough_versions set made_at = $2 where id ="
            " (select max(id) from walkthrough_versions where walkthrough_id = $1)",
            WALKTHROUGH,
            since,
        )
    await world.db.execute(
        "update walkthrough_versions set made_at = 0 where id ="
        " (select min(id) from walkthrough_versions where walkthrough_id = $1)",
        WALKTHROUGH,
    )
    return Edited(await Figures.read(world.db, WALKTHROUGH), sinces)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(world: World, truth: Edited) -> Api:
    return await world.start_api()


def links(answer: Any) -> dict[Any, tuple[int, int]]:
    return {
        (x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]): (
            x["journeys"],
            x["timed_journeys"],
        )
        for x in answer["links"]
    }


def true_links(of: Figures, **view: Any) -> dict[Any, tuple[int, int]]:
    return {key: (n, timed) for key, (n, _, timed) in of.links(**view).items()}


async def test_versions_say_what_edits_changed_and_who_began_with_each(api: Api, truth: Edited) -> None:
    answer = await api.get(f"{WT}/versions")
    versions = answer["versions"]
    assert [(v["number"], v["since"], v["until"]) for v in versions] == [
        (1, None, truth.sinces[0]),
        (2, *truth.sinces),
        (3, truth.sinces[1], None),
    ]
    assert ["".join(s["step_id"] for s in v["steps"]) for v in versions] == list(ORDERS)
    assert {s["step_id"] for v in versions for s in v["steps"] if s["removed"]} == {"x"}
    assert [v["says"] for v in versions] == [
        "The first steps that are known.",
        "Removed “title of x” from place 3; moved “title of e” from place 6 to 3.",
        "Renamed “title of b” to “new”.",
    ]
    assert [c["kind"] for v in versions for c in v["changes"]] == ["removed", "moved", "renamed"]
    assert [s["title"] for s in versions[1]["steps"]][1] == "title of b", "as it was called then"
    for query, of in (
        ({}, truth.figures),
        ({"server": "srv_2"}, truth.figures.only(lambda w: w.server == "srv_2")),
    ):
        began = Counter(truth.number(w.began_at) for w in of.walks)
        got = (await api.get(f"{WT}/versions", **query))["versions"]
        assert {v["number"]: v["journeys"] for v in got} == began
    table = await api.ask(f"{WT}/versions", headers={"Accept": "text/csv"})
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert [(r["number"], r["step_ids"]) for r in rows][1] == ("2", "a b e c d")


@pytest.mark.parametrize("numbers", [[1], [2], [3], [1, 3], [1, 2, 3]], ids=str)
async def test_every_figure_of_versions_is_of_just_those_who_began_with_them(
    api: Api, truth: Edited, numbers: list[int]
) -> None:
    until = truth.figures.today - timedelta(days=5)
    for query, of in (
        ({}, truth.began_with(*numbers)),
        (
            {"server": "srv_1", "to": str(until)},
            truth.began_with(*numbers).only(lambda w: w.server == "srv_1" and day_of(w.began_at) <= until),
        ),
    ):
        asked = {**query, "version": numbers}
        for view in ({}, {"exclude": ["a"]}, {"start_at": "b"}):
            sankey = await api.get(f"{WT}/sankey", **asked, **view)
            assert links(sankey) == true_links(of, **view)
            assert sankey["journeys"] == len(of.shown(**view))
            assert sankey["read_from"] == "journeys"
        outcomes = Counter(of.outcome(w) for w in of.walks)
        ends = await api.get(f"{WT}/endings", **asked)
        assert {k: n for k, n in ends["outcomes"].items() if n} == outcomes
        summary = await api.get(WT, **asked)
        assert {k: summary[k] for k in ("finished", "in_progress", "dropped")} == {
            k: outcomes[k] for k in ("finished", "in_progress", "dropped")
        }
        assert summary["started"] == summary["times"]["journeys"] == len(of.walks)
        took = [w.last_at - w.began_at for w in of.walks if of.outcome(w) == "finished"]
        assert summary["mean_to_finish_ms"] == (pytest.approx(sum(took) / len(took)) if took else None)
        for by in ("day", "week"):
            await trends_are_right(api, of, asked, by)
        await steps_are_right(api, truth, of, asked)
        people = await api.get(f"{WT}/journeys", **asked, limit=500)
        assert sorted(j["mcp_server_user_id"] for j in people["journeys"]) == [w.user for w in of.walks]
        diagnosis = await api.get(f"{WT}/diagnose", **asked)
        settled = truth.figures.today - timedelta(days=8)
        judged = sum(day_of(w.began_at) <= settled for w in of.walks)
        assert (diagnosis["journeys"], diagnosis["too_young"]) == (judged, len(of.walks) - judged)


async def trends_are_right(api: Api, of: Figures, asked: dict[str, Any], by: str) -> None:
    def since(ms: int) -> str:
        day = day_of(ms)
        return str(day - timedelta(days=day.weekday()) if by == "week" else day)

    done = [w for w in of.walks if of.outcome(w) == "finished"]
    active: Counter[str] = Counter()
    for w in of.walks:
        active.update({since(at) for at in [*w.times, *([w.started_at] if w.started_at is not None else [])]})
    wanted = {
        "started": Counter(since(w.began_at) for w in of.walks),
        "finished": Counter(since(w.began_at) for w in done),
    }
    if "to" not in asked:  # these are by when something was done, whenever its journey began
        wanted |= {"finished_then": Counter(since(w.last_at) for w in done), "active_people": active}
    points = (await api.get(f"{WT}/trends", **asked, by=by))["points"]
    for name, counts in wanted.items():
        assert {p["since"]: p[name] for p in points if p[name]} == counts, name


async def steps_are_right(api: Api, truth: Edited, of: Figures, asked: dict[str, Any]) -> None:
    steps = await api.get(f"{WT}/steps", **asked)
    assert [s["step_id"] for s in steps["steps"]] == list("abecd")
    standing = Counter((truth.stands_at(w), of.outcome(w)) for w in of.walks)
    for got in steps["steps"]:
        step = got["step_id"]
        done = sum(step in w.done for w in of.walks)
        assert (got["completed"], got["skipped"]) == (done, sum(step in w.skipped for w in of.walks))
        assert got["dropped_here"] == standing[step, "dropped"]
        assert got["in_progress_here"] == standing[step, "in_progress"]
    unfinished = [w for w in of.walks if of.outcome(w) != "finished"]
    assert steps["assumed"] == sum(1 for w in unfinished if w.shown is None)
    funnel = await api.get(f"{WT}/funnel", **asked)
    order = [s for s in ORDERS[max(asked.get("version", [3])) - 1] if s != "x"]
    assert [s["step_id"] for s in funnel["stages"]] == order
    assert [s["through"] for s in funnel["stages"]] == Figures(order, of.walks).through()


async def test_where_people_stand_is_told_by_the_order_of_their_time(api: Api, truth: Edited) -> None:
    walks = {w.user: w for w in truth.figures.walks}
    people = (await api.get(f"{WT}/journeys", limit=500))["journeys"]
    assert {p["mcp_server_user_id"] for p in people} == walks.keys()
    for person in people:
        walk = walks[person["mcp_server_user_id"]]
        stands = truth.stands_at(walk)
        assert person["next_step_id"] == stands
        assert person["next_step_assumed"] == (stands is not None and walk.shown is None)
        assert person["version_began"] == truth.number(walk.began_at)
        assert person["version_ended"] == truth.number(walk.last_at)
    by_today = Counter(truth.figures.next_step(w) for w in walks.values())
    by_then = Counter(truth.stands_at(w) for w in walks.values())
    assert by_today != by_then, "else nothing was tried"
    await steps_are_right(api, truth, truth.figures, {})
    for step in "abecd":
        found = (await api.get(f"{WT}/journeys", next_step=step, limit=500))["journeys"]
        assert len(found) == by_then[step]


async def test_who_began_at_the_very_moment_of_an_edit_began_with_the_version_that_it_made(
    api: Api, truth: Edited
) -> None:
    for number, since in zip((2, 3), truth.sinces, strict=True):
        at_once = {w.user for w in truth.figures.walks if w.began_at == since}
        assert at_once
        for version, inside in ((number, True), (number - 1, False)):
            found = await api.get(f"{WT}/journeys", version=version, limit=500)
            assert (at_once <= {j["mcp_server_user_id"] for j in found["journeys"]}) == inside


async def test_before_and_after_an_edit_side_by_side(api: Api, truth: Edited) -> None:
    def counts(of: Figures) -> dict[Any, int]:
        return {key: n for key, (n, _) in true_links(of).items()}

    answer = await api.get(f"{WT}/compare", version_a=1, version_b=[2, 3], server_b="srv_1")
    days, judged_at = answer["within_days"] * DAY, answer["judged_at"]
    sides = truth.began_with(1), truth.began_with(2, 3).only(lambda w: w.server == "srv_1")

    def by_then(walk: Walk) -> Walk:
        seen = sum(at < walk.began_at + days for at in walk.times)
        return replace(walk, steps=walk.steps[:seen], times=walk.times[:seen])

    a, b = (
        Figures(side.order, [by_then(w) for w in side.walks if w.began_at + days <= judged_at], side.today)
        for side in sides
    )
    assert (answer["journeys_a"], answer["journeys_b"]) == (len(a.walks), len(b.walks))
    for side, of in (("in_a", a), ("in_b", b)):
        got = {
            (x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]): x[side]
            for x in answer["links"]
        }
        assert {key: n for key, n in got.items() if n} == counts(of)


async def test_a_funnel_of_a_version_says_whose_order_it_has_and_what_was_removed(
    api: Api, truth: Edited
) -> None:
    now, then = await api.get(f"{WT}/funnel"), await api.get(f"{WT}/funnel", version=1)
    assert (now["order_of"], now["removed"]) == (3, [])
    assert (then["order_of"], then["removed"]) == (1, [{"id": "x", "title": "title of x", "optional": False}])
    assert [s["title"] for s in then["stages"]][:2] == ["title of a", "new"], "by the titles of today"
    assert then["order_since"] is None
    both = await api.get(f"{WT}/funnel", version=[1, 2])
    edit = await api.get(f"{WT}/versions")
    assert both["order_since"] == now["order_since"] == edit["versions"][1]["since"], (
        "the third renamed a step"
    )


@pytest.mark.parametrize(
    ("path", "query", "where", "told"),
    [
        ("/sankey", {"version": 4}, "query.version", "it has versions 1 to 3"),
        ("", {"version": [1, 9]}, "query.version", "no version 9"),
        ("/journeys", {"version": 4}, "query.version", "no version 4"),
        ("/compare", {"version_a": 1, "version_b": 7}, "query.version_b", "no version 7"),
        ("/steps", {"version": 0}, "query.version", "greater than or equal to 1"),
        ("/versions", {"version": 1}, "query.version", "version"),
    ],
)
async def test_a_version_that_is_none_is_said_to_be_none(
    api: Api, path: str, query: dict[str, Any], where: str, told: str
) -> None:
    response = await api.ask(f"{WT}{path}", **query)
    assert response.status_code == 422
    assert where in response.text
    assert told in response.text


async def test_agents_are_told_the_same(api: Api, truth: Edited) -> None:
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {api.key}"}, timeout=PATIENCE)
    transport = streamable_http_client(f"{api.url}/mcp/analytics", http_client=http)
    async with http, Client(transport, cache=None) as agent:
        summary = await asked(agent, "get_summary", version=[1])
        facts = summary["facts"]
        assert facts["started"] == len(truth.began_with(1).walks)
        assert facts["versions"] == 3
        assert facts["version_3"].endswith("Renamed “title of b” to “new”.")
        funnel = await asked(agent, "get_funnel", version=[1])
        assert funnel["facts"]["order_of_version"] == 1
        assert funnel["facts"]["removed_since"] == "title of x"
        assert "in_this_order_since" not in funnel["facts"], "which all of these had"
        funnel = await asked(agent, "get_funnel")
        since = datetime.fromtimestamp(truth.sinces[0] // 1000, UTC)
        assert funnel["facts"]["in_this_order_since"].startswith(f"{since:%Y-%m-%d %H:%M:%S}")
        people = await asked(agent, "find_journeys", version=[2], limit=500, max_bytes=100_000)
        began = people["columns"].index("version_began")
        assert {row[began] for row in people["rows"]} == {2}
        assert len(people["rows"]) == len(truth.began_with(2).walks)
        wrong = await agent.call_tool("get_steps", {"walkthrough_id": WALKTHROUGH, "version": [8]})
        assert wrong.is_error
        assert "versions 1 to 3" in wrong.content[0].text


async def asked(agent: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await agent.call_tool(tool, {"walkthrough_id": WALKTHROUGH, **arguments})
    assert not answer.is_error, answer.content
    return dict(answer.structured_content)

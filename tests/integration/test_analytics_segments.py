"""Figures of segments, by SQL over the rows alone: by what a journey began with, and by what was done in it."""

import csv
import io
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.support.crowd import WALKTHROUGH, gather
from tests.support.figures import DAY, Figures, Walk, day_of
from tests.support.world import PATIENCE, Api, World

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
WT = f"walkthroughs/{WALKTHROUGH}"
QUOTED = "x'); drop table sankey_journeys; --"
FOREIGN = "foreign-agent"

#: What people began with: the start says it or, without one, whichever row came first. Showings have no metadata.
BEGAN_WITH = """
with events as (
  select
    mcp_server_user_id as person, 0 as rank, started_at as at, id, mcp_server_session_id as session, metadata,
    true as is_told
  from walkthrough_starts where walkthrough_id = 'wt_a'
  union all
  select mcp_server_user_id, 1, first_shown_at, first_id, mcp_server_session_id, null, false
  from walkthrough_step_showings where walkthrough_id = 'wt_a'
  union all
  select mcp_server_user_id, 2, completed_at, id, mcp_server_session_id, metadata, true
  from walkthrough_step_completions where walkthrough_id = 'wt_a'
  union all
  select skip.mcp_server_user_id, 2, skip.skipped_at, skip.id, skip.mcp_server_session_id, skip.metadata, true
  from walkthrough_step_skips as skip
  left join walkthrough_step_completions as done
  on skip.mcp_server_user_id = done.mcp_server_user_id and skip.step_id = done.step_id
  where skip.walkthrough_id = 'wt_a' and done.id is null
)
select distinct on (events.person) events.person, client.name, client.version, events.metadata, events.is_told
from events
left join mcp_server_session as session on session.mcp_server_session_id = events.session
left join mcp_session_clients as client
on client.mcp_server_session_id = events.session and session.mcp_server_slug in ('srv_1', 'srv_2')
order by events.person, events.rank = 0 desc, events.at, events.rank, events.id collate "C"
"""


@dataclass
class Began:
    """What is true of them: the figures, and what each journey began with."""

    figures: Figures
    by_user: dict[str, tuple[str | None, str | None, dict[str, Any] | None]]

    def has(self, walk: Walk, text: str) -> bool:
        agent, version, metadata = self.by_user[walk.user]
        name, _, value = text.partition(":")
        match name.removeprefix("not_"):
            case "agent":
                found = (agent or "") == value
            case "agent_version":
                found = (version or "") == value
            case "did":
                found = value in walk.done
            case _ if metadata is None:
                return False
            case key:
                kept = metadata.get(key.removeprefix("metadata."))
                found = ("" if kept is None else kept if isinstance(kept, str) else json.dumps(kept)) == value
        return found != name.startswith("not_")

    def of(self, *groups: tuple[str, ...]) -> Figures:
        """Those for whom one of each group holds."""
        return self.figures.only(lambda w: all(any(self.has(w, text) for text in g) for g in groups))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    made = await World.make(*addresses, template)
    try:
        await gather(made)
        await _tell(made)
        yield made
    finally:
        await made.close()


async def _tell(world: World) -> None:
    """Agents of sessions, and metadata of every event; some tell nothing, and one session is somebody else's."""
    await world.db.execute(
        """
        insert into mcp_session_clients (mcp_server_session_id, name, version)
        select
          mcp_server_session_id,
          (array['claude-code', 'cursor', $quoted$x'); drop table sankey_journeys; --$quoted$, 'naïve "agent":1'])
            [1 + abs(hashtext(mcp_server_session_id)) % 4],
          (array['1', '2.0', null])[1 + abs(hashtext(mcp_server_session_id || 'v')) % 3]
        from mcp_server_session
        where abs(hashtext(mcp_server_session_id || 'told')) % 5 > 0 and mcp_server_slug <> 'srv_b';
        insert into mcp_session_clients values ('s_bea', 'foreign-agent', '6.6.6');
        """
    )
    for table in ("walkthrough_starts", "walkthrough_step_completions", "walkthrough_step_skips"):
        await world.db.execute(
            f"""
            update {table} set metadata = jsonb_build_object(
              'plan', (array['free', 'pro', $quoted$x'); drop table sankey_journeys; --$quoted$])
                [1 + abs(hashtext(id)) % 3],
              'number', abs(hashtext(id || 'n')) % 3,
              'deep', jsonb_build_object('a', abs(hashtext(id || 'd')) % 2),
              'a''b"$1:c', 'odd'
            )
            where walkthrough_id = 'wt_a' and abs(hashtext(id || 'told')) % 4 > 0;
            update {table} set metadata = '{{"plan": null, "flag": true}}'
            where walkthrough_id = 'wt_a' and abs(hashtext(id || 'told')) % 8 = 0;
            """
        )
    # A row of before such rows were refused: its session is on a server of another organization.
    await world.db.execute(
        "update walkthrough_starts set mcp_server_session_id = 's_bea' where id in"
        " (select id from walkthrough_starts where walkthrough_id = 'wt_a' order by id limit 5)"
    )
    await world.drain_marks()
    await world.db.execute("analyze")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def truth(world: World) -> Began:
    rows = await world.db.fetch(BEGAN_WITH)
    by_user = {
        r["person"]: (r["name"], r["version"], json.loads(r["metadata"] or "{}") if r["is_told"] else None)
        for r in rows
    }
    assert any(metadata is None for _, _, metadata in by_user.values()), "else nothing is tried"
    assert FOREIGN not in {agent for agent, _, _ in by_user.values()}
    return Began(await Figures.read(world.db, WALKTHROUGH), by_user)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(world: World) -> Api:
    return await world.start_api()


#: Of each group one has to hold, and of all groups one.
SEGMENTS: list[tuple[tuple[str, ...], ...]] = [
    (("agent:claude-code",),),
    (("agent:claude-code", "agent:cursor"),),
    (("agent:",),),
    (("agent:claude-code",), ("agent_version:2.0",)),
    (("agent_version:",),),
    (("metadata.plan:free",),),
    (("metadata.plan:",),),
    (("metadata.number:2", "metadata.number:1"), ("metadata.plan:pro",)),
    (("metadata.flag:true",),),
    ((f"agent:{QUOTED}",),),
    ((f"metadata.plan:{QUOTED}",),),
    (('agent:naïve "agent":1',),),
    (("did:c",),),
    (("did:b",), ("did:d",)),
    (("not_did:c",),),
    (("not_did:c",), ("not_did:e",)),
    (("not_agent:cursor",), ("not_agent:",)),
    (("not_metadata.plan:free",),),
    (("agent:cursor",), ("did:a",), ("metadata.number:0",)),
]


@pytest.mark.parametrize("groups", SEGMENTS, ids=str)
async def test_every_figure_of_a_segment_is_of_just_those_in_it(
    api: Api, truth: Began, groups: tuple[tuple[str, ...], ...]
) -> None:
    segment = [text for group in groups for text in group]
    until = truth.figures.today - timedelta(days=5)
    everybody = truth.of(*groups)
    assert everybody.walks, "else nothing is tried"
    for query, of in (
        ({}, everybody),
        (
            {"server": "srv_1", "to": str(until)},
            everybody.only(lambda w: w.server == "srv_1" and day_of(w.began_at) <= until),
        ),
    ):
        asked = {**query, "segment": segment}
        await flows_are_right(api, of, asked)
        await sums_are_right(api, of, asked)
        await people_are_right(api, of, asked)


def links(answer: Any, counts: str = "journeys") -> dict[Any, int]:
    found = {
        (x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]): x[counts] for x in answer["links"]
    }
    return {key: n for key, n in found.items() if n}


def true_links(of: Figures, **view: Any) -> dict[Any, int]:
    return {key: n for key, (n, _, _) in of.links(**view).items()}


async def flows_are_right(api: Api, of: Figures, asked: dict[str, Any]) -> None:
    for view in ({}, {"exclude": ["a"]}, {"start_at": "b"}):
        sankey = await api.get(f"{WT}/sankey", **asked, **view)
        assert links(sankey) == true_links(of, **view)
        assert sankey["journeys"] == len(of.shown(**view))
        assert sankey["read_from"] == "journeys"
    timed = await api.get(f"{WT}/sankey", **asked, times="true")
    assert timed["times"]["journeys"] == len(of.walks)
    outcomes = Counter(of.outcome(w) for w in of.walks)
    ends = await api.get(f"{WT}/endings", **asked)
    assert {k: n for k, n in ends["outcomes"].items() if n} == outcomes
    paths = await api.get(f"{WT}/paths", **asked, limit=500)
    wanted = Counter(tuple(w.steps) for w in of.walks)
    got: Counter[tuple[str, ...]] = Counter()
    for path in paths["paths"]:
        got[tuple(path["step_ids"])] += path["journeys"]
    assert got == wanted
    steps = await api.get(f"{WT}/steps", **asked)
    true_steps = of.steps()
    for step in steps["steps"]:
        for name in ("completed", "skipped", "dropped_here", "in_progress_here"):
            assert step[name] == true_steps[step["step_id"]][name], (step["step_id"], name)
    funnel = await api.get(f"{WT}/funnel", **asked)
    assert [stage["through"] for stage in funnel["stages"]] == of.through()


async def sums_are_right(api: Api, of: Figures, asked: dict[str, Any]) -> None:
    outcomes = Counter(of.outcome(w) for w in of.walks)
    summary = await api.get(WT, **asked)
    assert {k: summary[k] for k in ("finished", "in_progress", "dropped")} == {
        k: outcomes[k] for k in ("finished", "in_progress", "dropped")
    }
    assert summary["started"] == summary["times"]["journeys"] == len(of.walks)
    curve = await api.get(f"{WT}/time-to-finish", **asked)
    assert (curve["journeys"], curve["finished"]) == (len(of.walks), outcomes["finished"])
    points = (await api.get(f"{WT}/trends", **asked))["points"]
    began = Counter(str(day_of(w.began_at)) for w in of.walks)
    assert {p["since"]: p["started"] for p in points if p["started"]} == began
    if "to" not in asked:  # who was active, whenever their journey began
        active: Counter[str] = Counter()
        for w in of.walks:
            started = [] if w.started_at is None else [w.started_at]
            active.update({str(day_of(at)) for at in [*w.times, *started]})
        assert {p["since"]: p["active_people"] for p in points if p["active_people"]} == active
    diagnosis = await api.get(f"{WT}/diagnose", **asked)
    settled = of.today - timedelta(days=8)
    judged = sum(day_of(w.began_at) <= settled for w in of.walks)
    assert (diagnosis["journeys"], diagnosis["too_young"]) == (judged, len(of.walks) - judged)


async def people_are_right(api: Api, of: Figures, asked: dict[str, Any]) -> None:
    users = sorted(w.user for w in of.walks)
    people = await api.get(f"{WT}/journeys", **asked, limit=500)
    assert sorted(j["mcp_server_user_id"] for j in people["journeys"]) == users
    page = await api.get(f"{WT}/journeys", **asked, limit=1)
    assert page["of"] == len(users)
    table = await api.ask(f"{WT}/journeys", headers={"Accept": "text/csv"}, **asked)
    rows = list(csv.DictReader(io.StringIO(table.text)))
    assert sorted(row["mcp_server_user_id"] for row in rows) == users
    lines = await api.ask(f"{WT}/journeys", headers={"Accept": "application/x-ndjson"}, **asked)
    assert sorted(json.loads(line)["mcp_server_user_id"] for line in lines.text.splitlines()) == users


async def test_two_segments_side_by_side(api: Api, truth: Began) -> None:
    answer = await api.get(
        f"{WT}/compare", segment_a=["agent:cursor", "did:a"], segment_b="not_agent:cursor", server_b="srv_1"
    )
    days, judged_at = answer["within_days"] * DAY, answer["judged_at"]
    sides = (
        truth.of(("agent:cursor",), ("did:a",)),
        truth.of(("not_agent:cursor",)).only(lambda w: w.server == "srv_1"),
    )

    def by_then(walk: Walk) -> Walk:
        seen = sum(at < walk.began_at + days for at in walk.times)
        return replace(walk, steps=walk.steps[:seen], times=walk.times[:seen])

    for letter, side in zip("ab", sides, strict=True):
        walks = [by_then(w) for w in side.walks if w.began_at + days <= judged_at]
        assert answer[f"journeys_{letter}"] == len(walks) > 5
        assert links(answer, f"in_{letter}") == true_links(Figures(side.order, walks, side.today))
    assert "agent “cursor” and having completed “title of a”" in answer["says"]
    assert "agent not “cursor”" in answer["says"]


async def test_who_was_only_shown_something_began_with_the_session_of_the_first_showing(world: World) -> None:
    await world.people(["only_shown"])
    await world.people(["only_shown"], session="second_")
    await world.db.execute(
        """
        insert into mcp_session_clients values ('s_only_shown', 'the-first', '1'), ('second_only_shown', 'the-second', '1');
        insert into walkthroughs (id, organization_id, title, status) values ('wt_s', 'org', 'shown', 'published');
        insert into walkthrough_steps (id, walkthrough_id, title, content_fields)
        values ('s1', 'wt_s', 's1', '{}'), ('s2', 'wt_s', 's2', '{}');
        insert into walkthrough_step_showings (first_id, last_id, mcp_server_user_id, walkthrough_id, step_id,
          mcp_server_id, mcp_server_session_id, first_shown_at, last_shown_at)
        values ('a', 'b', 'only_shown', 'wt_s', 's2', 'srv_1', 'second_only_shown', 1900000000000, 1900000000000),
          ('c', 'd', 'only_shown', 'wt_s', 's1', 'srv_1', 's_only_shown', 1800000000000, 1950000000000);
        """
    )
    await world.drain_marks()
    api = await world.start_api()
    for agent, journeys in (("the-first", 1), ("the-second", 0)):
        answer = await api.get("walkthroughs/wt_s/sankey", segment=f"agent:{agent}")
        assert answer["journeys"] == journeys


async def test_the_client_of_somebody_elses_session_is_nobodys(world: World, api: Api) -> None:
    assert await world.db.fetchval(
        "select count(*) from walkthrough_starts where mcp_server_session_id = 's_bea'"
    )
    answer = await api.get(f"{WT}/sankey", segment=f"agent:{FOREIGN}")
    assert answer["journeys"] == 0


@pytest.mark.parametrize(
    ("path", "query", "where", "told"),
    [
        ("/sankey", {"segment": "did:b_1"}, "query.segment", "no step `b_1`"),
        ("", {"segment": "not_did:zz"}, "query.segment", "no step `zz`"),
        ("/journeys", {"segment": "did:"}, "query.segment", "no segment"),
        ("/steps", {"segment": "agent"}, "query.segment", "agent:NAME"),
        ("/funnel", {"segment": "metadata.:x"}, "query.segment", "metadata.KEY:VALUE"),
        ("/trends", {"segment": "agent:a\0b"}, "query.segment", "match pattern"),
        ("/paths", {"segment": "agent:" + "x" * 200}, "query.segment", "at most 200"),
        ("/endings", {"segment": [f"agent:{n}" for n in range(21)]}, "query.segment", "at most 20"),
        ("/compare", {"segment_a": "agent:x", "segment_b": "did:zz"}, "query.segment_b", "no step `zz`"),
        ("/compare", {"segment_a": "nothing"}, "query.segment_a", "no segment"),
        ("/versions", {"segment": "agent:x"}, "query.segment", "segment"),
    ],
)
async def test_a_segment_that_is_none_is_said_to_be_none(
    api: Api, path: str, query: dict[str, Any], where: str, told: str
) -> None:
    response = await api.ask(f"{WT}{path}", **query)
    assert response.status_code == 422
    assert where in response.text
    assert told in response.text


async def test_agents_ask_for_segments_by_the_titles_of_steps(api: Api, truth: Began) -> None:
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {api.key}"}, timeout=PATIENCE)
    transport = streamable_http_client(f"{api.url}/mcp/analytics", http_client=http)
    async with http, Client(transport, cache=None) as agent:
        for segment in (["did:title of c", "agent:cursor"], ["did:c", "agent:cursor"]):
            answer = await agent.call_tool("get_summary", {"walkthrough_id": WALKTHROUGH, "segment": segment})
            facts = (answer.structured_content or {})["facts"]
            assert facts["started"] == len(truth.of(("did:c",), ("agent:cursor",)).walks)
        for wrong in ("agent", "did:nothing"):
            arguments = {"walkthrough_id": WALKTHROUGH, "segment": [wrong]}
            found = await agent.call_tool("get_summary", arguments)
            assert found.is_error, wrong


async def test_the_links_of_a_diagnosis_keep_the_segment(api: Api) -> None:
    answer = await api.get(f"{WT}/diagnose", segment=["agent:cursor", "metadata.plan:free"])
    for finding in answer["findings"]:
        assert "segment" in finding["look_at"]
        response = await api.http.get(finding["look_at"], headers={"Authorization": f"Bearer {api.key}"})
        assert response.status_code == 200


# --- what tells them apart -----------------------------------------------------------------------------


@dataclass
class Stood:
    """A journey as it stood some days after its beginning, with the values that it is counted under."""

    walk: Walk
    step: str | None
    order: list[str]

    @property
    def is_finished(self) -> bool:
        return len(self.walk.steps) == len(self.order)

    @property
    def is_counted(self) -> bool:
        if self.step is None or self.step in self.walk.steps:
            return True
        left = [s for s in self.order if s not in self.walk.steps]
        return not self.is_finished and left[0] == self.step

    @property
    def is_in_order(self) -> bool:
        """Whether they had passed all steps before this one."""
        if self.step is None:
            return True
        before = (
            self.walk.steps[: self.walk.steps.index(self.step)]
            if self.step in self.walk.steps
            else self.walk.steps
        )
        return set(before) >= set(self.order[: self.order.index(self.step)])

    @property
    def is_one(self) -> bool:
        return self.is_finished if self.step is None else self.step not in self.walk.steps

    @property
    def done(self) -> set[str]:
        steps = self.walk.steps
        before = steps[: steps.index(self.step)] if self.step in steps else steps
        return set(before) - self.walk.skipped


def stood(truth: Began, of: Figures, days: int, judged_at: int, step: str | None) -> list[Stood]:
    def by_then(walk: Walk) -> Walk:
        seen = sum(at < walk.began_at + days * DAY for at in walk.times)
        return replace(walk, steps=walk.steps[:seen], times=walk.times[:seen])

    walks = [by_then(w) for w in of.walks if w.began_at + days * DAY <= judged_at]
    found = [Stood(walk, step, truth.figures.order) for walk in walks]
    return [one for one in found if one.is_counted]


def sides_of(truth: Began, everybody: list[Stood], got: dict[str, Any]) -> dict[str, list[Stood]]:
    """Those of a segment, and the others: of steps those who had come in order."""
    if got["kind"] == "did":
        assert got["segment"] == got["rest"] == []
        ours = [one for one in everybody if one.is_in_order]
        return {
            "": [one for one in ours if got["value"] in one.done],
            "rest_": [one for one in ours if got["value"] not in one.done],
        }
    return {
        name: [one for one in everybody if all(truth.has(one.walk, text) for text in got[texts])]
        for name, texts in (("", "segment"), ("rest_", "rest"))
    }


@pytest.mark.parametrize(
    ("query", "groups"),
    [
        ({}, ()),
        ({"step": "c", "within_days": 3}, ()),
        ({"step": "e", "within_days": 9, "segment": "agent:cursor"}, (("agent:cursor",),)),
        ({"by": "did", "within_days": 5}, ()),
        ({"by": "metadata.plan", "step": "b", "within_days": 1}, ()),
        ({"by": "agent", "within_days": 2, "segment": "did:b"}, (("did:b",),)),
    ],
    ids=str,
)
async def test_each_segment_is_compared_with_the_others(
    api: Api, truth: Began, query: dict[str, Any], groups: tuple[tuple[str, ...], ...]
) -> None:
    answer = await api.get(f"{WT}/segments", **query)
    of = truth.of(*groups)
    everybody = stood(truth, of, answer["within_days"], answer["judged_at"], query.get("step"))
    assert (answer["journeys"], answer["those"]) == (len(everybody), sum(s.is_one for s in everybody))
    had_time = stood(truth, of, answer["within_days"], answer["judged_at"], None)
    assert answer["too_young"] == len(of.walks) - len(had_time)
    for got in answer["segments"]:
        sides = sides_of(truth, everybody, got)
        for name, side in sides.items():
            told = got[f"{name}journeys"], got[f"{name}those"]
            assert told == (len(side), sum(one.is_one for one in side)), (got["segment"], name)
        is_enough = min(map(len, sides.values())) >= 30
        assert (got["p_value"] is not None) == is_enough, got["segment"]
        assert got["excess"] == pytest.approx(loses(sides, query.get("step")))
    values = {(got["kind"], got["key"], got["value"]) for got in answer["segments"]}
    assert values == true_values(truth, everybody, query)


def loses(sides: dict[str, list[Stood]], step: str | None) -> float | None:
    if not sides["rest_"]:
        return None
    share = sum(one.is_one for one in sides["rest_"]) / len(sides["rest_"])
    excess = sum(one.is_one for one in sides[""]) - share * len(sides[""])
    return excess if step is not None else -excess


def true_values(
    truth: Began, everybody: list[Stood], query: dict[str, Any]
) -> set[tuple[str, str | None, str]]:
    by, step = query.get("by"), query.get("step")
    found: set[tuple[str, str | None, str]] = set()
    versions: dict[str, set[str]] = {}
    for one in everybody:
        agent, version, metadata = truth.by_user[one.walk.user]
        if by in {None, "agent"}:
            found.add(("agent", None, agent or ""))
        if agent is not None:
            versions.setdefault(agent, set()).add(version or "")
        for key in ("plan", "number", "flag", "deep"):
            if by in {None, f"metadata.{key}"} and metadata is not None:
                kept = metadata.get(key)
                text = "" if kept is None else kept if isinstance(kept, str) else json.dumps(kept)
                found.add(("metadata", key, text))
        before = "abcde"[: "abcde".index(step)] if step else "abcde" if by == "did" else ""
        if by in {None, "did"}:
            found |= {("did", None, done) for done in one.done & set(before) if one.is_in_order}
    if by is None:
        found |= {
            ("agent_version", None, version)
            for told in versions.values()
            if len(told) > 1
            for version in told
        }
    return found


async def test_what_is_left_out_of_segments_is_said_with_its_size(
    world: World, api: Api, truth: Began
) -> None:
    answer = await api.get(f"{WT}/segments")
    (key,) = [left for left in answer["left_out"] if left["key"] == "a'b\"$1:c"]
    assert "cannot be asked for" in key["says"]
    assert any("ask by did" in left["says"] for left in answer["left_out"])
    table = await api.ask(f"{WT}/segments", headers={"Accept": "text/csv"})
    assert len(table.text.splitlines()) == 1 + len(answer["segments"])
    assert "see the JSON" in table.headers["X-Left-Out"]
    assert FOREIGN not in json.dumps(answer)


async def test_values_and_keys_are_bounded(world: World) -> None:
    """Whoever makes up names makes the answer no longer."""
    names = [f"p{i:03}" for i in range(300)]
    await world.offer("wt_m", ("m1",))
    await world.people(names)
    await world.db.execute(
        """
        insert into mcp_session_clients
        select 's_p' || lpad(i::text, 3, '0'), case when i < 120 then 'agent ' || i else repeat('x', 100) end, repeat('1', 100)
        from generate_series(0, 298) as i;
        insert into walkthrough_starts (id, mcp_server_user_id, walkthrough_id, mcp_server_id, mcp_server_session_id,
          started_at, metadata)
        select 'wtst_p' || i, 'p' || lpad(i::text, 3, '0'), 'wt_m', 'srv_1', 's_p' || lpad(i::text, 3, '0'), 1700000000000 + i,
          (select jsonb_object_agg('k' || k, case when k = 0 then 'v' || i when k = 1 then 'v' || i % 60 else 'v' end)
            from generate_series(0, 30) as k) || jsonb_build_object(repeat('k', 200), 'v')
        from generate_series(0, 299) as i;
        """
    )
    await world.drain_marks()
    answer = await (await world.start_api()).get("walkthroughs/wt_m/segments", within_days=1)
    by_kind = Counter((s["kind"], s["key"]) for s in answer["segments"])
    assert by_kind["agent", None] == 50
    assert by_kind["metadata", "k1"] == 50
    assert len([key for kind, key in by_kind if kind == "metadata"]) == 20
    left = {(x["kind"], x["key"]): x for x in answer["left_out"]}
    listed = sum(s["journeys"] for s in answer["segments"] if s["kind"] == "agent")
    rest = left["agent", None]
    assert (rest["values"], rest["journeys"]) == (122 - 50, 300 - listed)
    assert (left["metadata", "k1"]["values"], left["metadata", "k1"]["journeys"]) == (10, 50)
    assert "more than 200 values" in left["metadata", "k0"]["says"]
    assert left["metadata", "k" * 100]["says"].endswith(
        "it cannot be asked for: it is too long, or has a colon"
    )
    asked_for = await (await world.start_api()).get(
        "walkthroughs/wt_m/segments", within_days=1, by="metadata.k0"
    )
    assert asked_for["segments"] == []
    assert asked_for["left_out"][0]["values"] == 300


@pytest.mark.parametrize(
    ("query", "where", "told"),
    [
        ({"step": "b_1"}, "query.step", "no step `b_1`"),
        ({"by": "metadata."}, "query.by", "match pattern"),
        ({"by": "server"}, "query.by", "match pattern"),
        ({"segment": "did:zz"}, "query.segment", "no step `zz`"),
        ({"within_days": 0}, "query.within_days", "greater than"),
    ],
)
async def test_what_cannot_be_told_apart_is_said(
    api: Api, query: dict[str, Any], where: str, told: str
) -> None:
    response = await api.ask(f"{WT}/segments", **query)
    assert response.status_code == 422
    assert where in response.text
    assert told in response.text


async def test_nobody_is_told_apart_where_nobody_is(api: Api) -> None:
    answer = await api.get(f"{WT}/segments", segment="agent:nobody")
    assert (answer["journeys"], answer["segments"]) == (0, [])


def value_of(truth: Began, walk: Walk, by: str) -> str | None:
    """What tells a journey apart; None where nobody told."""
    agent, version, metadata = truth.by_user[walk.user]
    if by.startswith("did:"):
        return by if by.removeprefix("did:") in walk.done else f"not_{by}"
    if by.startswith("metadata."):
        kept = (metadata or {}).get(by.removeprefix("metadata."))
        text = "" if kept is None else kept if isinstance(kept, str) else json.dumps(kept)
        return None if metadata is None else text
    plain = {"agent": agent or "", "agent_version": version or "", "server": walk.server, "version": "1"}
    return plain[by]


@pytest.mark.parametrize(
    ("query", "groups"),
    [
        ({"by": "agent"}, ()),
        ({"by": "agent", "most": 2}, ()),
        ({"by": "agent", "segment": ["agent:cursor", "agent:"]}, (("agent:cursor", "agent:"),)),
        ({"by": "agent", "segment": "not_agent:cursor", "most": 1}, (("not_agent:cursor",),)),
        ({"by": "agent_version", "segment": "agent:cursor", "most": 2}, (("agent:cursor",),)),
        ({"by": "metadata.plan", "most": 2}, ()),
        ({"by": "metadata.number", "segment": "did:b"}, (("did:b",),)),
        ({"by": "server", "most": 1}, ()),
        ({"by": "server", "server": "srv_1"}, ()),
        ({"by": "version"}, ()),
        ({"by": "did:c", "segment": "agent:cursor"}, (("agent:cursor",),)),
        ({"by": "did:c", "segment": "not_did:c"}, (("not_did:c",),)),
    ],
    ids=str,
)
async def test_each_part_of_a_breakdown_has_the_figures_of_its_journeys(
    api: Api, truth: Began, query: dict[str, Any], groups: tuple[tuple[str, ...], ...]
) -> None:
    of = truth.of(*groups)
    if "server" in query:
        of = of.only(lambda w: w.server == query["server"])
    values = Counter(value_of(truth, walk, query["by"]) for walk in of.walks)
    answers = {
        figure: await api.get(f"{WT}/breakdown", **query, of=figure)
        for figure in ("summary", "funnel", "steps", "trends", "sankey")
    }
    told = answers["summary"]
    assert told["unknown"] == values.pop(None, 0)
    named = {part["value"] for part in told["parts"]} - {None}
    most = query.get("most", 5)
    assert len(named) == min(most, len(values)) or query["by"].startswith("did:")
    assert all(values[name] >= values[other] for name in named for other in values.keys() - named)
    assert told["others"] == len(values.keys() - named)
    for i, part in enumerate(told["parts"]):
        name = part["value"]
        some = of.only(lambda w, name=name: is_in_part(value_of(truth, w, query["by"]), name, named))
        assert part["journeys"] == len(some.walks), name
        parts = {figure: answer["parts"][i] for figure, answer in answers.items()}
        assert all(p["segment"] == part["segment"] for p in parts.values())
        figures_are_right(some, {figure: p["answer"] for figure, p in parts.items()})
        alone = {k: part[k] or query.get(k, []) for k in ("server", "version", "segment")}
        assert (await api.get(f"{WT}/sankey", **alone))["journeys"] == len(some.walks)


def is_in_part(value: str | None, name: str | None, named: set[str]) -> bool:
    return value == name if name is not None else value is not None and value not in named


def figures_are_right(of: Figures, answers: dict[str, Any]) -> None:
    outcomes = Counter(of.outcome(w) for w in of.walks)
    summary = answers["summary"]
    assert summary["started"] == len(of.walks)
    assert {k: summary[k] for k in ("finished", "in_progress", "dropped")} == {
        k: outcomes[k] for k in ("finished", "in_progress", "dropped")
    }
    assert summary["within_days"] == answers["trends"]["within_days"]
    assert [stage["through"] for stage in answers["funnel"]["stages"]] == of.through()
    true_steps = of.steps()
    for step in answers["steps"]["steps"]:
        for name in ("completed", "skipped", "dropped_here", "in_progress_here"):
            assert step[name] == true_steps[step["step_id"]][name], (step["step_id"], name)
    began = Counter(str(day_of(w.began_at)) for w in of.walks)
    assert {p["since"]: p["started"] for p in answers["trends"]["points"] if p["started"]} == began
    assert links(answers["sankey"]) == true_links(of)


async def test_all_parts_of_a_breakdown_are_judged_after_the_same_time(api: Api) -> None:
    for query in ({}, {"within_days": 3}):
        answer = await api.get(f"{WT}/breakdown", by="agent", of="summary", **query)
        days = {part["answer"]["within_days"] for part in answer["parts"]}
        assert days == {answer["within_days"]}
    assert answer["within_days"] == 3
    funnel = await api.get(f"{WT}/breakdown", by="agent", of="funnel")
    assert funnel["within_days"] is None


async def test_a_breakdown_by_nothing_tells_by_which_metadata_there_can_be_one(api: Api) -> None:
    answer = await api.get(f"{WT}/breakdown")
    assert set(answer["keys"]) == {"plan", "number", "flag", "deep"}
    assert answer["parts"] == []
    for key in answer["keys"]:
        assert (await api.get(f"{WT}/breakdown", by=f"metadata.{key}"))["parts"]


async def test_a_breakdown_as_a_table_names_the_part_in_each_line(api: Api) -> None:
    answer = await api.get(f"{WT}/breakdown", by="agent", of="funnel", most=2)
    table = await api.ask(f"{WT}/breakdown", headers={"Accept": "text/csv"}, by="agent", of="funnel", most=2)
    rows = list(csv.DictReader(io.StringIO(table.text)))
    told = [
        (part["title"], str(part["journeys"]), str(stage["through"]))
        for part in answer["parts"]
        for stage in part["answer"]["stages"]
    ]
    assert [(r["part_title"].removeprefix("'"), r["part_journeys"], r["through"]) for r in rows] == told
    empty = await api.ask(
        f"{WT}/breakdown", headers={"Accept": "text/csv"}, by="agent", segment="agent:nobody"
    )
    assert len(empty.text.splitlines()) == 1


@pytest.mark.parametrize(
    ("query", "where", "told"),
    [
        ({"by": "plan"}, "query.by", "match pattern"),
        ({"by": "did:zz"}, "query.by", "no step `zz`"),
        ({"by": "agent_version"}, "query.by", "of one agent"),
        ({"by": "agent_version", "segment": ["agent:a", "agent:b"]}, "query.by", "of one agent"),
        ({"by": "agent_version", "segment": "not_agent:a"}, "query.by", "of one agent"),
        ({"by": "agent", "most": 11}, "query.most", "less than or equal to 10"),
        ({"by": "agent", "of": "funnel", "exclude": "a"}, "query", "exclude: with `of=sankey` alone"),
        ({"by": "agent", "of": "paths"}, "query.of", "summary"),
    ],
)
async def test_what_cannot_be_broken_down_is_said(
    api: Api, query: dict[str, Any], where: str, told: str
) -> None:
    response = await api.ask(f"{WT}/breakdown", **query)
    assert response.status_code == 422
    assert where in response.text
    assert told in response.text

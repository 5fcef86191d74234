"""The analytics API against a plain walk over the rows: every figure, every filter, and the people behind."""

import csv
import io
import itertools
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from services.analytics_api import answers, routes, store
from services.analytics_api.figures import flows
from tests.support.crowd import FOREIGN, STEPS, WALKTHROUGH, gather
from tests.support.figures import DAY, Figures, Walk, day_of
from tests.support.world import Api, World, eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
WT = f"walkthroughs/{WALKTHROUGH}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    """A world with people in it, for tests that change nothing."""
    world = await World.make(*addresses, template)
    try:
        await gather(world)
        yield world
    finally:
        await world.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(full: World) -> Api:
    return await full.start_api()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def truth(full: World) -> Figures:
    return await Figures.read(full.db, WALKTHROUGH)


def cohort(truth: Figures, first: int, last: int) -> tuple[dict[str, str], Figures]:
    """The journeys that began between so many days ago."""
    since, until = truth.today - timedelta(days=first), truth.today - timedelta(days=last)
    return {"from": str(since), "to": str(until)}, truth.only(lambda w: since <= day_of(w.began_at) <= until)


def links(answer: Any) -> dict[tuple[int, str | None, str], tuple[int, int, float | None]]:
    return {
        (x["position"], x["from_step_id"], x["to_step_id"]): (
            x["journeys"],
            x["timed_journeys"],
            None if x["mean_ms"] is None else round(x["mean_ms"], 3),
        )
        for x in answer["links"]
    }


def true_links(of: dict[Any, tuple[int, int, int]]) -> dict[Any, tuple[int, int, float | None]]:
    return {k: (n, timed, round(ms / timed, 3) if timed else None) for k, (n, ms, timed) in of.items()}


def endings(answer: Any) -> Counter[tuple[int, str | None, str]]:
    return Counter({(e["steps_done"], e["step_id"], e["outcome"]): e["journeys"] for e in answer["endings"]})


VIEWS: list[dict[str, Any]] = [
    {},
    {"start_at": "b"},
    {"end_at": "d"},
    {"start_at": "b", "end_at": "e"},
    {"exclude": ["a"]},
    {"exclude": ["b", "d"]},
    {"start_at": "a", "exclude": ["c"]},
    {"end_at": "e", "exclude": ["a", "b"]},
    {"exclude": list(STEPS)},
    {"through": ["1:b"]},
    {"through": ["0:a", "0:b", "2:d"], "exclude": ["c"]},
]


@pytest.mark.parametrize("view", VIEWS, ids=str)
async def test_the_sankey_of_each_view_and_cohort_is_what_a_plain_walk_says(
    api: Api, truth: Figures, view: dict[str, Any]
) -> None:
    days, within = cohort(truth, 20, 5)
    for query, of in (
        ({}, truth),
        ({"server": "srv_2"}, truth.only(lambda w: w.server == "srv_2")),
        ({"server": ["srv_1", "srv_2"]}, truth),
        (days, within),
        ({**days, "server": "srv_1"}, within.only(lambda w: w.server == "srv_1")),
        ({"active_days": 20}, Figures(truth.order, truth.walks, truth.today, 20)),
    ):
        answer = await api.get(f"{WT}/sankey", **query, **view)
        assert links(answer) == true_links(of.links(**view)), query
        assert endings(answer) == of.endings(**view), query
        assert answer["journeys"] == len(of.shown(**view))
        assert answer["read_from"] == ("journeys" if view else "counts")
        by_outcome: Counter[str] = Counter()
        for (_, _, outcome), n in of.endings(**view).items():
            by_outcome[outcome] += n
        assert {k: n for k, n in answer["outcomes"].items() if n} == by_outcome


async def test_shares_are_of_all_journeys_and_of_the_node(api: Api, truth: Figures) -> None:
    answer = await api.get(f"{WT}/sankey")
    nodes = {node["id"]: node for node in answer["nodes"]}
    assert nodes["start"]["journeys"] == len(truth.walks)
    for link in answer["links"]:
        assert link["share"] == pytest.approx(link["journeys"] / len(truth.walks))
        assert link["share_of_node"] == pytest.approx(link["journeys"] / nodes[link["source"]]["journeys"])
    for node in answer["nodes"]:
        out = sum(x["journeys"] for x in answer["links"] if x["source"] == node["id"])
        assert node["journeys"] == out + sum(node["ended"].values())
    assert nodes["0:step:a"]["title"] == "title of a"


async def test_positions_beyond_end_as_went_on_and_small_steps_fold_into_other(
    api: Api, truth: Figures
) -> None:
    whole = await api.get(f"{WT}/sankey")
    cut = await api.get(f"{WT}/sankey", positions=2)
    assert links(cut) == {k: v for k, v in links(whole).items() if k[0] < 2}
    assert cut["outcomes"]["went_on"] == sum(1 for w in truth.walks if len(w.steps) > 2)
    folded = await api.get(f"{WT}/sankey", nodes=1)
    first = Counter(w.steps[0] for w in truth.walks if w.steps)
    others = {node["position"]: node for node in folded["nodes"] if node["kind"] == "other"}
    assert others[0]["journeys"] == sum(n for _, n in first.most_common()[1:])
    assert {f["step_id"]: f["journeys"] for f in others[0]["folded"]} == dict(first.most_common()[1:])
    assert folded["journeys"] == whole["journeys"]
    opened = await api.get(f"{WT}/sankey", nodes=1, unfold=0)
    assert 0 not in {node["position"] for node in opened["nodes"] if node["kind"] == "other"}


async def test_funnel_steps_and_endings_are_what_a_plain_walk_says(api: Api, truth: Figures) -> None:
    days, within = cohort(truth, 20, 5)
    for query, of in (
        ({}, truth),
        (days, within),
        ({"server": "srv_1"}, truth.only(lambda w: w.server == "srv_1")),
    ):
        funnel = await api.get(f"{WT}/funnel", **query)
        assert funnel["started"] == len(of.walks)
        assert [s["through"] for s in funnel["stages"]] == of.through()
        steps = await api.get(f"{WT}/steps", **query)
        for got in steps["steps"]:
            for name, value in of.steps()[got["step_id"]].items():
                assert got[name] == (pytest.approx(value) if isinstance(value, float) else value), name
        assert steps["times"]["exact"] is True
        ends = await api.get(f"{WT}/endings", **query)
        wanted: Counter[Any] = Counter()
        for (_, step, outcome), n in of.endings().items():
            wanted[outcome, step] += n
        assert {(e["outcome"], e["step_id"]): e["journeys"] for e in ends["endings"]} == wanted
        # The same journeys, told three ways.
        dropped = sum(s["dropped_here"] for s in steps["steps"])
        assert dropped == ends["outcomes"]["dropped"]


async def test_trends_count_days_and_weeks(api: Api, truth: Figures) -> None:
    for by in ("day", "week"):

        def since(ms: int, by: str = by) -> str:
            day = day_of(ms)
            return str(day - timedelta(days=day.weekday()) if by == "week" else day)

        started, finished, then, active = Counter(), Counter(), Counter(), Counter()
        for walk in truth.walks:
            started[since(walk.began_at)] += 1
            if truth.outcome(walk) == "finished":
                finished[since(walk.began_at)] += 1
                then[since(walk.last_at)] += 1
            times = [*walk.times, *([] if walk.started_at is None else [walk.started_at])]
            active.update({since(at) for at in times})
        points = (await api.get(f"{WT}/trends", by=by))["points"]
        days = [p["since"] for p in points]
        assert days == sorted(set(days))
        for name, wanted in (
            ("started", started),
            ("finished", finished),
            ("finished_then", then),
            ("active_people", active),
        ):
            assert {p["since"]: p[name] for p in points if p[name]} == wanted, name
    days_, within = cohort(truth, 20, 5)
    points = (await api.get(f"{WT}/trends", **days_))["points"]
    assert len(points) == 16
    assert sum(p["started"] for p in points) == len(within.walks)


async def test_the_summary_is_what_a_plain_walk_says(api: Api, truth: Figures) -> None:
    of = truth.only(lambda w: w.server == "srv_2")
    got = await api.get(WT, server="srv_2")
    finished = sorted(w.last_at - w.began_at for w in of.walks if of.outcome(w) == "finished")
    assert got["started"] == len(of.walks)
    assert got["finished"] == len(finished)
    assert got["mean_to_finish_ms"] == pytest.approx(sum(finished) / len(finished))

    def percentile(share: float) -> float:
        at = share * (len(finished) - 1)
        low = math.floor(at)
        return finished[low] + (at - low) * (finished[min(low + 1, len(finished) - 1)] - finished[low])

    assert got["median_to_finish_ms"] == pytest.approx(percentile(0.5))
    assert got["p90_to_finish_ms"] == pytest.approx(percentile(0.9))
    steps, sessions = sum(len(w.steps) for w in of.walks), sum(len(w.sessions) for w in of.walks)
    assert got["steps_per_session"] == pytest.approx(steps / sessions)
    assert got["resume_rate"] == pytest.approx(sum(len(w.sessions) > 1 for w in of.walks) / len(of.walks))

    def days(walk: Walk) -> int:
        return len({day_of(t) for t in [*walk.times, *([walk.started_at] if walk.started_at else [])]})

    assert got["return_rate"] == pytest.approx(sum(days(w) > 1 for w in of.walks) / len(of.walks))
    assert got["average_progress"] == pytest.approx(steps / len(of.walks) / len(STEPS))


async def test_percentiles_of_many_people_are_of_every_nth_and_say_so(full: World, truth: Figures) -> None:
    api = await full.start_api(api_sample_people=100)
    steps = await api.get(f"{WT}/steps")
    assert steps["times"] == {"exact": False, "every": 2, "journeys": len(truth.walks)}
    for got in steps["steps"]:
        whole = truth.steps()[got["step_id"]]
        assert got["completed"] == whole["completed"]
        assert 0 < got["timed"] < whole["timed"]
    summary = await api.get(WT)
    assert summary["times"]["every"] == 2
    assert summary["started"] == len(truth.walks)


# --- compare -------------------------------------------------------------------------------------------


def fisher(in_a: int, of_a: int, in_b: int, of_b: int) -> float:
    """Fisher's exact test, two-sided, as its definition has it."""
    done = in_a + in_b

    def chance(k: int) -> float:
        return math.comb(of_a, k) * math.comb(of_b, done - k) / math.comb(of_a + of_b, done)

    seen = chance(in_a)
    return sum(
        p for k in range(max(0, done - of_b), min(of_a, done) + 1) if (p := chance(k)) <= seen * (1 + 1e-7)
    )


async def test_two_servers_side_by_side_with_the_chance_of_each_difference(api: Api, truth: Figures) -> None:
    got = await api.get(f"{WT}/compare", server_a="srv_1", server_b="srv_2")
    sides = [truth.only(lambda w, s=server: w.server == s) for server in ("srv_1", "srv_2")]
    want = [true_links(side.links()) for side in sides]
    assert {k: v[0] for k, v in want[0].items()} | dict.fromkeys(want[1].keys() - want[0].keys(), 0) == {
        (x["position"], x["from_step_id"], x["to_step_id"]): x["in_a"] for x in got["links"]
    }
    nodes = [Counter[Any]() for _ in sides]
    for side, counts in zip(sides, nodes, strict=True):
        counts[-1, None] = len(side.walks)
        for (position, _, to), (n, _, _) in side.links().items():
            counts[position, to] += n
    for x in got["links"]:
        source = x["position"] - 1, x["from_step_id"]
        assert (x["of_a"], x["of_b"]) == (nodes[0][source], nodes[1][source])
        if x["of_a"] and x["of_b"]:
            assert x["p_value"] == pytest.approx(fisher(x["in_a"], x["of_a"], x["in_b"], x["of_b"]))
            assert x["difference"] == pytest.approx(x["in_b"] / x["of_b"] - x["in_a"] / x["of_a"])
            assert x["p_adjusted"] >= x["p_value"] * (1 - 1e-9)
        else:
            assert x["p_value"] is None
            assert not x["significant"]
    done = got["completion"]
    assert [done["in_a"], done["in_b"]] == [sum(s.outcome(w) == "finished" for w in s.walks) for s in sides]
    assert done["p_value"] == done["p_adjusted"]
    drops = {(d["position"] + 1, d["step_id"]): d["in_b"] for d in got["drops"] if d["in_b"]}
    assert drops == {(n, s): c for (n, s, o), c in sides[1].endings().items() if o == "dropped"}


async def test_the_same_cohort_twice_differs_nowhere(api: Api) -> None:
    got = await api.get(f"{WT}/compare", exclude="b")
    assert {x["difference"] for x in got["links"]} == {0.0}
    assert not any(x["significant"] for x in got["links"])


# --- people --------------------------------------------------------------------------------------------


async def everybody(api: Api, **query: Any) -> list[dict[str, Any]]:
    """All pages."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = await api.get(f"{WT}/journeys", limit=17, after=after, **query)
        found += page["journeys"]
        after = page["next"]
        if after is None:
            return found
        assert len(page["journeys"]) == 17


@pytest.mark.parametrize("view", [{}, {"start_at": "b"}, {"exclude": ["b"], "end_at": "e"}], ids=str)
async def test_behind_each_figure_are_as_many_people_as_it_says(
    api: Api, truth: Figures, view: dict[str, Any]
) -> None:
    answer = await api.get(f"{WT}/sankey", **view)
    for link in answer["links"]:
        query = {"position": link["position"], "step": link["to_step_id"], "from_step": link["from_step_id"]}
        people = await everybody(api, **query, **view)
        wanted = {
            s.walk.user
            for s in truth.shown(**view)
            if link["position"] < len(s.steps)
            and s.steps[link["position"]] == link["to_step_id"]
            and (link["position"] == 0 or s.steps[link["position"] - 1] == link["from_step_id"])
        }
        assert {p["mcp_server_user_id"] for p in people} == wanted
        assert len(people) == link["journeys"]
    for ending in answer["endings"]:
        people = await everybody(
            api, ended_after=ending["steps_done"], step=ending["step_id"], outcome=ending["outcome"], **view
        )
        assert len({p["mcp_server_user_id"] for p in people}) == len(people) == ending["journeys"]


async def test_all_people_come_in_pages_the_last_active_first(api: Api, truth: Figures) -> None:
    people = await everybody(api)
    assert {p["mcp_server_user_id"] for p in people} == {w.user for w in truth.walks}
    assert [p["last_active_at"] for p in people] == sorted((w.last_at for w in truth.walks), reverse=True)
    response = await api.ask(f"{WT}/journeys", limit=5, server="srv_1")
    assert 'rel="next"' in response.headers["link"]
    assert "server=srv_1" in response.headers["link"]


async def test_who_stopped_at_a_step_on_a_day(api: Api, truth: Figures) -> None:
    steps = (await api.get(f"{WT}/steps"))["steps"]
    for step in steps:
        people = await everybody(api, next_step=step["step_id"], outcome="dropped")
        assert len(people) == step["dropped_here"]
        assert all(p["next_step_id"] == step["step_id"] for p in people)
    day = day_of(truth.walks[0].last_at)
    people = await everybody(api, active_from=str(day), active_to=str(day))
    assert {p["mcp_server_user_id"] for p in people} == {
        w.user for w in truth.walks if day_of(w.last_at) == day
    }


async def test_a_journey_and_a_session_are_replayed_in_order(api: Api, full: World, truth: Figures) -> None:
    walk = max(truth.walks, key=lambda w: (len(w.sessions), len(w.steps), w.started_at is not None))
    got = await api.get(f"{WT}/journeys/{walk.user}")
    did = [e["step_id"] for e in got["events"] if e["kind"] == "completed"]
    assert did == walk.steps
    assert got["sessions"] == len(walk.sessions)
    times = [e["at"] for e in got["events"]]
    gaps = [e["since_previous_ms"] for e in got["events"]]
    assert gaps == [None, *(b - a for a, b in itertools.pairwise(times))]
    for session in walk.sessions:
        replay = await api.get(f"sessions/{session}")
        rows = await full.db.fetch(
            "select step_id from walkthrough_step_completions where mcp_server_session_id = $1"
            " order by completed_at, id",
            session,
        )
        assert [e["step_id"] for e in replay["events"] if e["kind"] == "completed"] == [r[0] for r in rows]
        assert {e["mcp_server_user_id"] for e in replay["events"]} == {walk.user}


async def test_a_session_with_more_events_than_can_be_answered_at_once_is_refused(
    api: Api, truth: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = max(truth.walks, key=lambda w: len(w.steps) if len(w.sessions) == 1 else 0)
    (session,) = walk.sessions
    events = len((await api.get(f"sessions/{session}"))["events"])
    monkeypatch.setattr(answers, "_MOST_EVENTS", events)
    assert len((await api.get(f"sessions/{session}"))["events"]) == events
    monkeypatch.setattr(answers, "_MOST_EVENTS", events - 1)
    refused = await api.ask(f"sessions/{session}")
    assert refused.status_code == 422
    assert f"more than {events - 1} events" in refused.json()["detail"]


@pytest.mark.parametrize("path", ["sankey", "compare"])
async def test_what_has_many_links_is_drawn_beside_the_event_loop(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    threads: list[threading.Thread] = []
    draw = getattr(flows, path)

    def seen(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return draw(*given)

    monkeypatch.setattr(flows, path, seen)
    for large in (False, True):
        monkeypatch.setattr(store, "_LARGE_STEPS", 1 if large else 10**6)
        await api.get(f"{WT}/{path}")
    assert len(threads) == 2
    assert threading.main_thread() not in threads


# --- overviews, CSV ------------------------------------------------------------------------------------


async def test_overviews_of_the_organization_and_a_server(api: Api, truth: Figures) -> None:
    (row,) = (await api.get("organization"))["walkthroughs"]
    assert (row["walkthrough_id"], row["started"]) == (WALKTHROUGH, len(truth.walks))
    for server in row["servers"]:
        of = truth.only(lambda w, s=server["mcp_server_id"]: w.server == s)
        outcomes = Counter(of.outcome(w) for w in of.walks)
        assert server["started"] == len(of.walks)
        for name in ("finished", "in_progress", "dropped"):
            assert server[name] == outcomes[name]
        assert server["average_progress"] == pytest.approx(
            sum(len(w.steps) for w in of.walks) / len(of.walks) / len(STEPS)
        )
        assert server["last_active_on"] == str(max(day_of(w.last_at) for w in of.walks))
        (alone,) = (await api.get(f"servers/{server['mcp_server_id']}"))["walkthroughs"]
        assert alone["started"] == server["started"]
    assert {s["mcp_server_id"] for s in row["servers"]} == {"srv_1", "srv_2"}


async def test_every_table_comes_as_csv_too(api: Api) -> None:
    for path, name in (
        ("organization", None),
        (WT, None),
        (f"{WT}/sankey", None),
        (f"{WT}/funnel", "stages"),
        (f"{WT}/steps", "steps"),
        (f"{WT}/endings", "endings"),
        (f"{WT}/trends", "points"),
        (f"{WT}/compare", None),
        (f"{WT}/journeys", "journeys"),
        (f"{WT}/journeys/u001", "events"),
        ("sessions/s_u001", "events"),
    ):
        response = await api.ask(path, headers={"Accept": "text/csv"})
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(response.text)))
        assert rows
        if name is not None:
            answer = await api.get(path)
            assert len(rows) == len(answer[name])
            assert list(rows[0]) == list(answer[name][0])
    rows = list(
        csv.DictReader(io.StringIO((await api.ask(f"{WT}/sankey", headers={"Accept": "text/csv"})).text))
    )
    answer = await api.get(f"{WT}/sankey")
    assert len(rows) == len(answer["links"]) + len(answer["endings"])
    assert sum(int(row["journeys"]) for row in rows if row["outcome"]) == answer["journeys"]


async def test_a_title_is_no_formula_in_a_spreadsheet(api: Api, full: World) -> None:
    key = await full.make_key("org_b")
    response = await api.ask("organization", key=key, headers={"Accept": "text/csv"})
    assert ",'=secret," in response.text


async def test_no_answer_sends_a_key_to_where_the_host_header_says(api: Api) -> None:
    for path in ("organization/", f"{WT}/"):
        assert (await api.ask(path, headers={"Host": "elsewhere.example"})).status_code == 404


# --- who may -------------------------------------------------------------------------------------------


def every_path(**ids: str) -> list[str]:
    """The path of each route, below /v1."""
    named = {
        "walkthrough_id": ids.get("walkthrough", WALKTHROUGH),
        "server_id": ids.get("server", "srv_1"),
        "session_id": ids.get("session", "s_u001"),
        "user_id": ids.get("person", "u001"),
    }
    return [path.format(**named).removeprefix("/v1/") for path in routes.paths()]


async def test_without_a_good_key_no_route_answers(api: Api, full: World) -> None:
    revoked = await full.make_key("org")
    await full.db.execute("update api_keys set revoked_at = now() where id = $1", revoked.split("_")[1])
    expired = await full.make_key("org")
    await full.db.execute(
        "update api_keys set expires_at = now() - interval '1 s' where id = $1", expired.split("_")[1]
    )
    own, secret = api.key.rsplit("_", 1)[0], "x" * 43
    for path in every_path():
        assert (await api.http.get(f"/v1/{path}")).status_code == 401, path
    for key in (revoked, expired, f"{own}_{secret}", "sst_000000000000_" + secret, "x", api.key + "x", "é"):
        response = await api.http.get(
            "/v1/organization", headers=[(b"authorization", f"Bearer {key}".encode())]
        )
        assert response.status_code == 401, key
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["www-authenticate"].startswith("Bearer")
    response = await api.http.get("/v1/organization", headers={"Authorization": f"bearer  {api.key}"})
    assert response.status_code == 200


async def test_what_is_another_organizations_is_not_there_on_any_route(api: Api, full: World) -> None:
    theirs = await full.make_key("org_b")
    for path in every_path(**FOREIGN):
        if path in {"organization", "organization/refused"}:
            continue
        assert (await api.ask(path)).status_code == 404, path
    for path in every_path():
        if path in {"organization", "organization/refused", f"{WT}/live"}:
            continue
        assert (await api.ask(path, key=theirs)).status_code == 404, path
    for path, name in (
        *[(f"{WT}/{p}", "server") for p in ("sankey", "funnel", "steps", "endings", "trends", "journeys")],
        (WT, "server"),
        (f"{WT}/compare", "server_b"),
        ("organization", "server"),
    ):
        assert (await api.ask(path, **{name: FOREIGN["server"]})).status_code == 404, path
    # Somebody of ours was there too: neither side sees what they did at the other.
    assert (await api.ask(f"{WT}/journeys/bea")).status_code == 404
    body = (await api.ask("organization")).text + (await api.ask(f"{WT}/journeys/u001")).text
    assert "secret" not in body
    assert "wt_b" not in body
    got = (await api.ask("sessions/s_bea", key=theirs)).json()
    assert {e["walkthrough_id"] for e in got["events"]} == {"wt_b"}


async def test_too_many_requests_wait(full: World) -> None:
    api = await full.start_api(api_key_rate="3/minute", api_failure_rate="2/minute")
    codes = [(await api.ask("organization", key="x")).status_code for _ in range(3)]
    assert codes == [401, 401, 429]
    codes = [(await api.ask("organization")).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    assert (await api.ask("organization")).headers["retry-after"] == "60"


@pytest.mark.parametrize(
    ("path", "query", "where"),
    [
        (f"{WT}/sankey", {"servr": "x"}, "query.servr"),
        (f"{WT}/sankey", {"from": "yesterday"}, "query.from"),
        (f"{WT}/sankey", {"from": "2026-02-02", "to": "2026-02-01"}, "from (2026-02-02) is after to"),
        (f"{WT}/sankey", {"start_at": "nope"}, "no step `nope`"),
        (f"{WT}/sankey", {"start_at": "a", "exclude": "a"}, "both start_at and excluded"),
        (f"{WT}/sankey", {"start_at": "a", "end_at": "a"}, "the same step"),
        (f"{WT}/sankey", {"through": "a"}, "query.through.0"),
        (f"{WT}/sankey", {"positions": "0"}, "query.positions"),
        (f"{WT}/sankey", {"server": "a\x00"}, "query.server.0"),
        (f"{WT}/journeys", {"after": "x"}, "as it is"),
        (f"{WT}/journeys", {"after": "W251bGwsIngiXQ=="}, "as it is"),
        (f"{WT}/journeys", {"from_step": "a"}, "from_step goes with position"),
        (f"{WT}/trends", {"by": "hour"}, "query.by"),
        (f"{WT}/trends", {"from": "1970-01-01"}, "more than"),
        (f"{WT}/compare", {"from_a": "2026-02-02", "to_a": "2026-02-01"}, "from_a"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_named(
    api: Api, path: str, query: dict[str, Any], where: str
) -> None:
    response = await api.ask(path, **query)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert where in response.text


async def test_what_has_not_changed_is_not_sent_again(api: Api) -> None:
    for path in (f"{WT}/sankey", f"{WT}/steps", "organization", f"{WT}/journeys/u001"):
        first = await api.ask(path)
        again = await api.ask(path, headers={"If-None-Match": f'"x", {first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert (
            await api.ask(path, active_days=3, headers={"If-None-Match": first.headers["etag"]})
        ).status_code in {
            200,
            304 if "u001" in path else 200,
        }


async def test_answers_are_compressed_and_for_their_own_page_alone(api: Api, full: World) -> None:
    response = await api.ask(f"{WT}/sankey", headers={"Origin": "https://elsewhere.example"})
    assert response.headers["content-encoding"] == "gzip"
    assert "access-control-allow-origin" not in response.headers
    other = await full.start_api(api_allowed_origins="https://elsewhere.example")
    response = await other.ask(f"{WT}/sankey", headers={"Origin": "https://elsewhere.example"})
    assert response.headers["access-control-allow-origin"] == "https://elsewhere.example"


async def test_each_answer_says_how_fresh_it_is(api: Api, truth: Figures) -> None:
    async def looked() -> dict[str, Any] | None:
        fresh: dict[str, Any] = (await api.get(f"{WT}/sankey"))["freshness"]
        return fresh if fresh["looked_at"] is not None else None

    fresh = await eventually(looked, "the groups were looked at")
    assert fresh["newest_event_at"] == max(w.last_at for w in truth.walks)
    assert [g["group"] for g in fresh["groups"]] == ["completion-recorder", "sankey-aggregator"]
    assert [g["lag"] for g in fresh["groups"]] == [0, 0]
    assert [g["newest_event_at"] for g in fresh["groups"]] == [
        max(t for w in truth.walks for t in w.times),
        fresh["newest_event_at"],
    ]
    assert fresh["current"] is True
    assert fresh["version"]


async def test_the_day_before_yesterday_is_a_cohort(api: Api, truth: Figures) -> None:
    day = day_of(int(truth.walks[0].began_at))
    got = await api.get(f"{WT}/sankey", from_=None, **{"from": str(day), "to": str(day)})
    assert got["journeys"] == sum(
        1 for w in truth.walks if w.began_at // DAY == truth.walks[0].began_at // DAY
    )

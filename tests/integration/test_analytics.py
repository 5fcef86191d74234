"""The analytics API against a plain walk over the rows: every figure, every filter, and the people behind."""

import csv
import io
import itertools
import math
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from statistics import median, quantiles
from types import ModuleType
from typing import Any

import pytest
import pytest_asyncio

from services.analytics_api import answers, routes, store
from services.analytics_api.figures import comparisons, flows
from tests.support import times
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


def links(answer: Any) -> dict[tuple[int, str | None, str, bool], tuple[int, int, float | None]]:
    return {
        (x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]): (
            x["journeys"],
            x["timed_journeys"],
            None if x["mean_ms"] is None else round(x["mean_ms"], 3),
        )
        for x in answer["links"]
    }


def true_links(of: dict[Any, tuple[int, int, int]]) -> dict[Any, tuple[int, int, float | None]]:
    return {k: (n, timed, round(ms / timed, 3) if timed else None) for k, (n, ms, timed) in of.items()}


def endings(answer: Any) -> Counter[tuple[int, int, str | None, str]]:
    return Counter(
        {
            (e["steps_done"], e["steps_skipped"], e["step_id"], e["outcome"]): e["journeys"]
            for e in answer["endings"]
        }
    )


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
        for (*_, outcome), n in of.endings(**view).items():
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
        assert [(s["completed"], s["skipped"]) for s in funnel["stages"]] == [
            (figures["completed"], figures["skipped"]) for figures in of.steps().values()
        ]
        steps = await api.get(f"{WT}/steps", **query)
        for got in steps["steps"]:
            for name, value in of.steps()[got["step_id"]].items():
                assert got[name] == (pytest.approx(value) if isinstance(value, float) else value), name
        assert steps["times"]["exact"] is True
        assert steps["assumed"] == sum(1 for w in of.walks if of.outcome(w) != "finished" and w.shown is None)
        ends = await api.get(f"{WT}/endings", **query)
        wanted: Counter[Any] = Counter()
        for (*_, step, outcome), n in of.endings().items():
            wanted[outcome, step] += n
        assert {(e["outcome"], e["step_id"]): e["journeys"] for e in ends["endings"]} == wanted
        # The same journeys, told three ways.
        dropped = sum(s["dropped_here"] for s in steps["steps"])
        assert dropped == ends["outcomes"]["dropped"]


def did_within(walk: Walk, days: int) -> list[str]:
    return [s for s, at in zip(walk.steps, walk.times, strict=True) if at < walk.began_at + days * DAY]


async def test_a_diagnosis_judges_those_alone_who_had_the_time_and_compares_after_the_same_time(
    api: Api, truth: Figures
) -> None:
    answer = await api.get(f"{WT}/diagnose", days=10)
    settled = truth.today - timedelta(days=8)
    judged = truth.only(lambda w: day_of(w.began_at) <= settled)
    assert answer["period"] == {"since": None, "until": str(settled)}
    assert answer["journeys"] == len(judged.walks)
    assert answer["too_young"] == len(truth.walks) - len(judged.walks) > 0
    outcomes = Counter(judged.outcome(w) for w in judged.walks)
    assert {name: answer[name] for name in ("finished", "in_progress", "dropped")} == {
        name: outcomes[name] for name in ("finished", "in_progress", "dropped")
    }
    stopped = Counter(judged.next_step(w) for w in judged.walks if judged.outcome(w) == "dropped")
    assert {s["step_id"]: s["dropped_here"] for s in answer["steps"] if s["dropped_here"]} == stopped
    counts = [s["dropped_here"] for s in answer["steps"]]
    assert counts == sorted(counts, reverse=True)
    sides: list[list[list[str]]] = []
    skipped: list[list[set[str]]] = []
    for period, first, last in (("earlier", 27, 18), ("recent", 17, 8)):
        days, within = cohort(truth, first, last)
        assert answer[period] == {"since": days["from"], "until": days["to"]}
        sides.append([did_within(w, 7) for w in within.walks])
        skipped.append([w.skipped for w in within.walks])
    told = [answer["completion"], *answer["changes"]]
    expected = {None: [(len(side), sum(len(did) == len(STEPS) for did in side)) for side in sides]}
    for step in truth.order:
        left = [[next((s for s in truth.order if s not in did), None) for did in side] for side in sides]
        expected[step] = [
            (
                sum(step in did or at == step for did, at in zip(side, ats, strict=True)),
                sum(step in did and step not in over for did, over in zip(side, skips, strict=True)),
            )
            for side, ats, skips in zip(sides, left, skipped, strict=True)
        ]
    enough = {step: both for step, both in expected.items() if min(both[0][0], both[1][0]) >= 30}
    assert {t.get("step_id"): [(t["of_a"], t["in_a"]), (t["of_b"], t["in_b"])] for t in told} == enough
    assert len(enough) > 2
    foremost = next(f for f in answer["findings"] if f["kind"] in {"most_stop_here", "stop_at_several"})
    assert foremost["people"] == sum(stopped.values())
    assert stopped[foremost["step_id"]] == max(stopped.values())
    page = await api.http.get(
        f"{foremost['look_at']}&limit=500", headers={"Authorization": f"Bearer {api.key}"}
    )
    assert len(page.json()["journeys"]) == stopped[foremost["step_id"]], "behind it are as many people"


async def test_a_diagnosis_concludes_nothing_of_too_few_or_of_those_who_cannot_have_stopped(
    api: Api, truth: Figures
) -> None:
    few = await api.get(f"{WT}/diagnose", days=1, to=str(truth.today - timedelta(days=29)))
    assert few["findings"] == []
    assert (few["completion"], few["changes"]) == (None, [])
    assert any(why.startswith("Where most people stop") for why in few["unknown"])
    assert any(why.startswith("What changed") for why in few["unknown"])
    young = await api.ask(f"{WT}/diagnose", **{"from": str(truth.today - timedelta(days=7))})
    assert young.status_code == 422
    assert "nobody who began after" in young.json()["detail"]


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
    for by in ("day", "week"):
        for first in ("9999-12-30", "9999-01-01"):
            assert (await api.get(f"{WT}/trends", from_=first, by=by))["points"] == []


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
    steps, sessions = sum(len(w.done) for w in of.walks), sum(len(w.sessions) for w in of.walks)
    assert got["steps_per_session"] == pytest.approx(steps / sessions)
    assert got["resume_rate"] == pytest.approx(sum(len(w.sessions) > 1 for w in of.walks) / len(of.walks))

    def days(walk: Walk) -> int:
        return len({day_of(t) for t in [*walk.times, *([walk.started_at] if walk.started_at else [])]})

    assert got["return_rate"] == pytest.approx(sum(days(w) > 1 for w in of.walks) / len(of.walks))
    assert got["average_progress"] == pytest.approx(steps / len(of.walks) / len(STEPS))


async def test_links_and_steps_have_percentiles_bins_and_active_times_as_sql_says(
    api: Api, full: World
) -> None:
    plain = await api.get(f"{WT}/sankey")
    timed = await api.get(f"{WT}/sankey", times="true")
    bounds = timed["bounds_ms"]
    assert bounds == [round(1000 * 10 ** (k / 5)) for k in range(38)]
    assert timed["times"] == {"exact": True, "every": 1, "journeys": timed["journeys"]}
    assert (plain["times"], plain["bounds_ms"]) == (None, None)
    assert all(link["median_ms"] is None and link["histogram"] is None for link in plain["links"])
    wanted = {tuple(row)[:4]: row for row in await full.db.fetch(times.LINKS, WALKTHROUGH, bounds)}
    for answer in (plain, timed):
        assert len(answer["links"]) == len(wanted)
        for link in answer["links"]:
            row = wanted[link["position"], link["from_step_id"], link["to_step_id"], link["skipped"]]
            assert link["active_journeys"] == row["active"]
            assert link["mean_active_ms"] == pytest.approx(row["mean_active_ms"])
    for link in timed["links"]:
        row = wanted[link["position"], link["from_step_id"], link["to_step_id"], link["skipped"]]
        for name in times.TIMES:
            assert link[name] == pytest.approx(row[name]), name
        assert link["histogram"] == times.bins_of(row, bounds)
    assert sum(link["active"] for link in timed["links"]) > 50
    steps = await api.get(f"{WT}/steps")
    of_steps = {row["step_id"]: row for row in await full.db.fetch(times.STEPS, WALKTHROUGH, bounds)}
    assert steps["bounds_ms"] == bounds
    for step in steps["steps"]:
        row = of_steps[step["step_id"]]
        for name in times.TIMES:
            assert step[name] == pytest.approx(row[name]), name
        assert step["histogram"] == times.bins_of(row, bounds)


@pytest.mark.parametrize("view", VIEWS[1:], ids=str)
async def test_the_times_of_a_view_are_of_what_it_shows(
    api: Api, truth: Figures, view: dict[str, Any]
) -> None:
    took: defaultdict[Any, list[int]] = defaultdict(list)
    for shown in truth.shown(**view):
        before, at = None, shown.from_start
        for position, (step, time) in enumerate(zip(shown.steps, shown.times, strict=True)):
            if at is not None:
                took[position, before, step, step in shown.walk.skipped].append(time - at)
            before, at = step, time
    answer = await api.get(f"{WT}/sankey", times="true", **view)
    for link in answer["links"]:
        of = took[link["position"], link["from_step_id"], link["to_step_id"], link["skipped"]]
        assert link["timed"] == link["timed_journeys"] == len(of) == sum(link["histogram"])
        assert link["median_ms"] == (pytest.approx(median(of)) if of else None)
        assert link["active_journeys"] == link["active"]
        if len(of) > 1:
            assert link["p90_ms"] == pytest.approx(quantiles(of, n=10, method="inclusive")[-1])
    folded = await api.get(f"{WT}/sankey", times="true", nodes=1, positions=3, **view)
    for link in folded["links"]:
        assert link["timed"] == link["timed_journeys"] == sum(link["histogram"])


async def test_the_most_frequent_paths_are_those_of_sql_with_the_rest_and_lead_to_their_people(
    api: Api, full: World, truth: Figures
) -> None:
    rows = await full.db.fetch(times.PATHS, WALKTHROUGH, len(STEPS))
    wanted = {(tuple(row["path"]), row["outcome"]): row for row in rows}
    whole = await api.get(f"{WT}/paths", limit=500)
    found = {times.path_of(path): path for path in whole["paths"]}
    nothing = {key: path for key, path in found.items() if not key[0]}
    assert sum(path["journeys"] for path in nothing.values()) == sum(not walk.steps for walk in truth.walks)
    assert found.keys() - nothing.keys() == wanted.keys()
    assert whole["other"] == {"paths": 0, "journeys": 0, "share": 0}
    assert whole["journeys"] == len(truth.walks) == sum(path["journeys"] for path in found.values())
    for key, row in wanted.items():
        for name in ("journeys", "started", "timed", "median_ms", "p90_ms"):
            assert found[key][name] == pytest.approx(row[name]), (key, name)
        assert found[key]["share"] == pytest.approx(row["journeys"] / len(truth.walks))
    assert [p["journeys"] for p in whole["paths"]] == sorted(
        (p["journeys"] for p in whole["paths"]), reverse=True
    )
    few = await api.get(f"{WT}/paths", limit=3)
    assert few["paths"] == whole["paths"][:3]
    assert few["all_paths"] == len(found)
    rest = sum(path["journeys"] for path in whole["paths"][3:])
    assert few["other"] == {
        "paths": len(found) - 3,
        "journeys": rest,
        "share": pytest.approx(rest / len(truth.walks)),
    }
    told = await api.ask(f"{WT}/paths", limit=3, headers={"Accept": "text/csv"})
    assert told.headers["x-left-out"] == f"{len(found) - 3} paths of {rest} journeys"
    table = list(csv.DictReader(io.StringIO(told.text)))
    assert [int(row["journeys"]) for row in table] == [path["journeys"] for path in few["paths"]]
    assert table[0]["path"].startswith("title of ")
    for path in (*whole["paths"][:4], *(p for p in whole["paths"] if p["skipped_step_ids"])):
        steps, outcome = times.path_of(path)
        people = await everybody(api, path_=list(steps), outcome=outcome)
        assert len(people) == path["journeys"]
        assert {(tuple(p["step_ids"]), p["outcome"]) for p in people} == {(tuple(path["step_ids"]), outcome)}


@pytest.mark.parametrize("view", VIEWS[1:], ids=str)
async def test_the_paths_of_a_view_are_what_a_plain_walk_says(
    api: Api, truth: Figures, view: dict[str, Any]
) -> None:
    took: defaultdict[Any, list[int | None]] = defaultdict(list)
    for shown in truth.shown(**view):
        skipped = [f"{'skipped' if step in shown.walk.skipped else 'done'}:{step}" for step in shown.steps]
        times_of = shown.times if "start_at" in view else shown.walk.times
        began_at = shown.from_start if shown.from_start is not None else next(iter(times_of), None)
        of = took[tuple(skipped), shown.outcome]
        is_timed = shown.times and (shown.from_start is not None or shown.times[-1] > began_at)
        of.append(shown.times[-1] - began_at if is_timed else None)
    answer = await api.get(f"{WT}/paths", limit=500, **view)
    found = {times.path_of(path): path for path in answer["paths"]}
    assert {key: path["journeys"] for key, path in found.items()} == {k: len(of) for k, of in took.items()}
    for key, durations in took.items():
        timed = [ms for ms in durations if ms is not None]
        assert found[key]["timed"] == len(timed)
        assert found[key]["median_ms"] == (pytest.approx(median(timed)) if timed else None)


async def test_percentiles_of_many_people_are_of_every_nth_and_say_so(full: World, truth: Figures) -> None:
    api = await full.start_api(api_sample_people=100)
    steps = await api.get(f"{WT}/steps")
    assert steps["times"] == {"exact": False, "every": 2, "journeys": len(truth.walks)}
    for got in steps["steps"]:
        whole = truth.steps()[got["step_id"]]
        assert got["completed"] == whole["completed"]
        assert 0 < got["timed"] < whole["timed"]
    paths = await api.get(f"{WT}/paths", limit=500)
    assert sum(path["journeys"] for path in paths["paths"]) == len(truth.walks)
    assert 0 < sum(path["timed"] for path in paths["paths"]) < len(truth.walks)
    for path in ("steps", "paths", ""):
        table = await api.ask(f"{WT}/{path}".rstrip("/"), headers={"Accept": "text/csv"})
        said = f"times are of every 2th person, of {len(truth.walks)} journeys"
        assert said in table.headers["x-left-out"]
    table = await api.ask(f"{WT}/diagnose", headers={"Accept": "text/csv"})
    unknown = len((await api.get(f"{WT}/diagnose"))["unknown"])
    assert unknown
    assert f"{unknown} things that are not concluded" in table.headers["x-left-out"]
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


def stood(truth: Figures, days: int) -> Figures:
    """Each journey as it stood so many days after its beginning, of those that had so many before today."""
    midnight = int(datetime.combine(truth.today, datetime.min.time(), UTC).timestamp() * 1000)
    walks = []
    for walk in truth.walks:
        if walk.began_at + days * DAY <= midnight:
            passed = did_within(walk, days)
            times = walk.times[: len(passed)]
            walks.append(replace(walk, started_at=walk.began_at, steps=passed, times=times))
    return Figures(truth.order, walks, truth.today, -10_000)


async def test_two_servers_side_by_side_with_the_chance_of_each_difference(api: Api, truth: Figures) -> None:
    got = await api.get(f"{WT}/compare", server_a="srv_1", server_b="srv_2", within_days=4)
    sides = [stood(truth, 4).only(lambda w, s=server: w.server == s) for server in ("srv_1", "srv_2")]
    assert (got["journeys_a"], got["journeys_b"]) == tuple(len(side.walks) for side in sides)
    assert got["journeys_a"] + got["too_young_a"] == sum(w.server == "srv_1" for w in truth.walks)
    want = [true_links(side.links()) for side in sides]
    assert {k: v[0] for k, v in want[0].items()} | dict.fromkeys(want[1].keys() - want[0].keys(), 0) == {
        (x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]): x["in_a"] for x in got["links"]
    }
    nodes = [Counter[Any]() for _ in sides]
    for side, counts in zip(sides, nodes, strict=True):
        counts[-1, None] = len(side.walks)
        for (position, _, to, _), (n, _, _) in side.links().items():
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
        if x["position"]:
            key = x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]
            assert x["mean_ms_b"] == pytest.approx(want[1].get(key, (0, 0, None))[2], abs=0.001)
    done = got["completion"]
    assert [done["in_a"], done["in_b"]] == [sum(s.outcome(w) == "finished" for w in s.walks) for s in sides]
    assert done["p_value"] == done["p_adjusted"]
    drops = {(d["position"] + 1, d["step_id"]): d["in_b"] for d in got["drops"] if d["in_b"]}
    wanted: Counter[Any] = Counter()
    for (done_steps, skipped, step, outcome), n in sides[1].endings().items():
        wanted[done_steps + skipped, step] += n if outcome == "dropped" else 0
    assert drops == +wanted


async def test_the_same_cohort_twice_differs_nowhere(api: Api) -> None:
    got = await api.get(f"{WT}/compare", exclude="b")
    assert {x["difference"] for x in [*got["links"], *got["steps"]]} == {0.0}
    assert not any(x["significant"] for x in got["links"])
    assert "b" not in {x["step_id"] for x in got["steps"]}
    assert "without “title of b”" in got["says"]


async def test_a_side_of_which_nobody_had_the_time_is_not_compared(api: Api, truth: Figures) -> None:
    got = await api.get(f"{WT}/compare", from_b=str(truth.today))
    assert got["journeys_b"] == 0
    assert got["too_young_b"] == sum(day_of(w.began_at) == truth.today for w in truth.walks)
    assert got["findings"][0]["says"] == (
        "Whether more of A or of B finish is not compared: B has no journey that can be judged."
    )
    assert got["unknown"][0].startswith("Anything: a side has no journey")
    assert all(x["p_value"] is None for x in [*got["links"], *got["drops"], *got["steps"]])


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
        query = {
            "position": link["position"],
            "step": link["to_step_id"],
            "from_step": link["from_step_id"],
            "skipped": str(link["skipped"]).lower(),
        }
        people = await everybody(api, **query, **view)
        wanted = {
            s.walk.user
            for s in truth.shown(**view)
            if link["position"] < len(s.steps)
            and s.steps[link["position"]] == link["to_step_id"]
            and (link["to_step_id"] in s.walk.skipped) == link["skipped"]
            and (link["position"] == 0 or s.steps[link["position"] - 1] == link["from_step_id"])
        }
        assert {p["mcp_server_user_id"] for p in people} == wanted
        assert len(people) == link["journeys"]
    stands: Counter[Any] = Counter()
    for ending in answer["endings"]:
        assert ending["position"] + 1 == ending["steps_done"] + ending["steps_skipped"]
        stands[ending["position"] + 1, ending["step_id"], ending["outcome"]] += ending["journeys"]
    for (passed, step, outcome), journeys in stands.items():
        people = await everybody(api, ended_after=passed, step=step, outcome=outcome, **view)
        assert len({p["mcp_server_user_id"] for p in people}) == len(people) == journeys
        assert {p["steps_done"] + p["steps_skipped"] for p in people} == {passed}


async def test_all_people_come_in_pages_the_last_active_first(api: Api, truth: Figures) -> None:
    people = await everybody(api)
    assert {p["mcp_server_user_id"] for p in people} == {w.user for w in truth.walks}
    assert [p["last_active_at"] for p in people] == sorted((w.last_at for w in truth.walks), reverse=True)
    response = await api.ask(f"{WT}/journeys", limit=5, server="srv_1")
    assert response.json()["of"] == sum(w.server == "srv_1" for w in truth.walks)
    assert (await api.get(f"{WT}/journeys", limit=5))["of"] == len(truth.walks)
    assert (await api.get(f"{WT}/journeys", limit=5, position=0, step="a"))["of"] is None
    assert (await api.get(f"{WT}/journeys", limit=500, position=0, step="a"))["of"] == sum(
        w.steps[:1] == ["a"] for w in truth.walks
    )
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
    assert did == [step for step in walk.steps if step not in walk.skipped]
    assert set(got["journey"]["skipped_step_ids"]) == walk.skipped
    skipped = {e["step_id"] for e in got["events"] if e["kind"] == "skipped"}
    assert walk.skipped <= skipped
    assert got["journey"]["next_step_assumed"] is (
        got["journey"]["next_step_id"] is not None and walk.shown is None
    )
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


@pytest.mark.parametrize(
    ("path", "module", "name"), [("sankey", flows, "sankey"), ("compare", comparisons, "comparison")]
)
async def test_what_has_many_links_is_drawn_beside_the_event_loop(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, module: ModuleType, name: str
) -> None:
    threads: list[threading.Thread] = []
    draw = getattr(module, name)

    def seen(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return draw(*given)

    monkeypatch.setattr(module, name, seen)
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
            sum(len(w.done) for w in of.walks) / len(of.walks) / len(STEPS)
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
        (f"{WT}/paths", None),
        (f"{WT}/trends", "points"),
        (f"{WT}/diagnose", "findings"),
        (f"{WT}/time-to-finish", "points"),
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
            answer = await api.get(path, **({"limit": 500} if name == "journeys" else {}))
            assert len(rows) == len(answer[name])
            assert list(rows[0]) == list(answer[name][0])
    rows = list(
        csv.DictReader(io.StringIO((await api.ask(f"{WT}/sankey", headers={"Accept": "text/csv"})).text))
    )
    answer = await api.get(f"{WT}/sankey")
    assert len(rows) == len(answer["links"]) + len(answer["endings"])
    assert sum(int(row["journeys"]) for row in rows if row["outcome"]) == answer["journeys"]
    small = await api.ask(f"{WT}/sankey", nodes=1, positions=3, headers={"Accept": "text/csv"})
    drawn = await api.get(f"{WT}/sankey", nodes=1, positions=3)
    others = [node for node in drawn["nodes"] if node["kind"] == "other"]
    assert small.headers["x-left-out"] == (
        f"{sum(len(node['folded']) for node in others)} steps at {len(others)} positions are folded; their sums "
        f"are kept; what {drawn['outcomes']['went_on']} journeys did after the last position"
    )


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
        (f"{WT}/time-to-finish", "server"),
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
    assert 0 < int((await api.ask("organization")).headers["retry-after"]) <= 60


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
        (f"{WT}/compare", {"within_days": "0"}, "query.within_days"),
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

"""When journeys count as finished: set over HTTP, by command and in files, and followed by every figure."""

import json
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from services.analytics_api.keys import Grant
from services.analytics_api.keys import create as make_key
from tests.support.crowd import STEPS, WALKTHROUGH, gather
from tests.support.figures import Figures, Walk, day_of
from tests.support.world import Api, World, completed

pytestmark = pytest.mark.integration
WT = f"walkthroughs/{WALKTHROUGH}"
PARTS = ("goal", "optional", "end")

#: Goal, optional steps and ends; and what is said of them.
RULES: list[tuple[dict[str, str], str]] = [
    ({}, "every step is completed or skipped"),
    ({"goal": "c"}, "“title of c” is completed"),
    ({"goal": "db"}, "one of “title of b” and “title of d” is completed"),
    ({"optional": "be"}, "every step but 2 optional ones is completed or skipped"),
    (
        {"end": "ad"},
        "every step is completed or skipped, or the last step is one of “title of a” and “title of d”",
    ),
    (
        {"goal": "e", "optional": "a", "end": "b"},
        "“title of e” is completed, or the last step is “title of b”",
    ),
    (
        {"optional": "abcde", "end": "c"},
        "every step is completed or skipped, or the last step is “title of c”",
    ),
]


async def put(api: Api, rule: dict[str, Any], key: str, walkthrough: str = WALKTHROUGH) -> Any:
    return await api.http.put(
        f"/v1/walkthroughs/{walkthrough}/finish-rule",
        headers={"Authorization": f"Bearer {key}"},
        json={f"{part}_step_ids": list(rule.get(part, ())) for part in PARTS} | rule.get("more", {}),
    )


def finished_at(walk: Walk, goal: str = "", optional: str = "", end: str = "") -> int | None:
    """Step by step: when it first was finished for good; or by its last step."""
    needed = {s for s in STEPS if s not in optional} or set(STEPS)
    passed: set[str] = set()
    for step, at in zip(walk.steps, walk.times, strict=True):
        passed.add(step)
        if (step in goal and step not in walk.skipped) if goal else needed <= passed:
            return at
    return walk.times[-1] if walk.steps and walk.steps[-1] in end else None


async def test_every_figure_follows_the_rule(world: World) -> None:
    await gather(world)
    await world.drain_marks()
    api = await world.start_api()
    key = (await make_key(world.db, "org", "editor", None, Grant(may_edit=True))).text
    truth = await Figures.read(world.db, WALKTHROUGH)
    finished_of = []
    for rule, says in RULES:
        set_ = await put(api, rule, key)
        assert (set_.status_code, set_.json()["finished_means"]) == (200, says)
        ends = {w.user: finished_at(w, **rule) for w in truth.walks}
        outcomes = {w.user: _outcome(truth, w, ends[w.user]) for w in truth.walks}
        counts = Counter(outcomes.values())
        finished_of.append(counts["finished"])
        times = sorted(at - w.began_at for w in truth.walks if (at := ends[w.user]) is not None)

        summary = await api.get(WT)
        assert [summary[name] for name in ("finished", "in_progress", "dropped")] == [
            counts[name] for name in ("finished", "in_progress", "dropped")
        ]
        assert summary["median_to_finish_ms"] == pytest.approx(median(times))
        assert summary["walkthrough"]["finished_means"] == says
        (row,) = [
            w for w in (await api.get("organization"))["walkthroughs"] if w["walkthrough_id"] == WALKTHROUGH
        ]
        assert (row["finished"], row["in_progress"], row["finished_means"]) == (
            counts["finished"],
            counts["in_progress"],
            says,
        )
        by_server = Counter(w.server for w in truth.walks if outcomes[w.user] == "finished")
        assert {s["mcp_server_id"]: s["finished"] for s in row["servers"]} == {
            s["mcp_server_id"]: by_server[s["mcp_server_id"]] for s in row["servers"]
        }
        sankey = await api.get(f"{WT}/sankey", server="srv_1")
        mine = [w for w in truth.walks if w.server == "srv_1"]
        assert Counter({(e["position"], e["step_id"], e["outcome"]): 0 for e in sankey["endings"]}) | _sum(
            ((e["position"], e["step_id"], e["outcome"]), e["journeys"]) for e in sankey["endings"]
        ) == Counter((len(w.steps) - 1, w.steps[-1] if w.steps else None, outcomes[w.user]) for w in mine)
        # A view that is read from the journeys says the same.
        viewed = await api.get(f"{WT}/sankey", exclude="a")
        assert viewed["outcomes"]["finished"] == counts["finished"]
        trends = (await api.get(f"{WT}/trends"))["points"]
        began = Counter(str(day_of(w.began_at)) for w in truth.walks if outcomes[w.user] == "finished")
        then = Counter(str(day_of(at)) for at in ends.values() if at is not None)
        assert {p["since"]: p["finished"] for p in trends if p["finished"]} == began
        assert {p["since"]: p["finished_then"] for p in trends if p["finished_then"]} == then
        people = (await api.get(f"{WT}/journeys", limit=500))["journeys"]
        assert {j["mcp_server_user_id"]: j["outcome"] for j in people} == outcomes
        assert all(j["next_step_id"] is None for j in people if j["outcome"] == "finished")
        steps = await api.get(f"{WT}/steps")
        # Who has passed all and skipped the goal stands nowhere.
        left = sum(1 for w in truth.walks if outcomes[w.user] != "finished" and len(w.steps) < len(STEPS))
        stands = sum(s["dropped_here"] + s["in_progress_here"] for s in steps["steps"])
        assert stands == left
        assert {s["id"]: s["optional"] for s in steps["walkthrough"]["steps"]} == {
            s: s in rule.get("optional", "") for s in STEPS
        }
    assert len(set(finished_of)) >= 5, "the rules differ in whom they call finished"


def _outcome(truth: Figures, walk: Walk, finished: int | None) -> str:
    """As `Figures.outcome`, which knows the default rule alone."""
    if finished is not None:
        return "finished"
    return Figures([], [], truth.today, truth.active_days).outcome(walk)


def _sum(pairs: Any) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for key, number in pairs:
        total[key] += number
    return total


async def test_a_rule_is_set_by_who_may_and_names_steps_of_the_walkthrough(world: World) -> None:
    await world.offer()
    await world.offer("wt_b", ("x", "y"), "srv_1")
    await world.db.execute("insert into organization (id, name, created_at) values ('other', 'other', now())")
    api = await world.start_api()
    editor = (await make_key(world.db, "org", "editor", None, Grant(may_edit=True))).text
    stranger = (await make_key(world.db, "other", "stranger", None, Grant(may_edit=True))).text
    refused = await put(api, {"goal": "a"}, api.key)
    assert refused.status_code == 403
    assert "--may-edit" in refused.json()["detail"]
    assert (await put(api, {"goal": "a"}, stranger)).status_code == 404
    wrong = await put(api, {"goal": "x"}, editor)
    assert (wrong.status_code, "has no step `x`" in wrong.json()["detail"]) == (422, True)
    assert (await put(api, {"more": {"goals": ["a"]}}, editor)).status_code == 422
    huge = await put(api, {"more": {"goals": ["a" * 60] * 50_000}}, "sst_nobody_knows")
    assert huge.status_code in (401, 413), "nobody's body is read whole"
    assert await world.db.fetchval("select count(*) from walkthrough_finish_rules") == 0

    before = (await api.get(WT))["freshness"]["version"]
    assert (await put(api, {"goal": "ca"}, editor)).status_code == 200
    assert (await api.get(f"{WT}/finish-rule"))["goal_step_ids"] == ["a", "c"]
    assert (await api.get(WT))["freshness"]["version"] != before
    # A step that goes takes its part of the rule along; without any other the default holds again.
    await world.db.execute("delete from walkthrough_steps where id in ('a', 'c')")
    assert (await api.get(WT))["walkthrough"]["finished_means"] == "every step is completed or skipped"
    assert (await put(api, {}, editor)).json()["goal_step_ids"] == []
    assert await world.db.fetchval("select count(*) from walkthrough_finish_rules") == 0


async def test_a_rule_is_set_by_command_and_goes_through_a_file(world: World, tmp_path: Path) -> None:
    await world.offer()
    command = ("walkthroughs", "finish-rule", "wt_a")
    assert "every step is completed or skipped" in (await world.invoke(*command)).stderr
    plan = await world.invoke(*command, "--goal", "d", "--end", "b")
    assert "then: when “title of d” is completed, or the last step is “title of b”" in plan.stderr
    assert await world.db.fetchval("select count(*) from walkthrough_finish_rules") == 0
    done = await world.invoke(*command, "--goal", "d", "--end", "b", "--execute", "-o", "json")
    assert json.loads(done.stdout)["goal_step_ids"] == ["d"]
    wrong = await world.invoke(*command, "--goal", "nope", "--execute")
    assert (wrong.returncode, "has no step `nope`" in wrong.stderr) == (2, True)

    file = tmp_path / "export.json"
    await world.invoke("export", "wt_a", "--file", str(file))
    exported = json.loads(file.read_text())
    assert exported["walkthrough"]["finishRule"] == {
        "goalReferences": [3],
        "optionalReferences": [],
        "endReferences": [1],
    }
    again = await world.invoke("import", str(file), "--server", "srv_1")
    assert "= finish rule wt_a" in again.stderr
    exported["walkthrough"]["finishRule"] = {"goalReferences": [0], "optionalReferences": [2]}
    file.write_text(json.dumps(exported))
    await world.invoke("import", str(file), "--server", "srv_1")
    row = await world.db.fetchrow("select * from walkthrough_finish_rules")
    assert (row["goal_step_ids"], row["optional_step_ids"], row["end_step_ids"]) == (["a"], ["c"], [])
    exported["walkthrough"]["finishRule"] = {"goalReferences": [5]}
    file.write_text(json.dumps(exported))
    refused = await world.invoke("import", str(file), "--server", "srv_1")
    assert "finishRule.goalReferences: 5 is no step" in refused.stderr
    del exported["walkthrough"]["finishRule"]
    file.write_text(json.dumps(exported))
    await world.invoke("import", str(file), "--server", "srv_1")
    assert await world.db.fetchval("select goal_step_ids from walkthrough_finish_rules") == ["a"]
    await world.invoke(*command, "--default", "--execute")
    assert await world.db.fetchval("select count(*) from walkthrough_finish_rules") == 0


async def test_a_step_that_is_added_leaves_those_finished_who_had_finished(world: World) -> None:
    """Until it is shown to them: then they stand at it, as everybody else."""
    await gather(world)
    await world.drain_marks()
    api = await world.start_api()
    before = {j["mcp_server_user_id"]: j for j in (await api.get(f"{WT}/journeys", limit=500))["journeys"]}
    finished = sorted(user for user, j in before.items() if j["outcome"] == "finished")
    figures = await api.get(WT)
    dropped = {s["step_id"]: s["dropped_here"] for s in (await api.get(f"{WT}/steps"))["steps"]}
    last_at = await world.db.fetchval("select max(last_active_at) from sankey_journeys")
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " values ('new', 'wt_a', 'New', '{\"version\": \"v1\"}', 2)"
    )
    # The newest journeys are as young as the edit.
    await world.db.execute(
        "update walkthrough_versions set made_at = $1::bigint + 1 where id = (select max(id) from walkthrough_versions)",
        last_at,
    )

    async def outcomes() -> dict[str, str]:
        people = (await api.get(f"{WT}/journeys", limit=500))["journeys"]
        return {j["mcp_server_user_id"]: j["outcome"] for j in people}

    assert await outcomes() == {user: j["outcome"] for user, j in before.items()}
    after = await api.get(WT)
    for name in ("finished", "in_progress", "dropped", "median_to_finish_ms", "finished_within"):
        assert after[name] == figures[name], name
    assert "that was there at their last activity" in after["walkthrough"]["finished_means"]
    (row,) = [
        w for w in (await api.get("organization"))["walkthroughs"] if w["walkthrough_id"] == WALKTHROUGH
    ]
    assert (row["finished"], row["finished_means"]) == (len(finished), after["walkthrough"]["finished_means"])
    steps = {s["step_id"]: s["dropped_here"] for s in (await api.get(f"{WT}/steps"))["steps"]}
    assert steps == dropped | {"new": 0}, "nobody stopped before a step that was not there"
    asked: list[tuple[str, dict[str, Any]]] = [
        ("sankey", {}),
        ("sankey", {"exclude": "a"}),
        ("endings", {}),
        ("paths", {"limit": 500}),
    ]
    for path, query in asked:
        told = await api.get(f"{WT}/{path}", **query)
        got = (
            sum(p["journeys"] for p in told["paths"] if p["outcome"] == "finished")
            if "paths" in told
            else told["outcomes"]["finished"]
        )
        assert got == len(finished), path
    trends = (await api.get(f"{WT}/trends"))["points"]
    assert sum(p["finished_then"] for p in trends) == len(finished)

    back = finished[0]
    await world.db.execute(
        "insert into walkthrough_step_showings values ('x', 'x', $1, 'wt_a', 'new', 'srv_1', $2, $3, $3)",
        back,
        f"s_{back}",
        last_at + 2,
    )
    await world.drain_marks()
    now = await outcomes()
    assert now.pop(back) in ("dropped", "in_progress")
    assert now == {user: j["outcome"] for user, j in before.items() if user != back}
    assert (await api.get(WT))["finished"] == len(finished) - 1


async def test_where_all_steps_are_optional_all_routes_agree_after_one_is_added(world: World) -> None:
    await world.offer(WALKTHROUGH, "ab")
    await world.db.execute("update walkthrough_steps set metadata = '{\"optional\": true}'")
    await world.people(["ann", "bob"])
    now = await world.db.fetchval("select max(made_at) from walkthrough_versions")
    await world.insert(completed("ann", "a", now), completed("ann", "b", now + 1), completed("bob", "a", now))
    await world.drain_marks()
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order, metadata)"
        " values ('c', 'wt_a', 'C', '{}', 2, '{\"optional\": true}')"
    )
    await world.db.execute(
        "update walkthrough_versions set made_at = $1::bigint + 5 where made_at > $1::bigint", now
    )
    api = await world.start_api()
    told = {
        "summary": (await api.get(WT))["finished"],
        "overview": (await api.get("organization"))["walkthroughs"][0]["finished"],
        "sankey": (await api.get(f"{WT}/sankey"))["outcomes"]["finished"],
        "view": (await api.get(f"{WT}/sankey", exclude="c"))["outcomes"]["finished"],
        "trends": sum(p["finished"] for p in (await api.get(f"{WT}/trends"))["points"]),
        "people": sum(j["outcome"] == "finished" for j in (await api.get(f"{WT}/journeys"))["journeys"]),
    }
    assert set(told.values()) == {1}, told
    means = (await api.get(f"{WT}/finish-rule"))["finished_means"]
    assert means == (await api.get(WT))["walkthrough"]["finished_means"]
    assert "was there at their last activity" in means


async def test_what_was_shown_since_asks_for_a_step_that_was_added_alone(world: World) -> None:
    """Ann was shown an optional step, Bob the added one; both had finished."""
    await world.offer(WALKTHROUGH, "abd")
    await world.db.execute("update walkthrough_steps set metadata = '{\"optional\": true}' where id = 'd'")
    await world.people(["ann", "bob"])
    now = await world.db.fetchval("select max(made_at) from walkthrough_versions")
    await world.insert(*(completed(who, step, now) for who in ("ann", "bob") for step in "ab"))
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order)"
        " values ('c', 'wt_a', 'C', '{}', 1)"
    )
    await world.db.execute(
        "update walkthrough_versions set made_at = $1::bigint + 5 where made_at > $1::bigint", now
    )
    for who, step in (("ann", "d"), ("bob", "c")):
        await world.db.execute(
            "insert into walkthrough_step_showings values ($1, $1, $1, 'wt_a', $2, 'srv_1', 's_' || $1, $3, $3)",
            who,
            step,
            now + 9,
        )
    await world.drain_marks()
    api = await world.start_api()
    people = {
        j["mcp_server_user_id"]: j["outcome"] == "finished"
        for j in (await api.get(f"{WT}/journeys"))["journeys"]
    }
    assert people == {"ann": True, "bob": False}
    assert (await api.get(WT))["finished"] == 1
    assert (await api.get(f"{WT}/sankey", exclude="d"))["outcomes"]["finished"] == 1
    assert (await api.get("organization"))["walkthroughs"][0]["finished"] == 1
    assert sum(p["finished"] for p in (await api.get(f"{WT}/trends"))["points"]) == 1

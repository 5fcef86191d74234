"""Conclusions about people who have had the time, against plain SQL: compare, trends, summary, time to finish."""

import random
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest

from tests.support.crowd import STEPS, WALKTHROUGH
from tests.support.figures import DAY
from tests.support.headlines import newcombe, wilson
from tests.support.world import Api, World, completed

pytestmark = pytest.mark.integration
WT = f"walkthroughs/{WALKTHROUGH}"
WITHIN = 3

#: Journeys and the steps that each passed within $1 milliseconds of its beginning, of those that began from $2 on and
#: before $3, by the rows alone: nobody skips and does the same step here.
STOOD = """
with passed as (
  select mcp_server_user_id as person, step_id, completed_at as at, false as skipped
  from walkthrough_step_completions where walkthrough_id = 'wt_a'
  union all
  select mcp_server_user_id, step_id, skipped_at, true
  from walkthrough_step_skips where walkthrough_id = 'wt_a'
),
began as (
  select person, min(at) as began_at from (
    select person, at from passed
    union all
    select mcp_server_user_id, started_at from walkthrough_starts where walkthrough_id = 'wt_a'
  ) as events group by person
),
stood as (
  select
    began.person, began.began_at, passed.step_id, passed.skipped,
    row_number() over journey - 1 as position,
    lag(passed.step_id) over journey as from_step_id
  from began
  left join passed on passed.person = began.person and passed.at < began.began_at + $1
  where began.began_at >= $2 and began.began_at < $3
  window journey as (partition by began.person order by passed.at)
)
"""
LINKS = STOOD + (
    "select position, from_step_id, step_id, skipped, count(*) as journeys from stood"
    " where step_id is not null group by 1, 2, 3, 4"
)
JOURNEYS = STOOD + (
    "select person, began_at, count(step_id) as passed, (array_agg(step_id order by position desc))[1] as last_step_id"
    " from stood group by 1, 2"
)
STEP = STOOD + (
    "select count(*) filter (where step_id = $4 and not skipped) as done,"
    " count(distinct person) filter (where step_id = $4) as passed from stood"
)
NEVER = 10**15


def midnight() -> int:
    return int(time.time()) // 86_400 * DAY


async def gather(world: World, today: int) -> None:
    """One process over the last three weeks; only half of a week's last days have had three days.

    Each person has chances of their own: what is cut off at now, which differs by the hour, changes nobody else.
    """
    await world.offer(WALKTHROUGH, STEPS)
    await world.offer(WALKTHROUGH, STEPS, "srv_2")
    now = int(time.time() * 1000)
    names = [f"u{n:03}" for n in range(360)]
    await world.people(names)
    events, starts, skips = [], [], []
    for name in names:
        chance = random.Random(f"had time {name}")
        at = today - int(chance.random() * 21 * DAY)
        if chance.random() < 0.6:
            starts.append((f"wtst_{name}", name, WALKTHROUGH, "srv_1", f"s_{name}", at))
            at += int(chance.expovariate(1 / (0.3 * DAY)))
        order = list(STEPS)
        if chance.random() < 0.3:
            order[1], order[2] = order[2], order[1]
        for place, step in enumerate(order):
            if at > now or (place and chance.random() < 0.08):
                break
            if chance.random() < 0.1:
                skips.append((f"wtss_{name}{step}", name, WALKTHROUGH, step, "srv_1", f"s_{name}", at))
            else:
                events.append(completed(name, step, at))
            at += 1 + int(chance.expovariate(1 / (0.5 * DAY)))
    await world.insert(*events)
    await world.db.executemany(
        "insert into walkthrough_starts (id, mcp_server_user_id, walkthrough_id, mcp_server_id,"
        " mcp_server_session_id, started_at) values ($1, $2, $3, $4, $5, $6)",
        starts,
    )
    await world.db.executemany(
        "insert into walkthrough_step_skips (id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id,"
        " mcp_server_session_id, skipped_at) values ($1, $2, $3, $4, $5, $6, $7)",
        skips,
    )
    await world.drain_marks()
    await world.db.execute("analyze")


def day_of(ms: int) -> date:
    return datetime.fromtimestamp(ms / 1000, UTC).date()


class Side:
    """A period by SQL: whole days, so many days ago."""

    def __init__(self, world: World, today: int, first: int, last: int) -> None:
        self.db, self.today = world.db, today
        self.since, self.until = today - first * DAY, today - (last - 1) * DAY
        self.days = str(day_of(self.since)), str(day_of(self.until - 1))

    async def rows(self, query: str, days: int, *more: Any) -> list[Any]:
        """Of those that began so many days ago."""
        latest = min(self.until, self.today - days * DAY + 1)
        return list(await self.db.fetch(query, days * DAY, self.since, latest, *more))

    async def young(self, days: int) -> int:
        rows = await self.db.fetch(JOURNEYS, NEVER, max(self.since, self.today - days * DAY + 1), self.until)
        return len(rows)


async def test_rates_and_differences_are_of_people_who_have_had_the_time(world: World) -> None:
    today = midnight()
    await gather(world, today)
    api = await world.start_api()
    a, b = Side(world, today, 13, 7), Side(world, today, 6, 0)
    query = {"from_a": a.days[0], "to_a": a.days[1], "from_b": b.days[0], "to_b": b.days[1]}
    got = await api.get(f"{WT}/compare", **query, within_days=WITHIN)
    assert got["judged_at"] == today
    await compared_is_what_sql_says(got, a, b)
    await steps_are_what_sql_says(got, a, b)
    await sentences_hold_the_same_numbers(got, a, b)
    await proposed_days_are_said(api, query, a, b)
    await rates_by_day_and_in_all(api, world, today)
    await half_have_finished_after_the_time_by_hand(api, world)
    await what_was_added_is_not_compared(api, world, query, today)


async def compared_is_what_sql_says(got: dict[str, Any], a: Side, b: Side) -> None:
    links: list[dict[Any, int]] = []
    nodes: list[Counter[Any]] = []
    drops: list[Counter[Any]] = []
    for side, letter in ((a, "a"), (b, "b")):
        journeys = await side.rows(JOURNEYS, WITHIN)
        assert got[f"journeys_{letter}"] == len(journeys) > 30
        assert got[f"too_young_{letter}"] == await side.young(WITHIN)
        finished = sum(j["passed"] == len(STEPS) for j in journeys)
        assert got["completion"][f"of_{letter}"] == len(journeys)
        assert got["completion"][f"in_{letter}"] == got[f"outcomes_{letter}"]["finished"] == finished
        assert got[f"outcomes_{letter}"]["not_finished"] == len(journeys) - finished
        links.append({tuple(r)[:4]: r["journeys"] for r in await side.rows(LINKS, WITHIN)})
        nodes.append(Counter({(-1, None): len(journeys)}))
        for (position, _, to, _), count in links[-1].items():
            nodes[-1][position, to] += count
        drops.append(
            Counter((j["passed"] - 1, j["last_step_id"]) for j in journeys if j["passed"] < len(STEPS))
        )
    assert got["too_young_a"] == 0 < got["too_young_b"]
    assert {(x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]) for x in got["links"]} == (
        links[0].keys() | links[1].keys()
    )
    for x in got["links"]:
        key = x["position"], x["from_step_id"], x["to_step_id"], x["skipped"]
        source = x["position"] - 1, x["from_step_id"]
        for side, letter in enumerate("ab"):
            assert (x[f"in_{letter}"], x[f"of_{letter}"]) == (links[side].get(key, 0), nodes[side][source])
    assert {(x["position"], x["step_id"]) for x in got["drops"]} == drops[0].keys() | drops[1].keys()
    for x in got["drops"]:
        node = x["position"], x["step_id"]
        assert (x["in_a"], x["in_b"]) == (drops[0][node], drops[1][node])
        assert (x["of_a"], x["of_b"]) == (nodes[0][node], nodes[1][node])
    for x in [*got["links"], *got["drops"], *got["steps"], got["completion"]]:
        if x["of_a"] and x["of_b"]:
            wanted = newcombe(x["in_a"], x["of_a"], x["in_b"], x["of_b"])
            told = x["difference"], x["difference_low"], x["difference_high"]
            assert told == pytest.approx(wanted, abs=1e-6)
        else:
            assert (x["p_value"], x["difference_low"], x["significant"]) == (None, None, False)
    assert not any(x["significant"] for x in [*got["links"], *got["drops"], got["completion"]])


async def steps_are_what_sql_says(got: dict[str, Any], a: Side, b: Side) -> None:
    assert [s["step_id"] for s in got["steps"]] == list(STEPS)
    for step in got["steps"]:
        for side, letter in ((a, "a"), (b, "b")):
            ((done, passed),) = await side.rows(STEP, WITHIN, step["step_id"])
            assert step[f"in_{letter}"] == done
            assert passed <= step[f"of_{letter}"] <= got[f"journeys_{letter}"]


async def sentences_hold_the_same_numbers(got: dict[str, Any], a: Side, b: Side) -> None:
    sides = []
    for side in (a, b):
        journeys = await side.rows(JOURNEYS, WITHIN)
        sides.append((sum(j["passed"] == len(STEPS) for j in journeys), len(journeys)))
    (in_a, of_a), (in_b, of_b) = sides
    says = got["says"]
    assert f"A: {of_a} journeys that began {a.days[0]} to {a.days[1]} on any server; " in says
    assert f"B: {of_b} journeys that began {b.days[0]} to {b.days[1]} on any server; " in says
    assert "each as it stood 3 days after its beginning" in says
    assert f"{await b.young(WITHIN)} of B began less than 3 days before" in says
    headline = got["findings"][0]
    difference, low, high = (f"{100 * x:+.1f}" for x in newcombe(in_a, of_a, in_b, of_b))
    assert headline["kind"] == "completion"
    assert headline["people"] == of_a + of_b
    assert headline["says"].startswith(
        f"Within 3 days, {in_a / of_a:.1%} of A finished ({in_a} of {of_a}) and {in_b / of_b:.1%} of B"
        f" ({in_b} of {of_b}): B {difference} points (between {low} and {high}, 19 times in 20),"
        " that may be chance (p = "
    )
    counts = {f["kind"]: f["says"] for f in got["findings"]}
    tested = [x for x in [*got["links"], *got["drops"]] if x["p_value"] is not None]
    assert counts["places"].startswith(f"No link or drop-off of {len(tested)} compared differs")


async def proposed_days_are_said(api: Api, query: dict[str, str], a: Side, b: Side) -> None:
    """Half of B began two days ago or more; of who finished by then, 90 % had within the days that are said."""
    got = await api.get(f"{WT}/compare", **query)
    old = [await side.rows(JOURNEYS, days) for side, days in ((a, 0), (b, 0))]
    ages = [sorted(((b.today - j["began_at"]) // DAY for j in rows), reverse=True) for rows in old]
    longest = min(age[-(-len(age) // 2) - 1] for age in ages)
    finished: Counter[int] = Counter()
    for side in (a, b):
        for days in range(1, longest + 1):
            latest = min(side.until, side.today - longest * DAY + 1)
            rows = await side.db.fetch(JOURNEYS, days * DAY, side.since, latest)
            finished[days] += sum(j["passed"] == len(STEPS) for j in rows)
    wanted = next(d for d in range(1, longest + 1) if finished[d] >= 0.9 * finished[longest])
    assert got["within_days"] == wanted
    assert got["within_because"] == (
        f"Proposed from the data: of the journeys that began {longest} days ago or earlier, {finished[longest]}"
        f" finished within {longest} days, and 90 % of these within {wanted} days."
    )


async def rates_by_day_and_in_all(api: Api, world: World, today: int) -> None:
    everybody = await world.db.fetch(JOURNEYS, NEVER, 0, NEVER)
    stood = await world.db.fetch(JOURNEYS, WITHIN * DAY, 0, today - WITHIN * DAY + 1)
    had_time, finished = Counter(), Counter()
    for j in stood:
        day = str(day_of(j["began_at"]))
        had_time[day] += 1
        finished[day] += j["passed"] == len(STEPS)
    points = (await api.get(f"{WT}/trends", within_days=WITHIN))["points"]
    assert {p["since"]: p["had_time"] for p in points if p["had_time"]} == had_time
    assert {p["since"]: p["finished_within"] for p in points if p["finished_within"]} == +finished
    last = str(day_of(today) - timedelta(days=WITHIN + 1))
    assert {p["since"] for p in points if p["complete"]} == {p["since"] for p in points if p["since"] <= last}
    assert points[-1]["since"] > last
    weeks = (await api.get(f"{WT}/trends", within_days=WITHIN, by="week"))["points"]
    assert sum(p["finished_within"] for p in weeks) == finished.total()
    for week in weeks:
        ends = date.fromisoformat(week["since"]) + timedelta(days=6)
        assert week["complete"] is (str(ends) <= last)
    summary = await api.get(WT, within_days=WITHIN)
    assert summary["started"] == len(everybody)
    assert (summary["had_time"], summary["finished_within"]) == (len(stood), finished.total())
    low, high = wilson(finished.total(), len(stood))
    assert summary["completion_rate_within"] == finished.total() / len(stood)
    assert summary["completion_rate_within_low"] == pytest.approx(low, abs=1e-6)
    assert summary["completion_rate_within_high"] == pytest.approx(high, abs=1e-6)


async def half_have_finished_after_the_time_by_hand(api: Api, world: World) -> None:
    got = await api.get(f"{WT}/time-to-finish")
    newest = await world.db.fetchval(
        "select max(at) from (select max(completed_at) as at from walkthrough_step_completions union all"
        " select max(skipped_at) from walkthrough_step_skips union all"
        " select max(started_at) from walkthrough_starts) as newest"
    )
    assert got["as_of"] == max(midnight(), newest)
    rows = await world.db.fetch(JOURNEYS, NEVER, 0, NEVER)
    lasts = await last_times(world)
    took = [lasts[r["person"]] - r["began_at"] for r in rows if r["passed"] == len(STEPS)]
    others = [got["as_of"] - r["began_at"] for r in rows if r["passed"] < len(STEPS)]
    assert (got["finished"], got["censored"]) == (len(took), len(others))
    left, shares = Fraction(1), {}
    for at in sorted(set(took)):
        left *= 1 - Fraction(took.count(at), sum(t >= at for t in took + others))
        shares[at] = float(1 - left)
    assert {p["ms"]: p["share"] for p in got["points"]} == pytest.approx(
        {p["ms"]: shares[p["ms"]] for p in got["points"]}
    )
    assert got["points_in_all"] == len(shares)
    assert len(got["points"]) == min(200, len(shares))
    assert got["median_ms"] == next(at for at, share in shares.items() if share >= 0.5)
    assert got["median_low_ms"] < got["median_ms"] < got["median_high_ms"]
    summary = await api.get(WT)
    assert summary["time_to_finish"]["median_ms"] == got["median_ms"]


async def last_times(world: World) -> dict[str, int]:
    """When each passed their last step."""
    rows = await world.db.fetch(
        "select person, max(at) as at from (select mcp_server_user_id as person, completed_at as at"
        " from walkthrough_step_completions union all"
        " select mcp_server_user_id, skipped_at from walkthrough_step_skips) as passed group by 1"
    )
    return {row["person"]: row["at"] for row in rows}


async def what_was_added_is_not_compared(api: Api, world: World, query: dict[str, str], today: int) -> None:
    """A step that only people of B could do, all of whom did it."""
    await world.db.execute(
        "insert into walkthrough_steps (id, walkthrough_id, title, content_fields, display_order, created_at)"
        " values ('f', $1, 'title of f', '{}', 9, $2)",
        WALKTHROUGH,
        today - 8 * DAY,
    )
    recent = await world.db.fetch(JOURNEYS, NEVER, today - 6 * DAY, NEVER)
    lasts = await last_times(world)
    done = [row["person"] for row in recent if row["passed"] == len(STEPS)]
    await world.insert(*[completed(person, "f", lasts[person] + 1) for person in done])
    await world.drain_marks()
    got = await api.get(f"{WT}/compare", **query, within_days=WITHIN)
    step = got["steps"][-1]
    assert (step["step_id"], step["in_a"]) == ("f", 0)
    assert step["in_b"] > 0
    assert step["p_value"] is got["completion"]["p_value"] is None
    into = [x for x in got["links"] if x["to_step_id"] == "f"]
    assert into
    assert all(x["p_value"] is None for x in into)
    assert "steps were added since" in got["findings"][0]["says"]
    assert "“title of f”" in got["unknown"][0]
    within_a_side = {**query, "from_b": query["from_a"], "to_b": query["to_a"]}
    same = await api.get(f"{WT}/compare", **within_a_side, within_days=WITHIN)
    assert same["completion"]["p_value"] == 1.0, "over the same days both sides have the same people"

"""The sentences of the dashboard, as a browser shows them, against SQL over the events: of the demo and of real logs."""

import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect
from scipy.stats import binomtest

import services.demo
from services.demo.history import past_month
from services.demo.people import Offer
from services.demo.picture import SQL as DEMO
from services.walkthrough_mcp.exchange import import_walkthrough, read_export
from tests.support.browser import needs_chromium
from tests.support.figures import DAY
from tests.support.headlines import (
    SQL,
    Pair,
    adjusted,
    day_of,
    duration,
    kaplan_meier,
    many,
    share,
    today,
    wilson,
)
from tests.support.logs import NAMES, copy_completions, needs_logs, oracle, path
from tests.support.world import Api, World

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), needs_chromium]
SERVERS = {"hooks-docs": "srv_hooks", "query-coach": "srv_query"}


class Side(NamedTuple):
    """What is compared: how the sentence names it, and whose journeys they are."""

    says: str
    since: int
    until: int
    server: str | None = None


class Shown(NamedTuple):
    """A walkthrough of a world, with what its comparison is of, as the dashboard's address has it."""

    world: World
    api: Api
    walkthrough: str
    compare: str
    a: Side
    b: Side


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    context = await browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(90_000)
    yield await context.new_page()
    await context.close()


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["demo", *(pytest.param(name, marks=needs_logs) for name in NAMES)],
)
async def shown(addresses: tuple[str, str], template: str, request: Any) -> AsyncIterator[Shown]:
    world = await World.make(*addresses, template)
    try:
        yield await (of_the_demo(world) if request.param == "demo" else of_a_log(world, request.param))
    finally:
        await world.close()


async def of_the_demo(world: World) -> Shown:
    """Its month before, as a producer's events through both consumers; then its team moves a step."""
    await world.offer()
    for slug, server in SERVERS.items():
        await world.db.execute(
            "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
            " values ($1, 'org', $2, $2, $2)",
            server,
            slug,
        )
    offers = []
    for file in sorted((Path(services.demo.__file__).parent / "walkthroughs").glob("*.json")):
        export = read_export(file)
        for slug in SERVERS:
            plan = await import_walkthrough(world.db, export, slug)
            offers.append(Offer(slug, plan.walkthrough_id, export.walkthrough.title, len(export.steps)))
    steps = {
        offer.walkthrough_id: [
            row["id"] for row in await world.db.fetch(DEMO["steps_in_order"], offer.walkthrough_id)
        ]
        for offer in offers
    }
    past = past_month(offers, steps, SERVERS, 600, int(time.time() * 1000), "t")
    await world.db.execute(DEMO["insert_people"], [p.user for p in past], [p.started_at for p in past])
    sessions = [(session, p.offer.slug, at, p.user) for p in past for session, at in p.sessions.items()]
    await world.db.execute(DEMO["insert_sessions"], *map(list, zip(*sessions, strict=True)))
    running = world.start_both()
    await world.produce([json.loads(event) for p in past for event in p.events()])
    await world.drained()
    assert [service.terminate() for service in running] == [0, 0]
    await world.db.execute(SQL["make_tables"])
    for walkthrough in steps:
        await world.db.execute(DEMO["move_a_step"], walkthrough)
    await world.drain_marks()
    sides = [Side(f"at any time on {slug}", 0, 2**62, server) for slug, server in SERVERS.items()]
    compare = "&compare=servers&a=srv_hooks&b=srv_query"
    return Shown(world, await world.start_api(), offers[0].walkthrough_id, compare, *sides)


async def of_a_log(world: World, name: str) -> Shown:
    """All of a log; compared are its earlier and its later half, by days."""
    eventlog = oracle()
    events = list(eventlog.events(path(name)))
    await world.db.execute(eventlog.rows(path(name)))
    await copy_completions(world, events)
    await world.db.execute(SQL["make_tables"])
    await world.db.execute("analyze")
    walkthrough = events[0]["walkthrough_id"]
    first, middle, last = await world.db.fetchval(
        "select percentile_disc(array[0, 0.5, 1.0]) within group (order by began_at) from journeys"
    )
    days = day_of(first), day_of(middle), day_of(middle + DAY), day_of(last)
    cut = middle // DAY * DAY + DAY
    sides = [
        Side(f"{days[0]} to {days[1]} on any server", 0, cut),
        Side(f"{days[2]} to {days[3]} on any server", cut, 2**62),
    ]
    compare = f"&compare=days&a={days[0]}..{days[1]}&b={days[2]}..{days[3]}"
    api = await world.start_api(organization=await world.db.fetchval("select id from organization"))
    return Shown(world, api, walkthrough, compare, *sides)


async def texts(page: Page, shown: Shown, query: str, selector: str) -> list[str]:
    """What the elements say, each in one line."""
    await page.goto("about:blank")
    await page.goto(f"{shown.api.url}/?w={shown.walkthrough}{query}#key={shown.api.key}")
    await expect(page.locator(selector).first).to_be_visible()
    return [" ".join(text.split()) for text in await page.locator(selector).all_inner_texts()]


def number_in(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


async def test_the_key_figures(page: Page, shown: Shown) -> None:
    said = await texts(page, shown, "", ".figures li")
    days = number_in(r"finished within (\d+) day", said[1])
    db = shown.world.db
    (of,) = await db.fetch(SQL["key_figures"], shown.walkthrough, today(), days)
    (visits,) = await db.fetch(SQL["sessions"], shown.walkthrough)
    half, most = of["took"] or (None, None)
    assert said == [
        f"{of['started']:,} started",
        f"{share(of['finished_within'], of['had_time'])} finished within {many(days, 'day')}"
        f" ({of['finished_within']:,} of {of['had_time']:,} who began so long ago)",
        f"{of['finished']:,} finished by now",
        f"{of['in_progress']:,} in progress",
        f"{of['dropped']:,} stopped",
        f"{duration(half)} median of those who finished (9 in 10: {duration(most)})",
        f"{visits['steps'] / visits['sessions']:.1f} steps a session",
        f"{share(visits['came_back'], visits['people'])} came back in another session",
    ]
    assert await texts(page, shown, "&tab=people", ".hint") == [
        f"The last active 50 of {of['started']:,}. Show 50 more"
    ]
    (hint,) = await texts(page, shown, "&tab=paths", ".hint")
    paths = [row["journeys"] for row in await db.fetch(SQL["paths"], shown.walkthrough, today())]
    others = paths[await page.locator("tbody tr").count() :]
    assert hint.startswith(
        f"{many(len(others), 'other path')} of {many(sum(others), 'person', 'people')}"
        f" ({share(sum(others), of['started'])}) "
        if others
        else "These are all paths"
    )


async def test_where_people_stop_and_what_is_slowest(page: Page, shown: Shown) -> None:
    steps = await shown.world.db.fetch(SQL["steps"], shown.walkthrough, today(), 2**62)
    stops, slowest = await texts(page, shown, "&tab=steps", ".findings p")
    total = sum(step["dropped"] for step in steps)
    most, *like_it = foremost(steps)
    assert total >= 30, "enough to conclude something"
    chance = ", ".join(f"{s['title']} ({s['dropped']:,})" for s in like_it[:3])
    assert stops.startswith(
        f"Most people stop before {most['title']} {most['dropped']:,} of {total:,} people who stopped,"
        f" {share(most['dropped'], most['reached'])} of those who reached it"
        f"{f'; by chance it may as well be {chance}' if chance else ''}. Who stands there?"
    )
    enough = [step for step in steps if step["timed"] >= 30]
    slow = max(enough, key=lambda step: step["median"])
    assert slowest == (
        f"The slowest step is {slow['title']} half of {slow['timed']:,} people needed more than"
        f" {duration(slow['median'])}, one in ten more than {duration(slow['p90'])}"
    )


async def test_how_many_have_finished_by_when(page: Page, shown: Shown) -> None:
    db = shown.world.db
    until = max(today(), await db.fetchval(SQL["newest_event"], shown.walkthrough))
    times = [tuple(row) for row in await db.fetch(SQL["times_to_finish"], shown.walkthrough, until)]
    (said,) = await texts(page, shown, "&tab=trends", "figure .hint, figure .empty")
    finished = sum(is_finished for _, is_finished in times)
    if not finished:
        assert said == "Nobody has finished"
        return
    half, most = kaplan_meier(times, (0.5, 0.9))
    assert said == (
        f"Half of all have finished {half}; nine in ten {most}. Of {many(len(times), 'journey')},"
        f" {len(times) - finished:,} are not finished and count for as long as they have been on their way"
        " (Kaplan and Meier)."
    )


async def test_what_differs_between_two_sides(page: Page, shown: Shown) -> None:
    what, *said = await texts(
        page, shown, "&tab=compare" + shown.compare, ".compared, .findings p, .finding li"
    )
    days = number_in(r"each as it stood (\d+) day", what)
    a, b = [await Compared.read(shown, side, days) for side in (shown.a, shown.b)]
    within = many(days, "day")
    young = [f"{side.too_young} of {letter}" for letter, side in (("A", a), ("B", b)) if side.too_young]
    left_out = f" {' and '.join(young)} began less than {within} before {day_of(today())} 00:00 UTC and are left out."
    assert what == (
        f"A: {a.journeys} journeys that began {shown.a.says}; B: {b.journeys} journeys that began {shown.b.says};"
        f" each as it stood {within} after its beginning.{left_out if young else ''}"
    )
    whole = Pair(a.finished, a.journeys, b.finished, b.journeys)
    assert whole.p_value is not None
    wanted = [f"Completion Within {within}, {whole.says('finished', whole.p_value)}."]
    steps = {step: Pair(*a.steps[step], *b.steps[step]) for step in a.steps}
    judged = list(zip(steps.items(), adjusted(list(steps.values())), strict=True))
    differing = [(title, of, p) for (title, of), p in judged if p is not None and p < 0.05]
    for title, of, p in sorted(differing, key=lambda found: -abs(found[1].difference)):
        told = of.says("did it", p)
        wanted.append(f"Step “{title}” “{title}”: of those who reached it within {within}, {told}.")
    wanted.append(in_all([p for _, p in judged], "step", "steps"))
    places = places_of(a, b)
    wanted.append(in_all(adjusted(places), "link or drop-off", "links and drop-offs"))
    if alone := sum(not (of.of_a and of.of_b) for of in [*steps.values(), *places]):
        wanted.append(f"Of {alone} steps, links and drop-offs anything: nobody of the other side came there.")
    assert said == wanted
    # Segments begin with the same people, both sides together.
    (begins,) = await texts(page, shown, f"&explain=finish&within={days}", ".compared")
    everybody = await Compared.read(shown, Side("", 0, 2**62), days)
    assert begins.startswith(
        f"Of {everybody.journeys} journeys, {everybody.finished} finished within {within} "
    )


def in_all(p_values: list[float | None], one: str, several: str) -> str:
    tested = [p for p in p_values if p is not None]
    differ = sum(p < 0.05 for p in tested)
    untested = len(p_values) - len(tested)
    said = f"{differ} {several}" if differ > 1 else f"{differ or 'No'} {one}"
    more = f"; {untested} more cannot be compared" if untested else ""
    return f"In all {said} of {len(tested)} compared differ{'' if differ > 1 else 's'} by more than chance{more}."


class Compared(NamedTuple):
    """A side, each journey as it stood after so many days: how many at each node, and on from it or not."""

    journeys: int
    finished: int
    too_young: int
    steps: dict[str, tuple[int, int]]
    nodes: Counter[Any]
    links: Counter[Any]
    ends: Counter[Any]

    @classmethod
    async def read(cls, shown: Shown, side: Side, days: int) -> "Compared":
        db = shown.world.db
        asked = (shown.walkthrough, days * DAY, side.since, side.until, side.server, today())
        (of,) = await db.fetch(SQL["side"], *asked)
        steps = {
            row["title"]: (row["done"], row["reached"])
            for row in await db.fetch(SQL["steps_of_side"], *asked)
        }
        nodes, links, ends = Counter({(-1, None): of["journeys"]}), Counter[Any](), Counter[Any]()
        for position, before, step, is_skip, count in await db.fetch(SQL["places_of_side"], *asked):
            if step is None:
                ends[position - 1, before] = count
            else:
                links[position, before, step, is_skip] = count
                nodes[position, step] += count
        ends[-1, None] = of["journeys"] - sum(n for (position, *_), n in links.items() if position == 0)
        return cls(*of, steps, nodes, links, +ends)


def places_of(a: Compared, b: Compared) -> list[Pair]:
    """Links and drop-offs of either side, beside those of the other."""
    links = [
        Pair(a.links[key], a.nodes[source], b.links[key], b.nodes[source])
        for key in a.links.keys() | b.links.keys()
        for source in [(key[0] - 1, key[1])]
    ]
    ends = [
        Pair(a.ends[node], a.nodes[node], b.ends[node], b.nodes[node])
        for node in a.ends.keys() | b.ends.keys()
    ]
    return links + ends


async def test_what_a_diagnosis_concludes(shown: Shown) -> None:
    """An agent's headlines, of those who began seven whole days ago."""
    told = await shown.api.get(f"walkthroughs/{shown.walkthrough}/diagnose", active_days=7)
    found = {finding["kind"]: finding["says"] for finding in told["findings"]}
    db, before = shown.world.db, today() - 7 * DAY
    assert told["period"]["until"] == str(day_of(before - 1))
    steps = await db.fetch(SQL["steps"], shown.walkthrough, today(), before)
    total = sum(step["dropped"] for step in steps)
    most, *like_it = foremost(steps)
    assert not like_it, "which is another sentence"
    assert found["most_stop_here"] == (
        f"{most['dropped']} of {total} people who stopped did so before “{most['title']}”"
    )
    enough = [(wilson(s["dropped"], s["reached"]), s) for s in steps if s["reached"] >= 30]
    ((low, high), worst), *others = sorted(enough, key=lambda pair: -pair[0][0])
    if all(other[1] < low for other, _ in others):
        assert found["loses_largest_share"] == (
            f"of {worst['reached']} people who reached “{worst['title']}”, {worst['dropped']} stopped there:"
            f" {worst['dropped'] / worst['reached']:.1%} ({low:.1%} to {high:.1%}), more than at any other of"
            f" {len(enough)} steps"
        )
    else:
        assert "loses_largest_share" not in found
    timed = [step for step in steps if step["timed"] >= 30]
    slow = max(timed, key=lambda step: step["median"])
    assert found["slowest"] == (
        f"half of {slow['timed']} people took more than {in_one_unit(slow['median'])} before “{slow['title']}” was"
        f" done, one in ten more than {in_one_unit(slow['p90'])}: the longest of {len(timed)} steps, time away"
        " included"
    )


def foremost(steps: list[Any]) -> list[Any]:
    """The step where most people stop, and those that by chance may as well be it: binomial tests, by Bonferroni."""
    first, *others = sorted((s for s in steps if s["dropped"]), key=lambda step: -step["dropped"])
    both = [first["dropped"] + other["dropped"] for other in others]
    p_values = [binomtest(first["dropped"], n).pvalue * len(others) for n in both]
    return [first, *(other for other, p in zip(others, p_values, strict=True) if p >= 0.05)]


def in_one_unit(ms: float) -> str:
    for unit, size in (("days", DAY), ("h", 3_600_000), ("min", 60_000)):
        if ms >= size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms / 1000:.1f} s"

"""The dashboard in a real browser: what it shows is what a plain walk over the rows says, by mouse and by keys."""

import contextlib
import re
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect

from tests.support.browser import needs_chromium
from tests.support.crowd import WALKTHROUGH, gather
from tests.support.figures import DAY, Figures
from tests.support.refused import refuse
from tests.support.world import Api, World, completed, eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module"), needs_chromium]
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 800}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    world = await World.make(*addresses, template)
    try:
        await gather(world)
        await _with_agents(world)
        await world.offer("wt_empty", ("x", "y"))
        yield world
    finally:
        await world.close()


async def _with_agents(world: World) -> None:
    """Everybody of an even number came by one agent, and everybody with a start has a plan."""
    await world.db.execute(
        """
        insert into mcp_session_clients
        select mcp_server_session_id, case when right(mcp_server_user_id, 1)::integer % 2 = 0 then 'even' else 'odd' end, '1'
        from mcp_server_session where mcp_server_user_id like 'u%';
        update walkthrough_starts set metadata = jsonb_build_object('plan', right(mcp_server_user_id, 1));
        """
    )
    await world.drain_marks()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(full: World) -> Api:
    return await full.start_api()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(addresses: tuple[str, str], template: str) -> AsyncIterator[Api]:
    """Another world, some of whose events were refused."""
    world = await World.make(*addresses, template)
    try:
        await refuse(world)
        yield await world.start_api()
    finally:
        await world.close()


@contextlib.asynccontextmanager
async def opened(browser: Browser, api: Api, **how: Any) -> AsyncIterator[Page]:
    """A page that must not complain, nor ask anybody else for anything."""
    context = await browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **how})
    context.set_default_timeout(90_000)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda r: None if r.url.startswith((api.url, "blob:", "data:")) else complaints.append(r.url),
    )
    yield page
    await context.close()
    assert complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, api: Api) -> AsyncIterator[Page]:
    async with opened(browser, api) as page:
        yield page


async def is_sound(page: Page, name: str) -> None:
    """Axe finds nothing, and nothing is wider than the page."""
    found = await Axe().run(page)
    problems = [(v["id"], n["html"][:160]) for v in found.response["violations"] for n in v["nodes"]]
    assert problems == [], (name, problems[:6])
    wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, name


async def show(page: Page, api: Api, query: str = f"?w={WALKTHROUGH}") -> None:
    await page.goto("about:blank")
    await page.goto(f"{api.url}/{query}#key={api.key}")


async def flow(page: Page, api: Api, more: str = "") -> None:
    await show(page, api, f"?w={WALKTHROUGH}&detail=0{more}")
    await page.wait_for_selector(".sankey .node")


async def drawn(page: Page) -> dict[tuple[int, str], int]:
    """(place, title) of each step that is drawn, to its people, as a screen reader is told."""
    found = {}
    for label in await page.locator(".node").evaluate_all(
        "all => all.map(n => n.getAttribute('aria-label'))"
    ):
        if match := re.match(r"title of (\w), place (\d+): ([\d,]+) pe", label):
            found[int(match[2]) - 1, match[1]] = int(match[3].replace(",", ""))
    return found


def nodes(of: Figures, **view: Any) -> dict[tuple[int, str], int]:
    counts: Counter[tuple[int, str]] = Counter()
    for shown in of.shown(**view):
        counts.update(enumerate(shown.steps))
    return dict(counts)


async def test_without_a_key_it_asks_for_one_and_says_when_it_is_wrong(page: Page, api: Api) -> None:
    await page.goto(f"{api.url}/")
    await page.get_by_label("API key of your organization").fill("sst_wrong_key")
    await page.get_by_role("button", name="Show the figures").click()
    await expect(page.get_by_role("alert")).to_contain_text("not good")
    await page.get_by_label("API key of your organization").fill(api.key)
    await page.get_by_role("button", name="Show the figures").click()
    await expect(page.get_by_role("heading", name="Walkthroughs of org")).to_be_visible()
    await page.reload()
    await expect(page.get_by_role("heading", name="Walkthroughs of org")).to_be_visible()
    await page.get_by_role("button", name="Forget key").click()
    await expect(page.get_by_label("API key of your organization")).to_be_visible()


async def test_a_key_behind_the_address_is_taken_out_of_it(page: Page, api: Api) -> None:
    await show(page, api, "")
    await expect(page.get_by_role("heading", name="Walkthroughs of org")).to_be_visible()
    assert "sst_" not in page.url


async def test_the_foot_says_which_release_the_server_is(page: Page, api: Api) -> None:
    """And not the one that the page was built for: a release does not build it anew."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    await show(page, api, "")
    await expect(page.get_by_role("contentinfo")).to_have_text(f"Stepstream {project['version']}")

    async def of_tomorrow(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, json=await answer.json() | {"version": "9.8.7"})

    await page.route("**/v1/organization", of_tomorrow)
    await show(page, api, "")
    await expect(page.get_by_role("contentinfo")).to_have_text("Stepstream 9.8.7")


async def test_every_number_of_the_flow_is_what_a_plain_walk_says(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await flow(page, api)
    assert await drawn(page) == nodes(truth)
    outcomes = Counter(truth.outcome(w) for w in truth.walks)
    figures = page.get_by_role("list", name="Key figures")
    await expect(figures.get_by_role("listitem").first).to_have_text(f"{len(truth.walks)}started")
    await expect(figures).to_contain_text(f"{outcomes['finished']}finished by now")
    await expect(figures).to_contain_text(
        re.compile(r"finished within \d+ days? \(\d+ of \d+ who began so long ago")
    )
    await expect(figures.locator(".in_progress b")).to_have_text(str(outcomes["in_progress"]))
    await expect(figures.locator(".dropped b")).to_have_text(str(outcomes["dropped"]))
    # The same as a table.
    await page.get_by_role("button", name="Table").click()
    rows = await page.locator("tbody tr").evaluate_all(
        "all => all.map(r => [...r.cells].map(c => c.innerText))"
    )
    wanted = Counter(
        (f"title of {a}" if a else "Start", f"title of {b}{' (skipped)' * skipped}", str(p + 1), str(n))
        for (p, a, b, skipped), (n, _, _) in truth.links().items()
    )
    assert Counter(tuple(r[:4]) for r in rows if r[1].startswith("title")) == wanted
    assert sum(int(r[3]) for r in rows if r[1] in {"Finished", "Stopped", "In progress"}) == len(truth.walks)


async def test_a_click_pins_the_paths_through_a_step_and_escape_clears(
    page: Page, api: Api, full: World
) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await flow(page, api)
    await page.locator('.node[data-id="1:step:b"]').click()
    through = nodes(truth, through=["1:b"])
    await expect(page.locator('.node[data-id="0:step:a"] .figure')).to_contain_text(
        f"{through[0, 'a']} of {nodes(truth)[0, 'a']}"
    )
    assert "pin=1%3Ab" in page.url
    await page.reload()
    await expect(page.locator('.node[data-id="1:step:b"]')).to_have_class(re.compile("pinned"))
    await page.keyboard.press("Escape")
    await expect(page.locator(".node.pinned")).to_have_count(0)
    assert "pin" not in page.url


async def test_the_whole_sankey_is_one_tab_stop_and_arrows_walk_it(page: Page, api: Api) -> None:
    await flow(page, api)
    stops = await page.locator(".sankey svg [tabindex='0']").count()
    assert stops == 1

    async def here() -> str:
        return await page.evaluate("document.activeElement.getAttribute('data-id') || ''")

    await page.get_by_role("button", name="Download CSV").focus()
    await page.keyboard.press("Tab")
    assert await here() == "start"
    await page.keyboard.press("Tab")
    assert not await page.evaluate("document.activeElement.closest('.sankey')")
    await page.keyboard.press("Shift+Tab")
    assert await here() == "start"
    await page.keyboard.press("ArrowRight")
    link = await here()
    assert link.startswith("start→0:step:")
    await page.keyboard.press("ArrowRight")
    first = await here()
    assert first == link.split("→")[1]
    await page.keyboard.press("ArrowDown")
    assert (await here()) != first
    await page.keyboard.press("ArrowUp")
    assert await here() == first
    assert await page.locator(".sankey svg [tabindex='0']").count() == 1
    await page.keyboard.press("Enter")
    await expect(page.locator(".node.pinned")).to_have_count(1)
    await expect(page.locator(".sankey [role=status]")).to_contain_text("people")
    await page.keyboard.press("m")
    await expect(page.get_by_role("complementary").get_by_role("button").first).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.locator(".node.pinned")).to_have_count(0)


async def test_a_tooltip_tells_of_what_is_pointed_at(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await flow(page, api)
    await page.locator('.node[data-id="0:step:a"] .bar').hover()
    tip = page.locator(".tip")
    await expect(tip).to_contain_text(f"People{nodes(truth)[0, 'a']}")
    await expect(tip).to_contain_text("Mean time before it")
    assert await page.locator(".flow.faint").count() > 0


async def test_start_end_and_hide_from_the_panel(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    for button, query, view in (
        ("Start here", "start=b", {"start_at": "b"}),
        ("End here", "end=b", {"end_at": "b"}),
        ("Hide this step", "hide=b", {"exclude": ["b"]}),
    ):
        await flow(page, api)
        await page.locator('.node[data-id="1:step:b"]').click()
        await page.get_by_role("button", name=button).click()
        await expect(page.locator(".chip")).to_have_count(1)
        assert query in page.url

        async def is_so(view: Any = view) -> bool:
            return await drawn(page) == nodes(truth, **view)

        await eventually(is_so, button, 15)
        await page.locator(".chip").click()

        async def is_whole() -> bool:
            return await drawn(page) == nodes(truth)

        await eventually(is_whole, "whole again", 15)


async def test_small_steps_fold_into_other_and_it_opens(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await show(page, api, f"?w={WALKTHROUGH}&detail=3")
    await page.wait_for_selector(".node.other")
    other = page.locator(".node.other").first
    place = int((await other.get_attribute("data-id") or "").split(":")[0])
    await other.click()
    await page.get_by_role("button", name=re.compile(r"Show these \d steps")).click()
    await expect(page.locator(f'.node.other[data-id="{place}:other"]')).to_have_count(0)
    here = {step: n for (p, step), n in nodes(truth).items() if p == place}

    async def is_so() -> bool:
        return {s: n for (p, s), n in (await drawn(page)).items() if p == place} == here

    await eventually(is_so, "opened", 15)


async def test_from_a_figure_to_the_people_to_what_they_did(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await flow(page, api)
    await page.locator('.node[data-id="1:step:b"]').click()
    await page.get_by_role("button", name="People who did not go on").click()
    wanted = {
        w.user
        for w in truth.walks
        if len(w.steps) == 2 and w.steps[1] == "b" and truth.outcome(w) != "finished"
    }
    await expect(page.locator("tbody tr")).to_have_count(len(wanted))
    assert set(await page.locator("tbody th").all_inner_texts()) == wanted
    await page.locator("tbody th button").first.click()
    walk = next(w for w in truth.walks if w.user in page.url.split("journey=")[1])
    await expect(page.locator(".timeline li.completed")).to_have_count(len(walk.steps))
    await page.locator(".timeline .gap button").first.click()
    await expect(page.get_by_role("heading", name=re.compile("Session"))).to_be_visible()
    await page.go_back()
    await expect(page.locator(".timeline li.completed")).to_have_count(len(walk.steps))


async def test_who_stopped_before_a_step_on_a_day(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await show(page, api, f"?w={WALKTHROUGH}&tab=people")
    await page.get_by_label("Stand").select_option("c")
    await page.get_by_label("Outcome").select_option(label="not finished")
    await page.get_by_role("button", name="Yesterday").click()
    yesterday = int(time.time() * 1000) // DAY - 1
    wanted = {
        w.user
        for w in truth.walks
        if truth.next_step(w) == "c" and truth.outcome(w) != "finished" and w.last_at // DAY == yesterday
    }
    if wanted:
        await expect(page.locator("tbody tr")).to_have_count(len(wanted))
        assert set(await page.locator("tbody th").all_inner_texts()) == wanted
    else:
        await expect(page.get_by_text("No journey is like that")).to_be_visible()


async def test_where_most_people_stop_and_which_step_is_slowest(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await show(page, api, f"?w={WALKTHROUGH}&tab=steps")
    findings = page.locator(".findings")
    steps = truth.steps()
    most = max(s["dropped_here"] for s in steps.values())
    total = sum(s["dropped_here"] for s in steps.values())
    await expect(findings).to_contain_text(f"{most} of {total} people who stopped")
    slowest = max(steps, key=lambda s: steps[s]["median_ms"] or 0)
    await expect(findings).to_contain_text(f"title of {slowest}")
    rows = await page.locator("tbody tr").evaluate_all(
        "all => all.map(r => [...r.cells].map(c => c.innerText))"
    )
    assert [(int(r[1]), int(r[2]), int(r[3]), int(r[5]), int(r[6])) for r in rows] == [
        (s["reached"], s["completed"], s["skipped"], s["dropped_here"], s["in_progress_here"])
        for s in steps.values()
    ]


async def test_paths_lead_to_their_people_whose_whole_list_is_a_file(
    page: Page, api: Api, full: World
) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    answer = await api.get(f"walkthroughs/{WALKTHROUGH}/paths", limit=20)
    await show(page, api, f"?w={WALKTHROUGH}&tab=paths")
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(20)
    beyond = f"{answer['other']['paths']} other paths of {answer['other']['journeys']} people"
    await expect(page.locator(".hint")).to_contain_text(beyond)
    skipping = next(path for path in answer["paths"] if path["skipped_step_ids"])
    row = rows.nth(skipping["place"] - 1)
    await expect(row.locator("li")).to_have_count(len(skipping["step_ids"]))
    await expect(row.locator("li.skipped")).to_have_count(len(skipping["skipped_step_ids"]))
    await row.get_by_role("button").click()
    await expect(page.locator("tbody tr")).to_have_count(skipping["journeys"])
    await expect(page.locator("h2.lead")).to_contain_text(f"People who took path {skipping['place']}")
    await page.get_by_role("button", name="Everybody").click()
    await expect(page.locator(".hint")).to_contain_text(f"The last active 50 of {len(truth.walks)}.")
    async with page.expect_download() as downloading:
        await page.get_by_role("button", name="Download CSV").click()
    text = (await (await downloading.value).path()).read_text()
    assert len(text.splitlines()) == 1 + len(truth.walks)


async def test_a_flow_that_is_pointed_at_has_medians_and_a_step_its_histogram(page: Page, api: Api) -> None:
    answer = await api.get(f"walkthroughs/{WALKTHROUGH}/sankey", times="true")
    most = max(answer["links"], key=lambda link: link["journeys"] * (link["timed"] > 0))
    await flow(page, api)
    name = f"[data-id='{most['source']}→{most['target']}']"
    await expect(page.locator(name)).to_have_attribute("aria-label", re.compile(r", mean time "))
    await page.locator(name).dispatch_event("mousemove", {"clientX": 400, "clientY": 400})
    await expect(page.locator(name)).to_have_attribute("aria-label", re.compile(r", half within \S+ "))
    await expect(page.locator(".tip")).to_contain_text("9 in 10 within")
    await page.locator(name).dispatch_event("click")
    await expect(page.locator(".panel")).to_contain_text("Half within")
    await expect(page.locator(".panel")).to_contain_text("Since it was shown")
    await expect(page.locator(".panel .chart svg")).to_be_visible()
    steps = await api.get(f"walkthroughs/{WALKTHROUGH}/steps")
    await show(page, api, f"?w={WALKTHROUGH}&tab=steps")
    for step in steps["steps"][:2]:
        await page.locator("figure select").select_option(step["step_id"])
        bins = [n for n in step["histogram"] if n]
        bars = page.get_by_role("img", name=f"How many people took how long before {step['title']}")
        await expect(bars).to_be_visible()
        told = await bars.locator("title").all_text_contents()
        assert [n for text in told if (n := int(text.rsplit(": ", 1)[1]))] == bins


async def test_two_servers_side_by_side(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await show(page, api, f"?w={WALKTHROUGH}&tab=compare&detail=0")
    compared = await api.get(f"walkthroughs/{WALKTHROUGH}/compare", server_a="srv_1", server_b="srv_2")
    await expect(page.locator(".compared")).to_have_text(compared["says"])
    assert await page.locator(".findings p").evaluate_all("all => all.map(p => p.lastChild.textContent)") == [
        finding["says"] for finding in compared["findings"]
    ]
    await expect(page.locator(".sankey")).to_have_count(2)
    sides = [truth.only(lambda w, s=s: w.server == s) for s in ("srv_1", "srv_2")]
    for i, side in enumerate(sides):
        start = page.locator(".sankey").nth(i).locator('.node[data-id="start"]')
        await expect(start).to_have_attribute("aria-label", re.compile(f"Start: {len(side.walks)} people"))


def is_even(user: str) -> bool:
    return int(user[1:]) % 2 == 0


async def test_a_segment_narrows_everything_and_is_compared_with_the_others(
    page: Page, api: Api, full: World
) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await flow(page, api)
    await page.get_by_role("button", name="Segment", exact=True).click()
    segments = page.locator("#segments")
    answer = await api.get(f"walkthroughs/{WALKTHROUGH}/segments")
    await expect(segments.locator("tbody tr")).to_have_count(len(answer["segments"]))
    await expect(segments.locator(".compared")).to_have_text(answer["says"])
    await segments.get_by_role("button", name="Only Agent: even").click()
    of = truth.only(lambda w: is_even(w.user))

    async def is_so() -> bool:
        return await drawn(page) == nodes(of)

    await eventually(is_so, "narrowed")
    assert "segment=agent%3Aeven" in page.url
    await page.reload()
    await eventually(is_so, "the address says it")
    await page.get_by_role("button", name="Agent: even: remove").click()
    await expect(page.locator(".chip")).to_have_count(0)
    await segments.get_by_role("button", name="Compare Agent: even with the others").click()
    compared = await api.get(
        f"walkthroughs/{WALKTHROUGH}/compare", segment_a="agent:even", segment_b="not_agent:even"
    )
    says = page.locator("section[aria-label=Compare] .compared")
    await expect(says).to_have_text(compared["says"])


async def test_every_view_is_broken_down_by_agent_and_leads_to_the_journeys_of_one(
    page: Page, api: Api, full: World
) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    parts = {
        "even": truth.only(lambda w: is_even(w.user)),
        "odd": truth.only(lambda w: not is_even(w.user)),
    }
    await flow(page, api)
    await page.get_by_label("Break down by").select_option("agent")
    region = page.get_by_role("region", name="By agent", exact=True)
    for name, of in parts.items():
        ended = Counter(of.outcome(w) for w in of.walks)
        told = region.locator("tbody tr").filter(has=page.get_by_role("rowheader", name=name, exact=True))
        counts = [len(of.walks), ended["finished"], ended["in_progress"], ended["dropped"]]
        for place, number in zip((0, 2, 3, 4), counts, strict=True):
            await expect(told.locator("td").nth(place)).to_have_text(f"{number:,}")
    flows = page.get_by_role("region", name="Flows by agent")
    await expect(flows.locator("svg[role=group]")).to_have_count(len(parts))
    for name, of in parts.items():
        await expect(flows).to_contain_text(f"{name}: {len(of.walks)} journeys")
    await page.get_by_role("button", name="Steps", exact=True).click()
    steps = page.get_by_role("region", name="Steps by agent")
    for row, (step, figures) in enumerate(truth.steps().items()):
        cells = steps.locator("tbody tr").nth(row).locator("td")
        assert figures["completed"], step
        for place, of in enumerate(sorted(parts.values(), key=lambda of: -len(of.walks))):
            mine = of.steps()[step]
            await expect(cells.nth(place)).to_contain_text(
                f"of {mine['reached']:,}, {mine['dropped_here']:,},"
            )
    await expect(steps.get_by_role("img", name="Funnel of each part")).to_be_visible()
    await page.get_by_role("button", name="Trends", exact=True).click()
    await expect(page.get_by_role("img", name="Began, of each part")).to_be_visible()
    await expect(page.get_by_role("img", name="Completion rate of each part")).to_be_visible()
    assert "breakdown=agent" in page.url
    await region.get_by_role("button", name="Only even").click()
    await expect(region).to_have_count(0)
    await expect(page.get_by_role("button", name="Agent: even: remove")).to_be_visible()
    started = page.get_by_label("Key figures").locator("li b").nth(0)
    await expect(started).to_have_text(str(len(parts["even"].walks)))


async def test_who_stops_before_a_step_is_told_apart(page: Page, api: Api) -> None:
    steps = await api.get(f"walkthroughs/{WALKTHROUGH}/steps")
    worst = max(steps["steps"], key=lambda step: step["dropped_here"])
    answer = await api.get(f"walkthroughs/{WALKTHROUGH}/segments", step=worst["step_id"])
    await show(page, api, f"?w={WALKTHROUGH}&tab=steps")
    await page.get_by_role("button", name="What tells them apart?").click()
    await expect(page.locator("#segments .compared")).to_have_text(answer["says"])
    rows = page.locator("#segments tbody tr")
    await expect(rows).to_have_count(len(answer["segments"]))
    of = answer["segments"][0]
    await expect(rows.nth(0).locator("td").nth(0)).to_contain_text(f"({of['those']} of {of['journeys']})")
    await page.get_by_role("button", name="Close segments").click()
    await expect(page.locator("#segments")).to_have_count(0)


async def test_any_days_can_be_compared(page: Page, api: Api) -> None:
    today = int(time.time() * 1000) // DAY
    days = [time.strftime("%Y-%m-%d", time.gmtime((today - ago) * DAY // 1000)) for ago in (29, 16, 15, 9)]
    await show(page, api, f"?w={WALKTHROUGH}&tab=compare&detail=0")
    await page.get_by_role("button", name="Chosen days").click()
    for label, day in zip(("A from", "A to", "B from", "B to"), days, strict=True):
        await page.get_by_label(label, exact=True).fill(day)
    query = dict(zip(("from_a", "to_a", "from_b", "to_b"), days, strict=True))
    compared = await api.get(f"walkthroughs/{WALKTHROUGH}/compare", **query)
    await expect(page.locator(".compared")).to_have_text(compared["says"])
    assert f"a={days[0]}..{days[1]}" in page.url


async def test_a_step_that_is_pointed_at_has_the_median_of_all_flows_into_it(page: Page, api: Api) -> None:
    answer = await api.get(f"walkthroughs/{WALKTHROUGH}/sankey", times="true")
    node = max((n for n in answer["nodes"] if n["timed"]), key=lambda n: n["timed"])
    into = [link for link in answer["links"] if link["target"] == node["id"]]
    assert node["timed"] == sum(link["timed"] for link in into)
    assert min(x["median_ms"] for x in into if x["timed"]) <= node["median_ms"]
    assert node["median_ms"] <= max(x["median_ms"] for x in into if x["timed"])
    await flow(page, api)
    await page.locator(f"[data-id='{node['id']}']").dispatch_event(
        "mousemove", {"clientX": 400, "clientY": 400}
    )
    await expect(page.locator(".tip")).to_contain_text("Half came within")


async def test_servers_and_days_narrow_everything(page: Page, api: Api, full: World) -> None:
    truth = await Figures.read(full.db, WALKTHROUGH)
    await flow(page, api)
    await page.get_by_role("button", name="srv_2").click()
    await page.get_by_role("button", name="7 days").click()
    since = int(time.time() * 1000) // DAY - 6
    of = truth.only(lambda w: w.server == "srv_2" and w.began_at // DAY >= since)

    async def is_so() -> bool:
        return await drawn(page) == nodes(of)

    await eventually(is_so, "narrowed", 15)
    assert "server=srv_2" in page.url
    assert "period=7" in page.url


async def test_a_change_appears_by_itself_and_nothing_jumps(page: Page, api: Api, full: World) -> None:
    await flow(page, api)
    figures = page.get_by_role("list", name="Key figures").get_by_role("listitem").first
    before = int((await figures.inner_text()).split()[0])
    await page.locator('.node[data-id="0:step:a"]').click()
    await page.evaluate("window.scrollTo(0, 120)")
    places = (
        "all => Object.fromEntries(all.map(n => [n.dataset.id, n.querySelector('.bar').getAttribute('x')]))"
    )
    drawn_before = await page.locator(".node").evaluate_all(places)
    scrolled = await page.evaluate("window.scrollY")
    await expect(page.locator(".freshness")).to_contain_text("Exact now")
    await full.people(["newcomer"])
    await full.insert(completed("newcomer", "a", int(time.time() * 1000)))
    await full.drain_marks()
    await expect(figures).to_have_text(f"{before + 1}started")
    await expect(page.locator('.node[data-id="start"]')).to_have_attribute(
        "aria-label", re.compile(f"Start: {before + 1} people")
    )
    assert await page.evaluate("window.scrollY") == scrolled
    assert await page.locator(".node").evaluate_all(places) == drawn_before
    await expect(page.locator(".panel")).to_be_visible()
    await expect(page.locator(".node.pinned")).to_have_count(1)


async def test_what_is_not_there_is_said(page: Page, api: Api) -> None:
    await show(page, api, "?w=wt_empty")
    await expect(page.get_by_text("Nobody has begun this walkthrough yet")).to_be_visible()
    await show(page, api, "?w=wt_nope")
    await expect(page.get_by_role("alert").first).to_contain_text("no walkthrough with the id `wt_nope`")
    await show(page, api, f"?w={WALKTHROUGH}&period=custom&from=1999-01-01&to=1999-01-02")
    await expect(page.get_by_text("No journey is in these days")).to_be_visible()


async def test_when_the_server_is_away_it_says_so_and_comes_back(page: Page, api: Api) -> None:
    await flow(page, api)
    await page.context.set_offline(True)
    await page.get_by_role("button", name="30 days").click()
    await expect(page.get_by_role("alert").first).to_contain_text("does not answer")
    await page.context.set_offline(False)
    await expect(page.locator(".sankey .node").first).to_be_visible()


async def test_while_it_loads_it_says_so(page: Page, api: Api) -> None:
    async def hold(_: Route) -> None:
        """Answers nothing, until it is taken away."""

    await page.route("**/sankey*", hold)
    await show(page, api)
    await expect(page.locator("section .loading")).to_be_visible()
    await page.unroute("**/sankey*")
    await expect(page.locator(".sankey .node").first).to_be_visible()


async def test_what_was_refused_is_a_page_that_keys_alone_reach(browser: Browser, refusing: Api) -> None:
    async with opened(browser, refusing) as page:
        await show(page, refusing, "")
        pages = page.get_by_role("navigation", name="Organization").get_by_role("button")
        await expect(pages.last).to_have_text("Refused events7 classes in the last day")
        await pages.first.focus()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Refused events")).to_be_visible()
        assert "page=refused" in page.url
        rows = page.locator("tbody tr")
        await expect(rows).to_have_count(7)
        row = rows.filter(has_text="invalid-event")
        await expect(row).to_contain_text("25 of 30 events refused (83 %)")
        await expect(row).to_contain_text("Correct the field")
        example = row.locator("details")
        await expect(example.locator("dl")).to_be_hidden()
        await example.locator("summary").focus()
        await page.keyboard.press("Enter")
        await expect(example.locator("dl")).to_contain_text("cardtext of 4")
        await expect(page.locator(".finding")).to_contain_text("have no key")
        await page.go_back()
        await expect(page.get_by_role("heading", name="Walkthroughs of org")).to_be_visible()


async def test_where_nothing_was_refused_the_page_says_so(page: Page, api: Api) -> None:
    await show(page, api, "?page=refused")
    await expect(page.get_by_text("Nothing was refused in the last 30 days")).to_be_visible()
    await expect(page.locator(".tabs .count")).to_have_count(0)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_in_what_was_refused(
    browser: Browser, refusing: Api, theme: Any, size: Any
) -> None:
    async with opened(browser, refusing, viewport=size, color_scheme=theme) as page:
        await show(page, refusing, "?page=refused")
        await page.wait_for_selector("tbody tr")
        await page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
        await is_sound(page, "refused")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing(browser: Browser, api: Api, theme: Any, size: Any) -> None:
    context = await browser.new_context(viewport=size, color_scheme=theme, reduced_motion="reduce")
    context.set_default_timeout(90_000)
    page = await context.new_page()
    try:
        for name, query, ready in (
            ("key", None, ".key-screen"),
            ("overview", "", "table"),
            ("flow", f"?w={WALKTHROUGH}", ".node"),
            ("pinned", f"?w={WALKTHROUGH}&pin=1:b", ".node.pinned"),
            ("table", f"?w={WALKTHROUGH}&table=1", "section tbody"),
            ("steps", f"?w={WALKTHROUGH}&tab=steps", ".findings"),
            ("paths", f"?w={WALKTHROUGH}&tab=paths", ".steps-of-path"),
            ("trends", f"?w={WALKTHROUGH}&tab=trends", ".chart svg"),
            ("compare", f"?w={WALKTHROUGH}&tab=compare", ".sankeys .node"),
            ("segments", f"?w={WALKTHROUGH}&explain=step%3Ac", "#segments tbody tr"),
            ("flows by agent", f"?w={WALKTHROUGH}&breakdown=agent", ".sankeys .node"),
            (
                "steps by agent",
                f"?w={WALKTHROUGH}&tab=steps&breakdown=agent",
                "section[aria-label^='Steps by'] td",
            ),
            (
                "trends by agent",
                f"?w={WALKTHROUGH}&tab=trends&breakdown=agent",
                "section[aria-label^='Trends by'] svg",
            ),
            ("days", f"?w={WALKTHROUGH}&tab=compare&compare=days", ".sankeys .node"),
            ("no segment", f"?w={WALKTHROUGH}&tab=compare&compare=segments", ".empty"),
            ("people", f"?w={WALKTHROUGH}&tab=people", "tbody tr"),
            ("journey", f"?w={WALKTHROUGH}&tab=people&journey=u001", ".timeline"),
            ("empty", "?w=wt_empty", ".empty"),
            ("nothing refused", "?page=refused", ".empty"),
        ):
            await page.goto("about:blank")
            await page.goto(f"{api.url}/" if query is None else f"{api.url}/{query}#key={api.key}")
            await page.wait_for_selector(ready)
            if name == "pinned":
                await page.locator(".node.pinned").focus()
                await page.keyboard.press("m")
            await is_sound(page, name)
    finally:
        await context.close()


async def test_nothing_moves_for_whoever_wants_that(page: Page, api: Api) -> None:
    await flow(page, api)
    moving = await page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).transitionDuration !== '0s').length"
    )
    assert moving == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edited(addresses: tuple[str, str], template: str) -> AsyncIterator[Api]:
    """Another world, where a step was moved ten days ago while people came."""
    world = await World.make(*addresses, template)
    try:
        await gather(world, 60)
        await world.db.execute("update walkthrough_steps set display_order = -1 where id = 'e'")
        await world.db.execute(
            "update walkthrough_versions set made_at = made_at - case display when 1 then 40 else 10 end * 86400000::bigint"
            " from (select id as of, row_number() over (order by id) as display from walkthrough_versions"
            f"  where walkthrough_id = '{WALKTHROUGH}') as numbered where of = id"
        )
        yield await world.start_api()
    finally:
        await world.close()


async def test_an_edit_is_a_mark_and_one_click_compares_before_and_after(
    browser: Browser, edited: Api
) -> None:
    sides = await edited.get(f"walkthroughs/{WALKTHROUGH}/compare", version_a=1, version_b=2)
    for by_mark in (True, False):
        async with opened(browser, edited) as page:
            await show(page, edited, f"?w={WALKTHROUGH}&tab=trends")
            marks = page.locator("figure").get_by_text("v2")
            await expect(marks).to_have_count(4)
            await expect(page.get_by_label("Edits")).to_contain_text("Moved “title of e” from place 5 to 1.")
            await is_sound(page, "trends with an edit")
            button = page.get_by_role("button", name="Compare before and after")
            await (marks.first if by_mark else button).click()
            await expect(page.locator(".toolbar select").nth(1)).to_have_value("2")
            assert "tab=compare&compare=versions&a=1&b=2" in page.url
            for i, side in enumerate("ab"):
                start = page.locator(".sankey").nth(i).locator('.node[data-id="start"]')
                began = sides[f"journeys_{side}"] + sides[f"too_young_{side}"]
                people = re.compile(f"Start: {began} people")
                await expect(start).to_have_attribute("aria-label", people)
            await is_sound(page, "versions compared")
            await page.get_by_label("Began with").select_option("2")
            await page.get_by_role("button", name="Flow").click()
            start = page.locator('.sankey .node[data-id="start"]')
            await expect(start).to_have_attribute("aria-label", people)
            assert "version=2" in page.url


#: What would run, or be an element, wherever it is taken for more than a text.
HOSTILE = "<img src=x class=hole onerror=hole=1><svg class=hole onload=hole=1>\"'`${hole=1}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile(addresses: tuple[str, str], template: str) -> AsyncIterator[Api]:
    """Another world, all names of which are somebody's who wants to run something in the dashboard."""
    world = await World.make(*addresses, template)
    try:
        await gather(world, 40)
        await _with_agents(world)
        for table, column in (
            ("organization", "name"),
            ("mcp_servers", "name"),
            ("walkthroughs", "title"),
            ("walkthrough_steps", "title"),
            ("mcp_session_clients", "name"),
        ):
            await world.db.execute(
                f"update {table} set {column} = $1 || left({column}, 20)",
                HOSTILE,
            )
        await world.db.execute(
            "update walkthrough_starts set metadata = jsonb_build_object($1::text, $1::text, 'plan', $1::text)",
            HOSTILE,
        )
        await world.drain_marks()
        yield await world.start_api()
    finally:
        await world.close()


async def test_what_others_wrote_is_text_wherever_it_is_shown(browser: Browser, hostile: Api) -> None:
    of, named = f"?w={WALKTHROUGH}", quote(HOSTILE)
    async with opened(browser, hostile) as page:
        for query, ready in (
            ("", "table"),
            (f"{of}&detail=3", ".node"),
            (f"{of}&pin=1:b", ".node.pinned"),
            (f"{of}&table=1", "section tbody"),
            (f"{of}&tab=steps", ".findings"),
            (f"{of}&tab=paths", ".steps-of-path"),
            (f"{of}&tab=trends", ".chart svg"),
            (f"{of}&tab=compare", ".sankeys .node"),
            (f"{of}&explain=step%3Ac", "#segments tbody tr"),
            (f"{of}&breakdown=agent", ".sankeys .node"),
            (f"{of}&breakdown=metadata.{named}", "main"),
            (f"{of}&breakdown=metadata.plan", ".sankeys .node"),
            (f"{of}&tab=trends&breakdown=agent", "section[aria-label^='Trends by'] svg"),
            (f"{of}&tab=people", "tbody tr"),
            (f"{of}&tab=people&journey=u001", ".timeline"),
            (f"?w={named}&tab={named}&journey={named}&pin={named}&explain={named}", "main"),
            (
                f"{of}&period={named}&from={named}&to=javascript:hole=1&servers={named}&segment={named}",
                "main",
            ),
        ):
            await show(page, hostile, query)
            await page.wait_for_selector(ready)
            await page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
            if ready == ".node":
                await page.locator(".node").first.hover()
            elements = "document.querySelectorAll('.hole, a[href^=javascript]').length"
            assert await page.evaluate(f"[window.hole, {elements}]") == [None, 0], query
        await show(page, hostile, f"{of}&tab=steps")
        await expect(page.locator("table").first).to_contain_text("<img src=x class=hole")


async def test_even_what_became_an_element_runs_nothing(page: Page, api: Api) -> None:
    await flow(page, api)
    ran = await page.evaluate(
        """async html => {
            const told = [];
            addEventListener("securitypolicyviolation", event => told.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.hole = 1";
            document.body.append(script, document.createRange().createContextualFragment(html));
            const link = document.createElement("a");
            link.href = "javascript:window.hole=1";
            link.click();
            while (told.length < 4) await new Promise(go => addEventListener("securitypolicyviolation", go));
            return [window.hole ?? null, [...new Set(told)].sort()];
        }""",
        HOSTILE.replace("src=x", "src=data:,"),
    )
    assert ran == [None, ["script-src-attr", "script-src-elem"]]

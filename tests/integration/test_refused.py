"""An organization sees what is refused of its producers' events, and nothing of anybody else's."""

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from services.runtime.sources import NO_SOURCE
from tests.support.refused import OF_OURS, refuse
from tests.support.world import Api, World

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
REFUSED = "organization/refused"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def full(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    world = await World.make(*addresses, template)
    try:
        await refuse(world)
        yield world
    finally:
        await world.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(full: World) -> Api:
    return await full.start_api()


def told(answer: Any) -> dict[tuple[str, str], int]:
    return {(r["source"], r["rejection"]): r["events"] for r in answer["refused"]}


async def test_an_organization_sees_what_names_it_and_the_garbage_of_sources_that_are_its_own(
    api: Api,
) -> None:
    answer = await api.get(REFUSED)
    assert told(answer) == {
        ("/ours", "invalid-event"): 20,
        ("/ours", "not-json"): 1,
        ("/ours", "unknown-type"): 2,
        ("/ours", "unknown-user"): 2,
        ("/shared", "unknown-user"): 1,
        (NO_SOURCE, "unknown-user"): 1,
        ("/theirs", "unknown-user"): 1,
    }
    row = next(r for r in answer["refused"] if r["rejection"] == "invalid-event")
    assert row["first_at"] <= row["last_at"]
    assert row["advice"].startswith("Correct the field")
    assert row["example"]["fields"] == {"type": "text of 14", "card": "text of 4", "amount": "number"}
    assert "mcp_server_user_id" in row["example"]["message"]
    assert "4111" not in json.dumps(answer)
    assert answer["since"] == str(datetime.now(UTC).date() - timedelta(days=29))


async def test_totals_and_habits_are_of_sources_that_are_its_own(api: Api) -> None:
    sources = {s["source"]: s for s in (await api.get(REFUSED))["sources"]}
    assert sources.keys() == {"/ours", "/shared", NO_SOURCE, "/theirs"}
    ours = sources.pop("/ours")
    assert (ours["events"], ours["refused"], ours["without_key"]) == (len(OF_OURS), 25, 20)
    assert ours["share"] == pytest.approx(25 / len(OF_OURS))
    assert [hint for hint in ours["hints"] if "have no key" in hint]
    for source in sources.values():
        assert source["refused"] == 1
        assert source["hints"] == []
        for name in ("events", "share", "looked_at", "elsewhere", "without_key"):
            assert source[name] is None


async def test_the_other_organization_sees_nothing_of_that(api: Api, full: World) -> None:
    answer = (await api.ask(REFUSED, key=await full.make_key("org_b"))).json()
    assert told(answer) == {("/shared", "unknown-user"): 3, ("/blended", "unknown-user"): 1}
    totals = {s["source"]: s["events"] for s in answer["sources"]}
    assert totals == {"/shared": None, "/blended": None}
    assert "/ours" not in json.dumps(answer)


async def test_it_is_narrowed_by_source_and_day_and_comes_as_csv(api: Api, full: World) -> None:
    answer = await api.get(REFUSED, source=["/ours", "/nope"])
    assert {source for source, _ in told(answer)} == {"/ours"}
    assert [s["source"] for s in answer["sources"]] == ["/ours"]
    later = await api.get(REFUSED, since=str(datetime.now(UTC).date() + timedelta(days=1)))
    assert (later["refused"], later["sources"]) == ([], [])
    rows = list(
        csv.DictReader(
            io.StringIO((await api.ask(REFUSED, source="/ours", headers={"Accept": "text/csv"})).text)
        )
    )
    assert {(r["source"], r["rejection"]): int(r["events"]) for r in rows} == told(answer)
    (garbage,) = [r for r in rows if r["rejection"] == "invalid-event"]
    assert garbage["fields"] == "card: text of 4; type: text of 14; amount: number;"
    assert (await api.ask(REFUSED, since="yesterday")).status_code == 422
    assert (await api.ask(REFUSED, source="a\x00")).status_code == 422


async def test_of_many_classes_the_last_two_hundred_are_answered(api: Api, full: World) -> None:
    """Whoever makes up names of sources fills neither the answer nor the page."""
    await full.db.execute(
        "insert into refused_events select topic, 'made up ' || n, organization_id, rejection, events, first_at,"
        " last_at - interval '1 h', partition, last_offset, message, fields"
        " from refused_events, generate_series(1, 300) as n"
        " where source = '/ours' and rejection = 'unknown-user'"
    )
    try:
        answer = await api.get(REFUSED)
        table = await api.ask(REFUSED, headers={"Accept": "text/csv"})
    finally:
        await full.db.execute("delete from refused_events where source like 'made up %'")
    assert len(answer["refused"]) == 200
    assert (answer["classes_left_out"], answer["sources_left_out"]) == (107, 0)
    assert table.headers["x-left-out"] == "107 classes that were refused before these"
    assert (await api.get(REFUSED))["classes_left_out"] == 0
    assert {"/ours", "/shared", "/theirs"} <= {source for source, _ in told(answer)}

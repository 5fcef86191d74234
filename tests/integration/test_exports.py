"""Whole lists of people as files: all of them, each once, while others are answered; and an end that is missing is seen."""

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx2
import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from services.analytics_api import store
from services.analytics_api.exports import Export
from services.analytics_api.store import PAGE, Store
from tests.support.world import Api, World, eventually

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PEOPLE = 2 * PAGE + 300
WT = "walkthroughs/wt_a"

#: Person n did so many of the five steps as n says, one each minute, and began on one of 20 days.
_CROWD = """
with people as (
  select n, 'p' || lpad(n::text, 5, '0') as person,
    (extract(epoch from now())::bigint - 86400 * (1 + n % 20)) * 1000 as began_at
  from generate_series(1, $1::integer) as n
),
users as (insert into mcp_server_user (id) select person from people),
sessions as (
  insert into mcp_server_session (mcp_server_session_id, mcp_server_slug, connection_date, mcp_server_user_id)
  select 's_' || person, 'srv_1', current_date, person from people
)
insert into walkthrough_step_completions
select 'wtsc_' || person || step.id, person, 'wt_a', step.id, 'srv_1', 's_' || person, began_at + 60000 * step.place, null
from people, unnest(array['a', 'b', 'c', 'd', 'e']) with ordinality as step (id, place)
where step.place <= 1 + n % 5
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crowded(addresses: tuple[str, str], template: str) -> AsyncIterator[World]:
    world = await World.make(*addresses, template)
    try:
        await world.offer()
        await world.db.execute("set session_replication_role = replica")
        await world.db.execute(_CROWD, PEOPLE)
        await world.db.execute("set session_replication_role = default")
        await world.db.execute(
            "insert into sankey_dirty (mcp_server_user_id, walkthrough_id)"
            " select distinct mcp_server_user_id, walkthrough_id from walkthrough_step_completions"
        )
        await world.drain_marks()
        yield world
    finally:
        await world.close()


async def table(api: Api, **query: Any) -> list[dict[str, str]]:
    response = await api.ask(f"{WT}/journeys", headers={"Accept": "text/csv"}, **query)
    assert response.status_code == 200, response.text
    return list(csv.DictReader(io.StringIO(response.text)))


class Gate:
    """Stops exports behind their first page: between two, or, where it is `narrow`, while one is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: list[int] = []
        self.waiting = 0
        self.open = asyncio.Event()
        self.is_narrow = False
        self.fail_with: Exception | None = None
        read, go_on = Store.journeys_after, Export._following

        async def read_gated(store: Store, context: Any, user: str, arguments: Any) -> Any:
            if user and self.is_narrow:
                await self.wait()
            if user and self.fail_with is not None:
                raise self.fail_with
            rows, following = await read(store, context, user, arguments)
            self.pages.append(len(rows))
            return rows, following

        async def go_on_gated(export: Export, after: str) -> Any:
            if not self.is_narrow:
                await self.wait()
            return await go_on(export, after)

        monkeypatch.setattr(Store, "journeys_after", read_gated)
        monkeypatch.setattr(Export, "_following", go_on_gated)

    async def wait(self) -> None:
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1

    async def reached(self, many: int = 1) -> None:
        async def waits() -> bool:
            return self.waiting == many

        await eventually(waits, f"{many} exports are in the midst")


def streamed(api: Api, accept: str = "text/csv") -> Any:
    headers = {"Authorization": f"Bearer {api.key}", "Accept": accept}
    return api.http.stream("GET", f"/v1/{WT}/journeys", headers=headers)


async def test_a_segments_people_come_a_page_of_everybody_at_a_time(
    crowded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all began with is not found out anew for each page."""
    gate = Gate(monkeypatch)
    gate.open.set()
    await crowded.db.execute(
        "insert into mcp_session_clients select mcp_server_session_id, 'third', '1' from mcp_server_session"
        " where right(mcp_server_user_id, 1) in ('3', '6', '9') and mcp_server_session_id like 's_p%'"
    )
    try:
        api = await crowded.start_api()
        everybody = {
            r["p"]
            for r in await crowded.db.fetch(
                "select distinct mcp_server_user_id as p from walkthrough_step_completions"
            )
        }
        thirds = {person for person in everybody if person[-1] in "369"}
        for segment, wanted in (
            ("agent:third", thirds),
            ("agent:", everybody - thirds),
            ("agent:nobody", set()),
        ):
            gate.pages.clear()
            rows = await table(api, segment=segment)
            assert len(rows) == len(wanted)
            assert {row["mcp_server_user_id"] for row in rows} == wanted
            assert len(gate.pages) == -(-PEOPLE // PAGE)
            assert sum(gate.pages) == len(wanted)
    finally:
        await crowded.db.execute("delete from mcp_session_clients")


async def test_the_whole_list_comes_as_sql_has_it_in_pages_and_a_page_that_is_asked_for_stays_one(
    crowded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.open.set()
    api = await crowded.start_api()
    wanted = {
        row["person"]: row
        for row in await crowded.db.fetch(
            "select mcp_server_user_id as person, count(*) as steps, min(completed_at) as first_at,"
            " max(completed_at) as last_at from walkthrough_step_completions group by 1"
        )
    }
    rows = await table(api)
    assert len(rows) == PEOPLE > 500
    assert {row["mcp_server_user_id"] for row in rows} == wanted.keys()
    for row in rows:
        of = wanted[row["mcp_server_user_id"]]
        told = [int(row[name]) for name in ("steps_done", "began_at", "last_active_at")]
        assert told == [of["steps"], of["first_at"], of["last_at"]]
    assert gate.pages == [PAGE, PAGE, PEOPLE - 2 * PAGE], "no more than a page is held"

    with monkeypatch.context() as patch:
        patch.setattr(store, "_LARGE_JOURNEYS", 1)
        large = await (await crowded.start_api(api_organization_large_reads=2)).ask(
            f"{WT}/journeys", headers={"Accept": "application/x-ndjson"}
        )
    response = await api.ask(f"{WT}/journeys", headers={"Accept": "application/x-ndjson"})
    assert response.text == large.text
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = {line["mcp_server_user_id"]: line for line in map(json.loads, response.text.splitlines())}
    page = await api.get(f"{WT}/journeys", limit=500)
    assert len(lines) == PEOPLE == page["of"]
    assert [lines[j["mcp_server_user_id"]] for j in page["journeys"]] == page["journeys"]
    assert list(rows[0]) == list(page["journeys"][0])

    finished = await table(api, outcome="finished")
    assert {row["mcp_server_user_id"] for row in finished} == {
        p for p, r in wanted.items() if r["steps"] == 5
    }
    assert await table(api, next_step="a") == []

    for accept in ("text/csv", "application/x-ndjson"):
        first = await api.ask(f"{WT}/journeys", limit=7, headers={"Accept": accept})
        assert 'rel="next"' in first.headers["link"]
        assert first.headers["x-left-out"] == (
            f"this is a page of 7 of {PEOPLE} journeys, and others follow: see Link"
        )
        assert len(first.text.splitlines()) == 7 + (accept == "text/csv")
    tag = (await api.ask(f"{WT}/journeys", headers={"Accept": "text/csv"})).headers["etag"]
    again = await api.ask(f"{WT}/journeys", headers={"Accept": "text/csv", "If-None-Match": tag})
    assert again.status_code == 304


async def test_others_are_answered_meanwhile_and_who_leaves_makes_room(
    crowded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    api = await crowded.start_api(api_organization_exports=4)
    async with streamed(api) as one, streamed(api) as other:
        assert (one.status_code, other.status_code) == (200, 200)
        await gate.reached(2)
        for path in ("sankey", "funnel", "journeys"):
            await api.get(f"{WT}/{path}")
        refused = await api.ask(f"{WT}/journeys", headers={"Accept": "text/csv"})
        assert refused.status_code == 429
        assert "this API key has 2 exports at once" in refused.json()["detail"]
    await gate.reached(0)
    gate.is_narrow = True
    for _ in range(3):  # more often than an organization has places
        async with streamed(api):
            await gate.reached()
        await gate.reached(0)
    gate.open.set()
    assert len(await table(api)) == PEOPLE


async def test_who_does_something_meanwhile_is_in_it_once(
    crowded: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    api = await crowded.start_api()
    async with streamed(api) as response:
        await gate.reached()
        # Of those who were read and of those who were not, some are the last active now.
        await crowded.db.execute(
            "update walkthrough_step_completions set completed_at = extract(epoch from now())::bigint * 1000"
            " where step_id = 'a' and mcp_server_user_id in ('p00005', 'p01200', 'p02250')"
        )
        await crowded.drain_marks()
        gate.open.set()
        text = (await response.aread()).decode()
    people = [row["mcp_server_user_id"] for row in csv.DictReader(io.StringIO(text))]
    assert len(people) == len(set(people)) == PEOPLE


def _faults() -> float:
    return REGISTRY.get_sample_value("stepstream_http_errors_total", {"service": "analytics-api"}) or 0


@pytest.mark.parametrize("is_fault", [False, True])
async def test_an_export_that_cannot_go_on_has_no_end_and_the_log_says_why(
    crowded: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_fault: bool
) -> None:
    gate = Gate(monkeypatch)
    api = await crowded.start_api()
    gate.fail_with = KeyError("a fault") if is_fault else asyncpg.QueryCanceledError("too long")
    before = _faults()

    async def read() -> None:
        async with streamed(api) as response:
            assert response.status_code == 200
            await gate.reached()
            gate.open.set()
            await response.aread()

    with pytest.raises(httpx2.RemoteProtocolError):
        await read()
    if is_fault:
        assert _faults() == before + 1
    else:
        assert _faults() == before
        assert "an export of wt_a broke off: QueryCanceledError" in caplog.text
    gate.fail_with = None
    assert len(await table(api)) == PEOPLE, "its share is free again"


async def test_an_export_ends_with_the_key_it_was_asked_with(
    crowded: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.analytics_api.exports._KEY_SECONDS", 0)
    gate = Gate(monkeypatch)
    api = await crowded.start_api()

    async def read() -> None:
        async with streamed(api) as response:
            await gate.reached()
            await crowded.db.execute("update api_keys set revoked_at = now()")
            gate.open.set()
            await response.aread()

    with pytest.raises(httpx2.RemoteProtocolError):
        await read()
    assert "an export of wt_a broke off: the key is no longer good" in caplog.text

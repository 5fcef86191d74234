"""Faults of ours show: in the answer, in the log, as a metric; and commands say what is wrong with a database."""

import asyncio
import base64
import contextlib
import json
import re
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from prometheus_client import REGISTRY

from services.analytics_api import live, pages
from services.analytics_api import store as api_store
from services.analytics_api.routes import paths
from services.demo import run as demo
from services.operations import status
from services.runtime.kafka import ensure_topics
from services.runtime.migrate import migrate, read_migrations
from tests.integration.test_analytics_live import WT, begin, listening
from tests.support.agents import GENERATIONS, HELLO, agent, post
from tests.support.crowd import WALKTHROUGH
from tests.support.world import (
    AGGREGATOR,
    API,
    MCP,
    OPERATOR,
    PATIENCE,
    RECORDER,
    RELAY,
    ROLES,
    Api,
    Service,
    World,
    completed,
    create_database,
    drop_database,
    eventually,
    metric,
)

pytestmark = pytest.mark.integration
both_generations = pytest.mark.parametrize("generation", GENERATIONS)
EXPORT = Path(demo.__file__).parent / "walkthroughs" / "first-webhook.json"
#: A tracking id that is in no text by chance.
ANN = "tracking-id-of-ann"


def faults(service: Service) -> list[dict[str, Any]]:
    """What a service has written about faults."""
    found = [json.loads(line) for line in service.log.read_text().splitlines()]
    return [line for line in found if line["logger"] == "stepstream.faults"]


async def the_fault(service: Service, request_id: str) -> dict[str, Any]:
    """The one line about a request, which is the only one that failed."""
    (line,) = faults(service)
    assert line["request_id"] == request_id
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert await metric(service, "stepstream_http_errors_total") == 1
    assert service.log.read_text().count("Traceback") == 1, "told once"
    return line


async def api_process(world: World) -> tuple[Api, Service]:
    await begin(world)
    api = await world.start_api(process=True, api_lock_seconds=60)
    service = world.services[-1]
    assert await metric(service, "stepstream_http_errors_total") == 0
    return api, service


async def mcp_process(world: World) -> tuple[str, Service]:
    await world.offer()
    service = await world.start_mcp(process=True)
    assert await metric(service, "stepstream_http_errors_total") == 0
    return f"http://127.0.0.1:{service.port}", service


# --- the API -----------------------------------------------------------------------------------------------


async def test_a_question_that_fails_is_found_by_the_id_in_its_answer(world: World) -> None:
    api, service = await api_process(world)
    assert (await api.ask(f"{WT}/sankey")).headers["x-request-id"]
    await world.db.execute("alter table sankey_transitions rename journeys to elsewhere")
    answer = await api.ask(f"{WT}/sankey", from_="2020-02-02")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    request_id = answer.headers["x-request-id"]
    assert answer.json()["request_id"] == request_id
    assert request_id in answer.json()["detail"]
    assert "journeys" not in answer.text
    line = await the_fault(service, request_id)
    assert (line["method"], line["path"]) == ("GET", "/v1/walkthroughs/{walkthrough_id}/sankey")
    assert "UndefinedColumnError" in line["exception"]
    log = service.log.read_text()
    for secret in (api.key, api.key.split("_", 2)[2], "2020-02-02"):
        assert secret not in log
    requests = (await api.http.get("/metrics")).text
    assert 'api_requests_total{route="/v1/walkthroughs/{walkthrough_id}/sankey",status="500"} 1.0' in requests
    await world.db.execute("alter table sankey_transitions rename elsewhere to journeys")
    assert (await api.ask(f"{WT}/sankey", from_="2020-02-02")).status_code == 200


async def test_a_file_that_is_not_there_is_a_fault_and_no_database_away(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "assets").symlink_to(tmp_path / "assets")  # leads to itself
    monkeypatch.setattr(pages, "STATIC", tmp_path)
    api, faults_since = await stream_of(world, monkeypatch)
    for path in ("/", "/assets/a.js"):
        answer = await api.http.get(path)
        assert (answer.status_code, "database" in answer.text.lower()) == (500, False), path
        assert answer.headers["x-request-id"] in answer.text
    assert faults_since() == 2


async def test_a_page_of_another_origin_can_read_the_id(world: World) -> None:
    await begin(world)
    api = await world.start_api(api_allowed_origins="https://dash.example")
    await world.db.execute("alter table sankey_transitions rename journeys to elsewhere")
    answer = await api.ask(f"{WT}/sankey", headers={"origin": "https://dash.example"})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == "https://dash.example"
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


async def test_a_message_that_is_nested_too_deeply_is_the_client_s_mistake_also_with_a_tracking_id(
    world: World,
) -> None:
    url, service = await mcp_process(world)
    for address in (f"{url}/mcp/srv_1", f"{url}/mcp/srv_1/{ANN}"):
        answer = await post(address, b"[" * 990)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32700)
    assert faults(service) == []


async def test_a_key_that_cannot_be_looked_up_is_a_fault_for_agents_of_the_team_too(world: World) -> None:
    api, service = await api_process(world)
    await world.db.execute("alter table api_keys rename hash to elsewhere")
    answer = await post(f"{api.url}/mcp/analytics", HELLO, authorization=f"Bearer {api.key}")
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == -32603
    assert error["data"]["request_id"] == answer.headers["x-request-id"]
    line = await the_fault(service, error["data"]["request_id"])
    assert (line["method"], line["path"]) == ("POST", "/mcp/analytics")
    assert api.key not in service.log.read_text()


@both_generations
async def test_a_tool_of_the_team_that_fails_tells_its_id(world: World, generation: str) -> None:
    api, service = await api_process(world)
    await world.db.execute("alter table sankey_transitions rename journeys to elsewhere")
    http = httpx2.AsyncClient(headers={"Authorization": f"Bearer {api.key}"}, timeout=PATIENCE)
    transport = streamable_http_client(f"{api.url}/mcp/analytics", http_client=http)
    async with http, Client(transport, mode=generation, cache=None) as team:
        with pytest.raises(MCPError) as caught:
            await team.call_tool("get_sankey", {"walkthrough_id": WALKTHROUGH})
    request_id = caught.value.data["request_id"]
    assert request_id in caught.value.message
    assert "journeys" not in caught.value.message
    line = await the_fault(service, request_id)
    assert (line["path"], line["call"]) == ("/mcp/analytics", "tools/call")
    assert await metric(service, "stepstream_mcp_calls_total") == 1
    assert api.key not in service.log.read_text()


async def test_what_no_row_can_hold_is_not_found_or_refused(world: World) -> None:
    """PostgreSQL takes no NUL and no half of a surrogate pair."""
    api, service = await api_process(world)
    routes = [path.removeprefix("/v1/") for path in paths() if "{" in path]
    assert len(routes) > 10
    for route in routes:
        assert (await api.ask(re.sub(r"\{\w+\}", "a%00b", route))).status_code == 404, route
    cursor = base64.urlsafe_b64encode(b'[1,"\\ud800"]').decode()
    assert (await api.ask(f"{WT}/journeys", after=cursor)).status_code == 422
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {api.key}"}, timeout=PATIENCE) as http:
        transport = streamable_http_client(f"{api.url}/mcp/analytics", http_client=http)
        async with Client(transport, mode=GENERATIONS[0], cache=None) as team:
            for arguments in ({"walkthrough_id": "a\0b"}, {"walkthrough_id": WALKTHROUGH, "after": cursor}):
                assert (await team.call_tool("find_journeys", arguments)).is_error
    assert await metric(service, "stepstream_http_errors_total") == 0


async def test_a_question_that_takes_too_long_is_logged_by_its_route(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await begin(world)
    api = await world.start_api(api_statement_seconds=1, api_lock_seconds=60)
    async with world.connection() as other, other.transaction():
        await other.execute("lock table mcp_server_session in access exclusive mode")
        assert (await api.ask("sessions/session-of-ann")).status_code == 503
    assert "/v1/sessions/{session_id}: QueryCanceledError" in caplog.text
    assert not [r for r in caplog.records if r.name.startswith("stepstream") and "of-ann" in r.getMessage()]


async def stream_of(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Api, Callable[[], float]]:
    """An API that checks the keys of its streams all the time, and what counts its faults from now on."""
    monkeypatch.setattr(live, "_KEY_SECONDS", 0.0)
    monkeypatch.setattr(live, "_EVERY_SECONDS", 0.05)
    await begin(world)
    api = await world.start_api(api_statement_seconds=1, api_lock_seconds=60)
    name, labels = "stepstream_http_errors_total", {"service": API}
    before = REGISTRY.get_sample_value(name, labels) or 0
    return api, lambda: (REGISTRY.get_sample_value(name, labels) or 0) - before


async def test_a_stream_waits_for_a_key_that_cannot_be_checked_now(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, faults_since = await stream_of(world, monkeypatch)
    async with listening(api) as heard:
        await heard.next("changed")
        async with world.connection() as other, other.transaction():
            await other.execute("lock table api_keys in access exclusive mode")
            await told(caplog, "keys cannot be checked: QueryCanceledError")
        await world.insert(completed("bob", "a", 2000))
        await world.drain_marks()
        await heard.next("changed")
        await world.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'stepstream analytics-api'"
        )
        await world.insert(completed("cem", "a", 3000))
        await world.drain_marks()
        await heard.next("changed")
    assert faults_since() == 0
    assert [r for r in caplog.records if r.levelname == "ERROR"] == []


async def test_a_fault_under_the_streams_is_told_once_until_it_is_mended(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    api, faults_since = await stream_of(world, monkeypatch)
    looks = 0
    look = api_store.Store.changes

    async def counted(store: Any, walkthroughs: Any) -> Any:
        nonlocal looks
        looks += 1
        return await look(store, walkthroughs)

    async def several_looks() -> bool:
        return looks >= 4

    monkeypatch.setattr(api_store.Store, "changes", counted)
    async with listening(api) as heard:
        await heard.next("changed")
        looks = 0
        await world.db.execute("alter table sankey_freshness rename to elsewhere")
        await eventually(several_looks, "it has looked several times")
        await world.db.execute("alter table elsewhere rename to sankey_freshness")
        await world.insert(completed("bob", "a", 2000))
        await world.drain_marks()
        await heard.next("changed")
    (line,) = [r for r in caplog.records if r.name == "stepstream.faults"]
    assert line.getMessage() == "analytics-api: live streams wait"
    assert "UndefinedTableError" in line.fields["exception"]  # type: ignore[attr-defined]
    assert faults_since() == 1


async def told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Waits until the log has a line with that text."""

    async def is_there() -> bool:
        return any(text in record.getMessage() for record in caplog.records)

    await eventually(is_there, text)


# --- the MCP layer -----------------------------------------------------------------------------------------


@both_generations
async def test_a_call_that_fails_tells_the_agent_its_id(world: World, generation: str) -> None:
    base, service = await mcp_process(world)
    await world.db.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " raise exception 'refused' using errcode = 'check_violation', detail = 'the row of ann@example.com';"
        " end $$; create trigger refuse before insert on outbox for each row execute function refuse()"
    )
    async with agent(f"{base}/mcp/srv_1/{ANN}", generation) as ann:
        with pytest.raises(MCPError) as caught:
            await ann.start()
        request_id = caught.value.data["request_id"]
        assert request_id in caught.value.message
        assert "refused" not in caught.value.message
        line = await the_fault(service, request_id)
        assert (line["method"], line["path"]) == ("POST", "/mcp/{slug}/{tracking_id:path}")
        assert "refused" in line["exception"]
        assert await metric(service, "stepstream_mcp_calls_total") == 1
        await world.db.execute("drop function refuse cascade")
        assert (await ann.start())["outcome"] == "started"
    log = service.log.read_text()
    assert ANN not in log
    assert "ann@example.com" not in log


@both_generations
async def test_an_answer_that_cannot_be_made_is_a_fault_and_not_the_agent_s(
    world: World, generation: str
) -> None:
    """A title that is null, where the platform lets it be: what is read makes no answer."""
    base, service = await mcp_process(world)
    await world.db.execute(
        "alter table walkthroughs alter title drop not null; update walkthroughs set title = null;"
    )
    async with agent(f"{base}/mcp/srv_1/{ANN}", generation) as ann:
        with pytest.raises(MCPError) as caught:
            await ann.start()
    *introduced, line = faults(service)
    assert line["request_id"] == caught.value.data["request_id"]
    assert line["exception"].startswith("Traceback")
    # A session has an introduction, which says nothing of what it cannot read, and opens.
    assert [told["message"] for told in introduced] == [
        "walkthrough-mcp: an introduction says nothing of offers"
    ] * (generation == "legacy")


async def test_a_request_that_fails_before_a_tool_runs_is_an_error_of_the_protocol(world: World) -> None:
    base, service = await mcp_process(world)
    await world.db.execute("alter table mcp_servers rename auth_type to elsewhere")
    answers = [await post(f"{base}/mcp/srv_1/{ANN}?x={ANN}", HELLO, authorization="Bearer of-ann")]
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        answers.append(await http.get(f"{base}/.well-known/oauth-protected-resource/mcp/srv_1"))
    for answer in answers:
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert (answer.json()["jsonrpc"], error["code"]) == ("2.0", -32603)
        assert error["data"] == {
            "reason": "internal_error",
            "request_id": answer.headers["x-request-id"],
        }
        assert answer.headers["x-request-id"] in error["message"]
    lines = faults(service)
    assert [line["request_id"] for line in lines] == [a.headers["x-request-id"] for a in answers]
    assert [line["path"] for line in lines] == [
        "/mcp/{slug}/{tracking_id:path}",
        "/.well-known/oauth-protected-resource/mcp/{slug}",
    ]
    assert await metric(service, "stepstream_http_errors_total") == 2
    log = service.log.read_text()
    assert ANN not in log
    assert "of-ann" not in log


async def opened(url: str) -> dict[str, str]:
    """The headers of a client's session, of the generation that has them."""
    hello = await post(url, HELLO)
    headers = {"mcp-session-id": hello.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    await post(url, {"jsonrpc": "2.0", "method": "notifications/initialized"}, **headers)
    return headers


def start_call(number: int) -> dict[str, Any]:
    params = {"name": "start_walkthrough", "arguments": {"name": "wt_a"}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


#: How a client of the newest generation says so.
MODERN = {
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/call",
    "mcp-name": "start_walkthrough",
}


def modern_call(number: int) -> dict[str, Any]:
    call = start_call(number)
    call["params"]["_meta"] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return call


async def until_lock(world: World, statements: int) -> None:
    """Waits until so many statements wait for a lock."""
    query = (
        "select count(*) from pg_stat_activity"
        " where wait_event_type = 'Lock' and datname = current_database()"
    )

    async def waiting() -> bool:
        return bool(await world.db.fetchval(query) == statements)

    await eventually(waiting, f"{statements} statements wait")


@contextlib.asynccontextmanager
async def nobody_writes_events(
    world: World, service: Service
) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Calls that write do not end while the block lasts; yields what waits until so many are under way."""

    async def until_under_way(calls: int) -> None:
        async def under_way() -> bool:
            return await metric(service, "stepstream_mcp_calls_under_way") == calls

        await eventually(under_way, f"{calls} calls are under way")

    async with world.connection() as other, other.transaction():
        await other.execute("lock table outbox in access exclusive mode")
        yield until_under_way


async def test_a_client_that_deletes_its_session_under_a_call_is_no_fault(world: World) -> None:
    base, service = await mcp_process(world)
    url = f"{base}/mcp/srv_1"
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        session = await opened(url)
        async with nobody_writes_events(world, service) as until_waiting:
            call = asyncio.create_task(post(url, start_call(5), **session))
            await until_waiting(1)
            assert (await http.delete(url, headers=session)).status_code == 200
            answer = await call
        assert answer.status_code == 404
        assert answer.headers["x-request-id"]
        assert "deleted" in answer.json()["error"]["message"]
        for _ in range(20):  # at any moment of the call
            session = await opened(url)
            call = asyncio.create_task(post(url, start_call(5), **session))
            await asyncio.sleep(0)
            await http.delete(url, headers=session)
            assert (await call).status_code in {200, 404}
    assert await metric(service, "stepstream_http_errors_total") == 0
    assert '"error"' not in service.log.read_text()


async def test_a_client_that_resumes_a_stream_gets_one_from_now_on(world: World) -> None:
    """Nothing of a stream is kept, so there is nothing to send again: a client's Last-Event-ID is no fault."""
    base, service = await mcp_process(world)
    url = f"{base}/mcp/srv_1"
    session = await opened(url)
    resuming = {**session, "accept": "text/event-stream"}
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        for last in ("1", "no-id-of-ours", "\ufffd".encode()):
            headers: list[tuple[str | bytes, str | bytes]] = [*resuming.items(), (b"last-event-id", last)]
            async with http.stream("GET", url, headers=headers) as stream:
                assert stream.status_code == 200, await stream.aread()
                assert stream.headers["content-type"].startswith("text/event-stream")
            # The SDK lets go of the stream once it sees that the client has.
            await eventually(partial(_is_free, http, url, resuming), "the session has no stream")
    assert await metric(service, "stepstream_http_errors_total") == 0
    assert '"error"' not in service.log.read_text()


async def _is_free(http: httpx2.AsyncClient, url: str, headers: dict[str, str]) -> bool:
    async with http.stream("GET", url, headers=headers) as stream:
        return stream.status_code == 200


async def test_requests_of_a_session_that_share_an_id_are_no_fault(world: World) -> None:
    base, service = await mcp_process(world)
    url = f"{base}/mcp/srv_1"
    session = await opened(url)
    async with nobody_writes_events(world, service) as until_waiting:
        calls = {asyncio.create_task(post(url, start_call(7), **session))}
        await until_waiting(1)
        calls |= {asyncio.create_task(post(url, start_call(7), **session))}
        await until_waiting(2)
    done, others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert {(await call).status_code for call in done} <= {200, 400}
    for call in others:
        call.cancel()
    assert await metric(service, "stepstream_http_errors_total") == 0
    assert '"error"' not in service.log.read_text()


async def test_a_call_that_its_client_cancels_leaves_no_error_in_the_log(world: World) -> None:
    base, service = await mcp_process(world)
    url = f"{base}/mcp/srv_1"
    session = await opened(url)
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 6}}
    async with nobody_writes_events(world, service) as until_waiting:
        call = asyncio.create_task(post(url, start_call(6), **session))
        await until_waiting(1)
        await post(url, cancelled, **session)
        assert (await call).json()["error"]["message"] == "Request cancelled"
    assert (await post(url, start_call(7), **session)).json()["result"]["structuredContent"][
        "outcome"
    ] == "started"
    assert '"error"' not in service.log.read_text()


async def test_where_people_sign_in_and_no_issuer_is_set_that_is_said(world: World) -> None:
    base, service = await mcp_process(world)
    await world.db.execute("update mcp_servers set auth_type = 'custom_oauth'")
    async with httpx2.AsyncClient(timeout=PATIENCE) as http:
        for _ in range(3):
            answer = await http.get(f"{base}/.well-known/oauth-protected-resource/mcp/srv_1")
            assert answer.status_code == 404
    assert "no issuer is set for it" in answer.json()["error"]["message"]
    assert service.log.read_text().count("has no issuer") == 1
    assert await metric(service, "stepstream_mcp_refused_total") == 3
    assert await metric(service, "stepstream_http_errors_total") == 0


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_arguments_that_no_row_can_hold_are_no_fault(world: World, text: str) -> None:
    base, service = await mcp_process(world)
    for path in ("srv_1", f"srv_1/{ANN}"):
        for tool, name in (
            ("start_walkthrough", "name"),
            ("start_walkthrough", "visitor"),
            ("get_next_step", "current_step_id"),
            ("get_next_step", "visitor"),
        ):
            call = modern_call(1)
            call["params"] |= {"name": tool, "arguments": {name: text}}
            answer = await post(f"{base}/mcp/{path}", call, **MODERN | {"mcp-name": tool})
            assert answer.status_code in {200, 400}
            assert answer.json().get("error", {}).get("code") != -32603
    assert await metric(service, "stepstream_http_errors_total") == 0


async def test_calls_that_a_stop_cuts_off_are_told_to_come_again(world: World) -> None:
    base, service = await mcp_process(world)
    url = f"{base}/mcp/srv_1"
    session = await opened(url)
    async with nobody_writes_events(world, service) as until_waiting:
        calls = [
            asyncio.create_task(post(url, start_call(5), **session)),
            asyncio.create_task(post(f"{url}/{ANN}", modern_call(6), **MODERN)),
        ]
        await until_waiting(2)
        ended = asyncio.to_thread(service.terminate)
        *answers, code = await asyncio.gather(*calls, ended)
    for answer in answers:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        error = answer.json()["error"]
        assert error["data"] == {
            "reason": "temporarily_unavailable",
            "request_id": answer.headers["x-request-id"],
        }
    assert code == 0
    assert '"error"' not in service.log.read_text()


async def test_a_question_that_a_stop_cuts_off_is_told_to_come_again(world: World) -> None:
    api, service = await api_process(world)
    async with world.connection() as other, other.transaction():
        await other.execute("lock table sankey_transitions in access exclusive mode")
        question = asyncio.create_task(api.ask(f"{WT}/sankey"))
        await until_lock(world, 1)
        answer, code = await asyncio.gather(question, asyncio.to_thread(service.terminate))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert code == 0
    assert '"error"' not in service.log.read_text()


# --- every port --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RECORDER, AGGREGATOR, RELAY, MCP, API])
async def test_every_answer_of_every_port_has_an_id(world: World, name: str) -> None:
    service = await world.start(name).ready()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=PATIENCE) as http:
        paths = ("/health/live", "/health/ready", "/metrics", "/nowhere")
        answers = [await http.get(path) for path in paths]
    assert [a.status_code for a in answers] == [200, 200, 200, 404]
    assert len({a.headers["x-request-id"] for a in answers}) == len(paths)
    assert f'stepstream_http_errors_total{{service="{name}"}} 0.0' in answers[2].text


@pytest.mark.parametrize("name", [RECORDER, AGGREGATOR, RELAY, MCP, API])
@pytest.mark.parametrize("wrong", ["away", "not migrated"])
async def test_a_start_that_fails_is_told_once_and_without_a_traceback(
    world: World, empty: str, name: str, wrong: str
) -> None:
    url = empty if wrong == "not migrated" else "postgresql://u:hidden@127.0.0.1:1/x"
    done = await asyncio.to_thread(world.command, "run", name, "--port", "0", database_url=url)
    assert done.returncode == (2 if wrong == "not migrated" else 1)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert line["level"] == "critical"
    assert ("migrate" if wrong == "not migrated" else "PostgreSQL at 127.0.0.1:1") in line["message"]
    assert "Traceback" not in done.stderr


# --- commands ----------------------------------------------------------------------------------------------


@pytest.fixture
async def empty(addresses: tuple[str, str]) -> AsyncIterator[str]:
    """A database without tables."""
    name = f"e_{uuid.uuid4().hex[:12]}"
    yield await create_database(addresses[1], name)
    await drop_database(addresses[1], name)


async def migrate_all_but_the_last(url: str, folder: Path) -> str:
    """Returns the name of the last; operators may read what there is."""
    *others, last = read_migrations()
    for migration in others:
        (folder / f"{migration.name}.sql").write_text(migration.text)
    connection = await asyncpg.connect(url)
    await migrate(connection, folder)
    await connection.execute(f"grant select on all tables in schema public to {ROLES[OPERATOR]}")
    await connection.close()
    return last.name


async def test_status_says_which_migrations_are_pending_and_shows_the_rest(
    world: World, empty: str, tmp_path: Path
) -> None:
    last = await migrate_all_but_the_last(empty, tmp_path)
    done = await world.invoke("status", "-o", "json", database_url=empty)
    seen = json.loads(done.stdout)
    assert done.returncode == 1
    assert seen["migrations_pending"] == [last]
    assert seen["problems"][0] == f"migrations are pending: {last}: run `stepstream migrate`"
    assert (seen["kafka"], seen["database"]) == (True, True)
    assert [g["lag"] for g in seen["groups"]] == [0, 0]
    assert seen["outbox"]["waiting"] == 0
    page = await world.invoke("status", database_url=empty)
    assert page.returncode == 1
    assert "run `stepstream migrate`" in " ".join(page.stdout.split())
    assert "0 waiting" in page.stdout
    assert (await world.invoke("migrate", "--database-only", database_url=empty)).returncode == 0
    connection = await asyncpg.connect(empty)
    await connection.execute(f"grant select on all tables in schema public to {ROLES[OPERATOR]}")
    await connection.close()
    well = await world.invoke("status", "-o", "json", database_url=empty)
    assert (well.returncode, json.loads(well.stdout)["migrations_pending"]) == (0, [])


async def test_status_of_an_empty_database(world: World, empty: str) -> None:
    done = await world.invoke("status", "-o", "json", database_url=empty)
    seen = json.loads(done.stdout)
    assert done.returncode == 1
    assert seen["migrations_pending"] == [m.name for m in read_migrations()]
    assert seen["outbox"] == {"waiting": None, "oldest_seconds": None, "set_aside": None}
    assert seen["marks"] is None
    assert seen["dead_letters"] == {"in_topic": 0, "handled": None}
    assert sum("does not exist" in problem for problem in seen["problems"]) == 0, "the migrations say it"
    page = await world.invoke("status", database_url=empty)
    assert "not known" in page.stdout


async def test_status_without_topics_shows_the_database(world: World) -> None:
    await world.put_in_outbox([("ann", "{}")])
    done = await world.invoke("status", "-o", "json", topic="there-is-none")
    seen = json.loads(done.stdout)
    assert done.returncode == 1
    assert (seen["kafka"], seen["groups"], seen["outbox"]["waiting"]) == (True, None, 1)
    assert [p for p in seen["problems"] if "no topic" in p] == [
        "Kafka has no topic there-is-none: run `stepstream migrate` first",
        "Kafka has no topic there-is-none.dlq: run `stepstream migrate` first",
    ]


async def test_status_right_after_topics_were_made(world: World) -> None:
    """Kafka shows a topic before each of its partitions has a broker that leads it."""
    for n in range(3):
        new = {"topic": f"{world.settings.topic}.{n}", "topic_partitions": 24}
        await ensure_topics(world.settings.model_copy(update=new))
        done = await world.invoke("status", "-o", "json", **new)
        seen = json.loads(done.stdout)
        assert seen["kafka"], seen["problems"]
        assert len(seen["groups"][0]["partitions"]) == 24


async def test_status_without_rights_or_with_a_table_gone_shows_the_rest(world: World) -> None:
    role = f"r_{uuid.uuid4().hex[:12]}"
    await world.db.execute(f"create role {role} login password 'hidden'")
    await world.db.execute(
        f"grant select on all tables in schema public to {role};"
        f"revoke select on outbox, stepstream_migrations from {role};"
        "drop table outbox_set_aside"
    )
    url = f"postgresql://{role}:hidden@{world.settings.dsn.rpartition('@')[2]}"
    try:
        done = await world.invoke("status", "-o", "json", database_url=url)
    finally:
        await world.db.execute(f"drop owned by {role}; drop role {role}")
    seen = json.loads(done.stdout)
    assert done.returncode == 1
    assert (seen["marks"], seen["outbox"]["waiting"], seen["migrations_pending"]) == (0, None, None)
    problems = "\n".join(seen["problems"])
    assert "which migrations are pending: PostgreSQL: permission denied" in problems
    assert "the outbox: PostgreSQL: permission denied for table outbox" in problems
    assert "outbox_set_aside" in problems
    assert "hidden" not in done.stdout + done.stderr


async def test_status_with_a_table_locked_shows_the_rest_and_names_the_part(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_PART_SECONDS", 0.5)
    await world.put_in_outbox([("ann", "{}")])
    async with world.connection() as other, other.transaction():
        await other.execute("lock table sankey_dirty, stepstream_migrations in access exclusive mode")
        done = await world.invoke("status", "-o", "json")
    seen = json.loads(done.stdout)
    assert done.returncode == 1
    assert (seen["kafka"], seen["database"], seen["marks"]) == (True, True, None), seen["problems"]
    assert (seen["outbox"]["waiting"], seen["migrations_pending"]) == (1, None)
    why = "no answer within 0.5 s: is a table locked, or the database very busy?"
    for part in ("which migrations are pending", "marks to count again"):
        assert f"{part}: {why}" in seen["problems"]


async def test_status_keeps_what_was_read_when_its_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_PATIENCE", 4.0)
    async with world.connection() as other, other.transaction():
        await other.execute("lock table recorded_offsets in access exclusive mode")
        monkeypatch.setattr(status, "_PART_SECONDS", 60.0)
        done = await world.invoke("status", "-o", "json")
    seen = json.loads(done.stdout)
    assert done.returncode == 1
    assert (seen["database"], seen["marks"], seen["migrations_pending"]) == (True, 0, [])
    assert "PostgreSQL does not answer within 4 s" in seen["problems"]


async def test_what_is_no_postgresql_is_said(world: World) -> None:
    """Something that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:hidden@127.0.0.1:{silent.getsockname()[1]}/x"
        done = await world.invoke("keys", "list", database_url=url, database_timeout_seconds=1)
    assert done.returncode == 1
    assert "/x: no answer within 1 s: is that PostgreSQL?" in done.stderr


COMMANDS = (
    ("keys", "list"),
    ("keys", "create", "--organization", "org"),
    ("keys", "revoke", "x", "--execute"),
    ("verify", "--wait", "1s"),
    ("rebuild",),
    ("rebuild", "--execute"),
    ("erase", "ann"),
    ("erase", "ann", "--execute"),
    ("dlq", "list"),
    ("dlq", "summary"),
    ("dlq", "export"),
    ("dlq", "show", "0:1"),
    ("dlq", "redrive", "--execute"),
    ("dlq", "drop", "--execute"),
    ("import", str(EXPORT), "--server", "srv_1"),
    ("export", "wt_a"),
    ("backfill", "--from-progress"),
    ("replay", "--group", RECORDER, "--from-beginning", "--to-offset", "1", "--execute"),
    ("replay", "--group", AGGREGATOR, "--from-beginning", "--execute"),
)


async def test_every_command_says_that_the_database_is_not_migrated(world: World, empty: str) -> None:
    for command in COMMANDS:
        done = await world.invoke(*command, database_url=empty)
        assert done.returncode == 1, command
        assert "does not exist. The schema is not what this version needs: run `stepstream migrate`" in (
            done.stderr.replace("\n", " ")
        ), command


async def test_what_postgresql_refuses_a_command_for_is_a_line(world: World, tmp_path: Path) -> None:
    """An error that no hint is known for: the line names it, without the values of the row."""
    await world.offer()
    await world.db.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        " raise exception 'not today' using detail = 'the row of ann', hint = 'try tomorrow'; end $$;"
        "create trigger refuse before insert on api_keys for each row execute function refuse()"
    )
    done = await asyncio.to_thread(world.command, "keys", "create", "--organization", "org")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: PostgreSQL: RaiseError: not today HINT: try tomorrow\n"

"""A request that fails: what is answered, what is written, what is counted; and what is no fault of ours."""

import asyncio
import io
import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR
from prometheus_client import REGISTRY
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.consumers.shell import ConsumerShell
from services.runtime.database_errors import is_away, without_values
from services.runtime.http import Answered, leave_unanswered
from services.runtime.mcp import Faults
from services.runtime.process import Process
from services.runtime.settings import Settings
from services.runtime.telemetry import configure_logging

SERVICE = "a-service"


class Lines:
    """What is written to the log, as it would be on stderr."""

    def __init__(self, stream: io.StringIO) -> None:
        self.stream = stream

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def faults(self) -> list[dict[str, Any]]:
        return [x for x in map(json.loads, self.text.splitlines()) if x["logger"] == "stepstream.faults"]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    before, uvicorn = root.handlers[:], logging.getLogger("uvicorn.error")
    filters = uvicorn.filters[:]
    configure_logging("info")
    yield Lines(stream)
    root.handlers[:], uvicorn.filters[:] = before, filters


def counted(service: str = SERVICE) -> float:
    return REGISTRY.get_sample_value("stepstream_http_errors_total", {"service": service}) or 0.0


def served(endpoint: Any) -> ASGIApp:
    routes = [Route("/mcp/{slug}/{tracking_id}", endpoint), Route("/other", endpoint)]
    return Answered(Starlette(routes=routes, exception_handlers={Exception: leave_unanswered}), SERVICE)


async def ask(app: ASGIApp, path: str = "/other", **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=True)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get(path, headers=headers)


async def run(
    app: ASGIApp, receive: Receive | None = None, sent: list[Message] | None = None
) -> list[Message]:
    """What is sent in answer to a bare request."""
    sent = [] if sent is None else sent

    async def nothing() -> Message:
        return await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/x", "headers": [], "query_string": b""}
    await app(scope, receive or nothing, send)
    return sent


async def test_a_request_that_fails_is_written_counted_and_answered_under_one_id(lines: Lines) -> None:
    async def broken(_: Request) -> Response:
        raise RuntimeError("it broke")

    before = counted()
    answer = await ask(served(broken))
    (line,) = lines.faults()
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == line["request_id"]
    assert line["request_id"] in answer.text
    assert (line["level"], line["method"], line["path"]) == ("error", "GET", "/other")
    assert line["exception"].startswith("Traceback")
    assert "it broke" in line["exception"]
    assert counted() == before + 1


async def test_every_answer_has_an_id_of_ours_and_each_its_own(lines: Lines) -> None:
    async def well(_: Request) -> Response:
        return PlainTextResponse("well")

    app = served(well)
    ids = [(await ask(app, **{"x-request-id": "theirs"})).headers["x-request-id"] for _ in range(2)]
    ids.append((await ask(app, "/nowhere")).headers["x-request-id"])
    assert len(set(ids)) == 3
    assert all(len(i) == 32 and int(i, 16) for i in ids)
    assert lines.faults() == []


async def test_the_log_has_no_token_tracking_id_session_or_query_string(lines: Lines) -> None:
    async def broken(request: Request) -> Response:
        raise ValueError(f"{request.url} {dict(request.headers)} {request.path_params['tracking_id']}")

    secret = {"authorization": "Bearer sst_abc_def", "mcp-session-id": "session-of-ann"}
    answer = await ask(served(broken), "/mcp/docs/ann%20%C3%A9-17?distinct=ann-18", **secret)
    assert answer.status_code == 500
    (line,) = lines.faults()
    assert line["path"] == "/mcp/{slug}/{tracking_id}"
    assert "docs" in line["exception"]
    for told in ("sst_abc_def", "session-of-ann", "ann é", "ann%20", "C3%A9", "-17", "ann-18"):
        assert told not in lines.text


async def test_the_log_has_no_values_of_rows_arguments_and_models(lines: Lines) -> None:
    class Model(BaseModel):
        number: int

    async def broken(_: Request) -> Response:
        row = asyncpg.UniqueViolationError("twice")
        row.detail = "Key (email)=(ann@example.com) already exists."
        try:
            raise row
        except asyncpg.PostgresError:
            try:
                raise asyncpg.exceptions._base.DataError(  # type: ignore[attr-defined]
                    "invalid input for query argument $2: 'ann-17' (an integer is required)"
                ) from None
            except asyncpg.InterfaceError as error:
                error.__context__ = row
                error.__suppress_context__ = False
                try:
                    Model(number=_value(18))
                except ValueError as wrong:
                    raise wrong from error

    await ask(served(broken))
    (line,) = lines.faults()
    for there in ("UniqueViolationError: twice", "invalid input for query argument $2", "input_type=str"):
        assert there in line["exception"], there
    for told in ("ann@example.com", "ann-17", "ann-18"):
        assert told not in lines.text


async def test_only_errors_of_its_connections_mean_that_the_database_is_away(tmp_path: Path) -> None:
    for url in ("postgresql://127.0.0.1:1/x", f"postgresql:///x?host={tmp_path}"):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the machine
            await asyncpg.connect(url)
        assert is_away(caught.value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(TimeoutError) as late:
            await asyncpg.connect(f"postgresql://127.0.0.1:{silent.getsockname()[1]}/x", timeout=0.05)
        assert is_away(late.value)
    with pytest.raises(OSError) as of_a_file:  # noqa: PT011
        (tmp_path / "none").read_text()
    with pytest.raises(TimeoutError) as of_us:
        async with asyncio.timeout(0):
            await asyncio.Future()
    assert not is_away(of_a_file.value)
    assert not is_away(of_us.value)
    assert is_away(asyncpg.DeadlockDetectedError())
    assert not is_away(asyncpg.UndefinedTableError())


def test_data_that_postgresql_quotes_are_taken_out() -> None:
    error = asyncpg.InvalidTextRepresentationError('invalid input syntax for type integer: "ann "the" 17"')
    assert str(without_values(error)) == 'invalid input syntax for type integer: "…"'
    other = asyncpg.UndefinedTableError('relation "outbox" does not exist')
    assert str(without_values(other)) == 'relation "outbox" does not exist'


def test_values_are_taken_out_of_errors_that_lead_to_each_other() -> None:
    one, other = asyncpg.CheckViolationError("a"), asyncpg.CheckViolationError("b")
    one.detail = other.detail = "the row"
    one.__cause__, other.__context__ = other, one
    without_values(ExceptionGroup("both", [one]))
    assert (one.detail, other.detail) == (None, None)


async def test_an_answer_that_was_begun_is_cut_off_written_and_counted(lines: Lines) -> None:
    async def stream(_: Request) -> Response:
        async def parts() -> Any:
            yield b"one"
            raise RuntimeError("in the middle")

        return StreamingResponse(parts())

    before = counted()
    sent = await run(Answered(Route("/x", stream).app, SERVICE))
    assert [m["type"] for m in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]
    (line,) = lines.faults()
    assert "in the middle" in line["exception"]
    assert counted() == before + 1


async def test_what_is_streamed_goes_out_at_once() -> None:
    went_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await went_on.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    first = asyncio.Event()

    async def send(message: Message) -> None:
        if message.get("body") == b"first":
            first.set()

    scope: Scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    task = asyncio.create_task(Answered(app, SERVICE)(scope, None, send))  # type: ignore[arg-type]
    await asyncio.wait_for(first.wait(), 10)
    assert not task.done()
    went_on.set()
    await task


@pytest.mark.parametrize("answered", [False, True])
async def test_an_application_that_does_not_answer_to_the_end_is_a_fault(
    lines: Lines, answered: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if answered:
            await send({"type": "http.response.start", "status": 200, "headers": []})

    before = counted()
    sent = await run(Answered(app, SERVICE))
    assert sent[0]["status"] == (200 if answered else 500)
    assert counted() == before + 1
    assert len(lines.faults()) == 1


async def test_500_that_somebody_else_answers_is_written_and_counted_too(lines: Lines) -> None:
    async def given_up(_: Request) -> Response:
        return PlainTextResponse("no", 500)

    before = counted()
    answer = await ask(served(given_up))
    (line,) = lines.faults()
    assert (answer.text, answer.headers["x-request-id"]) == ("no", line["request_id"])
    assert counted() == before + 1


async def test_a_client_that_went_away_is_no_fault(lines: Lines) -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def reads(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()

    async def in_a_group(scope: Scope, receive: Receive, send: Send) -> None:
        raise ExceptionGroup("tasks", [ClientDisconnect()])

    async def gives_up(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    before = counted()
    for app in (reads, in_a_group, gives_up):
        assert await run(Answered(app, SERVICE), gone) == []
    assert counted() == before
    assert lines.faults() == []


async def test_a_request_that_is_cancelled_is_no_fault(lines: Lines) -> None:
    began = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await asyncio.Future()

    before = counted()
    sent: list[Message] = []
    task = asyncio.create_task(run(Answered(waits, SERVICE), sent=sent))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(m.get("status"), m.get("more_body", False)) for m in sent] == [(503, False), (None, False)]
    headers = dict(sent[0]["headers"])
    assert headers[b"retry-after"]
    assert headers[b"x-request-id"]
    assert counted() == before
    assert lines.faults() == []


async def test_an_answer_that_was_begun_is_left_when_the_service_ends(lines: Lines) -> None:
    began = asyncio.Event()

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        began.set()
        await asyncio.Future()

    sent: list[Message] = []
    task = asyncio.create_task(run(Answered(streams, SERVICE), sent=sent))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [m["type"] for m in sent] == ["http.response.start"]
    assert lines.faults() == []


async def test_the_metric_is_there_before_the_first_fault() -> None:
    Answered(Starlette(), "a-new-service")
    assert REGISTRY.get_sample_value("stepstream_http_errors_total", {"service": "a-new-service"}) == 0


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics"])
async def test_the_port_of_a_consumer_hides_no_error(
    lines: Lines, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ConsumerShell[Any]):
        def opened(self) -> Any:
            raise NotImplementedError

        async def on_discontinuity(self, connection: Any, placements: Any) -> None:
            raise NotImplementedError

        def problem_of_life(self) -> str | None:
            raise RuntimeError("it broke")

        async def problem_of_readiness(self) -> str | None:
            raise RuntimeError("it broke")

    def no_metrics() -> bytes:
        raise RuntimeError("it broke")

    monkeypatch.setattr("services.runtime.http.generate_latest", no_metrics)
    settings = Settings(kafka_bootstrap_servers="127.0.0.1:1", database_url="postgresql://127.0.0.1:1/x")
    shell = Broken("a-consumer", settings, ())
    before = counted("a-consumer")
    answer = await ask(shell.application(), path)
    (line,) = lines.faults()
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, line["request_id"])
    assert (line["path"], counted("a-consumer")) == (path, before + 1)
    assert "it broke" in line["exception"]


# --- the MCP servers ---------------------------------------------------------------------------------------


def context(method: str = "tools/call") -> Any:
    return ServerRequestContext(
        session=None,  # type: ignore[arg-type]
        lifespan_context=None,
        method=method,
        params={"name": "get_next_step", "arguments": {"visitor": "visitor_of_ann", "step": "a"}},
        request_id=1,
        meta=None,
        protocol_version="2025-11-25",
        request=None,
        close_sse_stream=None,
        close_standalone_sse_stream=None,
    )


class _Wrong(BaseModel):
    number: int


def _value(number: int) -> Any:
    """As a literal it would be in the lines of source that a traceback shows."""
    return f"ann-{number}"


def _not_valid() -> None:
    _Wrong(number=_value(17))


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "breaks",
    [_not_valid, lambda: _raise(KeyError(f"visitor_of_{'ann'}")), lambda: _raise(AssertionError())],
    ids=["a model that is not valid", "a key that is missing", "an assertion"],
)
async def test_whatever_a_handler_raises_is_an_error_with_an_id(lines: Lines, breaks: Any) -> None:
    async def handler(_: Any, __: Any) -> None:
        breaks()

    before = counted()
    with pytest.raises(MCPError) as caught:
        await Faults(SERVICE).seen(handler)(context(), None)
    (line,) = lines.faults()
    assert caught.value.code == INTERNAL_ERROR
    assert caught.value.data["request_id"] == line["request_id"]
    assert line["request_id"] in caught.value.message
    assert "Traceback" in line["exception"]
    assert (line["path"], line["call"]) == ("stdio", "tools/call")
    assert "ann-17" not in lines.text
    assert "visitor_of_ann" not in lines.text
    assert counted() == before + 1


async def test_errors_of_the_protocol_pass_and_the_sdk_s_own_get_an_id(lines: Lines) -> None:
    faults = Faults(SERVICE)

    async def refuses(_: Any) -> None:
        raise MCPError(INTERNAL_ERROR, "away", {"reason": "temporarily_unavailable"})

    async def invalid(_: Any) -> None:
        raise MCPError(INTERNAL_ERROR, "Handler returned an invalid result")

    with pytest.raises(MCPError, match="away"):
        await faults(context(), refuses)
    with pytest.raises(ValueError, match="number"):  # of what the client sent
        await faults(context(), lambda _: _in_the_sdk())
    assert lines.faults() == []
    with pytest.raises(MCPError) as caught:
        await faults(context(), invalid)
    (line,) = lines.faults()
    assert caught.value.data["request_id"] == line["request_id"]


async def _in_the_sdk() -> None:
    _not_valid()


# --- starts that fail --------------------------------------------------------------------------------------


class Nothing(Process[Any]):
    def opened(self) -> Any:
        raise NotImplementedError

    def application(self) -> Any:
        raise NotImplementedError


async def test_a_start_that_fails_before_the_service_says_why_is_told(lines: Lines) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("before anything of ours")

    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:1",
        database_url="postgresql://127.0.0.1:1/x",
        http_host="127.0.0.1",
    )
    assert await Nothing(SERVICE, settings).serve(app, 0) == 1
    (line,) = map(json.loads, lines.text.splitlines())
    assert line["message"] == "a-service stops: before anything of ours"
    assert "Traceback" in line["exception"]


# --- uvicorn's log -----------------------------------------------------------------------------------------


def test_of_uvicorn_s_lines_only_what_nobody_else_told_is_written(lines: Lines) -> None:
    uvicorn = logging.getLogger("uvicorn.error")

    def record(path: str, error: BaseException | None, text: str) -> logging.LogRecord:
        info = None if error is None else (type(error), error, None)
        return uvicorn.makeRecord(uvicorn.name, logging.ERROR, path, 1, text, (), info)

    uvicorn.handle(record("/x/uvicorn/lifespan/on.py", ValueError(), "the start failed"))
    uvicorn.handle(record("/x/uvicorn/protocols/http/h.py", asyncio.CancelledError(), "was cancelled"))
    uvicorn.handle(record("/x/uvicorn/protocols/http/h.py", ValueError("why"), "an error"))
    uvicorn.handle(record("/x/uvicorn/server.py", None, "Cancel 1 running task(s)"))
    cut_off = "ASGI callable returned without completing response."
    uvicorn.handle(record("/x/uvicorn/protocols/http/h.py", None, cut_off))
    uvicorn.info("chatter")
    (line,) = map(json.loads, lines.text.splitlines())
    assert line["message"] == "an error"

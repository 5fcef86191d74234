"""One trace from an agent's call through outbox and Kafka to both consumers, in spans kept in memory."""

import asyncio
import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.completion_recorder.app import build as build_recorder
from services.devstack.processes import free_port
from services.outbox_relay.app import RelayProcess
from services.runtime import tracing
from services.sankey_aggregator.app import build as build_aggregator
from tests.support.agents import agent
from tests.support.world import AGGREGATOR, MCP, RECORDER, RELAY, Message, World, completed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    tracing.record_spans()
    return exporter


async def run_all(world: World) -> None:
    await world.serve(RELAY, RelayProcess(RELAY, world.settings).application(), free_port())
    await world.serve(RECORDER, build_recorder(world.settings).app, free_port())
    await world.serve(AGGREGATOR, build_aggregator(world.settings).app, free_port())


def name_of(span: ReadableSpan) -> str:
    scope = span.instrumentation_scope
    assert scope is not None
    return f"{scope.name}: {span.name}"


async def test_a_call_is_one_trace_to_both_consumers(world: World, spans: InMemorySpanExporter) -> None:
    await world.offer()
    mcp = await world.start_mcp()
    await run_all(world)
    async with agent(f"http://127.0.0.1:{mcp.port}/mcp/srv_1") as someone:
        await someone.start()
    await world.relayed()
    await world.drained()
    event, shown = await world.events()
    assert dict(event.headers)["traceparent"] == dict(shown.headers)["traceparent"]
    headers = dict(event.headers)
    trace_id = int(headers["traceparent"].decode().split("-")[1], 16)
    mine = [s for s in spans.get_finished_spans() if s.context is not None and s.context.trace_id == trace_id]
    topic = world.settings.topic
    names = [name_of(s) for s in mine]
    for wanted in (
        f"stepstream.outbox-relay: send {topic}",
        f"stepstream.completion-recorder: process {topic}",
        f"stepstream.sankey-aggregator: process {topic}",
    ):
        assert wanted in names
    call = next(s for s in mine if "start_walkthrough" in s.name or "tools/call" in s.name)
    assert call.context is not None
    creation = int(headers["traceparent"].decode().split("-")[2], 16)
    parents = {s.context.span_id: s for s in mine if s.context is not None}
    assert creation in parents
    for span in mine:
        if "stepstream." in name_of(span):
            assert span.parent is not None
            assert span.parent.span_id == creation


class Collector(BaseHTTPRequestHandler):
    """Takes spans as OTLP over HTTP, as a collector does."""

    got: ClassVar[list[tuple[str, str, str]]] = []  # service, span, trace id

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            name = next(a.value.string_value for a in part.resource.attributes if a.key == "service.name")
            for scope in part.scope_spans:
                self.got.extend((name, span.name, span.trace_id.hex()) for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


async def test_processes_send_their_spans_to_a_collector(world: World) -> None:
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    await world.offer()
    traced = {
        "otlp_endpoint": f"http://127.0.0.1:{collector.server_port}/v1/traces",
        "trace_ratio": 1,
    }
    mcp = await world.start_mcp(process=True, **traced)
    services = [mcp, *world.start_both(**traced), world.start(RELAY, **traced)]
    for service in services:
        await service.ready()
    async with agent(f"http://127.0.0.1:{mcp.port}/mcp/srv_1") as someone:
        await someone.start()
    await world.relayed()
    await world.drained()
    codes = [await asyncio.to_thread(service.terminate) for service in services]
    collector.shutdown()
    collector.server_close()
    assert codes == [0] * 4
    event, shown = await world.events()
    assert dict(event.headers)["traceparent"] == dict(shown.headers)["traceparent"]
    trace_id = dict(event.headers)["traceparent"].decode().split("-")[1]
    assert {name for name, _, trace in Collector.got if trace == trace_id} == {
        MCP,
        RELAY,
        RECORDER,
        AGGREGATOR,
    }


async def test_a_batch_is_a_span_of_its_own_with_links(world: World, spans: InMemorySpanExporter) -> None:
    """Many traces meet in a batch; it belongs to none of them."""
    await world.offer()
    await world.people(["ann"])
    ids = [f"{n:032x}" for n in range(1, 6)]
    good: list[Any] = [
        Message(
            b"ann",
            Message.of(completed("ann", step, 1)).value,
            [("traceparent", f"00-{i}-{1:016x}-01".encode())],
        )
        for i, step in zip(ids, "abcde", strict=True)
    ]
    strange = [
        b"\xff\xfe",
        b"",
        b"00-zz",
        b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
        f"00-{7:032x}-{1:016x}-00".encode(),
    ]
    await world.produce([*good, *(Message(b"ann", b"{}", [("traceparent", s)]) for s in strange)])
    spans.clear()
    await run_all(world)
    await world.drained()
    (batch,) = [
        s
        for s in spans.get_finished_spans()
        if name_of(s) == f"stepstream.completion-recorder: process {world.settings.topic} batch"
    ]
    assert {f"{link.context.trace_id:032x}" for link in batch.links} == set(ids)
    assert batch.attributes is not None
    assert batch.attributes["messaging.batch.message_count"] == 10
    assert len(await world.dead_letters()) == 5

"""`stepstream run`: a service in the foreground."""

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from services.operator_cli.options import current_settings
from services.runtime.errors import UsageError

if TYPE_CHECKING:
    from services.runtime.process import Handler, Process
    from services.runtime.settings import Settings

app = typer.Typer()


class Service(StrEnum):
    """A service that `run` starts."""

    COMPLETION_RECORDER = "completion-recorder"
    SANKEY_AGGREGATOR = "sankey-aggregator"
    OUTBOX_RELAY = "outbox-relay"
    WALKTHROUGH_MCP = "walkthrough-mcp"
    ANALYTICS_API = "analytics-api"


#: The ports where --port is not given.
DEFAULT_PORTS = {
    Service.COMPLETION_RECORDER: 8081,
    Service.SANKEY_AGGREGATOR: 8082,
    Service.OUTBOX_RELAY: 8083,
    Service.WALKTHROUGH_MCP: 8084,
    Service.ANALYTICS_API: 8085,
}

#: The ports of health and metrics of services whose own port is public, where neither port is given.
DEFAULT_HEALTH_PORTS = {Service.WALKTHROUGH_MCP: 8094, Service.ANALYTICS_API: 8095}

#: What the others need, Kafka's client, does not expect how uvloop refuses a write to a broken connection.
_ON_UVLOOP = {Service.WALKTHROUGH_MCP, Service.ANALYTICS_API}


@app.command()
def run(
    service: Service,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of health, metrics and routes.")
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="walkthrough-mcp, analytics-api: port of health and metrics, which is not public. With "
            "--port and without this, any that is free: the log says which.",
        ),
    ] = None,
    stdio: Annotated[
        str | None,
        typer.Option(
            "--stdio", metavar="SLUG", help="walkthrough-mcp: serve this server over stdin and stdout."
        ),
    ] = None,
    tracking_id: Annotated[
        str | None, typer.Option(help="With --stdio: who the person is; without it somebody new.")
    ] = None,
) -> None:
    """Run a service in the foreground. SIGTERM finishes the batch in hand and exits 0."""
    if service is not Service.WALKTHROUGH_MCP and (stdio or tracking_id):
        raise UsageError("--stdio and --tracking-id are for walkthrough-mcp")
    if tracking_id is not None and stdio is None:
        raise UsageError("--tracking-id goes with --stdio; over HTTP it is in the address")
    if service not in DEFAULT_HEALTH_PORTS and health_port is not None:
        raise UsageError(f"{service} has health and metrics at --port; --health-port is for the public ones")
    # Until the service has its own way to end: nothing is in hand yet. Not by an exception, which would be
    # raised wherever the program is, in the middle of an import or of the event loop.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from services.runtime.telemetry import configure_logging

    # It writes its events into the outbox.
    settings = current_settings(needs_kafka=service is not Service.WALKTHROUGH_MCP)
    configure_logging(settings.log_level)

    from services.runtime.tracing import configure_tracing

    configure_tracing(service.value, settings.otlp_endpoint, settings.trace_ratio)

    async def work() -> int:
        if stdio is not None:
            with _no_collection():
                from services.walkthrough_mcp.app import run_stdio
            return await run_stdio(settings, stdio, tracking_id)
        return await _build(service, settings).run(*_ports(service, port, health_port))

    with asyncio.Runner(loop_factory=event_loop_of(service)) as runner:
        sys.exit(runner.run(work()))


def _ports(service: Service, port: int | None, health_port: int | None) -> tuple[int, int | None]:
    """The ports of a service: its own, and that of health and metrics where they have one."""
    if service not in DEFAULT_HEALTH_PORTS:
        return DEFAULT_PORTS[service] if port is None else port, None
    if health_port is None:
        health_port = DEFAULT_HEALTH_PORTS[service] if port is None else 0
    return DEFAULT_PORTS[service] if port is None else port, health_port


def event_loop_of(service: Service) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop that a service runs on: see decision 0011."""
    if service in _ON_UVLOOP:
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def _build(service: Service, settings: "Settings") -> "Process[Handler]":
    package = {
        Service.COMPLETION_RECORDER: "completion_recorder",
        Service.SANKEY_AGGREGATOR: "sankey_aggregator",
        Service.OUTBOX_RELAY: "outbox_relay",
        Service.WALKTHROUGH_MCP: "walkthrough_mcp",
        Service.ANALYTICS_API: "analytics_api",
    }[service]
    with _no_collection():
        built: Process[Handler] = importlib.import_module(f"services.{package}.app").build(settings)
        return built


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Imports make nearly no garbage: to look for it takes a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

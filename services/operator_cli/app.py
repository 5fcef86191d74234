"""The commands of `stepstream`. Each imports what it needs when it runs, so that help is quick."""

import asyncio
import contextlib
import errno
import gc
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import typer
from rich.markup import escape

from services.operator_cli.operate import register
from services.operator_cli.options import Output, OutputOption, console, current_settings, examples
from services.runtime.errors import StepstreamError, UsageError

app = typer.Typer(
    name="stepstream",
    help="Exact Sankey flows of walkthroughs, from Kafka into PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
stack = typer.Typer(help="A real Kafka and PostgreSQL on this machine, without Docker.", no_args_is_help=True)
app.add_typer(stack, name="stack")

register(app)


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

StackDir = Annotated[
    Path, typer.Option("--dir", help="Where the stack keeps its data; two folders are two stacks.")
]


def told(error: StepstreamError) -> int:
    """Says what went wrong, and returns the exit code for it."""
    console.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    return error.exit_code


def main() -> None:
    """Runs a command; an error that a person is meant to read ends with its own exit code."""
    _open_what_is_closed()
    try:
        app()
    except StepstreamError as error:
        sys.exit(told(error))
    except OSError as error:
        if (problem := _problem_of_writing(error)) is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in buffers would fail again
        sys.exit(told(StepstreamError(problem)))
    except KeyboardInterrupt:
        sys.exit(130)


def _open_what_is_closed() -> None:
    """Standard files that whoever starts us has closed: no other file gets their numbers.

    Standard output is then one that cannot be written to: only a command that has something to say fails.
    """
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("r")
    sys.stderr = sys.stderr or _null("w")


def _null(mode: str) -> TextIO:
    return cast("TextIO", Path(os.devnull).open(mode, encoding="utf-8"))


def _problem_of_writing(error: OSError) -> str | None:
    is_refused = isinstance(error, io.UnsupportedOperation) or error.errno == errno.EBADF
    if is_refused and not sys.stdout.writable():
        return "cannot write: standard output is closed"
    is_writing = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
    return f"cannot write: {error.strerror}" if is_writing else None


@stack.command("up")
def stack_up(folder: StackDir = Path(".stepstream")) -> None:
    """Start what does not run yet and wait until it answers; the data of last time are kept."""
    from services.devstack import up

    with _stack_errors():
        addresses = up(folder, lambda text: console.print(f"[dim]{text}[/]"))
    console.print(
        f"Kafka at {addresses.kafka_bootstrap_servers}, PostgreSQL at {addresses.database_url}",
        soft_wrap=True,
    )
    console.print(
        f'[dim]next: eval "$(stepstream stack env --dir {folder})" && stepstream migrate[/]', soft_wrap=True
    )


@stack.command("env")
def stack_env(folder: StackDir = Path(".stepstream")) -> None:
    """Print the settings that lead to the running stack, as export lines for a shell."""
    import shlex

    from services.devstack import status

    with _stack_errors():
        addresses = status(folder)
    for name, value in addresses.environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


@stack.command("down")
def stack_down(
    folder: StackDir = Path(".stepstream"),
    purge: Annotated[bool, typer.Option(help="Remove its data too.")] = False,
) -> None:
    """Stop the stack; its data stay."""
    from services.devstack import down

    with _stack_errors():
        ran = down(folder, purge=purge)
    console.print("stopped" if ran else "nothing was running")


@app.command(epilog=examples("migrate"))
def migrate(
    database_only: Annotated[
        bool, typer.Option(help="Leave Kafka alone: somebody else creates the topics.")
    ] = False,
) -> None:
    """Bring the database's schema up to date and create the topics that are missing. Safe to repeat."""
    from services.runtime.database import connected
    from services.runtime.kafka import ensure_topics
    from services.runtime.migrate import migrate as apply

    settings = current_settings()

    async def work() -> tuple[list[str], list[str]]:
        async with connected(settings) as connection:
            applied = await apply(connection)
        return applied, [] if database_only else await ensure_topics(settings)

    applied, topics = asyncio.run(work())
    for name in applied:
        console.print(f"applied {name}")
    for name in topics:
        console.print(f"created topic {name}")
    if not applied and not topics:
        console.print("nothing to do: the schema and the topics are up to date")


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

    settings = current_settings()
    configure_logging(settings.log_level)

    from services.runtime.tracing import configure_tracing

    configure_tracing(service.value, settings.otlp_endpoint, settings.trace_ratio)

    async def work() -> int:
        if stdio is not None:
            with _no_collection():
                from services.walkthrough_mcp.app import run_stdio
            return await run_stdio(settings, stdio, tracking_id)
        code: int = await _build(service, settings).run(*_ports(service, port, health_port))
        return code

    with asyncio.Runner(loop_factory=event_loop_of(service)) as runner:
        sys.exit(runner.run(work()))


def _ports(service: Service, port: int | None, health_port: int | None) -> list[int]:
    """The ports of a service: its own, and that of health and metrics where they have one."""
    if service not in DEFAULT_HEALTH_PORTS:
        return [DEFAULT_PORTS[service] if port is None else port]
    if health_port is None:
        health_port = DEFAULT_HEALTH_PORTS[service] if port is None else 0
    return [DEFAULT_PORTS[service] if port is None else port, health_port]


def event_loop_of(service: Service) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop that a service runs on: see decision 0011."""
    if service in _ON_UVLOOP:
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def _build(service: Service, settings: Any) -> Any:
    package = {
        Service.COMPLETION_RECORDER: "completion_recorder",
        Service.SANKEY_AGGREGATOR: "sankey_aggregator",
        Service.OUTBOX_RELAY: "outbox_relay",
        Service.WALKTHROUGH_MCP: "walkthrough_mcp",
        Service.ANALYTICS_API: "analytics_api",
    }[service]
    with _no_collection():
        return importlib.import_module(f"services.{package}.app").build(settings)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Imports make nearly no garbage: to look for it takes a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@app.command(epilog=examples("produce events.ndjson", "produce events.ndjson -o json"))
def produce(
    file: Annotated[str, typer.Argument(help="Events as NDJSON, one a line; `-` is standard input.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Send contract events, keyed by user and acknowledged by all replicas.

    A line that is no event is named with its number and reason, and everything else is sent.
    """
    from services.operator_cli.produce import produce as send
    from services.operator_cli.produce import report

    report(asyncio.run(send(current_settings(), file)), as_json=output is Output.JSON)


@app.command("import", epilog=examples("import walkthrough.json --server docs --dry-run"))
def import_(
    file: Annotated[Path, typer.Argument(help="A walkthrough in the platform's export format 1.0.")],
    server: Annotated[str, typer.Option(help="Slug of the MCP server that will offer it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import a walkthrough and offer it on a server. A second import of the same file updates it.

    Prints the walkthrough's id. Steps that are there and not in the file stay, with what people did in them.
    """
    from services.runtime.database import connected
    from services.walkthrough_mcp.exchange import ImportPlan, import_walkthrough, read_export

    export = read_export(file)
    settings = current_settings()

    async def work() -> ImportPlan:
        async with connected(settings) as connection:
            return await import_walkthrough(connection, export, server, dry_run=dry_run)

    plan = asyncio.run(work())
    if output is Output.JSON:
        typer.echo(json.dumps(asdict(plan) | {"dry_run": dry_run}))
    else:
        typer.echo(plan.walkthrough_id)
    marks = {"create": "[green]+[/]", "update": "[yellow]~[/]", "keep": "[dim]=[/]", "leave": "[dim]·[/]"}
    for change in plan.changes:
        note = " [dim](not in the file; it stays)[/]" if change.action == "leave" else ""
        title = escape(change.title)
        console.print(f"{marks[change.action]} {change.what} {change.id}  {title}{note}", soft_wrap=True)
    counts = plan.counts
    console.print(
        f"{'would have ' if dry_run else ''}created {counts['create']}, updated {counts['update']}, "
        f"left {counts['keep'] + counts['leave']} as they are"
    )


@app.command(epilog=examples("export wt_quick", "export wt_quick --file walkthrough.json"))
def export(
    walkthrough: Annotated[str, typer.Argument(help="Id of the walkthrough.")],
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Where to write; else stdout.")] = None,
) -> None:
    """Write a walkthrough in the platform's export format 1.0; importing that changes nothing."""
    from services.runtime.database import connected
    from services.walkthrough_mcp.exchange import export_walkthrough

    settings = current_settings()

    async def work() -> Any:
        async with connected(settings) as connection:
            return await export_walkthrough(connection, walkthrough)

    text = json.dumps(asyncio.run(work()), ensure_ascii=False, indent=2)
    if file is None:
        typer.echo(text)
        return
    try:
        file.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None


@app.command()
def demo(
    people: Annotated[int, typer.Option(min=1, max=50_000, help="How many people to simulate.")] = 200,
    folder: StackDir = Path(".stepstream-demo"),
    keep: Annotated[bool, typer.Option(help="Leave the stack and its data for a look around.")] = False,
    running: Annotated[
        bool, typer.Option("--running", help="Use the services that run already, as the settings say.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="With --running: nobody comes where the demo has been already.")
    ] = False,
) -> None:
    """See the whole pipeline in a minute: real servers and services, simulated people and agents.

    It ends with the address of the dashboard. In a terminal it stays up until Ctrl-C.
    """
    from services.demo import run_demo, run_on_running_services

    if running:
        run_on_running_services(people, once=once)
        return
    if once:
        raise UsageError("--once goes with --running")
    with _stack_errors():
        run_demo(folder, people, keep=keep)


class _stack_errors:  # noqa: N801 - reads as a block
    """Turns the stack's errors into ours."""

    def __enter__(self) -> None:
        try:
            import services.devstack  # noqa: F401
        except ImportError as error:
            raise UsageError(
                f"the embedded stack is not installed ({error.name} is missing): "
                "pip install 'stepstream[devstack]'"
            ) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from services.devstack import StackError

        if isinstance(error, StackError | OSError):
            raise StepstreamError(str(error)) from error

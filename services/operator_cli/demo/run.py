"""The demo from start to end: stack, schema, walkthroughs, consumers, people, the picture, the verdict."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.operator_cli.demo.people import Offer, Traffic, simulate
from services.operator_cli.demo.picture import draw
from services.operator_cli.importing import import_walkthrough, read_export
from services.operator_cli.verify import verify
from services.runtime.database import Connection, connected
from services.runtime.errors import MismatchError, StepstreamError
from services.runtime.kafka import ensure_topics, make_producer
from services.runtime.lag import GROUPS, lags
from services.runtime.migrate import migrate
from services.runtime.settings import Settings, load_settings

console = Console(highlight=False)

_WALKTHROUGHS = Path(__file__).parent / "walkthroughs"
_SERVERS = {"hooks-docs": "srvhooks", "query-coach": "srvquery"}
_SLICE = 2_000
_PATIENCE_SECONDS = 120


def run_on_running_services(people: int) -> None:
    """Sends the demo's traffic to services that run already, at the addresses of the environment.

    Raises:
        StepstreamError: Kafka or PostgreSQL cannot be reached, or the consumers do not get through.
        MismatchError: the Sankey is not exact.
    """
    console.print("[bold]Stepstream demo[/] on running services, with simulated people\n")
    asyncio.run(_demo(load_settings(), people, {}, None, seed=int(time.time())))


def run_demo(folder: Path, people: int, *, keep: bool) -> None:
    """Shows the whole pipeline, and clears away what it started.

    Raises:
        StepstreamError: something did not come up, or stopped.
        MismatchError: the Sankey is not exact.
    """
    from services.devstack import down, up

    began = time.monotonic()
    console.print("[bold]Stepstream demo[/]: real Kafka, real PostgreSQL, both consumers, simulated people\n")
    down(folder, purge=True)
    try:
        addresses = up(folder, lambda text: console.print(f"· {text}"))
        os.environ |= addresses.environment()
        settings = load_settings()
        with _consumers(folder) as processes:
            asyncio.run(_demo(settings, people, processes, folder, seed=7))
        console.print(f"\nDone in {time.monotonic() - began:.0f} s. Where to go next:")
        console.print("  README.md               what Stepstream is, and its commands")
        console.print("  docs/operating.md       how to run it: settings, health, what to do when")
        console.print("  docker compose up       the same services as containers")
        if keep:
            console.print(
                f'  eval "$(.venv/bin/stepstream stack env --dir {folder})"   this stack still runs'
            )
        else:
            console.print("  make demo ARGS=--keep   leaves the stack running for a look with psql")
    finally:
        if not keep:
            down(folder, purge=True)


@contextlib.contextmanager
def _consumers(folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Both consumers as processes; they end politely with the block."""
    processes: dict[str, subprocess.Popen[bytes]] = {}

    try:
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for name, process in processes.items():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                console.print(f"[red]{name} did not end; its log is in {folder}[/]")


def _start(folder: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for name in GROUPS:
        with (folder / f"{name}.log").open("wb") as log:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "services.operator_cli", "run", name, "--port", "0"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )


async def _demo(
    settings: Settings,
    people: int,
    processes: dict[str, subprocess.Popen[bytes]],
    folder: Path | None,
    seed: int,
) -> None:
    async with connected(settings) as db:
        console.print("· migrating")
        await migrate(db)
        await ensure_topics(settings)
        await _insert_servers(db)
        offers = await _import(db)
        if folder is not None:
            console.print("· starting completion-recorder and sankey-aggregator")
            _start(folder, processes)
        now_ms = int(time.time() * 1000)
        traffic = simulate(offers, people, now_ms, seed)
        await _insert_people(db, traffic)
        console.print(
            f"· {people:,} people complete {traffic.distinct_events:,} steps; "
            f"{len(traffic.records):,} events reach Kafka, some twice, some late, some out of order\n"
        )
        await _send_and_watch(settings, db, traffic, processes)
        for walkthrough in dict.fromkeys(offer.walkthrough_id for offer in offers):
            await draw(db, console, walkthrough, now_ms)
        await _verdict(db)


async def _insert_servers(db: Connection) -> None:
    await db.execute(
        "insert into organization (id, name, slug, created_at) values ('org_demo', 'Demo', 'demo', now())"
        " on conflict do nothing"
    )
    await db.executemany(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ($1, 'org_demo', $2, $2, $2) on conflict do nothing",
        [(server, slug) for slug, server in _SERVERS.items()],
    )


async def _import(db: Connection) -> list[Offer]:
    """Both walkthroughs on both servers."""
    offers = []
    for file in sorted(_WALKTHROUGHS.glob("*.json")):
        export = read_export(file)
        for slug, server in _SERVERS.items():
            walkthrough = (await import_walkthrough(db, export, slug)).walkthrough_id
            rows = await db.fetch(
                "select id from walkthrough_steps where walkthrough_id = $1 order by display_order",
                walkthrough,
            )
            offers.append(Offer(server, walkthrough, [row["id"] for row in rows]))
        console.print(f"· imported [bold]{export.walkthrough.title}[/], {len(export.steps)} steps")
    return offers


async def _insert_people(db: Connection, traffic: Traffic) -> None:
    slugs = {server: slug for slug, server in _SERVERS.items()}
    await db.copy_records_to_table(
        "mcp_server_user", records=[(p.user_id,) for p in traffic.people], columns=["id"]
    )
    today = await db.fetchval("select current_date")
    await db.copy_records_to_table(
        "mcp_server_session",
        records=[(p.session_id, slugs[p.offer.server_id], today, p.user_id) for p in traffic.people],
        columns=["mcp_server_session_id", "mcp_server_slug", "connection_date", "mcp_server_user_id"],
    )


async def _send_and_watch(
    settings: Settings,
    db: Connection,
    traffic: Traffic,
    processes: dict[str, subprocess.Popen[bytes]],
) -> None:
    total = len(traffic.records)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", style="dim"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=8) as progress:
        tasks = {
            name: progress.add_task(name, total=total, rate="") for name in ("sent", "recorded", "counted")
        }
        began = time.monotonic()

        def show(name: str, done: int) -> None:
            rate = done / (time.monotonic() - began)
            if progress.tasks[tasks[name]].completed < done:
                progress.update(tasks[name], completed=done, rate=f"{rate:,.0f}/s")

        async def send() -> None:
            producer = make_producer(settings, linger_ms=5)
            await producer.start()
            try:
                for i in range(0, total, _SLICE):
                    part = traffic.records[i : i + _SLICE]
                    await _send(producer, settings.topic, part)
                    show("sent", i + len(part))
            finally:
                await producer.stop()

        sending = asyncio.create_task(send())
        while True:
            _check(processes)
            recorder, aggregator = await lags(settings)
            show("recorded", recorder.committed)
            show("counted", aggregator.committed)
            marks = await db.fetchval("select count(*) from sankey_dirty")
            if sending.done() and not (recorder.events or aggregator.events or marks):
                break
            if time.monotonic() - began > _PATIENCE_SECONDS:
                raise StepstreamError(
                    f"the consumers are not through after {_PATIENCE_SECONDS} s: do both of them run?"
                )
            await asyncio.sleep(0.1)
        await sending


async def _send(producer: AIOKafkaProducer, topic: str, records: list[tuple[bytes, bytes]]) -> None:
    await asyncio.gather(*[await producer.send(topic, value, key=key) for key, value in records])


def _check(processes: dict[str, subprocess.Popen[bytes]]) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise StepstreamError(
                f"{name} ended by itself with {process.returncode}; `stepstream demo --keep` keeps its log"
            )


async def _verdict(db: Connection) -> None:
    verdict = await verify(db)
    totals = verdict.totals
    console.print()
    console.rule("[bold]verify[/]", align="left")
    console.print(
        f"{totals['completions']:,} completions of {totals['journeys']:,} journeys, "
        f"{totals['transition_cells']:,} transition cells and {totals['ending_cells']:,} ending cells "
        "compared with SQL over the completions"
    )
    if verdict.differing:
        raise MismatchError(f"{verdict.differing:,} cells differ")
    console.print("[bold green]exact[/]: every cell is equal")

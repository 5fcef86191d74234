"""The demo from start to end: stack, schema, walkthroughs, services, agents, the picture, the verdict."""

import asyncio
import contextlib
import itertools
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.analytics_api import keys
from services.consumers.database_identity import Ours, read_identity
from services.demo.agents import Ending, Led, Transition, expected, lead_all
from services.demo.history import Past, past_month
from services.demo.patient import PatientDatabase, patient_database
from services.demo.people import Offer, Person, simulate
from services.demo.picture import SQL, draw
from services.operations.produce import ProduceResult, bulk_producer, send_values
from services.operations.status import status
from services.runtime.database import Connection, connected
from services.runtime.environment import load_settings
from services.runtime.errors import MismatchError, StepstreamError
from services.runtime.kafka import ensure_topics
from services.runtime.migrate import migrate
from services.runtime.settings import Settings
from services.sankey_aggregator.verify import verify
from services.walkthrough_mcp.exchange import import_walkthrough, read_export

console = Console(highlight=False)

_WALKTHROUGHS = Path(__file__).parent / "walkthroughs"
_SERVERS = {"hooks-docs": "srvhooks", "query-coach": "srvquery"}
_SERVICES = ("completion-recorder", "sankey-aggregator", "outbox-relay", "walkthrough-mcp", "analytics-api")
_ORGANIZATION = "org_demo"
#: People of the month before, for each one who comes now.
_PAST_PEOPLE = 4
#: Where the dashboard is, if nobody else is there.
_DASHBOARD_PORT = 8085
_PATIENCE_SECONDS = 120
_PAUSE_SECONDS = 3.0

_Processes = dict[str, subprocess.Popen[bytes]]
_Counts = tuple[Counter[Transition], Counter[Ending]]


class Journey(NamedTuple):
    """What somebody, known by tracking id or user id, did in a walkthrough, as whoever led them knows it."""

    who: str
    walkthrough_id: str
    steps: Sequence[str]


def run_on_running_services(people: int, *, once: bool) -> None:
    """Leads simulated people through services that run already, at the addresses of the environment.

    With `once`, nobody comes where the demo has been already.

    Raises:
        StepstreamError: Kafka or PostgreSQL cannot be reached, or the consumers do not get through.
        MismatchError: the Sankey is not exact.
    """
    console.print("[bold]Stepstream demo[/] on running services, with simulated people\n")
    settings = load_settings()
    _show_dashboard(settings, asyncio.run(_demo(settings, people, {}, None, once=once)))


def run_demo(folder: Path, people: int, *, keep: bool) -> None:
    """Shows the whole pipeline, and clears away what it started: in a terminal after Ctrl-C, else at once.

    Raises:
        StepstreamError: something did not come up, or stopped.
        MismatchError: the Sankey is not exact.
    """
    from services.devstack import down, up
    from services.devstack.processes import free_port

    began = time.monotonic()
    # Told to end, or its terminal closed: what it started must not stay. As with Ctrl-C, which a running
    # event loop takes for a wish to end; an exception of ours in the middle of it could be lost.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: signal.raise_signal(signal.SIGINT))
    console.print("[bold]Stepstream demo[/]: real Kafka, real PostgreSQL, all services, simulated people\n")
    down(folder, purge=True)
    try:
        addresses = up(folder, lambda text: console.print(f"· {text}"))
        os.environ |= addresses.environment() | {
            "STEPSTREAM_PUBLIC_URL": f"http://127.0.0.1:{free_port()}",
            "STEPSTREAM_API_PUBLIC_URL": f"http://127.0.0.1:{free_port(_DASHBOARD_PORT)}",
        }
        settings = load_settings()
        with _services(folder) as processes:
            key = asyncio.run(_demo(settings, people, processes, folder))
            console.print(f"\nDone in {time.monotonic() - began:.0f} s. Where to go next:")
            console.print("  README.md               what Stepstream is, and its commands")
            console.print("  docs/dashboard.md       what the dashboard shows, and how it is computed")
            console.print("  docs/operating.md       how to run it: settings, health, what to do when")
            console.print("  docker compose up       the same services as containers")
            if keep:
                console.print(
                    f'  eval "$(.venv/bin/stepstream stack env --dir {folder})"   this stack still runs'
                )
            else:
                console.print("  make demo ARGS=--keep   leaves the stack running for a look with psql")
            _show_dashboard(settings, key)
            if sys.stdin.isatty() and sys.stdout.isatty():
                console.print(
                    "It is live: somebody new comes every few seconds. [bold]Ctrl-C[/] ends everything."
                )
                with contextlib.suppress(KeyboardInterrupt):
                    asyncio.run(_go_on(settings, processes))
                console.print("\nending")
    finally:
        if not keep:
            down(folder, purge=True)


def _show_dashboard(settings: Settings, key: str) -> None:
    """Where the dashboard is; the key goes behind `#`, which no server sees and no log keeps."""
    console.print(f"\n[bold]Dashboard:[/] {settings.api_public_url.rstrip('/')}/#key={key}", soft_wrap=True)


@contextlib.contextmanager
def _services(folder: Path) -> Iterator[_Processes]:
    """The services as processes; they end politely with the block."""
    processes: _Processes = {}
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


def _start(settings: Settings, folder: Path, processes: _Processes) -> None:
    ports = {
        "walkthrough-mcp": settings.public_url.rpartition(":")[2],
        "analytics-api": settings.api_public_url.rpartition(":")[2],
    }
    for name in _SERVICES:
        port = ports.get(name, "0")
        with (folder / f"{name}.log").open("wb") as log:
            processes[name] = subprocess.Popen(
                [sys.executable, "-m", "stepstream", "run", name, "--port", port],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # Ctrl-C goes to the terminal's group: the services end after the agents, not under them.
                process_group=0,
            )


async def _demo(
    settings: Settings, people: int, processes: _Processes, folder: Path | None, *, once: bool = False
) -> str:
    """Returns a key for the dashboard."""
    async with connected(settings) as db:
        console.print("· migrating")
        await migrate(db)
        await ensure_topics(settings)
        await _insert_servers(db)
        offers = await _import(db)
        key = await keys.create(db, _ORGANIZATION, "demo", 7 * 86_400)
        if once and await db.fetchval(SQL["demo_was_here"], list(_SERVERS.values())):
            console.print("· the demo has been here: nobody comes again")
            return key.text
        if folder is not None:
            console.print(f"· starting {', '.join(_SERVICES)}")
            _start(settings, folder, processes)
        await _wait_until_ready(settings.public_url, "walkthrough-mcp", processes)
        server = await read_identity(db)
        before = await _counts(db)
        run = secrets.token_hex(4)
        past = await _send_the_past(settings, db, offers, people * _PAST_PEOPLE, run)
        crowd = simulate(offers, people, run=run)
        console.print(
            f"· {people:,} people and their agents, MCP clients over HTTP. Some people only look, some\n"
            "  stop, some come back later; some agents call twice; half-way the team moves a step\n",
            soft_wrap=True,
        )
    async with patient_database(settings) as database:
        records = await _lead_and_watch(settings, database, crowd, processes)
        now_ms = int(time.time() * 1000)
        for walkthrough in dict.fromkeys(offer.walkthrough_id for offer in offers):
            await database.ask(partial(draw, console=console, walkthrough=walkthrough, today_ms=now_ms))
        journeys = [
            *(Journey(led.person.tracking_id, led.person.offer.walkthrough_id, led.steps) for led in records),
            *(Journey(p.user, p.offer.walkthrough_id, p.steps) for p in past),
        ]
        await _verdict(settings, database, journeys, before, server)
    if folder is not None:
        await _wait_until_ready(settings.api_public_url, "analytics-api", processes)
    return key.text


async def _send_the_past(
    settings: Settings, db: Connection, offers: list[Offer], people: int, run: str
) -> list[Past]:
    """Sends what people did in the month before, as a producer of events would."""
    steps = {
        walkthrough: [row["id"] for row in await db.fetch(SQL["steps_in_order"], walkthrough)]
        for walkthrough in {offer.walkthrough_id for offer in offers}
    }
    past = past_month(offers, steps, _SERVERS, people, int(time.time() * 1000), run)
    await db.execute(SQL["insert_people"], [p.user for p in past], [p.started_at for p in past])
    sessions = [(session, p.offer.slug, at, p.user) for p in past for session, at in p.sessions.items()]
    await db.execute(SQL["insert_sessions"], *map(list, zip(*sessions, strict=True)))
    values = [event for p in past for event in p.events()]
    # As they would have come, each person's in order, and everybody's mixed.
    outcome = ProduceResult()
    async with bulk_producer(settings, "/stepstream/demo") as producer:
        await send_values(producer, ((f"event {n}", value) for n, value in enumerate(values)), outcome)
    if lost := outcome.not_sent.total:
        raise StepstreamError(f"{lost:,} events were not sent: {outcome.not_sent.first(1)[0].reason}")
    console.print(f"· {len(past):,} people of the month before, as {len(values):,} events from a producer")
    return past


async def _go_on(settings: Settings, processes: _Processes) -> None:
    """Leads somebody new every few seconds, until somebody ends it."""
    async with connected(settings) as db:
        offers = await _import(db, tell=False)
    for person in itertools.chain.from_iterable(
        simulate(offers, 100, run=secrets.token_hex(4), seed=secrets.randbelow(2**32))
        for _ in itertools.count()
    ):
        _check(processes)
        await lead_all(settings.public_url, [person], lambda _: None)
        await asyncio.sleep(_PAUSE_SECONDS)


async def _insert_servers(db: Connection) -> None:
    await db.execute(
        "insert into organization (id, name, slug, created_at) values ($1, 'Demo', 'demo', now())"
        " on conflict do nothing",
        _ORGANIZATION,
    )
    await db.executemany(
        "insert into mcp_servers (id, organization_id, name, product_platform_or_tool, slug)"
        " values ($1, $3, $2, $2, $2) on conflict do nothing",
        [(server, slug, _ORGANIZATION) for slug, server in _SERVERS.items()],
    )


async def _import(db: Connection, *, tell: bool = True) -> list[Offer]:
    """Both walkthroughs on both servers."""
    offers = []
    for file in sorted(_WALKTHROUGHS.glob("*.json")):
        export = read_export(file)
        for slug in _SERVERS:
            plan = await import_walkthrough(db, export, slug)
            offers.append(Offer(slug, plan.walkthrough_id, export.walkthrough.title, len(export.steps)))
        if tell:
            console.print(f"· imported [bold]{export.walkthrough.title}[/], {len(export.steps)} steps")
    return offers


async def _wait_until_ready(url: str, service: str, processes: _Processes) -> None:
    """Waits until a service answers; health is not for others than its own machine."""
    import httpx2

    deadline = time.monotonic() + _PATIENCE_SECONDS
    async with httpx2.AsyncClient(timeout=5) as http:
        while True:
            _check(processes)
            with contextlib.suppress(httpx2.HTTPError):
                if (await http.get(url)).status_code < 500:
                    return
            if time.monotonic() > deadline:
                raise StepstreamError(f"{service} does not answer at {url}")
            await asyncio.sleep(0.1)


async def _move_a_step(walkthroughs: set[str], db: Connection) -> None:
    """The team puts a later step in front of the third: from now on people go another way."""
    for walkthrough in walkthroughs:
        await db.execute(SQL["move_a_step"], walkthrough)


async def _journeys_counted(db: Connection) -> int:
    counted: int = await db.fetchval(SQL["journeys_counted"])
    return counted


async def _lead_and_watch(
    settings: Settings, database: PatientDatabase, crowd: list[Person], processes: _Processes
) -> list[Led]:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", style="dim"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=8) as progress:
        led = progress.add_task("led by agents", total=len(crowd), unit="people")
        counted = progress.add_task("counted", total=None, unit="journeys")
        counted_before = await database.ask(_journeys_counted)

        async def work() -> list[Led]:
            half = len(crowd) // 2
            records = await lead_all(settings.public_url, crowd[:half], lambda _: progress.advance(led))
            await database.ask(partial(_move_a_step, {person.offer.walkthrough_id for person in crowd}))
            return records + await lead_all(
                settings.public_url, crowd[half:], lambda _: progress.advance(led)
            )

        leading = asyncio.create_task(work())
        idle_since = time.monotonic()
        while True:
            _check(processes)
            now = await database.ask(_journeys_counted) - counted_before
            if now != progress.tasks[counted].completed:
                idle_since = time.monotonic()
            # What happened before today is being counted, too.
            progress.update(counted, completed=now, total=max(now, len(crowd)))
            if leading.done() and await _all_is_counted(settings, database):
                return await leading
            if time.monotonic() - idle_since > _PATIENCE_SECONDS:
                leading.cancel()
                raise StepstreamError(
                    f"nothing was counted for {_PATIENCE_SECONDS} s: do all of {', '.join(_SERVICES)} run?"
                )
            await asyncio.sleep(0.25)


async def _all_is_counted(settings: Settings, database: PatientDatabase) -> bool:
    """Whether nothing is on its way; what Kafka alone says may be from before a failover."""

    async def left(db: Connection) -> int:
        rows: int = await db.fetchval(SQL["left_to_relay_or_count"])
        return rows

    if await database.ask(left):
        return False
    seen = (await status(settings)).agreement
    return seen is not None and seen.is_current and not await database.ask(left)


def _check(processes: _Processes) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            raise StepstreamError(
                f"{name} ended by itself with {process.returncode}; `stepstream demo --keep` keeps its log"
            )


async def _counts(db: Connection) -> _Counts:
    transitions: Counter[Any] = Counter()
    for row in await db.fetch(SQL["all_transitions"]):
        *key, journeys = row
        transitions[tuple(key)] = journeys
    endings: Counter[Any] = Counter()
    for row in await db.fetch(SQL["all_endings"]):
        *key, journeys = row
        endings[tuple(key)] = journeys
    return transitions, endings


def _differing(want: Counter[Any], before: Counter[Any], after: Counter[Any]) -> int:
    """How many cells grew by something else than they should."""
    cells = want.keys() | before.keys() | after.keys()
    return sum(1 for cell in cells if after[cell] - before[cell] != want[cell])


async def _verdict(
    settings: Settings,
    database: PatientDatabase,
    journeys: Sequence[Journey],
    before: _Counts,
    server: Ours,
) -> None:
    after = await database.ask(_counts)
    verdict = await verify(settings)
    totals = verdict.totals
    steps = sum(len(journey.steps) for journey in journeys)
    console.print()
    console.rule("[bold]exact?[/]", align="left")
    console.print(
        f"the agents' and the producer's own records: {steps:,} steps of {len(journeys):,} "
        "people, compared with the Sankey\n"
        f"verify: {totals['completions']:,} completions of {totals['journeys']:,} journeys, "
        f"{totals['transition_cells']:,} transition cells and {totals['ending_cells']:,} ending cells "
        "compared with SQL"
    )
    differing = _differing_cells(journeys, before, after)
    if differing and (await database.ask(read_identity)).words != server.words:
        survived = await database.ask(partial(_survived, journeys))
        lost, people = steps - sum(len(j.steps) for j in survived), len(journeys) - len(survived)
        console.print(
            f"[yellow]another PostgreSQL server took over[/]: {lost:,} steps that people had done, and all "
            f"of {people:,} people, were in the old one alone and went with it; the rest is compared"
        )
        differing = _differing_cells(survived, before, after)
    if differing:
        raise MismatchError(f"{differing:,} cells differ from what the agents did")
    if verdict.differing:
        raise MismatchError(f"{verdict.differing:,} cells differ from the completions")
    console.print("[bold green]exact[/]: every cell is equal")


def _differing_cells(journeys: Sequence[Journey], before: _Counts, after: _Counts) -> int:
    transitions, endings = expected((journey.walkthrough_id, journey.steps) for journey in journeys)
    return _differing(transitions, before[0], after[0]) + _differing(endings, before[1], after[1])


async def _survived(journeys: Sequence[Journey], db: Connection) -> list[Journey]:
    """What is left of journeys, from the rows; a step that nobody recorded as done stays none."""
    rows = await db.fetch(SQL["rows_of_people"], [journey.who for journey in journeys])
    found: Mapping[tuple[str, str], list[str]] = {
        (row["who"], row["walkthrough_id"]): row["steps"] for row in rows
    }
    return [
        journey._replace(steps=[step for step in steps if step in journey.steps])
        for journey in journeys
        if (steps := found.get((journey.who, journey.walkthrough_id))) is not None
    ]

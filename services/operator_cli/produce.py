"""Sending events from a file: validated, keyed, acknowledged, and no line lost for another's fault."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from schemas import EventError, Rejection, StepCorrected, UserErased, decode
from services.runtime.errors import StepstreamError
from services.runtime.files import open_lines
from services.runtime.kafka import admin_client
from services.runtime.producer import producer
from services.runtime.settings import Settings

console = Console(stderr=True, highlight=False)

#: Events on their way at once: enough to fill batches, few enough to bound memory.
_IN_FLIGHT = 20_000
#: Bad lines that are told one by one.
_TOLD = 20


@dataclass
class ProduceResult:
    """What became of a file's lines."""

    sent: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    not_acknowledged: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0


async def produce(settings: Settings, file: str) -> ProduceResult:
    """Sends every line of an NDJSON file, or of standard input, that is an event of the contract.

    Raises:
        UsageError: there is no such file.
        StepstreamError: Kafka cannot be reached.
    """
    outcome = ProduceResult()
    began = time.monotonic()
    with open_lines(file) as (lines, size), _progress(size) as progress:
        async with bulk_producer(settings) as sender:
            await send_values(sender, settings.topic, _values(lines, progress), outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


@asynccontextmanager
async def bulk_producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A producer of large batches, once it is known that there is a topic.

    Raises:
        StepstreamError: Kafka cannot be reached, or has no such topic.
    """
    await _check_topic(settings)
    async with producer(settings, linger_ms=10, max_batch_size=256 * 1024) as sender:
        yield await sender.start()


def report(outcome: ProduceResult, *, as_json: bool) -> None:
    """Tells the outcome, and exits 1 when a line was not sent."""
    lost = outcome.bad + outcome.not_acknowledged
    if as_json:
        problems = [{"line": number, "error": reason} for number, reason in sorted(lost)]
        print(json.dumps({"sent": outcome.sent, "not_sent": problems}))  # noqa: T201 - the result
    rate = outcome.sent / outcome.seconds if outcome.seconds else 0
    console.print(f"{outcome.sent:,} events sent and acknowledged, {rate:,.0f} a second")
    if not lost:
        return
    for number, reason in sorted(lost)[:_TOLD]:
        console.print(f"  line {number}: {reason}", markup=False, soft_wrap=True)
    if len(lost) > _TOLD:
        console.print(f"  and {len(lost) - _TOLD:,} more; -o json lists them all")
    raise StepstreamError(
        f"{len(lost):,} of {outcome.sent + len(lost):,} lines were not sent. Mend them and send the "
        "file again: what is there already counts once"
    )


async def _check_topic(settings: Settings) -> None:
    async with admin_client(settings) as admin:
        if settings.topic not in await admin.list_topics():
            raise StepstreamError(f"Kafka has no topic {settings.topic}: run `stepstream migrate` first")


async def send_values(
    producer: AIOKafkaProducer, topic: str, values: Iterable[tuple[int, bytes]], outcome: ProduceResult
) -> None:
    """Sends each (line number, value) that is an event of the contract, and waits for the acknowledgements.

    Bounded in memory: no more than some thousands are on their way at once.
    """
    room = asyncio.Semaphore(_IN_FLIGHT)
    last_in_flight: set[asyncio.Future[object]] = set()

    def acknowledged(number: int, future: "asyncio.Future[object]") -> None:
        room.release()
        last_in_flight.discard(future)
        error = future.exception()
        if error is None:
            outcome.sent += 1
        else:
            outcome.not_acknowledged.append((number, f"Kafka refused it: {error}"))

    for number, value in values:
        try:
            event = decode(value, int(time.time() * 1000))
        except EventError as error:
            outcome.bad.append((number, f"{error.rejection}: {error}"))
            continue
        if isinstance(event, UserErased | StepCorrected):
            command = "erase" if isinstance(event, UserErased) else "completions"
            reason = f"{Rejection.NOT_ALLOWED}: `{event.type}` is sent by `stepstream {command}` alone"
            outcome.bad.append((number, reason))
            continue
        await room.acquire()
        try:
            future = await producer.send(topic, value, key=event.mcp_server_user_id.encode())
        except KafkaError as error:
            room.release()
            outcome.not_acknowledged.append((number, f"Kafka refused it: {error}"))
            continue
        last_in_flight.add(future)
        future.add_done_callback(lambda done, n=number: acknowledged(n, done))
    while last_in_flight:
        await asyncio.wait(set(last_in_flight))
        await asyncio.sleep(0)


def _values(lines: BinaryIO, progress: "_Bar") -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, start=1):
        progress.advance(len(line))
        if value := line.strip():
            yield number, value


class _Bar:
    """A progress bar over bytes; silent where there is no terminal."""

    def __init__(self, progress: Progress, size: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task("sending", total=size)

    def advance(self, size: int) -> None:
        self._progress.advance(self._task, size)


@contextmanager
def _progress(size: int | None) -> Iterator[_Bar]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, size)

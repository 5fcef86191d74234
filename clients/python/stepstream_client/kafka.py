"""Sending through Kafka: keyed by person, idempotent, acknowledged by all replicas, in bounded time."""

import asyncio
import contextlib
import dataclasses
import types
from collections.abc import Coroutine, Generator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Self, TypeVar

from stepstream_client.buffering import Accepted, Buffered, OnFailure, settle, unforeseen
from stepstream_client.contract import TOPIC
from stepstream_client.errors import ClientError, NotAcknowledged, NotInTime
from stepstream_client.events import Prepared, require_platform_ids
from stepstream_client.http import AsyncHttpProducer, check_address

try:
    from aiokafka import AIOKafkaProducer
    from aiokafka.errors import (
        KafkaError,
        KafkaTimeoutError,
        OutOfOrderSequenceNumber,
        ProducerFenced,
        UnknownProducerId,
    )
    from aiokafka.errors import ProducerClosed as Ended
    from aiokafka.structs import RecordMetadata
except ModuleNotFoundError as error:  # the base package goes without
    raise ModuleNotFoundError(
        "sending through Kafka needs aiokafka: install `stepstream-client[kafka]`", name=error.name
    ) from error

_T = TypeVar("_T")
MAX_SOURCE: Final = 100
_STOP_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.2
#: How long Kafka is left alone once it was away, in seconds, where events can go by HTTP.
_LEAVE_SECONDS: Final = 15.0
_SPECIFICATION: Final = ("ce_specversion", b"1.0")
_CONTENT: Final = ("content-type", b"application/json")

#: What a producer of aiokafka has come to, and a new one has not.
_OF_A_PRODUCER: Final = (
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
    Ended,
)


class _NoTopicError(KafkaError):
    """Kafka has no topic of this name, or shows it to nobody who signs in so."""


@dataclasses.dataclass(slots=True, eq=False)
class _Flight:
    """An event on its way through a producer of aiokafka, until the loop's clock is at `deadline`."""

    event: Prepared
    out: asyncio.Future[Accepted]
    deadline: float
    producer: AIOKafkaProducer | None = None


class AsyncProducer(Buffered):
    """Sends events to the topic.

        async with AsyncProducer("kafka:9092", source="/checkout") as producer:
            await producer.send(StepCompleted(...))

    A person's events are sent in the order in which they were given. While Kafka is away an event is tried
    for `timeout` seconds. Then it goes by HTTP where `http_url` and `http_key` are given; else it raises
    `NotAcknowledged`.

    Args:
        bootstrap_servers: Kafka's addresses, as a list or with commas.
        source: a short name of the service that sends; what is refused is shown under it.
        topic: the topic of events.
        http_url: Stepstream's API, for the time when Kafka is away.
        http_key: a key that may write, for `http_url`.
        timeout: how long an event may take through Kafka, in seconds.
        max_buffered: so many events are on their way at most; `send` then waits.
        on_failure: is told of events of `enqueue` that were not accepted; else they are logged.
        kafka: other arguments of `aiokafka.AIOKafkaProducer`, for TLS, sign-in, compression and batches.
    """

    def __init__(  # noqa: PLR0913 - options, by name
        self,
        bootstrap_servers: str | Sequence[str],
        *,
        source: str,
        topic: str = TOPIC,
        http_url: str | None = None,
        http_key: str | None = None,
        timeout: float = 30.0,
        max_buffered: int = 10_000,
        on_failure: OnFailure | None = None,
        **kafka: Any,
    ) -> None:
        super().__init__(max_buffered, on_failure)
        check_options(source, http_url, http_key)
        servers = bootstrap_servers.split(",") if isinstance(bootstrap_servers, str) else bootstrap_servers
        ours = {"bootstrap_servers": list(servers), "enable_idempotence": True, "acks": "all"}
        self._options = {"linger_ms": 5} | kafka | ours
        self._source = ("ce_source", source.encode())
        self._topic = topic
        self._timeout = timeout
        self._http = None if http_url is None else AsyncHttpProducer(http_url, http_key or "")
        self._in_order = asyncio.Lock()
        #: How many wait for the lock, or have it: while there are any, the next one waits behind them.
        self._queued = 0
        self._producer: AIOKafkaProducer | None = None
        self._flights: dict[_Flight, None] = {}  # in the order in which they were given
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._away_until = 0.0
        self._connect_from = 0.0
        self._problem: Exception | None = None

    async def start(self) -> None:
        """Connects, which else the first event does.

        Raises:
            NotAcknowledged: Kafka cannot be reached, or does not allow it, and HTTP was not asked for.
        """
        try:
            async with asyncio.timeout(self._timeout), self._in_order:
                made = await self._connected()
                await made.partitions_for(self._topic)
        except (KafkaError, OSError, TimeoutError) as problem:
            if self._http is None or not _may_pass(problem):
                what = "Kafka refused it" if isinstance(problem, _NoTopicError) else "Kafka cannot be reached"
                raise NotAcknowledged(f"{what}: {_told(problem)}") from problem

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    def _check(self, event: Prepared) -> None:
        require_platform_ids(event)

    async def _hand_over(self, event: Prepared, out: asyncio.Future[Accepted]) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_what_is_late())
        flight = _Flight(event, out, asyncio.get_running_loop().time() + self._timeout)
        await self._try(flight)

    async def _try(self, flight: _Flight) -> None:
        """Gives an event to aiokafka; where that fails now, it is tried again, or given up."""
        if self._http is not None and asyncio.get_running_loop().time() < self._away_until:
            self._start(self._give_up(flight), flight)
            return
        try:
            made, inner = await self._given(flight)
        except (KafkaError, OSError, TimeoutError) as problem:
            if _may_pass(problem):
                self._start(self._again(flight), flight)
            else:
                settle(flight.out, _refused(flight.event, problem))
            return
        flight.producer = made
        self._flights[flight] = None
        inner.add_done_callback(partial(self._answered, flight))

    async def _given(self, flight: _Flight) -> "tuple[AIOKafkaProducer, asyncio.Future[RecordMetadata]]":
        """The producer that has taken an event, and what tells of its acknowledgement.

        Most events find a batch with room: aiokafka takes them without waiting for anything. These need
        neither a clock nor a lock, which would take as long as all the rest.

        Raises:
            KafkaError: it was not taken.
            TimeoutError: it was not taken in time.
        """
        made, begun = self._producer, None
        if made is not None and not self._queued:
            sending = self._sending(made, flight.event)
            try:
                begun = sending, sending.send(None)
            except StopIteration as done:
                return made, done.value
        self._queued += 1
        try:
            async with asyncio.timeout_at(flight.deadline), self._in_order:
                if made is not None and begun is not None:
                    return made, await _rest_of(*begun)
                made = await self._connected()
                return made, await self._sending(made, flight.event)
        finally:
            self._queued -= 1

    def _sending(
        self, made: AIOKafkaProducer, event: Prepared
    ) -> "Coroutine[Any, Any, asyncio.Future[RecordMetadata]]":
        sending: Coroutine[Any, Any, asyncio.Future[RecordMetadata]] = made.send(
            self._topic, event.value, key=_key(event), headers=self._headers(event)
        )
        return sending

    async def _connected(self) -> AIOKafkaProducer:
        """The producer; made anew where there is none, but not for each event that waits for one.

        Raises:
            KafkaError: Kafka cannot be reached.
        """
        if self._producer is not None:
            return self._producer
        now = asyncio.get_running_loop().time()
        if self._problem is not None and now < self._connect_from:
            raise self._problem
        made = AIOKafkaProducer(**self._options)
        try:
            await made.start()
            await self._check_topic(made)
        except BaseException as problem:
            self._connect_from = asyncio.get_running_loop().time() + _PAUSE_SECONDS
            self._problem = problem if isinstance(problem, KafkaError) else self._problem
            await _stop(made)
            raise
        self._producer = made
        return made

    async def _check_topic(self, made: AIOKafkaProducer) -> None:
        """Looks whether the topic is there: aiokafka would ask again and again, with a log line each time.

        Raises:
            KafkaError: it is not, or nobody says it.
        """
        if self._topic not in (await made.client.fetch_all_metadata()).topics():
            raise _NoTopicError(f"there is no topic {self._topic}, or you may not see it")

    def _answered(self, flight: _Flight, inner: "asyncio.Future[RecordMetadata]") -> None:
        problem = None if inner.cancelled() else inner.exception()
        if flight not in self._flights:  # it goes another way meanwhile
            return
        self._flights.pop(flight, None)
        if not inner.cancelled() and problem is None:
            where = inner.result()
            settle(flight.out, Accepted(flight.event.event_id, "kafka", where.partition, where.offset))
            return
        # A batch that failed leaves a gap in the producer's numbers, and every later one would fail.
        self._discard(flight.producer)
        if problem is None or _may_pass(problem):
            self._start(self._again(flight), flight)
        else:
            settle(flight.out, _refused(flight.event, problem))

    async def _again(self, flight: _Flight) -> None:
        now = asyncio.get_running_loop().time()
        if now + _PAUSE_SECONDS >= flight.deadline:
            await self._give_up(flight)
            return
        await asyncio.sleep(_PAUSE_SECONDS)
        if not flight.out.done():
            await self._try(flight)

    async def _give_up(self, flight: _Flight) -> None:
        """Sends an event by HTTP, where that was asked for; else nobody has acknowledged it."""
        event, out = flight.event, flight.out
        if self._http is None:
            reason = f"Kafka did not acknowledge it within {self._timeout:g} s"
            if self._problem is not None:
                reason += f": {_told(self._problem)}"
            settle(out, NotInTime(reason, event.event_id))
            return
        now = asyncio.get_running_loop().time()
        if now >= self._away_until:
            self._away_until = now + _LEAVE_SECONDS
        try:
            settle(out, await self._http.send_prepared(event))
        except ClientError as problem:
            settle(out, problem)

    def _discard(self, producer: AIOKafkaProducer | None) -> None:
        if producer is not None and self._producer is producer:
            self._producer = None
            self._start(self._retire(producer))

    async def _retire(self, producer: AIOKafkaProducer) -> None:
        """Ends a producer that has failed; what it has not sent by then is tried again."""
        await _stop(producer)
        for flight in [f for f in self._flights if f.producer is producer]:
            self._flights.pop(flight, None)
            self._start(self._again(flight), flight)

    async def _end_what_is_late(self) -> None:
        """aiokafka tries an idempotent batch for ever: what is late is taken from it."""
        while True:
            await asyncio.sleep(min(0.5, self._timeout / 4))
            now = asyncio.get_running_loop().time()
            for flight in [flight for flight in self._flights if flight.deadline <= now]:
                self._flights.pop(flight, None)
                self._discard(flight.producer)
                self._start(self._give_up(flight), flight)

    def _start(self, work: Coroutine[Any, Any, None], flight: _Flight | None = None) -> None:
        """Goes on with an event, or with what no single one waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, flight))

    def _ended(self, flight: _Flight | None, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if flight is not None and not task.cancelled() and (problem := task.exception()) is not None:
            settle(flight.out, unforeseen(problem, flight.event.event_id))

    def _headers(self, event: Prepared) -> list[tuple[str, bytes]]:
        """CloudEvents 1.0 in binary mode."""
        at = datetime.fromtimestamp(event.at / 1000, UTC).isoformat(timespec="milliseconds")
        return [
            _SPECIFICATION,
            ("ce_id", event.event_id.encode()),
            ("ce_type", event.type.encode()),
            self._source,
            ("ce_time", at.encode()),
            _CONTENT,
        ]

    async def _end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        made, self._producer = self._producer, None
        if made is not None:
            await _stop(made)
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_STOP_SECONDS + 1)
        for task in set(self._tasks):
            task.cancel()
        if self._http is not None:
            await self._http.close()


@types.coroutine
def _rest_of(coroutine: Coroutine[Any, Any, _T], waits_for: Any) -> Generator[Any, Any, _T]:
    """What `await coroutine` gives, of one that has begun, and waits for this."""
    while True:
        try:
            sent = yield waits_for
        except BaseException as problem:  # noqa: BLE001 - it is the coroutine's
            resume = partial(coroutine.throw, problem)
        else:
            resume = partial(coroutine.send, sent)
        try:
            waits_for = resume()
        except StopIteration as done:
            found: _T = done.value
            return found


def check_options(source: str, http_url: str | None, http_key: str | None) -> None:
    """Looks at what a producer is made with.

    Raises:
        ValueError: it makes no sense.
    """
    if not source.isprintable() or not 1 <= len(source) <= MAX_SOURCE:
        raise ValueError(f"source: a short name of your service, 1 to {MAX_SOURCE} printable characters")
    if (http_url is None) != (http_key is None):
        raise ValueError("http_url and http_key go together")
    if http_url is not None:
        check_address(http_url, http_key, "http_url", "http_key")


def _key(event: Prepared) -> bytes:
    return (event.user or "").encode()


def _may_pass(problem: BaseException) -> bool:
    """Whether it helps to wait, or to begin anew with another producer."""
    if isinstance(problem, KafkaError):
        return bool(problem.retriable) or isinstance(problem, _OF_A_PRODUCER)
    return isinstance(problem, OSError | TimeoutError)


def _told(problem: BaseException) -> str:
    return str(problem) or type(problem).__name__


def _refused(event: Prepared, problem: BaseException) -> NotAcknowledged:
    return NotAcknowledged(f"Kafka refused it: {_told(problem)}", event.event_id)


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stops a producer in bounded time: its own stop waits for ever while Kafka is away."""
    with contextlib.suppress(TimeoutError, KafkaError):
        async with asyncio.timeout(_STOP_SECONDS):
            await producer.stop()
            return
    with contextlib.suppress(Exception):
        await producer._sender.close()  # noqa: SLF001 - what stop would do after the wait
    with contextlib.suppress(Exception):
        await producer.client.close()

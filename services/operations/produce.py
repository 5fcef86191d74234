"""Sending events of a file: validated, keyed, acknowledged, and no line lost for another's fault."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from aiokafka.errors import KafkaError

from services.operations.tally import Tally
from services.runtime.errors import StepstreamError, UsageError
from services.runtime.kafka import admin_client, connection, describe_topics, unreachable
from services.runtime.settings import Settings
from stepstream_client import Accepted, AsyncProducer, ClientError, InvalidEvent, NotInTime
from stepstream_client.events import prepare_for_kafka

#: Events on their way at once: enough to fill batches, few enough to bound memory.
_IN_FLIGHT: Final = 20_000
#: So many objects are made before Python looks for cycles among them.
_COLLECT_AFTER: Final = 50_000
#: How long Kafka may be away, in seconds, before no more is sent.
_TIMEOUT_SECONDS: Final = 120.0
#: Whoever ends a command waits so long, in seconds, for what is on its way.
_LAST_SECONDS: Final = 10.0
#: The kind of what Kafka did not take.
NOT_ACKNOWLEDGED: Final = "not acknowledged"
#: A value and where it is, for people: `line 3`.
Value = tuple[str, bytes]


@dataclass
class ProduceResult:
    """What became of the values of a file.

    `seconds` are those in which it sent, without what it took to begin and to wait for input; `read_to` is
    the last place that was read.
    """

    sent: int = 0
    good: int = 0
    not_sent: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    read_to: str = ""
    is_kafka_away: bool = False

    @property
    def rate(self) -> float:
        """Acknowledged events a second."""
        return self.sent / self.seconds if self.seconds else 0.0

    def refuse_without_kafka(self) -> None:
        """Ends what goes on.

        Raises:
            StepstreamError: an event was not acknowledged in all the time that it had.
        """
        if self.is_kafka_away:
            raise StepstreamError("Kafka is away: nothing was sent any more")


@asynccontextmanager
async def bulk_producer(settings: Settings, source: str) -> AsyncIterator[AsyncProducer]:
    """A producer of large batches, once it is known that there is a topic.

    Where the block is left by an error, or because somebody ends it, what is on its way is waited for some
    seconds more.

    Raises:
        UsageError: the source is no name.
        StepstreamError: Kafka cannot be reached, or has no such topic.
    """
    sender = _producer(settings, source)
    await _check_topic(settings)
    with _rare_collection():
        try:
            await sender.start()
            yield sender
        except BaseException:
            await sender.close(_LAST_SECONDS)
            raise
        await sender.close()


@contextmanager
def _rare_collection() -> Iterator[None]:
    """Lets Python look for cycles less often.

    Of events on their way, thousands at once, it would look at each again and again: a third of the time.
    They make none.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def _producer(settings: Settings, source: str) -> AsyncProducer:
    try:
        return AsyncProducer(
            source=source,
            topic=settings.topic,
            timeout=_TIMEOUT_SECONDS,
            max_buffered=_IN_FLIGHT,
            on_failure=lambda *_: None,  # it is told of each
            linger_ms=10,
            max_batch_size=256 * 1024,
            **connection(settings),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


async def _check_topic(settings: Settings) -> None:
    async with admin_client(settings) as admin:
        try:
            await describe_topics(admin, settings.topic)
        except KafkaError as error:
            raise unreachable(settings, error) from error


async def send_values(producer: AsyncProducer, values: Iterable[Value], outcome: ProduceResult) -> None:
    """Sends each value that is an event of the contract, and waits for the acknowledgements."""
    await send_batches(producer, _at_once(values), outcome)


async def _at_once(values: Iterable[Value]) -> AsyncIterator[Iterable[Value]]:
    yield values


async def send_batches(
    producer: AsyncProducer, batches: AsyncIterator[Iterable[Value]], outcome: ProduceResult
) -> None:
    """As `send_values`, of values that come by and by.

    Bounded in memory: no more than some thousands are on their way at once.

    Raises:
        StepstreamError: Kafka stays away: the rest is not sent.
    """
    clock = _Clock(outcome)
    async for batch in batches:
        clock.go_on()
        for place, value in batch:
            outcome.read_to = place
            try:
                out = await producer.begin(value)
            except InvalidEvent as error:
                outcome.not_sent.add(error.rejection, place, str(error))
                continue
            outcome.good += 1
            out.add_done_callback(partial(_answered, outcome, place))
            clock.go_on()
            outcome.refuse_without_kafka()
        clock.pause()
    clock.go_on()
    await producer.flush()
    clock.pause()
    outcome.refuse_without_kafka()


def check_values(values: Iterable[Value], outcome: ProduceResult) -> None:
    """Holds values against the contract, and sends none."""
    for place, value in values:
        outcome.read_to = place
        try:
            prepare_for_kafka(value)
        except InvalidEvent as error:
            outcome.not_sent.add(error.rejection, place, str(error))
        else:
            outcome.good += 1


def _answered(outcome: ProduceResult, place: str, out: "asyncio.Future[Accepted]") -> None:
    error = None if out.cancelled() else out.exception()
    if isinstance(error, ClientError):
        outcome.not_sent.add(NOT_ACKNOWLEDGED, place, str(error))
        outcome.is_kafka_away |= isinstance(error, NotInTime)
    elif not out.cancelled():
        outcome.sent += 1


class _Clock:
    """Adds to the seconds of an outcome, as it goes on."""

    def __init__(self, outcome: ProduceResult) -> None:
        self._outcome = outcome
        self._since: float | None = None

    def go_on(self) -> None:
        """The time since it last went on counts."""
        self.pause()
        self._since = time.monotonic()

    def pause(self) -> None:
        """What follows does not count."""
        if self._since is not None:
            self._outcome.seconds += time.monotonic() - self._since
            self._since = None

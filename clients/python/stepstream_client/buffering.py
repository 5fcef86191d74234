"""What both producers share: room for so many events, what became of each, and a clean end."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

from stepstream_client.errors import BufferFull, ClientError, NotAcknowledged, ProducerClosed
from stepstream_client.events import Prepared, Sendable, listed, prepare

log = logging.getLogger("stepstream_client")


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that is safe: `through` is `kafka`, or `outbox` while Stepstream's Kafka is away."""

    event_id: str
    through: str
    partition: int | None = None
    offset: int | None = None


#: What became of an event that somebody waits for.
Verdict: TypeAlias = Accepted | ClientError
#: Is told of an event, by its id, that nobody waits for and that was not accepted.
OnFailure: TypeAlias = Callable[[str | None, ClientError], object]


def log_failure(event_id: str | None, error: ClientError) -> None:
    """Writes a line for an event that was not accepted."""
    log.error("event %s was not accepted: %s", event_id, error)


class Buffered(ABC):
    """A producer of at most `max_buffered` events at once: who gives it more waits for room."""

    def __init__(self, max_buffered: int, on_failure: OnFailure | None) -> None:
        self._max_buffered = max_buffered
        self._room = asyncio.Semaphore(max_buffered)
        self._handing: set[asyncio.Task[None]] = set()
        #: How many of these tasks have not begun: while there are any, the next event begins behind them.
        self._unbegun = 0
        self._on_failure = on_failure or log_failure
        self._pending: dict[asyncio.Future[Accepted], str] = {}
        self._closed = False

    async def send(self, event: Sendable) -> Accepted:
        """Sends an event, and returns once it is acknowledged.

        Raises:
            InvalidEvent: it is none that counts.
            NotAcknowledged: nobody acknowledged it within the time; sending it again is safe.
        """
        return await self.send_prepared(prepare(event))

    async def send_prepared(self, event: Prepared) -> Accepted:
        """As `send`, of an event that was judged before."""
        return await (await self._begin(event))

    async def send_many(self, events: Sendable | Iterable[Sendable]) -> list[Verdict]:
        """Sends events, and returns what became of each, in order: a bad one harms no other."""
        begun: list[asyncio.Future[Accepted] | ClientError] = []
        for event in listed(events):
            try:
                begun.append(await self._begin(prepare(event)))
            except ClientError as error:
                begun.append(error)
        return [one if isinstance(one, ClientError) else await _verdict(one) for one in begun]

    def enqueue(self, event: Sendable) -> asyncio.Future[Accepted]:
        """Takes an event at once; what becomes of it is in the future.

        Where it is not accepted, `on_failure` is told as well, so that the future may be let go.

        Raises:
            InvalidEvent: it is none that counts.
            BufferFull: there is no room; `begin` waits for it.
            ProducerClosed: the producer was closed.
        """
        prepared = prepare(event)
        self._check(prepared)
        if self._closed:
            raise ProducerClosed("the producer is closed")
        if self._room.locked():
            raise BufferFull(f"{self._max_buffered} events are on their way: `begin` waits for room")
        with contextlib.suppress(StopIteration):  # where there is room, nothing is waited for
            self._room.acquire().send(None)
        return self._hand_over_later(prepared, self._taken(prepared, self._left_alone))

    async def begin(self, event: Sendable) -> asyncio.Future[Accepted]:
        """As `enqueue`, but where there is no room it waits for it.

        Raises:
            InvalidEvent: it is none that counts.
            ProducerClosed: the producer was closed.
        """
        return await self._begin(prepare(event), self._left_alone)

    async def flush(self) -> None:
        """Waits until nothing is on its way: each event is acknowledged, or its failure was told."""
        while self._pending:
            await asyncio.wait(set(self._pending))

    async def close(self, within: float | None = None) -> None:
        """Waits as `flush` does, and ends the connections; it may be called again.

        What is on its way after `within` seconds, where they are given, is not acknowledged.
        """
        self._closed = True
        try:
            async with asyncio.timeout(within):
                await self.flush()
        except TimeoutError:
            for out, event_id in list(self._pending.items()):
                settle(out, NotAcknowledged("nobody acknowledged it before the end", event_id))
        for task in self._handing:
            task.cancel()
        await self._end()
        await asyncio.sleep(0)  # so that whoever asked to be called has been

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _begin(
        self, event: Prepared, left: Callable[[asyncio.Future[Accepted]], object] | None = None
    ) -> asyncio.Future[Accepted]:
        """Hands an event over once there is room; `left` is called once it is answered.

        Raises:
            ClientError: it was not taken.
        """
        self._check(event)
        await self._room.acquire()
        if self._closed:
            self._room.release()
            raise ProducerClosed("the producer is closed")
        out = self._taken(event, left or self._left)
        if self._unbegun:
            return self._hand_over_later(event, out)
        try:
            await self._hand_over(event, out)
        except BaseException:
            out.cancel()
            raise
        return out

    def _taken(
        self, event: Prepared, left: Callable[[asyncio.Future[Accepted]], object]
    ) -> asyncio.Future[Accepted]:
        """What an event that has room will be answered with; `left` is called once it is."""
        out: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
        self._pending[out] = event.event_id
        out.add_done_callback(left)
        return out

    def _hand_over_later(self, event: Prepared, out: asyncio.Future[Accepted]) -> asyncio.Future[Accepted]:
        """Hands an event over by a task: those begin in the order in which they are made."""
        self._unbegun += 1
        task = asyncio.create_task(self._handed_over(event, out))
        self._handing.add(task)
        task.add_done_callback(self._handing.discard)
        return out

    async def _handed_over(self, event: Prepared, out: asyncio.Future[Accepted]) -> None:
        self._unbegun -= 1
        try:
            await self._hand_over(event, out)
        except Exception as problem:  # noqa: BLE001 - whatever it is, nobody is to wait for ever
            settle(out, unforeseen(problem, event.event_id))

    def _left(self, out: asyncio.Future[Accepted]) -> None:
        self._pending.pop(out, None)
        self._room.release()

    def _left_alone(self, out: asyncio.Future[Accepted]) -> None:
        """As `_left`, of an event that nobody may wait for."""
        event_id = self._pending.get(out)
        self._left(out)
        if not out.cancelled() and isinstance(error := out.exception(), ClientError):
            self._on_failure(event_id, error)

    @abstractmethod
    def _check(self, event: Prepared) -> None:
        """Refuses what this producer cannot send.

        Raises:
            InvalidEvent: it cannot.
        """

    @abstractmethod
    async def _hand_over(self, event: Prepared, out: asyncio.Future[Accepted]) -> None:
        """Begins to send an event; `out` gets what became of it, in bounded time."""

    @abstractmethod
    async def _end(self) -> None:
        """Ends connections, in bounded time."""


async def _verdict(out: asyncio.Future[Accepted]) -> Verdict:
    try:
        return await out
    except ClientError as error:
        return error


def settle(out: asyncio.Future[Accepted], verdict: Verdict) -> None:
    """Gives a future what became of its event, unless whoever waited has gone."""
    if out.done():
        return
    if isinstance(verdict, ClientError):
        out.set_exception(verdict)
    else:
        out.set_result(verdict)


def unforeseen(problem: BaseException, event_id: str) -> NotAcknowledged:
    """What becomes of an event when something went wrong that nobody thought of."""
    return NotAcknowledged(f"something went wrong: {type(problem).__name__} {problem}".strip(), event_id)

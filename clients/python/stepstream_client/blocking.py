"""The producers for code without an event loop: threads of Django or Flask, scripts, workers."""

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from stepstream_client.buffering import Accepted, Buffered, OnFailure, Verdict, log_failure
from stepstream_client.contract import TOPIC
from stepstream_client.errors import ClientError, ProducerClosed, Refused
from stepstream_client.events import Prepared, Sendable, listed, prepare
from stepstream_client.http import AsyncHttpProducer, Person, RegisteredSession, Session, check_address

if TYPE_CHECKING:
    from stepstream_client.kafka import AsyncProducer

_STOP_SECONDS: Final = 5.0
_P = TypeVar("_P", bound=Buffered)
_T = TypeVar("_T")
_open: "weakref.WeakSet[Blocking[Any]]" = weakref.WeakSet()
#: Loops of the process that forked this one. They are never closed here: epoll would be the parent's as well.
_of_parents: list[Any] = []


class _Loop(Generic[_P]):
    """A thread with an event loop and a producer on it."""

    def __init__(self, producer: _P) -> None:
        self.producer = producer
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="stepstream-client", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _T]) -> "Future[_T]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.submit(work).result()

    def stop(self) -> None:
        self.run(_cancel_the_rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Blocking(Generic[_P]):
    """A producer for any number of threads, whose work is done by one thread of its own.

    The thread begins with the first event, so a producer may be made before a server forks its workers; in a
    forked process it begins anew, and what the parent had not sent is the parent's. At the end of the program
    what is on its way is waited for.
    """

    def __init__(self, make: Callable[[], _P], max_buffered: int, on_failure: OnFailure | None) -> None:
        self._make = make
        self._max_buffered = max_buffered
        self._on_failure = on_failure or log_failure
        self._running: _Loop[_P] | None = None
        self._closed = False
        self._begin_anew()
        _open.add(self)

    def send(self, event: Sendable) -> Accepted:
        """Sends an event, and returns once it is acknowledged.

        Raises:
            InvalidEvent: it is none that counts.
            NotAcknowledged: nobody acknowledged it within the time; sending it again is safe.
        """
        return self._submit(prepare(event)).result()

    def send_many(self, events: Sendable | Iterable[Sendable]) -> list[Verdict]:
        """Sends events, and returns what became of each, in order: a bad one harms no other."""
        begun: list[Future[Accepted] | ClientError] = []
        for event in listed(events):
            try:
                begun.append(self._submit(prepare(event)))
            except ClientError as error:
                begun.append(error)
        return [one if isinstance(one, ClientError) else _verdict(one) for one in begun]

    def enqueue(self, event: Sendable) -> "Future[Accepted]":
        """Takes an event once there is room; what becomes of it is in the future.

        Where it is not accepted, `on_failure` is told as well, so that the future may be let go.

        Raises:
            InvalidEvent: it is none that counts.
        """
        prepared = prepare(event)
        out = self._submit(prepared)
        out.add_done_callback(lambda done: self._tell(prepared.event_id, done))
        return out

    def flush(self) -> None:
        """Waits until nothing is on its way: each event is acknowledged, or its failure was told."""
        with self._lock:
            if (running := self._running) is None:
                return
            flushed = running.submit(running.producer.flush())
        flushed.result()

    def close(self, within: float | None = None) -> None:
        """Waits as `flush` does, and ends the thread; it may be called again.

        What is on its way after `within` seconds, where they are given, is not acknowledged.
        """
        with self._lock:
            running, self._running, self._closed = self._running, None, True
        if running is not None:
            running.run(running.producer.close(within))
            running.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, event: Prepared) -> "Future[Accepted]":
        self._room.acquire()
        try:
            out = self._begin(lambda producer: producer.send_prepared(event))
        except BaseException:
            self._room.release()
            raise
        out.add_done_callback(lambda _: self._room.release())
        return out

    def _begin(self, work: Callable[[_P], Coroutine[Any, Any, _T]]) -> "Future[_T]":
        """Begins work of the producer: before `close` ends it, or not at all.

        Raises:
            ProducerClosed: it was closed.
        """
        with self._lock:
            if self._closed:
                raise ProducerClosed("the producer is closed")
            if self._running is None:
                self._running = _Loop(self._make())
            return self._running.submit(work(self._running.producer))

    def _wait(self, work: Callable[[_P], Coroutine[Any, Any, _T]]) -> _T:
        """Does work of the producer, and returns what comes of it.

        Raises:
            ProducerClosed: it was closed, before or meanwhile.
        """
        begun = self._begin(work)
        try:
            return begun.result()
        except CancelledError:
            raise ProducerClosed("the producer was closed meanwhile") from None

    def _tell(self, event_id: str, out: "Future[Accepted]") -> None:
        if not out.cancelled() and isinstance(error := out.exception(), ClientError):
            self._on_failure(event_id, error)

    def _begin_anew(self) -> None:
        """Also after a fork: the thread, its connections and who held the lock stayed with the parent."""
        if self._running is not None:
            _of_parents.append(self._running)
        self._running = None
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(self._max_buffered)


class Producer(Blocking["AsyncProducer"]):
    """Sends events to the topic, from any thread; the arguments are those of `AsyncProducer`.

    producer = Producer("kafka:9092", source="/checkout")
    producer.send(StepCompleted(...))
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        *,
        source: str,
        topic: str = TOPIC,
        max_buffered: int = 10_000,
        on_failure: OnFailure | None = None,
        **more: Any,
    ) -> None:
        from stepstream_client import kafka

        def make() -> "AsyncProducer":
            return kafka.AsyncProducer(
                bootstrap_servers, source=source, topic=topic, max_buffered=max_buffered, **more
            )

        kafka.check_options(source, more.get("http_url"), more.get("http_key"))
        super().__init__(make, max_buffered, on_failure)


class HttpProducer(Blocking[AsyncHttpProducer]):
    """Sends events by HTTP, from any thread; the arguments are those of `AsyncHttpProducer`.

    producer = HttpProducer("https://stepstream.example", key)
    producer.send(StepCompleted(distinct_id="u-1", session_id="s-1", ...))
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        max_buffered: int = 10_000,
        on_failure: OnFailure | None = None,
        **more: Any,
    ) -> None:
        check_address(url, key)
        super().__init__(
            lambda: AsyncHttpProducer(url, key, max_buffered=max_buffered, **more), max_buffered, on_failure
        )

    def register_people(self, distinct_ids: str | Iterable[str]) -> list[Person | Refused]:
        """As that of `AsyncHttpProducer`."""
        return self._wait(lambda producer: producer.register_people(distinct_ids))

    def register_sessions(self, sessions: Session | Iterable[Session]) -> list[RegisteredSession | Refused]:
        """As that of `AsyncHttpProducer`."""
        return self._wait(lambda producer: producer.register_sessions(sessions))


def _verdict(out: "Future[Accepted]") -> Verdict:
    try:
        return out.result()
    except ClientError as error:
        return error


async def _cancel_the_rest() -> None:
    """Ends what still runs on a loop that is about to stop, so that no thread waits for it for ever."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    if rest:
        await asyncio.wait(rest, timeout=_STOP_SECONDS)


def _close_all() -> None:
    for producer in list(_open):
        with contextlib.suppress(ClientError):
            producer.close()


def _after_fork() -> None:
    for producer in list(_open):
        producer._begin_anew()  # noqa: SLF001 - of this module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
# Before the executor ends, by which a connection is looked up: with `atexit` it would be too late.
getattr(threading, "_register_atexit", atexit.register)(_close_all)

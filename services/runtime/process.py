"""The process around a service: its HTTP port, signals, the first failure, and how it ends."""

import abc
import asyncio
import contextlib
import faulthandler
import functools
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic, Literal, Protocol, TypeVar

import uvicorn
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from services.runtime import crashpoints
from services.runtime.bounds import trusted_proxies
from services.runtime.connections import Connections, Limits
from services.runtime.database import Pool
from services.runtime.database_errors import explained, without_values
from services.runtime.errors import ConfigurationError, StepstreamError
from services.runtime.http import health_application, health_routes, problem_of_database
from services.runtime.http_protocol import TimedProtocol
from services.runtime.refusals import Refusals
from services.runtime.settings import Settings
from services.runtime.telemetry import BUILD, HTTP_CONNECTIONS
from services.runtime.version import VERSION

log = logging.getLogger("stepstream.process")

#: Between two looks at whether the service lives.
_WATCH_SECONDS = 5.0
#: What ending takes beside the batch in hand: connections to close, a group to leave.
_END_SECONDS = 20.0
#: How long work beside the service may take to be cancelled.
_CANCEL_SECONDS = 5.0


class Stopped(Exception):  # noqa: N818 - no error: the process ends
    """The process is asked to end."""


class Handler(Protocol):
    """What a service does its work with, while it runs: at least a database."""

    @property
    def pool(self) -> Pool:
        """Connections to it."""


H_co = TypeVar("H_co", bound=Handler, covariant=True)


class Process(abc.ABC, Generic[H_co]):
    """Serves an ASGI application until SIGTERM, SIGINT or a failure.

    Each service has its own, whose `opened` makes its handler; the application's lifespan is `running`.

    Whoever runs in the process looks at `stopping`; `fail` stops it with an error, whose exit code it gets.
    A watch looks at `problem_of_life` all the time, and ends what lives no more.
    """

    def __init__(self, service: str, settings: Settings) -> None:
        BUILD.labels(VERSION).set(1)
        self.service = service
        self.settings = settings
        self.failure: BaseException | None = None
        self._handler: H_co | None = None
        self.refusals = Refusals(settings.database_refused_seconds)
        self.stopping = asyncio.Event()
        self._drained_by: float | None = None
        self.address = ""
        self.health_address = ""
        self._server: uvicorn.Server | None = None

    # --- its handler ---

    @abc.abstractmethod
    def opened(self) -> contextlib.AbstractAsyncContextManager[H_co]:
        """Opens what the service needs, pool and producer and all, and gives its handler."""

    async def prepare(self, pool: Pool) -> None:
        """Looks for what else must be there before the service runs."""

    @property
    def is_open(self) -> bool:
        """Whether there is a handler."""
        return self._handler is not None

    @property
    def handler(self) -> H_co:
        """What `opened` gave.

        Raises:
            RuntimeError: it has given nothing yet.
        """
        if self._handler is None:
            raise RuntimeError(f"{self.service} has not started")
        return self._handler

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[H_co]:
        """Gives the handler while the block lasts: the application's lifespan. A failure stops it all."""
        try:
            async with self.opened() as handler:
                await self.prepare(handler.pool)
                self._handler = handler
                self.log_start()
                yield handler
        except BaseException as error:
            self.fail(_first(error))
            raise
        self.log_end()

    # --- what it serves ---

    @abc.abstractmethod
    def application(self) -> ASGIApp:
        """What the HTTP port serves."""

    async def run(self, port: int, health_port: int | None = None) -> int:
        """Runs until SIGTERM, SIGINT or a failure; returns the exit code.

        Args:
            port: where it serves; 0 is any that is free.
            health_port: where health and metrics have a port of their own, if they have; 0 as well.

        Raises:
            ConfigurationError: a port cannot be had.
        """
        health = None if health_port is None else health_application(self.service, self.health_routes())
        return await self.serve(self.application(), port, health, health_port or 0)

    # --- health ---

    def problem_of_life(self) -> str | None:
        """What keeps the service from ever going on by itself, if anything does."""
        return self.refusals.problem() if self.failure is None else f"it stops: {self.failure}"

    async def problem_of_readiness(self) -> str | None:
        """What keeps the service from working: no database, or pending migrations."""
        return await problem_of_database(self.handler.pool) if self.is_open else "starting"

    def remark(self) -> str | None:
        """What a service that is ready leaves undone."""
        return None

    def health_routes(self) -> list[BaseRoute]:
        """Health and metrics."""
        return health_routes(self.problem_of_life, self.problem_of_readiness, self.remark)

    # --- how it ends ---

    def fail(self, error: BaseException) -> None:
        """Stops the service with this error; only the first one counts."""
        if self.failure is None:
            if isinstance(error, Exception):
                error = explained(error)
                without_values(error)
            self.failure = error
            log.critical(
                "%s stops: %s",
                self.service,
                error,
                exc_info=None if isinstance(error, StepstreamError) else error,
            )
        self.stop()

    def stop(self) -> None:
        """Ends the service politely."""
        self._begin_to_drain()
        if self._server is not None:
            self._server.should_exit = True

    def _begin_to_drain(self) -> None:
        if self._drained_by is None:
            self._drained_by = time.monotonic() + self.settings.drain_timeout_seconds
        self.stopping.set()

    @property
    def seconds_to_drain(self) -> float:
        """How long what is in hand may still take: all of it together has the time to drain, once."""
        if self._drained_by is None:
            return self.settings.drain_timeout_seconds
        return max(0.0, self._drained_by - time.monotonic())

    async def _poll(self) -> None:
        try:
            await self.poll()
        except Exception as error:  # noqa: BLE001 - whatever it is, the service is not whole without it
            self.fail(error)

    async def poll(self) -> None:
        """Looks at what takes a round trip to see; called again and again while the service runs."""

    def log_start(self) -> None:
        """Says that the service runs, and where its HTTP port is."""
        if self.health_address:
            log.info(
                "%s starts at %s; health and metrics at %s", self.service, self.address, self.health_address
            )
        else:
            log.info("%s starts; health and metrics at %s", self.service, self.address)

    def log_end(self) -> None:
        """Says that the service ended politely."""
        if self.failure is None:
            log.info("%s ended", self.service)

    async def until(self, event: asyncio.Event, seconds: float | None = None) -> None:
        """Waits for the event, at most so many seconds.

        Raises:
            Stopped: the process ends.
        """
        waits = [asyncio.create_task(e.wait()) for e in (self.stopping, event)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.stopping.is_set():
            raise Stopped

    async def sleep(self, seconds: float) -> None:
        """Sleeps.

        Raises:
            Stopped: the process ends.
        """
        await self.until(asyncio.Event(), seconds)

    @contextlib.asynccontextmanager
    async def beside(self, work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Runs `work`, which ends soon after `stopping` is set, or is cancelled.

        When it fails, the service stops.
        """

        async def supervised() -> None:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the service is not whole without it
                self.fail(error)

        task = asyncio.create_task(supervised())
        try:
            yield
        finally:
            self._begin_to_drain()
            await asyncio.wait({task}, timeout=self.seconds_to_drain)
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=_CANCEL_SECONDS)

    async def _watch(self) -> None:
        """Ends the service when it lives no more; a blocked event loop is ended by a thread.

        The thread is the one of `faulthandler`: it writes where every thread was, and exits with 1.
        """
        bound = self.settings.stuck_seconds
        looking: asyncio.Task[None] | None = None
        while not self.stopping.is_set():
            faulthandler.dump_traceback_later(bound + _WATCH_SECONDS, exit=True, file=2)
            if problem := self.problem_of_life():
                self.fail(StepstreamError(f"{problem}. A restart reads again what was not committed"))
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), min(_WATCH_SECONDS, bound / 4))
            if looking is None or looking.done():  # a look may take long, this loop may not
                looking = asyncio.create_task(self._poll())
        if looking is not None:
            looking.cancel()
        # The end takes as long as the batch in hand may, and not for ever.
        limit = self.settings.drain_timeout_seconds + _END_SECONDS
        faulthandler.dump_traceback_later(limit, exit=True, file=2)

    def _telling_of_lifespan(self, app: ASGIApp) -> ASGIApp:
        """The application, whose start and end do not fail unseen: uvicorn's words on that are not logged."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                if scope["type"] == "lifespan":
                    self.fail(error)
                raise

        return watched

    async def serve(
        self, app: ASGIApp, port: int, health: ASGIApp | None = None, health_port: int = 0
    ) -> int:
        """Runs until the end; returns the exit code.

        Args:
            app: what the service answers with.
            port: where.
            health: health and metrics, where they have a port of their own.
            health_port: which one; 0 is any that is free.

        Raises:
            ConfigurationError: a port cannot be had.
        """
        _calm_the_garbage_collector()
        crashpoints.arm(self.settings.crash_at)
        sock = _listen(self.settings.http_host, port, "--port")
        self.address = _address_of(sock)
        connections = Connections(self.service, Limits.of(self.settings), trusted_proxies())
        HTTP_CONNECTIONS.labels(self.service).set_function(connections.count)
        self._server = _Server(server_config(self._telling_of_lifespan(app), connections, lifespan="on"))
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self.stop)
        async with self._serving_health(health, health_port):
            watch = asyncio.create_task(self._watch())
            if not self.stopping.is_set():
                try:
                    await self._server.serve(sockets=[sock])
                except SystemExit as error:  # uvicorn's way to say that the start failed
                    self.failure = self.failure or error
            self._begin_to_drain()
            await watch
        faulthandler.cancel_dump_traceback_later()
        if self.failure is None:
            return 0
        return self.failure.exit_code if isinstance(self.failure, StepstreamError) else 1

    @contextlib.asynccontextmanager
    async def _serving_health(self, app: ASGIApp | None, port: int) -> AsyncIterator[None]:
        """Serves health and metrics, if they have a port of their own, from the start to the end."""
        if app is None:
            yield
            return
        sock = _listen(self.settings.health_host, port, "--health-port")
        self.health_address = _address_of(sock)
        connections = Connections(self.service, Limits.of_health(self.settings), trusted_proxies())
        server = _Server(server_config(app, connections, lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield
        finally:
            server.should_exit = True
            await task


def _first(error: BaseException) -> BaseException:
    """The first error of a group: FastStream starts its brokers in a task group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def server_config(app: ASGIApp, connections: Connections, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    """How an application is served."""
    return uvicorn.Config(
        app,
        http=functools.partial(TimedProtocol, connections),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        lifespan=lifespan,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=connections.limits.seconds["idle"],  # type: ignore[arg-type]
        server_header=False,
    )


def _calm_the_garbage_collector() -> None:
    """Events are many and without cycles: collecting finds nothing, and took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


class _Server(uvicorn.Server):
    """Leaves signals to the process: uvicorn would raise SIGTERM again after the drain, and exit by it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _address_of(sock: socket.socket) -> str:
    return "http://{}:{}".format(*sock.getsockname()[:2])


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        if (error.errno or 0) < 0:  # of the resolver
            raise ConfigurationError(f"cannot listen on {host}:{port}: {host} is no address") from None
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; choose another {option}"
        ) from None

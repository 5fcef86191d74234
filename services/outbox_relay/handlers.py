"""The relay's loop: wake, take, send, remove; and wait for whatever is away."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import TypeVar

from aiokafka.errors import KafkaError
from opentelemetry.trace import SpanKind

from services.consumers.database_identity import DatabaseIdentity, read_identity
from services.outbox_relay import store
from services.outbox_relay.sender import Message, Sender, UnreadableError
from services.runtime.crashpoints import crash_point
from services.runtime.database import Pool
from services.runtime.database_errors import DATABASE_ERRORS, may_pass
from services.runtime.kafka import NOT_ALLOWED, unreachable
from services.runtime.listening import listening
from services.runtime.process import Handler, Process, Stopped
from services.runtime.retrying import retrying
from services.runtime.settings import Settings
from services.runtime.telemetry import OUTBOX_AGE, OUTBOX_SENT, OUTBOX_SET_ASIDE, OUTBOX_WAITING
from services.runtime.tracing import message_spans, parents_of

log = logging.getLogger("stepstream.relay")
SERVICE = "outbox-relay"
_DEPTH_INTERVAL = 5.0
T = TypeVar("T")


class Relay:
    """Sends until the process stops; errors of Kafka and of the database are waited out."""

    def __init__(self, settings: Settings, pool: Pool, sender: Sender, process: Process[Handler]) -> None:
        self._settings = settings
        self.pool = pool
        self._sender = sender
        self._process = process
        self._wake = asyncio.Event()
        #: Which database has what this relay knows to be in Kafka.
        self._database: DatabaseIdentity | None = None
        self.progress = time.monotonic()
        #: What Kafka does not allow us, until it does.
        self.not_allowed: str | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a producer, as far as is known."""
        return self._sender.connected

    async def run(self) -> None:
        """Relays until the process stops."""
        with contextlib.suppress(Stopped):
            while not self._process.stopping.is_set():
                self._wake.clear()
                async for attempt in retrying(SERVICE, self._back_off, _passes, self.pool):
                    with attempt:
                        handled = await self._stoppable(self._told_round())
                if not handled:
                    await self._process.until(self._wake, self._settings.relay_poll_seconds)
        await self._sender.stop()

    async def listen(self) -> None:
        """Wakes the loop when rows are written; while this connection is away, polling does it alone."""
        with contextlib.suppress(Stopped):
            while True:
                with contextlib.suppress(*DATABASE_ERRORS):
                    await self._listen_once()
                await self._process.sleep(1.0)

    async def watch_depth(self) -> None:
        """Keeps the gauges of the outbox."""
        with contextlib.suppress(Stopped):
            while True:
                with contextlib.suppress(*DATABASE_ERRORS):
                    depth = await self._stoppable(store.depth(self.pool))
                    OUTBOX_WAITING.set(depth.waiting)
                    OUTBOX_AGE.set(depth.age_seconds)
                    OUTBOX_SET_ASIDE.set(depth.set_aside)
                await self._process.sleep(_DEPTH_INTERVAL)

    async def _back_off(self, seconds: float) -> None:
        await self._sender.stop()
        await self._process.sleep(seconds)

    async def _told_round(self) -> int:
        """A round; what Kafka does not allow us is told once."""
        try:
            handled = await self._round()
        except NOT_ALLOWED as error:
            problem = str(unreachable(self._settings, error))
            if problem != self.not_allowed:
                log.error("%s. Events wait in the outbox until it has that right", problem)  # noqa: TRY400 - it is whole
            self.not_allowed = problem
            raise
        except BaseException:
            self.not_allowed = None  # something else is wrong now
            raise
        self.not_allowed = None
        return handled

    async def _round(self) -> int:
        """Sends one load; returns how many messages left the outbox."""
        self.progress = time.monotonic()
        await self._log_another_database()
        await self._sender.start()
        failure: BaseException | None = None
        async with store.take(self.pool, self._settings.topic, self._settings.relay_batch_records) as load:
            crash_point("relay.taken")
            parents = parents_of(_headers(m) for m in load.messages)
            with message_spans(
                SERVICE, f"send {self._settings.topic}", SpanKind.PRODUCER, parents, len(load.messages)
            ):
                try:
                    await self._sender.send(load.messages, load.sent, load.refused)
                except (KafkaError, TimeoutError) as error:
                    failure = error  # what was acknowledged leaves the outbox all the same
                load.acknowledged = self._sender.take_acknowledged()
            if load.sent:
                crash_point("relay.sent")
        self._sender.keep_acknowledged(load.acknowledged)
        if load.sent:
            crash_point("relay.removed")
        OUTBOX_SENT.inc(len(load.sent))
        for refused in load.refused:
            log.error(
                "message %d of the outbox cannot be sent: it is in outbox_set_aside now. %s",
                refused.message.id,
                refused.reason,
            )
        if failure is not None:
            raise failure
        return len(load.sent) + len(load.refused)

    async def _log_another_database(self) -> None:
        """Tells a database that took the place of another what it may have forgotten: what was sent."""
        async with self.pool.acquire() as connection, connection.transaction():
            identity = (await read_identity(connection)).identity
            if identity is not None and self._database not in {None, identity}:
                log.warning("the database is another one than before: it is told what this relay has sent")
                await store.witness(connection, self._settings.topic, self._sender.memory.all())
        self._database = identity or self._database

    async def _stoppable(self, work: Coroutine[None, None, T]) -> T:
        """Waits for the work; once the process stops, only so long as its end may take."""
        task = asyncio.create_task(work)
        stopping = asyncio.create_task(self._process.stopping.wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            await asyncio.wait({task}, timeout=min(10.0, self._settings.drain_timeout_seconds))
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise Stopped
        return await task

    async def _listen_once(self) -> None:
        async with listening(
            self._settings, store.CHANNEL, self._wake.set, store.server_settings(3600)
        ) as lost:
            await self._process.until(lost)


def _headers(message: Message) -> list[tuple[str, str]]:
    try:
        return message.header_texts()
    except UnreadableError:
        return []


def _passes(error: BaseException) -> bool:
    """Whether waiting helps: Kafka or the database is away."""
    return isinstance(error, KafkaError) or may_pass(error)

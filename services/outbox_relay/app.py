"""Wiring of the outbox-relay."""

import contextlib
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.types import ASGIApp

from services.consumers.failover import leave_silent_servers
from services.outbox_relay import store
from services.outbox_relay.handlers import SERVICE, Relay
from services.outbox_relay.sender import Sender
from services.runtime.database import opened_pool
from services.runtime.http import Answered, leave_unanswered
from services.runtime.migrate import check_migrated
from services.runtime.process import Process
from services.runtime.producer import producer
from services.runtime.settings import Settings
from services.runtime.tasks import beside


class RelayProcess(Process[Relay]):
    """The service, ready to run."""

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Relay]:
        """Pool, producer, and the relay at work."""
        settings = self.settings
        server_settings = store.server_settings(settings.relay_send_timeout_seconds)
        async with (
            opened_pool(settings, server_settings=server_settings, refusals=self.refusals) as pool,
            producer(settings, settings.topic, request_timeout_ms=15_000, linger_ms=2) as sending,
        ):
            await check_migrated(pool)
            relay = Relay(settings, pool, Sender(settings, sending), self)
            async with (
                beside(leave_silent_servers(settings, pool)),
                self.beside(relay.watch_depth),
                self.beside(relay.listen),
                self.beside(relay.run),
            ):
                yield relay

    def problem_of_life(self) -> str | None:
        """A relay that neither takes, nor sends, nor waits for what it knows to be away."""
        if problem := super().problem_of_life():
            return problem
        # A load takes at most a second and two answers of Kafka; then an error, or the next load.
        bound = self.settings.stuck_seconds + 2 * self.settings.relay_send_timeout_seconds
        if self.is_open and time.monotonic() - self.handler.progress > bound:
            return f"the relay is stuck: it has not moved on for more than {bound:g} s"
        return None

    async def problem_of_readiness(self) -> str | None:
        """What keeps events from being sent: no database, pending migrations, or no Kafka."""
        if problem := await super().problem_of_readiness():
            return problem
        # There is a producer for a moment in each try, also where Kafka then refuses what it sends.
        if self.handler.is_connected and not self.handler.not_allowed:
            return None
        return f"{self.handler.not_allowed or 'Kafka is away'}; steps complete and their events wait"

    def application(self) -> ASGIApp:
        """Health and metrics; the relay runs while they are served."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            async with self.running():
                yield

        app = Starlette(
            routes=self.health_routes(),
            exception_handlers={Exception: leave_unanswered},
            lifespan=lifespan,
        )
        return Answered(app, SERVICE)


def build(settings: Settings) -> RelayProcess:
    """The service, ready to run."""
    return RelayProcess(SERVICE, settings)

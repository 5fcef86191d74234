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
from services.runtime.database import close_pool, open_pool
from services.runtime.http import Answered, health_routes, leave_unanswered, problem_of_database
from services.runtime.migrate import check_migrated
from services.runtime.process import Process
from services.runtime.settings import Settings
from services.runtime.tasks import beside


class RelayProcess(Process):
    """The service, ready to run."""

    relay: Relay | None = None

    def problem_of_life(self) -> str | None:
        """A relay that neither takes, nor sends, nor waits for what it knows to be away."""
        if problem := super().problem_of_life():
            return problem
        # A load takes at most a second and two answers of Kafka; then an error, or the next load.
        bound = self.settings.stuck_seconds + 2 * self.settings.relay_send_timeout_seconds
        if self.relay is not None and time.monotonic() - self.relay.progress > bound:
            return f"the relay is stuck: it has not moved on for more than {bound:g} s"
        return None

    async def run(self, port: int) -> int:
        """Runs until SIGTERM, SIGINT or a failure; returns the exit code."""
        return await self.serve(application(self), port)


def build(settings: Settings) -> RelayProcess:
    """The service, ready to run."""
    return RelayProcess(SERVICE, settings)


def application(process: RelayProcess) -> ASGIApp:
    """What the process serves; the relay runs beside it."""
    settings = process.settings
    sender = Sender(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            pool = await open_pool(
                settings,
                server_settings=store.server_settings(settings.relay_send_timeout_seconds),
                refusals=process.refusals,
            )
            try:
                await check_migrated(pool)
                relay = process.relay = Relay(settings, pool, sender, process)
                app.state.pool = pool
                process.log_start()
                async with (
                    beside(leave_silent_servers(settings, pool)),
                    process.beside(relay.watch_depth),
                    process.beside(relay.listen),
                    process.beside(relay.run),
                ):
                    yield
            finally:
                await close_pool(pool)
        except BaseException as error:
            process.fail(error)
            raise
        process.log_end()

    async def problem_of_readiness() -> str | None:
        if process.relay is None:
            return "starting"
        if problem := await problem_of_database(app.state.pool):
            return problem
        return None if sender.connected else "Kafka is away; steps complete and their events wait"

    app = Starlette(
        routes=health_routes(process.problem_of_life, problem_of_readiness),
        exception_handlers={Exception: leave_unanswered},
        lifespan=lifespan,
    )
    return Answered(app, SERVICE)

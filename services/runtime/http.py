"""Health and metrics of a service that is no consumer, as routes of its HTTP application."""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from services.runtime.database import Pool
from services.runtime.migrate import pending


def health_routes(
    problem_of_life: Callable[[], str | None], problem_of_readiness: Callable[[], Awaitable[str | None]]
) -> list[BaseRoute]:
    """`/health/live`, `/health/ready` and `/metrics`; a problem is a line of text, and answers 503."""

    async def live(_: Request) -> Response:
        return _answer(problem_of_life(), "alive")

    async def ready(_: Request) -> Response:
        return _answer(await problem_of_readiness(), "ready")

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health/live", live), Route("/health/ready", ready), Route("/metrics", metrics)]


def _answer(problem: str | None, well: str) -> Response:
    return PlainTextResponse(f"{problem or well}\n", 503 if problem else 200)


async def problem_of_database(pool: Pool) -> str | None:
    """What keeps the database from being used: it is away, or migrations are pending."""
    try:
        async with asyncio.timeout(5), pool.acquire() as connection:
            if missing := await pending(connection):
                return f"migrations are pending: {', '.join(missing)}"
    except Exception as error:  # noqa: BLE001 - any failure of the check means: not ready
        return f"database: {type(error).__name__}"
    return None

"""What goes wrong, as problem details (RFC 9457); the status of each error is decided here."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import asyncpg
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Scope

from services.analytics_api.models import Problem
from services.runtime.bounds import OUTAGE_SECONDS, Seldom
from services.runtime.database_errors import DATABASE_ERRORS, in_a_line, is_away
from services.runtime.faults import route_of
from services.runtime.http import Failure, leave_unanswered
from services.runtime.telemetry import API_REFUSED

log = logging.getLogger("stepstream.analytics")
MEDIA_TYPE = "application/problem+json"
#: Of so many parameters one answer says what is wrong.
_MOST_TOLD: Final = 20


class ProblemError(Exception):
    """A question that is not answered: an HTTP status, what is wrong, and what to do."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.headers = dict(headers or {})
        self.errors = errors


def not_found(what: str, identifier: str) -> ProblemError:
    """There is none, or it is somebody else's: which of the two is not told."""
    return ProblemError(404, "Not found", f"there is no {what} with the id `{identifier}`")


def unanswerable(detail: str, where: str) -> ProblemError:
    """A parameter that makes no sense for what there is."""
    return ProblemError(422, "Unprocessable", detail, errors=[{"where": where, "what": detail}])


def of_database(error: Exception) -> ProblemError:
    """What an error of the database means to whoever asked."""
    if isinstance(error, asyncpg.QueryCanceledError):
        return ProblemError(
            503,
            "Took too long",
            "reading so many journeys took too long: ask for fewer days, or for one server",
            {"Retry-After": "5"},
        )
    return ProblemError(
        503,
        "Database away",
        "the figures cannot be read right now; ask again in a moment",
        {"Retry-After": "2"},
    )


def failure_as_problem(_: Scope, failure: Failure) -> ASGIApp:
    """The answer to a request that failed by a fault of ours, or because the service ends."""
    title = "Service ends" if failure.is_ending else "Internal error"
    return respond(ProblemError(failure.status, title, failure.detail, failure.headers), failure.request_id)


def respond(problem: ProblemError, request_id: str | None = None) -> Response:
    """The answer."""
    API_REFUSED.labels(str(problem.status)).inc()
    body = Problem(
        title=problem.title,
        status=problem.status,
        detail=str(problem),
        errors=problem.errors,
        request_id=request_id,
    ).model_dump(exclude_none=True)
    headers = {"Cache-Control": "no-store", **problem.headers}
    return JSONResponse(body, problem.status, headers, media_type=MEDIA_TYPE)


def invalid(errors: list[Any]) -> ProblemError:
    """Of parameters that pydantic refuses: what is wrong with the first of them."""
    fields = [
        {
            "where": ".".join(str(part) for part in error["loc"]) or "query",
            "what": str(error["msg"]).removeprefix("Value error, "),
        }
        for error in errors[:_MOST_TOLD]
    ]
    detail = "; ".join(f"{e['where']}: {e['what']}" for e in fields)
    return ProblemError(422, "Unprocessable", detail, errors=fields)


def install(app: FastAPI) -> None:
    """Makes every error of an application a problem; faults of ours are answered further out."""

    @app.exception_handler(ProblemError)
    async def _(_request: Request, error: ProblemError) -> Response:
        return respond(error)

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> Response:
        return respond(invalid(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = f"there is nothing at {request.url.path}"
        elif error.status_code == 405:
            detail = f"{request.method} is not taken at {request.url.path}"
        return respond(ProblemError(error.status_code, str(error.detail), detail, error.headers))

    away = Seldom(log, "questions failed, the database is away", OUTAGE_SECONDS)

    async def answer_away(request: Request, error: Exception) -> Response:
        if not is_away(error):
            raise error
        away.warn(f"{route_of(request.scope)}: {in_short(error)}")
        return respond(of_database(error))

    app.add_exception_handler(Exception, leave_unanswered)
    for passing in DATABASE_ERRORS:
        app.add_exception_handler(passing, answer_away)


def in_short(error: Exception) -> str:
    """An error of the database in a line of the log, without values."""
    return f"{type(error).__name__}: {in_a_line(error)}"

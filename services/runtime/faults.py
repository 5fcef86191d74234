"""Faults of ours: a line in the log, a count, and, where a request fails, an id that the answer shows."""

import logging
import re
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

import uuid_utils
from starlette.types import Scope

from services.runtime.database_errors import without_values
from services.runtime.telemetry import HTTP_ERRORS

log = logging.getLogger("stepstream.faults")

_IN_SCOPE = "stepstream.exchange"
#: In the scope of a request: when its head had come, on the monotonic clock, in seconds.
ARRIVED: Final = "stepstream.arrived"
_HIDDEN = "…"
#: What pydantic's messages show of a value.
_INPUT = re.compile(r"input_value=.*?, input_type=", re.DOTALL)


def _new_id() -> str:
    return uuid_utils.uuid7().hex


def route_of(scope: Scope) -> str:
    """The template of a request's route: paths hold ids, and what opens somebody's progress.

    `other` where no route was found, and for files.
    """
    path = getattr(scope.get("route"), "path", None)
    if path is not None:
        return str(path)
    # FastAPI does not name a route that is Starlette's. Without parameters its path is its template.
    is_plain = "endpoint" in scope and not scope.get("path_params") and not scope.get("root_path")
    return str(scope["path"]) if is_plain else "other"


@dataclass(slots=True)
class Exchange:
    """A request and its answer, by the id that stands in both and in the log.

    `scope` is the ASGI scope, of which the log gets the method and the route's template; None over stdio.
    `secrets` are texts beside those of the scope that must not get into the log. `arrived` is when the
    request had come, on the monotonic clock: before it waited for anything.
    """

    service: str
    scope: Scope | None = None
    secrets: tuple[str, ...] = ()
    id: str = field(default_factory=_new_id)
    failed: bool = False
    arrived: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, service: str, scope: Scope) -> "Exchange":
        """The exchange of a request, which those who answer it find with `of`."""
        exchange = scope[_IN_SCOPE] = cls(service, scope)
        exchange.arrived = scope.get(ARRIVED, exchange.arrived)
        return exchange

    @classmethod
    def of(cls, service: str, scope: Scope | None) -> "Exchange":
        """The exchange that a request belongs to; a new one where nobody began it."""
        known: Exchange | None = None if scope is None else scope.get(_IN_SCOPE)
        return known or cls(service, scope)

    @property
    def path(self) -> str:
        """The template of the route."""
        return "stdio" if self.scope is None else route_of(self.scope)

    def fail(self, what: str, error: BaseException | None = None, **more: str) -> None:
        """Writes a fault to the log, with the traceback of its error, and counts it."""
        self.failed = True
        fields = {"request_id": self.id, "method": self._method, "path": self.path, **more}
        secrets = (*self.secrets, *_secrets_of(self.scope or {}))
        _log(self.service, what, error, fields, secrets)

    @property
    def _method(self) -> str:
        return "" if self.scope is None else str(self.scope.get("method", ""))


class Beside:
    """Work beside requests that is tried again and again: a fault of it shows once, until another comes.

    Args:
        service: whose work it is.
        what: what the line in the log says.
    """

    def __init__(self, service: str, what: str) -> None:
        self._service = service
        self._what = what
        self._told = ""

    def fail(self, error: Exception) -> None:
        """Writes a fault to the log, with its traceback, and counts it, unless it is the one before."""
        name = f"{type(error).__name__}: {error}"
        if name != self._told:
            self._told = name
            _log(self._service, self._what, error, {})

    def go_on(self) -> None:
        """It works again."""
        self._told = ""


def _log(
    service: str,
    what: str,
    error: BaseException | None,
    fields: dict[str, str],
    secrets: Iterable[str] = (),
) -> None:
    HTTP_ERRORS.labels(service).inc()
    if error is not None:
        fields["exception"] = _traceback_of(error, secrets)
    log.error("%s: %s", service, what, extra={"fields": fields})


def _traceback_of(error: BaseException, secrets: Iterable[str]) -> str:
    """The traceback, without values of rows and without what the request keeps secret."""
    text = "".join(traceback.format_exception(without_values(error)))
    text = _INPUT.sub(f"input_value={_HIDDEN}, input_type=", text)
    for secret in secrets:
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)
    return text


def _secrets_of(scope: Scope) -> list[str]:
    """What of a request must not get into a log: its token, session, tracking id and query string."""
    headers: dict[bytes, bytes] = dict(scope.get("headers", ()))
    tracking_id = str(scope.get("path_params", {}).get("tracking_id") or "")
    found = (
        headers.get(b"authorization", b"").decode("latin-1").rpartition(" ")[2],
        headers.get(b"mcp-session-id", b"").decode("latin-1"),
        scope.get("query_string", b"").decode("latin-1"),
        tracking_id,
        quote(tracking_id, safe=""),
    )
    return [secret for secret in found if secret]

"""The contract's events as rows of the outbox: key, value, headers and type."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import uuid_utils
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from schemas import decode, encode
from services.walkthrough_mcp.guide import CallEffect, OfferedStep

_TRACE_CONTEXT = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class Where:
    """Who does something, where, and in which session."""

    user_id: str
    server_id: str
    slug: str
    session_id: str


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An event on its way."""

    key: str
    value: str
    headers: str
    type: str


def events_of(move: CallEffect, where: Where, at: int) -> list[OutboxRow]:
    """The events that a move makes: a start, the step that was done or skipped, and the step that is shown.

    Raises:
        EventError: an id is not what the contract allows.
    """
    rows = []
    assert move.offer is not None  # noqa: S101 - moves that write have one
    walkthrough, steps = move.offer.walkthrough_id, move.offer.steps
    if move.opens:
        rows.append(_row("walkthrough-started", walkthrough, where, at, {"started_at": at, "metadata": {}}))
    if (done := move.completes) is not None:
        moment = {"step_id": done.id, "completed_at": at, "metadata": _metadata(done, steps)}
        rows.append(_row("step-completed", walkthrough, where, at, moment))
    if (skipped := move.skips) is not None:
        moment = {"step_id": skipped.id, "skipped_at": at, "metadata": _metadata(skipped, steps)}
        if move.reason is not None:
            moment["reason"] = move.reason
        rows.append(_row("step-skipped", walkthrough, where, at, moment))
    if (shown := move.shows) is not None:
        rows.append(_row("step-shown", walkthrough, where, at, {"step_id": shown.id, "shown_at": at}))
    return rows


def _metadata(step: OfferedStep, steps: tuple[OfferedStep, ...]) -> dict[str, Any]:
    return {"stepOrder": step.order, "isLastStep": step.id == steps[-1].id}


def _row(kind: str, walkthrough_id: str, where: Where, at: int, moment: dict[str, Any]) -> OutboxRow:
    event = {
        "type": kind,
        "event_id": str(uuid_utils.uuid7()),
        "mcp_server_user_id": where.user_id,
        "walkthrough_id": walkthrough_id,
        "mcp_server_id": where.server_id,
        "mcp_server_session_id": where.session_id,
        **moment,
    }
    value = encode(event)
    decode(value, at)
    return OutboxRow(where.user_id, value.decode(), json.dumps(_headers(event, at, where.slug)), kind)


def _headers(event: dict[str, Any], at: int, slug: str) -> dict[str, str]:
    """CloudEvents 1.0 in binary mode (its Kafka binding, section 3.2), and the call's trace."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event["event_id"],
        "ce_type": event["type"],
        "ce_source": f"/mcp/{slug}",
        "ce_time": datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds"),
        "content-type": "application/json",
    }
    _TRACE_CONTEXT.inject(headers)
    return headers

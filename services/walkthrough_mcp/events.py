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
    """The events that a move makes: the start of a journey, or the completion of its one step.

    Raises:
        EventError: an id is not what the contract allows.
    """
    rows = []
    assert move.offer is not None  # noqa: S101 - moves that write have one
    if move.opens:
        rows.append(_row("walkthrough-started", move.offer.walkthrough_id, where, {"started_at": at}, {}))
    if move.completes is not None:
        steps = move.offer.steps
        metadata = {
            "stepOrder": move.completes.order,
            "isLastStep": _is_last(move.completes, steps),
        }
        moment = {"step_id": move.completes.id, "completed_at": at}
        rows.append(_row("step-completed", move.offer.walkthrough_id, where, moment, metadata))
    return rows


def _is_last(step: OfferedStep, steps: tuple[OfferedStep, ...]) -> bool:
    return step.id == steps[-1].id


def _row(
    kind: str, walkthrough_id: str, where: Where, moment: dict[str, Any], metadata: dict[str, Any]
) -> OutboxRow:
    event = {
        "type": kind,
        "event_id": str(uuid_utils.uuid7()),
        "mcp_server_user_id": where.user_id,
        "walkthrough_id": walkthrough_id,
        "mcp_server_id": where.server_id,
        "mcp_server_session_id": where.session_id,
        **moment,
        "metadata": metadata,
    }
    value = encode(event)
    at = int(moment["started_at" if kind == "walkthrough-started" else "completed_at"])
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

"""What counts of a person and why; and mending it, by a `step-corrected` event that survives every replay.

The event says everything: nothing is written here. The recorder applies it as any other event, and so does a
replay of the topic into another database.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uuid_utils
from aiokafka import ConsumerRecord

from schemas import EventError, decode, encode
from services.completion_recorder.decisions import operator_headers, wait_for_recorder
from services.completion_recorder.judge import Accepted, check_references
from services.completion_recorder.people import find_person
from services.completion_recorder.references import find_known
from services.runtime.database import Connection, connected, load_queries
from services.runtime.errors import RefusedError, UsageError
from services.runtime.kafka import Record
from services.runtime.producer import producer
from services.runtime.settings import Settings

SQL = load_queries(__file__)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that is known of a person and step: what `counts`, a `later` completion, or a `correction`.

    Times are in milliseconds since the epoch; `completed_at` is None where a correction says there is none.
    """

    state: str
    step_id: str
    walkthrough_id: str
    completed_at: int | None
    id: str
    mcp_server_id: str
    mcp_server_session_id: str
    corrected_at: int | None
    covers_until: int | None


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction that is planned, or was sent: its event, and what counts before and after it."""

    event: dict[str, Any]
    before: Entry | None
    after: Entry | None
    executed: bool = False
    #: Whether the recorder has passed it; None where it was not sent.
    recorded: bool | None = None


async def show(
    settings: Settings, who: str, step: str | None, *, organization: str | None = None
) -> list[Entry]:
    """What is known of a person's completions, by step; `organization` says whose person it is.

    Raises:
        UsageError: there is no such person, or it means several people.
    """
    async with connected(settings) as db:
        return await _entries(db, await _person(db, who, organization), step)


async def correct(
    settings: Settings,
    who: str,
    step: str,
    completed_at: int | None,
    session: str | None = None,
    *,
    execute: bool,
    organization: str | None = None,
) -> Correction:
    """Says when a person completed a step, or that they did not; without `execute`, what would change.

    Args:
        settings: where everything is.
        who: as `find_person` takes it.
        step: id of the step.
        completed_at: milliseconds since the epoch; None is that they did not.
        session: where it was, if no completion of the step is known.
        execute: whether to send it.
        organization: whose person it is; None is anybody's.

    Raises:
        UsageError: there is no such person, step or session, or nothing to remove; or several people.
        RefusedError: what it refers to is gone, or does not belong together.
        StepstreamError: the database or Kafka cannot be reached.
    """
    async with connected(settings) as db:
        user = await _person(db, who, organization)
        entries = await _entries(db, user, step)
        if completed_at is None and not entries:
            raise UsageError(f"nothing is known of {user} and step `{step}`: there is nothing to remove")
        place = await _place(db, user, step, entries, session)
        event = _event(user, step, place, entries, completed_at)
        await _check(db, event)
    before = next((e for e in entries if e.state == "counts"), None)
    if not execute:
        return Correction(event, before, _expected(event, entries))
    recorded = await wait_for_recorder(settings, *await _send(settings, event))
    async with connected(settings) as db:
        after = next((e for e in await _entries(db, user, step) if e.state == "counts"), None)
    return Correction(event, before, after if recorded else _expected(event, entries), True, recorded)


async def _person(db: Connection, who: str, organization: str | None) -> str:
    user = await find_person(db, who, organization)
    if not await db.fetchval(SQL["person"], user):
        raise UsageError(f"there is no such person: `{who}`")
    return user


async def _entries(db: Connection, user: str, step: str | None) -> list[Entry]:
    return [Entry(**row) for row in await db.fetch(SQL["entries"], user, step)]


async def _place(
    db: Connection, user: str, step: str, entries: Sequence[Entry], session: str | None
) -> tuple[str, str, str]:
    """The walkthrough, server and session of the event: those of what is known, or of the session given."""
    if session is None and entries:
        known = entries[0]
        return known.walkthrough_id, known.mcp_server_id, known.mcp_server_session_id
    if session is None:
        raise UsageError(
            f"no completion of step `{step}` by {user} is known: say with --session in which session it was"
        )
    row = await db.fetchrow(SQL["place"], step, session)
    if row is None:
        raise UsageError(f"there is no step `{step}`, or no session `{session}` of an MCP server")
    return row["walkthrough_id"], row["mcp_server_id"], session


def _event(
    user: str, step: str, place: tuple[str, str, str], entries: Sequence[Entry], completed_at: int | None
) -> dict[str, Any]:
    """The newest of all corrections, which covers all that counts and what earlier ones covered.

    Raises:
        UsageError: the time is none of the contract's.
    """
    now = int(time.time() * 1000)
    corrected_at = max([now, *(e.corrected_at + 1 for e in entries if e.corrected_at is not None)])
    past = [t for e in entries if e.state != "later" for t in (e.completed_at, e.covers_until)]
    event = {
        "type": "step-corrected",
        "event_id": str(uuid_utils.uuid7()),
        "mcp_server_user_id": user,
        "walkthrough_id": place[0],
        "step_id": step,
        "mcp_server_id": place[1],
        "mcp_server_session_id": place[2],
        "corrected_at": corrected_at,
        "covers_until": max([now, *(t for t in past if t is not None)]),
    }
    if completed_at is not None:
        event["completed_at"] = completed_at
    try:
        decode(encode(event), now)
    except EventError as error:
        raise UsageError(str(error)) from None
    return event


async def _check(db: Connection, event: dict[str, Any]) -> None:
    """Whether the recorder would take it."""
    value = encode(event)
    record: Record = ConsumerRecord("", 0, 0, 0, 0, None, value, None, 0, 0, ())
    items = [Accepted(decode(value, event["corrected_at"]), record)]
    known, _ = await find_known(db, items)
    _, refused = check_references(items, known)
    if refused:
        raise RefusedError(f"the recorder would refuse it: {refused[0].message}. Name another --session")


def _expected(event: dict[str, Any], entries: Sequence[Entry]) -> Entry | None:
    """What counts once the event is recorded, of what is known now."""
    candidates = [e for e in entries if e.state == "later" and (e.completed_at or 0) > event["covers_until"]]
    if "completed_at" in event:
        names = ("step_id", "walkthrough_id", "completed_at", "mcp_server_id", "mcp_server_session_id")
        own = {name: event[name] for name in names}
        candidates.append(
            Entry("counts", id="wtsc_" + event["event_id"], corrected_at=None, covers_until=None, **own)
        )
    return min(candidates, key=lambda e: (e.completed_at or 0, e.id), default=None)


async def _send(settings: Settings, event: dict[str, Any]) -> tuple[int, int]:
    """Sends it; returns its partition and offset."""
    headers = operator_headers(event, event["corrected_at"])
    async with producer(settings, settings.topic) as sender:
        sent = await (await sender.start()).send_and_wait(
            settings.topic,
            encode(event),
            key=event["mcp_server_user_id"].encode(),
            headers=[(name, text.encode()) for name, text in headers.items()],
        )
    return sent.partition, sent.offset

"""The journeys and events of people, a page of them, and who is behind a figure."""

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import asyncpg

from services.analytics_api.figures.steps import is_assumed, order_then, stands_at
from services.analytics_api.models import Event, Journey, JourneysQuestion
from services.analytics_api.outcomes import outcome_of
from services.analytics_api.problems import unanswerable
from services.analytics_api.store import Context, day_ms
from services.journeys import utc_day
from services.journeys.flow import Outcome, View
from services.runtime.database import can_be_stored


def narrowed(context: Context, question: JourneysQuestion) -> list[Any]:
    """What the database can tell of the journeys behind a figure: each holds for all of them."""
    all_of = [step for step in (question.start_at, question.end_at) if step is not None]
    if len(question.from_step) == 1:
        all_of += question.from_step
    all_of += [text.partition(":")[2] for text in question.path]
    at, user = read_cursor(question.after)
    return [
        context.id,
        question.server or servers_of(context),
        day_ms(question.since),
        day_ms(question.until, 1),
        day_ms(question.active_from),
        day_ms(question.active_to, 1),
        all_of,
        question.step,
        at,
        user,
    ]


def servers_of(context: Context) -> list[str]:
    """The organization's servers: journeys that began on another's, before either moved, are not shown."""
    return [server.id for server in context.walkthrough.servers]


def journey_of(
    context: Context, question: JourneysQuestion, view: View, row: asyncpg.Record, today: date
) -> Journey | None:
    """The journey, if it is behind the figure."""
    steps = row["step_ids"]
    path = view.path(steps)
    if path is None:
        return None
    order = [step.id for step in context.steps]
    last_at, shown_now = row["last_active_at"], row["shown_step_id"]
    began, ended = (context.versions.at(at).number for at in (row["began_at"], last_at))
    recent = utc_day(last_at) > today - timedelta(days=question.active_days)
    by_then = None if shown_now in context.rule.added else ended
    stands = outcome_of(context.rule.is_finished(steps, row["skipped"], by_then), recent)
    skips = row["skipped"] or [False] * len(steps)
    shown = [(steps[i], skips[i]) for i in path.shown]
    then = order_then(context.versions, by_then)
    following = None if stands is Outcome.FINISHED else stands_at(then, order, steps, shown_now)
    outcome = path.cut or stands
    if not _is_behind(question, shown, outcome, following):
        return None
    skipped = [step for step, is_skip in shown if is_skip]
    return Journey(
        mcp_server_user_id=row["mcp_server_user_id"],
        mcp_server_id=row["mcp_server_id"],
        began_at=row["began_at"],
        last_active_at=last_at,
        steps_done=len(shown) - len(skipped),
        steps_skipped=len(skipped),
        outcome=outcome,
        step_ids=[step for step, _ in shown],
        skipped_step_ids=skipped,
        next_step_id=following,
        next_step_assumed=following is not None and is_assumed(order, shown_now),
        duration_ms=last_at - row["began_at"],
        version_began=began,
        version_ended=ended,
    )


def _is_behind(
    question: JourneysQuestion, shown: Sequence[tuple[str, bool]], outcome: Outcome, following: str | None
) -> bool:
    if question.position is not None and not _is_at(question, question.position, shown):
        return False
    if question.path and question.path != [f"{'skipped' if s else 'done'}:{step}" for step, s in shown]:
        return False
    if question.ended_after is not None:
        if len(shown) != question.ended_after:
            return False
        if question.step and (not shown or shown[-1][0] not in question.step):
            return False
    if question.outcome and outcome not in question.outcome:
        return False
    return question.next_step is None or following == question.next_step


def _is_at(question: JourneysQuestion, position: int, shown: Sequence[tuple[str, bool]]) -> bool:
    """Whether the step at the position is one of those that are asked for."""
    if position >= len(shown):
        return False
    step, is_skip = shown[position]
    return not (
        (question.step and step not in question.step)
        or (question.skipped is not None and is_skip != question.skipped)
        or (question.from_step and shown[position - 1][0] not in question.from_step)
    )


def cursor_of(row: asyncpg.Record) -> str:
    """Where the page that ends with this row ends."""
    text = json.dumps([row["last_active_at"], row["mcp_server_user_id"]], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_cursor(text: str | None) -> tuple[int | None, str]:
    """The time and person that a page begins after.

    Raises:
        ProblemError: it is no cursor of ours.
    """
    if text is None:
        return None, ""
    try:
        at, user = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
        if type(at) is int and 0 <= at < 2**63 and isinstance(user, str) and can_be_stored(user):
            return at, user
    except (ValueError, TypeError, binascii.Error):
        pass
    raise unanswerable("after: take it from `next` of the page before, as it is", "query.after")


def events_of(rows: Sequence[dict[str, Any]]) -> Iterator[Event]:
    """Rows in order of time as events, each with the time since the one before."""
    before: int | None = None
    for row in rows:
        yield Event(
            at=row["at"],
            since_previous_ms=None if before is None else row["at"] - before,
            kind=row["kind"],
            reason=row["reason"],
            walkthrough_id=row["walkthrough_id"],
            walkthrough=row["walkthrough"],
            step_id=row["step_id"],
            step=row["step"],
            mcp_server_user_id=row["mcp_server_user_id"],
            mcp_server_id=row["mcp_server_id"],
            mcp_server_session_id=row["mcp_server_session_id"],
        )
        before = row["at"]

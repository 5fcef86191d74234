"""What the agent reads: prose with the step's four fields under headings, and the same as values.

What a walkthrough's author wrote is data: each field stands in a fenced block that it cannot close
(CommonMark 0.31, section 4.5), and a title is one line, so that no content looks like what the server says.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from services.walkthrough_mcp.guide import CallEffect, CallOutcome, Offer, OfferedStep

#: A step's content in the order in which an agent needs it: the platform's field, ours, and its heading.
CONTENT_FIELDS: Final = (
    ("introductionForAgent", "introduction_for_agent", "How to introduce this step"),
    ("contextForAgent", "context_for_agent", "What you should know"),
    ("contentForUser", "content_for_user", "Show this to the person"),
    ("operationsForAgent", "operations_for_agent", "What you do"),
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class StepContent(_Part):
    """The step that is current now."""

    id: str = Field(description="Pass it as current_step_id once the person has done the step.")
    title: str
    number: int = Field(description="Its place in display order, from 1.")
    introduction_for_agent: str = ""
    context_for_agent: str = ""
    content_for_user: str = ""
    operations_for_agent: str = ""


class ProgressState(_Part):
    """How far the person is in the walkthrough."""

    walkthrough_id: str
    walkthrough_title: str
    current_step_id: str | None = Field(description="None when every step is done.")
    completed_steps: int
    total_steps: int
    percent: int = Field(description="0 to 100.")
    is_finished: bool


class Listed(_Part):
    """A walkthrough on offer."""

    id: str
    title: str
    description: str | None
    type: str | None
    total_steps: int
    percent_done: int
    started: bool
    completed: bool
    estimated_minutes: int | None
    tags: list[str]


class Guidance(_Part):
    """The answer of both tools."""

    outcome: CallOutcome = Field(description="What the call came to.")
    message: str = Field(description="What happened, and what to do next.")
    step: StepContent | None = Field(default=None, description="The step to lead the person through now.")
    progress: ProgressState | None = None
    walkthroughs: list[Listed] = Field(default=[], description="What there is to choose from.")
    visitor: str | None = Field(
        default=None,
        description="How this person is recognised, where nothing else tells people apart for good: pass it "
        "in every later call.",
    )


#: To whoever is known by nothing that came with the call.
_WHO_IS_IT: Final = (
    "No `visitor` came with this call, so nobody can tell who this person is. If an earlier answer gave them "
    "a visitor id, make the same call again with it as `visitor`. Who never got one begins with "
    "start_walkthrough."
)
_OR_WHO_THEY_WERE: Final = (
    " If an earlier answer gave this person a visitor id, call again with it as `visitor`: without it they "
    "are somebody new."
)


def guidance(
    move: CallEffect,
    offers: tuple[Offer, ...],
    content: Mapping[str, Any] | None,
    visitor: str | None = None,
    *,
    is_unknown: bool = False,
) -> Guidance:
    """The structured answer to a move.

    Args:
        move: what the call does.
        offers: what there is.
        content: the content of the step that it shows.
        visitor: the id of an anonymous person.
        is_unknown: whether an anonymous person was known by nothing that came with the call.
    """
    listing = {
        CallOutcome.LISTED,
        CallOutcome.UNKNOWN_NAME,
        CallOutcome.AMBIGUOUS_NAME,
        CallOutcome.NOT_STARTED,
        CallOutcome.FINISHED,
        CallOutcome.ALREADY_FINISHED,
    }
    return Guidance(
        outcome=move.outcome,
        message=_message_to_stranger(move, offers) if is_unknown else _message(move, offers),
        step=_step(move.offer, move.shows, content or {}) if move.offer and move.shows else None,
        progress=_progress(move) if move.offer else None,
        walkthroughs=[_listed(o, move) for o in offers] if move.outcome in listing else [],
        visitor=visitor,
    )


def text(answer: Guidance) -> str:
    """The same for reading."""
    parts = [answer.message]
    if answer.step is not None and answer.progress is not None:
        step, progress = answer.step, answer.progress
        parts.append(
            f"# {_line_of(progress.walkthrough_title)}, step {step.number} of {progress.total_steps}: "
            f"{_line_of(step.title)}"
        )
        for _, name, heading in CONTENT_FIELDS:
            if content := getattr(step, name).strip():
                parts.append(f"## {heading}\n\n{_fenced(content)}")
    if answer.walkthroughs:
        parts.append("## Walkthroughs on offer\n\n" + "\n".join(_line(w) for w in answer.walkthroughs))
    if answer.progress is not None:
        parts.append(_progress_text(answer.progress))
    if answer.visitor is not None:
        parts.append(
            f'Pass visitor "{answer.visitor}" in every later call: it is how this person is recognised. '
            "Keep it as private as a password."
        )
    return "\n\n".join(parts)


def _fenced(content: str) -> str:
    """A block that ends where the content ends: its fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}markdown\n{content}\n{fence}"


def _line_of(text: str) -> str:
    """A title on one line."""
    return " ".join(text.split())


def _message_to_stranger(move: CallEffect, offers: tuple[Offer, ...]) -> str:
    if move.outcome is CallOutcome.NOTHING_OFFERED:
        return _message(move, offers)
    if move.outcome is CallOutcome.NOT_STARTED:
        return _WHO_IS_IT
    return _message(move, offers) + _OR_WHO_THEY_WERE


def _message(move: CallEffect, offers: tuple[Offer, ...]) -> str:
    title = f"“{_line_of(move.offer.title)}”" if move.offer else ""
    others = [o for o in offers if move.offer is None or o.walkthrough_id != move.offer.walkthrough_id]
    completed = _line_of(move.completes.title) if move.completes else ""
    another = " Or start another walkthrough by its name." if others else ""
    return {
        CallOutcome.LISTED: "There is more than one walkthrough. Ask the person which one they want, then "
        "call start_walkthrough with its title as `name`.",
        CallOutcome.UNKNOWN_NAME: "No walkthrough on offer has that name. Call start_walkthrough with one of "
        "these titles as `name`.",
        CallOutcome.AMBIGUOUS_NAME: "Several walkthroughs have that title. Call start_walkthrough with the "
        "id of one of them as `name`.",
        CallOutcome.NOTHING_OFFERED: "This server offers no walkthrough at the moment. Tell the person so; "
        "there is nothing to start.",
        CallOutcome.STARTED: f"{title} begins. Lead the person through this step, and no further.",
        CallOutcome.RESUMED: f"{title} goes on where the person left it. Lead them through this step.",
        CallOutcome.RESTARTED: f"{title} begins again from its first step.",
        CallOutcome.ADVANCED: f"“{completed}” is done. This is the next step.",
        CallOutcome.REPEATED: "That step was already done, so nothing was completed again. This is the step "
        "that is current now.",
        CallOutcome.CHANGED: "The walkthrough has changed, or another step is current: nothing was "
        "completed. Lead the person through this step.",
        CallOutcome.FINISHED: f"That was the last step: {title} is finished. Congratulate the person."
        f"{another}",
        CallOutcome.ALREADY_FINISHED: f"Every step of {title} is done already. To go through it again, call "
        f"start_walkthrough with its title as `name` and `restart` true.{another}",
        CallOutcome.NOT_STARTED: "The person has no walkthrough under way here. Call start_walkthrough "
        "first.",
    }[move.outcome]


def _step(offer: Offer, step: OfferedStep, content: Mapping[str, Any]) -> StepContent:
    fields = {
        name: content[field] for field, name, _ in CONTENT_FIELDS if isinstance(content.get(field), str)
    }
    return StepContent(id=step.id, title=step.title, number=offer.steps.index(step) + 1, **fields)


def _progress(move: CallEffect) -> ProgressState:
    assert move.offer is not None  # noqa: S101 - the caller looked
    total = len(move.offer.steps)
    done = len({step.id for step in move.offer.steps} & set(move.completed))
    return ProgressState(
        walkthrough_id=move.offer.walkthrough_id,
        walkthrough_title=move.offer.title,
        current_step_id=move.shows.id if move.shows else None,
        completed_steps=done,
        total_steps=total,
        percent=_percent(done, total),
        is_finished=done == total,
    )


def _progress_text(progress: ProgressState) -> str:
    lines = [
        "## Progress",
        "",
        f"- {progress.percent} % of “{_line_of(progress.walkthrough_title)}”",
        f"- {progress.completed_steps} of {progress.total_steps} steps done",
        f"- finished: {'yes' if progress.is_finished else 'no'}",
    ]
    if progress.current_step_id is not None:
        lines += [
            f"- current step: {progress.current_step_id}",
            "",
            "When the person has done this step, and not before, call get_next_step",
            f'with current_step_id "{progress.current_step_id}".',
        ]
    return "\n".join(lines)


def _listed(offer: Offer, move: CallEffect) -> Listed:
    this = move.offer is not None and move.offer.walkthrough_id == offer.walkthrough_id
    done = {step.id for step in offer.steps} & set(move.completed) if this else offer.done
    return Listed(
        id=offer.walkthrough_id,
        title=offer.title,
        description=offer.description,
        type=offer.type,
        total_steps=len(offer.steps),
        percent_done=_percent(len(done), len(offer.steps)),
        started=offer.progress is not None,
        completed=len(done) == len(offer.steps),
        estimated_minutes=offer.minutes,
        tags=list(offer.tags),
    )


def _line(item: Listed) -> str:
    facts = [f"{item.total_steps} step{'' if item.total_steps == 1 else 's'}"]
    if item.type:
        facts.insert(0, _line_of(item.type))
    if item.estimated_minutes:
        facts.append(f"about {item.estimated_minutes} minutes")
    if item.tags:
        facts.append("tags: " + ", ".join(map(_line_of, item.tags)))
    if item.completed:
        facts.append("completed")
    elif item.started:
        facts.append(f"started, {item.percent_done} % done")
    else:
        facts.append("not started")
    about = f" {_line_of(item.description)}" if item.description and item.description.strip() else ""
    return f"- **{_line_of(item.title)}** (id {item.id}; {'; '.join(facts)}).{about}"


def _percent(done: int, total: int) -> int:
    """Rounded down, so that 100 means all."""
    return 100 * done // total if total else 0

"""What the agent reads: prose with the step's four fields under headings, and the same as values.

What a walkthrough's author wrote is data: each field stands in a fenced block that it cannot close
(CommonMark 0.31, section 4.5), and a title is one line, so that no content looks like what the server says.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.walkthrough_mcp.excerpt import Excerpt, excerpt
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
    """The step that is current now, or was looked up."""

    id: str = Field(description="Pass it as current_step_id once the person has done the step.")
    title: str
    number: int = Field(description="Its place in display order, from 1.")
    optional: bool = Field(default=False, description="It may be left out with skip_step.")
    introduction_for_agent: str = ""
    context_for_agent: str = ""
    content_for_user: str = ""
    operations_for_agent: str = ""
    part: int = Field(default=1, description="Which part of the content this is, from 1.")
    content_parts: int = Field(default=1, description="How many parts the content has.")
    read_on: str | None = Field(default=None, description="How to read the next part, where there is one.")


class ProgressState(_Part):
    """How far the person is in the walkthrough."""

    walkthrough_id: str
    walkthrough_title: str
    current_step_id: str | None = Field(description="None when every step is done or skipped.")
    completed_steps: int
    skipped_steps: int = 0
    total_steps: int
    percent: int = Field(description="Of the steps done or skipped: 0 to 100.")
    is_finished: bool = Field(description="Every step is done or skipped.")


class OutlinedStep(_Part):
    """A step of a walkthrough, and how the person stands to it."""

    id: str
    number: int = Field(description="Its place in display order, from 1.")
    title: str
    state: Literal["done", "skipped", "current", "open"]
    optional: bool = Field(default=False, description="It may be left out with skip_step.")


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
    """The answer of the tools. Clients show a model this or the text, so each says all."""

    outcome: CallOutcome = Field(description="What the call came to.")
    message: str = Field(description="What happened, and what to do next.")
    step: StepContent | None = Field(
        default=None, description="The step to lead the person through now, or to read."
    )
    outline: list[OutlinedStep] = Field(default=[], description="All steps, where they were asked for.")
    progress: ProgressState | None = None
    walkthroughs: list[Listed] = Field(default=[], description="What there is to choose from.")
    visitor: str | None = Field(
        default=None,
        description="How this person is recognised, where nothing else tells people apart for good: pass it "
        "in every later call.",
    )
    then: list[str] = Field(default=[], description="What to do after this answer, and with which arguments.")


#: So much of a description is in a list, in characters.
_DESCRIPTION: Final = 500

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
    content_bytes: int,
    part: int = 1,
    is_unknown: bool = False,
) -> Guidance:
    """The structured answer to a move.

    Args:
        move: what the call does.
        offers: what there is.
        content: the content of the step that it shows.
        visitor: the id of an anonymous person.
        content_bytes: how much of the content an answer holds; of more, the answer has one part.
        part: which part, from 1.
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
    step = move.reads if move.only_looks else move.shows
    then = _then(move)
    return Guidance(
        outcome=move.outcome,
        message=_message_to_stranger(move, offers) if is_unknown else _message(move, offers),
        step=step_content(move.offer, step, content or {}, content_bytes, part)
        if move.offer and step
        else None,
        outline=_outline(move) if move.outcome in {CallOutcome.OUTLINED, CallOutcome.UNKNOWN_STEP} else [],
        progress=_progress(move) if move.offer else None,
        walkthroughs=[_listed(o, move) for o in offers if not move.meant or o.walkthrough_id in move.meant]
        if move.outcome in listing or (move.only_looks and move.offer is None)
        else [],
        visitor=visitor,
        then=[*then, _keep(visitor)] if visitor is not None else then,
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
        if step.read_on is not None:
            parts.append(step.read_on)
    if answer.outline:
        parts.append("## Steps\n\n" + "\n".join(map(_outline_line, answer.outline)))
    if answer.walkthroughs:
        parts.append("## Walkthroughs on offer\n\n" + "\n".join(_line(w) for w in answer.walkthroughs))
    if answer.progress is not None:
        parts.append(_progress_text(answer.progress))
    return "\n\n".join([*parts, *answer.then])


def _then(move: CallEffect) -> list[str]:
    if move.offer is None:
        return []
    if move.shows is None:
        return [_BEGIN] if move.only_looks and move.offer.progress is None else []
    if move.only_looks and move.reads != move.shows:
        current = f"The current step is still “{_line_of(move.shows.title)}”, id {move.shows.id}."
        if move.outcome is CallOutcome.NOT_OPTIONAL:
            return [current, _insisted(move.shows.id)]
        return [f"{current} {_after(move.shows.id, 'that')}"]
    return [_after(move.shows.id), *([_optional(move.shows.id)] if move.shows.optional else [])]


def _optional(step: str) -> str:
    return f'This step is optional. If the person does not want it, call skip_step with step_id "{step}".'


def _insisted(step: str) -> str:
    return (
        "Tell the person that this step is not optional. Only if they still want to go on without it, call "
        f'skip_step with step_id "{step}" and `insists` true.'
    )


def _after(step: str, which: str = "this") -> str:
    return (
        f"When the person has done {which} step, and not before, call get_next_step "
        f'with current_step_id "{step}".'
    )


_BEGIN: Final = (
    "The person has not begun it. When they want to, call start_walkthrough with its title as `name`."
)


def _keep(visitor: str) -> str:
    return (
        f'Pass visitor "{visitor}" in every later call: it is how this person is recognised. '
        "Keep it as private as a password."
    )


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
    skipped = _line_of(move.skips.title) if move.skips else ""
    another = " Or start another walkthrough by its name." if others else ""
    return {
        CallOutcome.LISTED: "There is more than one walkthrough. Ask the person which one they want, then "
        "call start_walkthrough with its title as `name`.",
        CallOutcome.UNKNOWN_NAME: "No walkthrough on offer has that name. Call start_walkthrough with one of "
        "these titles as `name`.",
        CallOutcome.AMBIGUOUS_NAME: "Several walkthroughs may be meant by that name. Ask the person which "
        "one of these they want, then call start_walkthrough with its id as `name`.",
        CallOutcome.NOTHING_OFFERED: "This server offers no walkthrough at the moment. Tell the person so; "
        "there is nothing to start.",
        CallOutcome.STARTED: f"{title} begins. Lead the person through this step, and no further.",
        CallOutcome.RESUMED: f"{title} goes on where the person left it. Lead them through this step.",
        CallOutcome.RESTARTED: f"{title} begins again from its first step.",
        CallOutcome.ADVANCED: f"“{completed}” is done. This is the next step.",
        CallOutcome.SKIPPED: f"“{skipped}” is skipped, and can be done later. This is the next step.",
        CallOutcome.SKIPPED_BEFORE: "That step was already skipped, so nothing was skipped again. This is "
        "the step that is current now.",
        CallOutcome.DONE_AFTER_ALL: f"“{completed}”, which was skipped, is done now."
        + (" This is the step that is current." if move.shows else f" {title} is finished."),
        CallOutcome.NOT_OPTIONAL: "That step is not optional, so nothing was skipped.",
        CallOutcome.REPEATED: "That step was already done, so nothing was completed again. This is the step "
        "that is current now.",
        CallOutcome.CHANGED: "The walkthrough has changed, or another step is current: nothing was "
        "completed. Lead the person through this step.",
        CallOutcome.FINISHED: (f"“{skipped}” is skipped. " if move.skips else "")
        + f"That was the last step: {title} is finished. Congratulate the person."
        f"{another}",
        CallOutcome.ALREADY_FINISHED: f"Every step of {title} is done{' or skipped' if move.skipped else ''} "
        f"already. To go through it again, call "
        f"start_walkthrough with its title as `name` and `restart` true.{another}",
        CallOutcome.NOT_STARTED: "The person has no walkthrough under way here. Call start_walkthrough "
        "first.",
        CallOutcome.OUTLINED: f"These are the steps of {title}.",
        CallOutcome.SHOWN_AGAIN: f"This is a step of {title}, to read. Nothing was completed by reading it.",
        CallOutcome.UNKNOWN_STEP: "No step has that id, and it is not clear which title is meant. "
        + (
            f"Call show_step with the id of one of these steps of {title}."
            if move.offer
            else "Call get_outline to see the steps of a walkthrough."
        ),
    }[move.outcome]


def step_content(
    offer: Offer, step: OfferedStep, content: Mapping[str, Any], limit: int, part: int = 1
) -> StepContent:
    """A part of a step's content, which is no larger than `limit` bytes, and how to read on."""
    given = {name: content[field] for field, name, _ in CONTENT_FIELDS if isinstance(content.get(field), str)}
    shown = excerpt(given, limit, part)
    return StepContent(
        id=step.id,
        title=step.title,
        number=offer.steps.index(step) + 1,
        optional=step.optional,
        part=shown.part,
        content_parts=shown.parts,
        read_on=_read_on(step.id, shown),
        **shown.texts,
    )


def _outline(move: CallEffect) -> list[OutlinedStep]:
    assert move.offer is not None or move.outcome is CallOutcome.UNKNOWN_STEP  # noqa: S101 - the caller looked
    if move.offer is None:
        return []
    return [
        OutlinedStep(
            id=step.id, number=number, title=step.title, state=_state(move, step.id), optional=step.optional
        )
        for number, step in enumerate(move.offer.steps, start=1)
    ]


def _state(move: CallEffect, step: str) -> Literal["done", "skipped", "current", "open"]:
    if step in move.completed:
        return "done"
    if step in move.skipped:
        return "skipped"
    return "current" if move.shows is not None and step == move.shows.id else "open"


def _outline_line(step: OutlinedStep) -> str:
    optional = "; optional" if step.optional else ""
    return f"{step.number}. {_line_of(step.title)} (id {step.id}; {step.state}{optional})"


def _read_on(step: str, shown: Excerpt) -> str | None:
    if shown.parts == 1:
        return None
    so_far = f"This is part {shown.part} of {shown.parts} of the step's content"
    if shown.part == shown.parts:
        return f"{so_far}, the last one."
    return f'{so_far}; read on with show_step(step_id="{step}", part={shown.part + 1}).'


def _progress(move: CallEffect) -> ProgressState:
    assert move.offer is not None  # noqa: S101 - the caller looked
    total = len(move.offer.steps)
    steps = {step.id for step in move.offer.steps}
    done = len(steps & set(move.completed))
    skipped = len(steps & set(move.skipped) - set(move.completed))
    return ProgressState(
        walkthrough_id=move.offer.walkthrough_id,
        walkthrough_title=move.offer.title,
        current_step_id=move.shows.id if move.shows else None,
        completed_steps=done,
        skipped_steps=skipped,
        total_steps=total,
        percent=_percent(done + skipped, total),
        is_finished=done + skipped == total,
    )


def _progress_text(progress: ProgressState) -> str:
    lines = [
        "## Progress",
        "",
        f"- {progress.percent} % of “{_line_of(progress.walkthrough_title)}”",
        f"- {progress.completed_steps} of {progress.total_steps} steps done"
        + (f", {progress.skipped_steps} skipped" if progress.skipped_steps else ""),
        f"- finished: {'yes' if progress.is_finished else 'no'}",
    ]
    if progress.current_step_id is not None:
        lines.append(f"- current step: {progress.current_step_id}")
    return "\n".join(lines)


def _listed(offer: Offer, move: CallEffect) -> Listed:
    this = move.offer is not None and move.offer.walkthrough_id == offer.walkthrough_id
    steps = {step.id for step in offer.steps}
    done = steps & {*move.completed, *move.skipped} if this else offer.passed
    return Listed(
        id=offer.walkthrough_id,
        title=offer.title,
        description=_shortened(offer.description),
        type=offer.type,
        total_steps=len(offer.steps),
        percent_done=_percent(len(done), len(offer.steps)),
        started=offer.progress is not None,
        completed=len(done) == len(offer.steps),
        estimated_minutes=offer.minutes,
        tags=list(offer.tags),
    )


def _shortened(description: str | None) -> str | None:
    if description is None or len(description) <= _DESCRIPTION:
        return description
    return description[:_DESCRIPTION].rstrip() + "…"


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

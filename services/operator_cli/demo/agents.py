"""Simulated agents: real MCP clients that lead people through walkthroughs, and keep a record."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mcp import Client

from services.operator_cli.demo.people import Person
from services.runtime.errors import StepstreamError

_NEWEST, _OLDER = "2026-07-28", "legacy"
#: Agents at work at once: enough to keep both cores busy.
_AT_ONCE = 16

#: (walkthrough, position, from, to)
Transition: TypeAlias = tuple[str, int, str | None, str]
#: (walkthrough, steps done, step)
Ending: TypeAlias = tuple[str, int, str | None]


@dataclass(slots=True)
class Led:
    """What an agent did with a person: its own record, which the Sankey has to agree with."""

    person: Person
    steps: list[str] = field(default_factory=list)


async def lead_all(url: str, people: Sequence[Person], tell: Callable[[Led], None]) -> list[Led]:
    """Leads everybody; returns the agents' records.

    Raises:
        StepstreamError: an agent got no further, with what it was told.
    """
    logging.getLogger("mcp").setLevel(logging.ERROR)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    room = asyncio.Semaphore(_AT_ONCE)

    async def lead(person: Person) -> Led:
        async with room:
            led = Led(person)
            await _lead(f"{url.rstrip('/')}/mcp/{person.offer.slug}/{person.tracking_id}", led)
            tell(led)
            return led

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(lead(person)) for person in people]
    except BaseExceptionGroup as errors:
        # A client that is cancelled may report that its connection broke: that is not why it ended.
        if (this := asyncio.current_task()) is not None and this.cancelling():
            raise asyncio.CancelledError from errors
        raise StepstreamError(f"an agent got no further: {_innermost(errors)}") from errors
    return [task.result() for task in tasks]


async def _lead(url: str, led: Led) -> None:
    person = led.person
    stops = sorted({min(person.pause_after or person.patience, person.patience), person.patience})
    for stop in stops:
        async with Client(url, mode=_OLDER if person.old_protocol else _NEWEST, cache=None) as agent:
            step = await _call(agent, "start_walkthrough", name=person.offer.title)
            while step is not None and len(led.steps) < stop:
                done = step
                step = await _call(agent, "get_next_step", current_step_id=done)
                led.steps.append(done)
                if person.repeats and step is not None:
                    step = await _call(agent, "get_next_step", current_step_id=done)


async def _call(agent: Client, tool: str, **arguments: Any) -> str | None:
    """The id of the step that the answer shows."""
    result = await agent.call_tool(tool, arguments)
    if result.is_error:
        raise StepstreamError("".join(part.text for part in result.content if part.type == "text"))
    step = result.structured_content["step"]
    return None if step is None else str(step["id"])


def expected(records: Iterable[tuple[str, Sequence[str]]]) -> tuple[Counter[Transition], Counter[Ending]]:
    """What the Sankey must show, from records alone: a walkthrough, and the steps somebody did there."""
    transitions: Counter[Transition] = Counter()
    endings: Counter[Ending] = Counter()
    for walkthrough, steps in records:
        for position, step in enumerate(steps):
            transitions[walkthrough, position, steps[position - 1] if position else None, step] += 1
        endings[walkthrough, len(steps), steps[-1] if steps else None] += 1
    return transitions, endings


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__

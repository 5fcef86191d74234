"""Simulated agents: real MCP clients that lead people through walkthroughs, and keep a record."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2
from mcp import Client, MCPError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from services.demo.people import Person
from services.runtime.errors import StepstreamError

_NEWEST, _OLDER = "2026-07-28", "legacy"
#: Agents at work at once: enough to keep both cores busy.
_AT_ONCE = 16
#: How long an agent tries the same call again where it is told to, in seconds.
_PATIENCE_SECONDS = 120
#: What the service says where the same call may succeed in a moment.
_PASSING = ("temporarily_unavailable", "busy")
#: Outcomes of a call after which the step that it named is done.
_DONE = ("advanced", "finished", "repeated", "already-finished")

#: (walkthrough, position, from, to)
Transition: TypeAlias = tuple[str, int, str | None, str]
#: (walkthrough, steps done, step)
Ending: TypeAlias = tuple[str, int, str | None]


@dataclass(slots=True)
class Led:
    """What an agent did with a person: its own record, which the Sankey has to agree with.

    `steps` are those that the service said are done, and `under_way` the one that it showed last.
    """

    person: Person
    steps: list[str] = field(default_factory=list)
    under_way: str | None = None


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
        tries = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_delay(_PATIENCE_SECONDS),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            reraise=True,
        )
        async for attempt in tries:
            with attempt:
                await _visit(url, led, stop)
        led.under_way = None


async def _visit(url: str, led: Led, stop: int) -> None:
    """Goes on where the last visit broke off, with the same call: it may have been done or not."""
    person = led.person
    async with Client(url, mode=_OLDER if person.old_protocol else _NEWEST, cache=None) as agent:
        if led.under_way is None:
            led.under_way = _shown(await _call(agent, "start_walkthrough", name=person.offer.title))
        while led.under_way is not None and len(led.steps) < stop:
            step = led.under_way
            answer = await _call(agent, "get_next_step", current_step_id=step)
            if answer["outcome"] in _DONE and step not in led.steps:
                led.steps.append(step)
            led.under_way = _shown(answer)
            if person.repeats and led.under_way is not None:
                led.under_way = _shown(await _call(agent, "get_next_step", current_step_id=step))
            if answer["outcome"] == "not-started":
                # A server that took over from another may have seen nothing of them.
                led.under_way = _shown(await _call(agent, "start_walkthrough", name=person.offer.title))


async def _call(agent: Client, tool: str, **arguments: Any) -> Mapping[str, Any]:
    result = await agent.call_tool(tool, arguments)
    if result.is_error:
        raise StepstreamError("".join(part.text for part in result.content if part.type == "text"))
    answer: Mapping[str, Any] = result.structured_content
    return answer


def _shown(answer: Mapping[str, Any]) -> str | None:
    """The id of the step that an answer shows."""
    step = answer["step"]
    return None if step is None else str(step["id"])


def _may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    if isinstance(error, BaseExceptionGroup):
        return all(_may_pass(one) for one in error.exceptions)
    if isinstance(error, MCPError):
        return isinstance(error.data, Mapping) and error.data.get("reason") in _PASSING
    return isinstance(error, httpx2.TransportError)


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

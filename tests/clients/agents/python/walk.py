"""What each program in Python has in common: who is led, how, and the record of it.

A line of stdin is a person: the address of the server, a bearer token or "-", a habit, and after how many steps they
leave. Habits:

    plain     one connection for all calls
    unnamed   calls do not say which step is done
    repeats   each `get_next_step` is made twice
    anew      each call has a connection of its own
    loses     as anew; where an answer is lost the same call is made again
    forgets   `visitor` is not passed on

A line of stdout is the record of a person: `{"steps": [...], "last": OUTCOME}`, the ids of the steps that they were
shown and that an answer then said are done, in order.
"""

import contextlib
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

#: Outcomes of `get_next_step` after which the step that was shown is done.
DONE = {"advanced", "finished", "repeated", "already-finished"}

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Person:
    """Whom a program leads, and how."""

    url: str
    token: str
    habit: str
    most: int

    @property
    def headers(self) -> dict[str, str]:
        """What says who calls, where people sign in."""
        return {} if self.token == "-" else {"Authorization": f"Bearer {self.token}"}


#: Opens a connection; the block has a function that calls a tool and returns the structured content.
Connect = Callable[[Person], AbstractAsyncContextManager[Call]]


def patience(person: Person) -> timedelta | None:
    """How long a client waits that does not notice that an answer was lost."""
    return timedelta(seconds=2) if person.habit == "loses" else None


async def lead_all(connect: Connect) -> None:
    """Leads everybody on stdin, one after another."""
    for line in sys.stdin:
        url, token, habit, most = line.split()
        record = await _lead(connect, Person(url, token, habit, int(most)))
        sys.stdout.write(json.dumps(record) + "\n")


async def _lead(connect: Connect, person: Person) -> dict[str, Any]:
    async def alone(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        async with connect(person) as call:
            return await call(tool, arguments)

    async def insistently(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        for _ in range(9):
            with contextlib.suppress(Exception):
                return await alone(tool, arguments)
        return await alone(tool, arguments)

    if person.habit in {"anew", "loses"}:
        return await _walk(alone if person.habit == "anew" else insistently, person)
    async with connect(person) as call:
        return await _walk(call, person)


async def _walk(call: Call, person: Person) -> dict[str, Any]:
    answer = await call("start_walkthrough", {})
    steps: list[str] = []
    while answer["step"] and len(steps) < person.most:
        step = answer["step"]["id"]
        arguments = {} if person.habit == "unnamed" else {"current_step_id": step}
        if answer["visitor"] and person.habit != "forgets":
            arguments["visitor"] = answer["visitor"]
        if person.habit == "repeats":
            await call("get_next_step", arguments)
        answer = await call("get_next_step", arguments)
        if answer["outcome"] in DONE:
            steps.append(step)
    return {"steps": steps, "last": answer["outcome"]}

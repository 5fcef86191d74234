"""When journeys of a walkthrough count as finished: read, set, and said in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from services.journeys.finishing import FinishRule
from services.runtime.database import Connection, Pool, load_queries
from services.runtime.errors import UsageError
from services.runtime.text import plural
from services.runtime.titles import one_line

SQL = load_queries(__file__)

_TITLE = 60
#: So many steps are named; of more it is said how many.
_NAMED = 3


@dataclass(frozen=True, slots=True)
class GivenRule:
    """What was set of a walkthrough: ids of its steps. Nothing in it: as if nothing were set."""

    goal: Sequence[str] = ()
    optional: Sequence[str] = ()
    ends: Sequence[str] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is set."""
        return not (self.goal or self.optional or self.ends)


@dataclass(frozen=True, slots=True)
class FinishRuleOf:
    """What was set of a walkthrough, what holds with the steps as they are, and their titles by id."""

    given: GivenRule
    rule: FinishRule
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def says(self) -> str:
        """The rule in words."""
        return finished_means(self.rule, self.titles)


def finished_means(rule: FinishRule, titles: Mapping[str, str]) -> str:
    """When a journey is finished, in words."""
    goal = [titles[step] for step in rule.step_ids if step in rule.goal]
    ends = [titles[step] for step in rule.step_ids if step in rule.ends]
    is_edited = any(step in rule.added_in for step in rule.required)
    return said_of(len(rule.step_ids) - len(rule.required), goal, ends, is_edited=is_edited)


def said_of(optional: int, goal: Sequence[str], ends: Sequence[str], *, is_edited: bool = False) -> str:
    """The same from how many steps are optional, and the titles of those of the goal and of the ends.

    With `is_edited` steps were added since.
    """
    either = f", or the last step is {_one_of(ends)}" if ends else ""
    if goal:
        return f"{_one_of(goal)} is completed{either}"
    but = f" but {plural(optional, 'optional one')}" if optional else ""
    then = " that was there at their last activity" if is_edited else ""
    return f"every step{then}{but} is completed or skipped{either}"


def _one_of(titles: Sequence[str]) -> str:
    named = [f"“{one_line(title, _TITLE)}”" for title in titles[:_NAMED]]
    if more := len(titles) - len(named):
        named.append(f"{more} more")
    return named[0] if len(named) == 1 else f"one of {', '.join(named[:-1])} and {named[-1]}"


async def read_finish_rule(db: "Connection | Pool", walkthrough: str) -> FinishRuleOf:
    """The rule of a walkthrough: of one that is not there, or has no steps, nobody finishes."""
    return _rule_of(
        await db.fetch(SQL["finish_steps"], walkthrough), await db.fetchrow(SQL["finish_rule"], walkthrough)
    )


def _rule_of(steps: Sequence[asyncpg.Record], row: asyncpg.Record | None) -> FinishRuleOf:
    given = GivenRule(*(tuple(ids) for ids in row.values())) if row is not None else GivenRule()
    order = tuple(step["id"] for step in steps)
    optional = {step["id"] for step in steps if step["optional"]} | set(given.optional)
    rule = FinishRule(
        order,
        frozenset(optional & set(order)),
        frozenset(given.goal) & set(order),
        frozenset(given.ends) & set(order),
        {step["id"]: 2 for step in steps if step["added"]},  # in which version does not matter here
    )
    return FinishRuleOf(given, rule, {step["id"]: step["title"] for step in steps})


async def plan_finish_rule(db: "Connection | Pool", walkthrough: str, given: GivenRule) -> FinishRuleOf:
    """The rule as it would be.

    Raises:
        UsageError: it names a step that the walkthrough does not have.
    """
    steps = await db.fetch(SQL["finish_steps"], walkthrough)
    known = {step["id"] for step in steps}
    for what, ids in (("goal", given.goal), ("optional", given.optional), ("end", given.ends)):
        if foreign := [step for step in ids if step not in known]:
            raise UsageError(f"{what}: the walkthrough {walkthrough} has no step `{foreign[0]}`")
    plan = _rule_of(steps, None)
    rule = FinishRule(
        plan.rule.step_ids,
        plan.rule.optional | set(given.optional),
        frozenset(given.goal),
        frozenset(given.ends),
        plan.rule.added_in,
    )
    return FinishRuleOf(given, rule, plan.titles)


async def set_finish_rule(db: Connection, walkthrough: str, given: GivenRule) -> FinishRuleOf:
    """Sets the rule of a walkthrough that there is; figures follow at once, of all journeys.

    Raises:
        UsageError: as `plan_finish_rule`.
    """
    plan = await plan_finish_rule(db, walkthrough, given)
    order = list(plan.rule.step_ids)
    sets = (given.goal, given.optional, given.ends)
    if given.is_empty:
        await db.execute(SQL["drop_finish_rule"], walkthrough)
    else:
        await db.execute(
            SQL["set_finish_rule"], walkthrough, *([s for s in order if s in ids] for ids in sets)
        )
    return plan

"""Which journeys of a walkthrough are read: those of versions, of a segment, or all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.analytics_api.finishing import expanded
from services.journeys.segments import Condition, Segment
from services.runtime.database import load_queries

_SQL: Final = expanded(load_queries(__file__))
_BEGAN_WITH: Final = _SQL["began_with"].rstrip("; \n")
_EVERYBODY: Final = Segment(())
_NEVER_MS: Final = 2**62
#: Steps that were completed: of most journeys nothing was skipped.
_DONE: Final = """case
      when skipped is null then step_ids
      else array(
        select passed.id from unnest(step_ids, skipped) as passed (id, is_skip) where not passed.is_skip
      )
    end"""


@dataclass(frozen=True, slots=True)
class Only:
    """The journeys that a question is about; what asks for nothing is of all.

    `began_within` is from when until before when they began, in milliseconds, as versions say. The counts by
    day know neither.
    """

    began_within: tuple[tuple[int | None, int | None], ...] | None = None
    segment: Segment = _EVERYBODY

    @property
    def needs_beginnings(self) -> bool:
        """Whether what journeys began with decides."""
        return any(condition.kind != "did" for condition in self.segment.conditions)

    @property
    def is_all(self) -> bool:
        """Whether it is of all journeys."""
        return self.began_within is None and not self.segment.conditions


#: Statements that read what journeys began with.
BEGINNINGS: Final = {name: _SQL[name] for name in ("by_segment", "metadata_keys", "values_of")}
#: All of them.
ALL: Final = Only()


def selected(
    query: str,
    arguments: Sequence[Any],
    only: Only,
    *,
    with_beginnings: bool = False,
    among: str = "sankey_journeys",
) -> tuple[str, list[Any]]:
    """A query that reads `from sankey_journeys` those alone that are asked for, and its arguments.

    The first argument is the walkthrough. What people wrote is an argument behind the others, never text.
    With `with_beginnings` journeys have `agent`, `agent_version` and `metadata` as well. `among` is what is
    read in place of the table to find out what journeys began with: some of its rows.
    """
    if only.is_all and not with_beginnings:
        return query, list(arguments)
    given = list(arguments)
    wanted = [*_windows(only), *(_holds(condition, given) for condition in only.segment.conditions)]
    began_with = with_beginnings or only.needs_beginnings
    beginnings = _BEGAN_WITH.replace("from sankey_journeys as", f"from {among} as")
    source = f"({beginnings}) as begun" if began_with else "sankey_journeys"
    where = " and ".join(wanted) or "true"
    chosen = f"(select * from {source} where {where})"  # noqa: S608 - of numbers and parameters
    return query.replace("from sankey_journeys", f"from {chosen}"), given


def _windows(only: Only) -> Iterator[str]:
    if only.began_within is not None:
        windows = [
            f"began_at >= {since or 0:d} and began_at < {until or _NEVER_MS:d}"
            for since, until in only.began_within
        ]
        yield f"({' or '.join(windows)})"


def _holds(condition: Condition, arguments: list[Any]) -> str:
    """The condition in SQL; its values become arguments."""

    def argument(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    values = list(condition.values)
    if condition.kind == "did":
        steps = f"{argument(values)}::text[]"
        return f"not ({_DONE}) && {steps}" if condition.is_not else f"({_DONE}) @> {steps}"
    found = (
        condition.kind if condition.kind != "metadata" else f"metadata ->> {argument(condition.key)}::text"
    )
    one_of = f"coalesce({found}, '') = any({argument(values)}::text[])"
    holds = f"not {one_of}" if condition.is_not else one_of
    return f"is_told and {holds}" if condition.kind == "metadata" else holds

"""When journeys are finished, in SQL: what `services.journeys.finishing` says in Python."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Final

#: How many of the required steps are asked of a journey: those that were there at its last activity.
_ASKED: Final = "width_bucket(last_active_at, {added_at}::bigint[])"
#: Unless one that was added has been shown to the person since.
_UNSHOWN: Final = "coalesce(({added_at}::bigint[])[array_position({required}::text[], shown_step_id)], 0) = 0"

#: Of a row of `sankey_journeys`: whether it is finished. It is no function of the database: PostgreSQL
#: inlines none with a subquery, and calls take longer than the rest.
_IS_FINISHED: Final = f"""(
    case
      when cardinality({{goal}}::text[]) = 0
      then
        cardinality({{required}}::text[]) > 0
        and (
          step_ids @> {{required}}
          or ({_UNSHOWN} and {_ASKED} > 0 and step_ids @> ({{required}})[1:{_ASKED}])
        )
      when skipped is null then step_ids && {{goal}}
      else exists (
        select from unnest(step_ids, skipped) as passed (id, is_skip)
        where passed.id = any({{goal}}) and not passed.is_skip
      )
    end
    or coalesce(step_ids[cardinality(step_ids)] = any({{ends}}::text[]), false)
  )"""

#: When it was finished, in milliseconds; null where it is not. Most journeys need none of the subqueries.
_FINISHED_AT: Final = f"""least(
    case
      when cardinality({{goal}}::text[]) = 1 and skipped is null
      then completed_at[array_position(step_ids, {{goal}}[1])]
      when cardinality({{goal}}) > 0 then (
        select min(passed.at) from unnest(step_ids, completed_at, skipped) as passed (id, at, is_skip)
        where passed.id = any({{goal}}) and passed.is_skip is not true
      )
      when cardinality({{required}}::text[]) > 0 and step_ids @> {{required}}
      then (
        case
          when cardinality({{required}}) = cardinality(step_ids) then completed_at[cardinality(step_ids)]
          else (
            select max(passed.at) from unnest(step_ids, completed_at) as passed (id, at)
            where passed.id = any({{required}})
          )
        end
      )
      when {_UNSHOWN} and {_ASKED} > 0 and step_ids @> ({{required}})[1:{_ASKED}]
      then (
        select max(passed.at) from unnest(step_ids, completed_at) as passed (id, at)
        where passed.id = any(({{required}})[1:{_ASKED}])
      )
    end,
    case
      when step_ids[cardinality(step_ids)] = any({{ends}}::text[])
      then completed_at[cardinality(step_ids)]
    end
  )"""  # noqa: S608 - of parameters

#: When a UTC day begins, in milliseconds.
_DAY_MS: Final = r"(({day}) - date '1970-01-01')::bigint * 86400000"


def expanded(queries: Mapping[str, str]) -> dict[str, str]:
    """Statements with `finished_at(required, goal, ends, added_at)`, `is_finished`, `day_ms` written out.

    `added_at` is since when each of `required` is there, in milliseconds, in order.
    """
    return {name: _expand(text) for name, text in queries.items()}


def _expand(text: str) -> str:
    for name, written in (("finished_at", _FINISHED_AT), ("is_finished", _IS_FINISHED)):
        text = re.sub(rf"\b{name}\({', '.join(['([^,()]+)'] * 4)}\)", partial(_written, written), text)
    return re.sub(r"\bday_ms\(([^()]+)\)", lambda m: _DAY_MS.format(day=m[1]), text)


def _written(text: str, call: re.Match[str]) -> str:
    return text.format(required=call[1], goal=call[2], ends=call[3], added_at=call[4])

"""How long links, steps and paths took, by plain SQL over what people did: percentiles, active times, bins."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

#: Every passed step of everybody with the time since the step before, or the start, and since it was shown.
_PASSED = """
with passes as (
  select mcp_server_user_id as person, step_id, completed_at as at, id, false as is_skip
  from walkthrough_step_completions
  where walkthrough_id = $1
  union all
  select mcp_server_user_id, step_id, skipped_at, id, true
  from walkthrough_step_skips as skip
  where walkthrough_id = $1 and not exists (
    select from walkthrough_step_completions as done
    where
      done.mcp_server_user_id = skip.mcp_server_user_id
      and done.walkthrough_id = $1 and done.step_id = skip.step_id
  )
),
placed as (
  select
    passes.*,
    row_number() over way - 1 as position,
    lag(step_id) over way as from_step_id,
    lag(at) over way as before_at,
    min(at) over (partition by person) as first_at
  from passes
  window way as (partition by person order by at, id collate "C")
),
passed as (
  select
    placed.*,
    case when started_at <= first_at then started_at end as started_at_,
    at - coalesce(before_at, case when started_at <= first_at then started_at end) as ms,
    at - case when last_shown_at <= at then last_shown_at when first_shown_at <= at then first_shown_at end
      as active_ms
  from placed
  left join walkthrough_starts as start on start.mcp_server_user_id = person and start.walkthrough_id = $1
  left join walkthrough_step_showings as showing
    on showing.mcp_server_user_id = person and showing.walkthrough_id = $1
    and showing.step_id = placed.step_id
)
"""
_FIGURES = """
  count(*) as journeys,
  count(ms) as timed,
  percentile_cont(0.5) within group (order by ms) as median_ms,
  percentile_cont(0.9) within group (order by ms) as p90_ms,
  count(active_ms) as active,
  avg(active_ms)::float8 as mean_active_ms,
  percentile_cont(0.5) within group (order by active_ms) as median_active_ms,
  percentile_cont(0.9) within group (order by active_ms) as p90_active_ms,
  array_agg(width_bucket(ms, $2::bigint[])) filter (where ms is not null) as bins
"""
LINKS = (
    f"{_PASSED} select position, from_step_id, step_id, is_skip, {_FIGURES} from passed group by 1, 2, 3, 4"
)
STEPS = f"{_PASSED} select step_id, {_FIGURES} from passed where not is_skip group by 1"
#: Whole paths of those who passed any step, each step as `done:STEP` or `skipped:STEP`, of $2 steps in all.
PATHS = f"""
{_PASSED},
journeys as (
  select
    person,
    array_agg(case when is_skip then 'skipped:' else 'done:' end || step_id order by position) as path,
    max(started_at_) as started_at,
    max(at) as last_at,
    max(at) - coalesce(max(started_at_), case when count(*) > 1 then min(at) end) as ms
  from passed
  group by person
)
select
  path,
  case
    when cardinality(path) = $2 then 'finished'
    when to_timestamp(last_at / 1000.0) at time zone 'UTC' >= (now() at time zone 'UTC')::date - 6 then 'in_progress'
    else 'dropped'
  end as outcome,
  count(*) as journeys,
  count(started_at) as started,
  count(ms) as timed,
  percentile_cont(0.5) within group (order by ms) as median_ms,
  percentile_cont(0.9) within group (order by ms) as p90_ms
from journeys
group by 1, 2
"""
TIMES = ("timed", "median_ms", "p90_ms", "active", "mean_active_ms", "median_active_ms", "p90_active_ms")


def bins_of(row: Any, bounds: Sequence[int]) -> list[int]:
    """How many durations a row has in each bin."""
    counts = Counter(row["bins"] or ())
    return [counts[i] for i in range(len(bounds) + 1)]


def path_of(answer: Any) -> tuple[tuple[str, ...], str]:
    """A path of an answer, as PATHS has it."""
    skipped = set(answer["skipped_step_ids"])
    steps = tuple(f"{'skipped' if s in skipped else 'done'}:{s}" for s in answer["step_ids"])
    return steps, answer["outcome"]

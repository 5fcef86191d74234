-- The truth, independent of how the project counts: window functions over completions and starts.

-- name: differing_transitions
-- What the transitions must be, by one walk over the completions, beside what is counted. A journey begins
-- at its start where that is not later than its first completion.
with
done as (
  select
    mcp_server_user_id,
    walkthrough_id,
    step_id,
    completed_at,
    row_number() over journey - 1 as position,
    lag(step_id) over journey as from_step_id,
    lag(completed_at) over journey as from_at,
    first_value(mcp_server_id) over journey as first_server_id,
    first_value(completed_at) over journey as first_at
  from walkthrough_step_completions
  window journey as (
    partition by mcp_server_user_id, walkthrough_id
    order by completed_at, id collate "C"
  )
),
cells as (
  select
    done.walkthrough_id,
    coalesce(start.mcp_server_id, done.first_server_id) as mcp_server_id,
    date '1970-01-01' + (coalesce(start.started_at, done.first_at) / 86400000)::integer as began_on,
    done.position,
    done.from_step_id,
    done.step_id as to_step_id,
    1 as expected_journeys,
    coalesce(done.completed_at - coalesce(done.from_at, start.started_at), 0) as expected_elapsed_ms,
    (coalesce(done.from_at, start.started_at) is not null)::integer as expected_timed_journeys,
    0 as counted_journeys,
    0 as counted_elapsed_ms,
    0 as counted_timed_journeys
  from done
  left join walkthrough_starts as start on done.mcp_server_user_id = start.mcp_server_user_id
    and done.walkthrough_id = start.walkthrough_id
    and start.started_at <= done.first_at
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    0,
    0,
    0,
    journeys,
    elapsed_ms,
    timed_journeys
  from sankey_transitions
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys,
  sum(expected_elapsed_ms)::bigint as expected_elapsed_ms,
  sum(counted_elapsed_ms)::bigint as counted_elapsed_ms,
  sum(expected_timed_journeys)::bigint as expected_timed_journeys,
  sum(counted_timed_journeys)::bigint as counted_timed_journeys
from cells
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id
having
  sum(expected_journeys) <> sum(counted_journeys)
  or sum(expected_elapsed_ms) <> sum(counted_elapsed_ms)
  or sum(expected_timed_journeys) <> sum(counted_timed_journeys)
order by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id;

-- name: differing_endings
with
done as (
  select distinct on (mcp_server_user_id, walkthrough_id)
    mcp_server_user_id,
    walkthrough_id,
    first_value(mcp_server_id) over journey as first_server_id,
    first_value(completed_at) over journey as first_at,
    count(*) over journey as steps_done,
    last_value(step_id) over journey as step_id,
    last_value(completed_at) over journey as last_at
  from walkthrough_step_completions
  window journey as (
    partition by mcp_server_user_id, walkthrough_id
    order by completed_at, id collate "C"
    rows between unbounded preceding and unbounded following
  )
),
journeys as (
  select
    coalesce(done.walkthrough_id, start.walkthrough_id) as walkthrough_id,
    coalesce(start.mcp_server_id, done.first_server_id) as mcp_server_id,
    coalesce(start.started_at, done.first_at) as began_at,
    coalesce(done.steps_done, 0) as steps_done,
    done.step_id,
    coalesce(done.last_at, start.started_at) as last_active_at
  from done
  left join walkthrough_starts as start on done.mcp_server_user_id = start.mcp_server_user_id
    and done.walkthrough_id = start.walkthrough_id
    and start.started_at <= done.first_at
  union all
  select
    walkthrough_id,
    mcp_server_id,
    started_at,
    0,
    null,
    started_at
  from walkthrough_starts as start
  where not exists (
    select from walkthrough_step_completions as row_
    where row_.mcp_server_user_id = start.mcp_server_user_id and row_.walkthrough_id = start.walkthrough_id
  )
),
cells as (
  select
    walkthrough_id,
    mcp_server_id,
    date '1970-01-01' + (began_at / 86400000)::integer as began_on,
    steps_done,
    step_id,
    date '1970-01-01' + (last_active_at / 86400000)::integer as last_active_on,
    1 as expected_journeys,
    0 as counted_journeys
  from journeys
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    last_active_on,
    0,
    journeys
  from sankey_endings
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done,
  step_id,
  last_active_on,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys
from cells
group by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on
having sum(expected_journeys) <> sum(counted_journeys)
order by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on;

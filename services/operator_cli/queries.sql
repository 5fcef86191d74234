-- name: differing_transitions
-- What the transitions must be, by one walk over the completions, beside what is counted.
with
done as (
  select
    mcp_server_user_id,
    walkthrough_id,
    step_id,
    completed_at,
    row_number() over journey - 1 as position,
    lag(step_id) over journey as from_step_id,
    completed_at - lag(completed_at) over journey as elapsed_ms,
    first_value(mcp_server_id) over journey as mcp_server_id,
    first_value(completed_at) over journey as began_at
  from walkthrough_step_completions
  window journey as (
    partition by mcp_server_user_id, walkthrough_id
    order by completed_at, id collate "C"
  )
),
cells as (
  select
    walkthrough_id,
    mcp_server_id,
    date '1970-01-01' + (began_at / 86400000)::integer as began_on,
    position,
    from_step_id,
    step_id as to_step_id,
    1 as expected_journeys,
    coalesce(elapsed_ms, 0) as expected_elapsed_ms,
    0 as counted_journeys,
    0 as counted_elapsed_ms
  from done
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
    journeys,
    elapsed_ms
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
  sum(counted_elapsed_ms)::bigint as counted_elapsed_ms
from cells
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id
having
  sum(expected_journeys) <> sum(counted_journeys)
  or sum(expected_elapsed_ms) <> sum(counted_elapsed_ms)
order by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id;

-- name: differing_endings
with
done as (
  select distinct on (mcp_server_user_id, walkthrough_id)
    walkthrough_id,
    first_value(mcp_server_id) over journey as mcp_server_id,
    first_value(completed_at) over journey as began_at,
    count(*) over journey as steps_done,
    last_value(step_id) over journey as step_id,
    last_value(completed_at) over journey as last_active_at
  from walkthrough_step_completions
  window journey as (
    partition by mcp_server_user_id, walkthrough_id
    order by completed_at, id collate "C"
    rows between unbounded preceding and unbounded following
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
  from done
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

-- name: differing_journeys
-- Journeys whose completions are not what was counted of them.
with done as (
  select
    mcp_server_user_id,
    walkthrough_id,
    array_agg(step_id order by completed_at, id collate "C") as step_ids,
    array_agg(completed_at order by completed_at, id collate "C") as completed_at,
    (array_agg(mcp_server_id order by completed_at, id collate "C"))[1] as mcp_server_id
  from walkthrough_step_completions
  group by mcp_server_user_id, walkthrough_id
)
select
  coalesce(done.mcp_server_user_id, counted.mcp_server_user_id) as mcp_server_user_id,
  coalesce(done.walkthrough_id, counted.walkthrough_id) as walkthrough_id,
  done.step_ids as expected_step_ids,
  counted.step_ids as counted_step_ids
from done
full join sankey_journeys as counted on done.mcp_server_user_id = counted.mcp_server_user_id
  and done.walkthrough_id = counted.walkthrough_id
where
  done.step_ids is distinct from counted.step_ids
  or done.completed_at is distinct from counted.completed_at
  or done.mcp_server_id is distinct from counted.mcp_server_id
order by 1, 2;

-- name: totals
select
  (select count(*) from walkthrough_step_completions) as completions,
  (select count(*) from sankey_journeys) as journeys,
  (select count(*) from sankey_transitions) as transition_cells,
  (select count(*) from sankey_endings) as ending_cells,
  (select count(*) from sankey_dirty) as marks;

-- name: import_walkthrough
-- A second import updates.
insert into walkthroughs (
  id, organization_id, title, description, type, status, created_at, updated_at,
  estimated_duration_minutes, tags, metadata
)
values ($1, $2, $3, $4, $5, $6, $7, $7, $8, $9, $10)
on conflict (id) do update
set
  title = excluded.title,
  description = excluded.description,
  type = excluded.type,
  status = excluded.status,
  updated_at = excluded.updated_at,
  estimated_duration_minutes = excluded.estimated_duration_minutes,
  tags = excluded.tags,
  metadata = excluded.metadata;

-- name: import_step
insert into walkthrough_steps (
  id, walkthrough_id, title, content_fields, display_order, created_at, updated_at, metadata
)
values ($1, $2, $3, $4, $5, $6, $6, $7)
on conflict (id) do update
set
  title = excluded.title,
  content_fields = excluded.content_fields,
  display_order = excluded.display_order,
  updated_at = excluded.updated_at,
  metadata = excluded.metadata;

-- name: offer_walkthrough
insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id, created_at)
values ($1, $2, $3, $4)
on conflict (mcp_server_id, walkthrough_id) do nothing;

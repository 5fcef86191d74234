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

-- name: differing_journeys
-- Journeys whose rows are not what was counted of them.
with
done as (
  select
    mcp_server_user_id,
    walkthrough_id,
    array_agg(step_id order by completed_at, id collate "C") as step_ids,
    array_agg(completed_at order by completed_at, id collate "C") as completed_at,
    (array_agg(mcp_server_id order by completed_at, id collate "C"))[1] as mcp_server_id
  from walkthrough_step_completions
  group by mcp_server_user_id, walkthrough_id
),
journeys as (
  select
    coalesce(done.mcp_server_user_id, start.mcp_server_user_id) as mcp_server_user_id,
    coalesce(done.walkthrough_id, start.walkthrough_id) as walkthrough_id,
    coalesce(done.step_ids, '{}') as step_ids,
    coalesce(done.completed_at, '{}') as completed_at,
    case when counts.it_does then start.started_at end as started_at,
    case when counts.it_does then start.mcp_server_id else done.mcp_server_id end as mcp_server_id
  from done
  full join walkthrough_starts as start on done.mcp_server_user_id = start.mcp_server_user_id
    and done.walkthrough_id = start.walkthrough_id
  cross join lateral (
    select coalesce(start.started_at <= coalesce(done.completed_at[1], start.started_at), false) as it_does
  ) as counts
)
select
  coalesce(journeys.mcp_server_user_id, counted.mcp_server_user_id) as mcp_server_user_id,
  coalesce(journeys.walkthrough_id, counted.walkthrough_id) as walkthrough_id,
  journeys.started_at as expected_started_at,
  counted.started_at as counted_started_at,
  journeys.step_ids as expected_step_ids,
  counted.step_ids as counted_step_ids
from journeys
full join sankey_journeys as counted on journeys.mcp_server_user_id = counted.mcp_server_user_id
  and journeys.walkthrough_id = counted.walkthrough_id
where
  journeys.step_ids is distinct from counted.step_ids
  or journeys.completed_at is distinct from counted.completed_at
  or journeys.started_at is distinct from counted.started_at
  or journeys.mcp_server_id is distinct from counted.mcp_server_id
order by 1, 2;

-- name: totals
select
  (select count(*) from walkthrough_step_completions) as completions,
  (select count(*) from walkthrough_starts) as starts,
  (select count(*) from sankey_journeys) as journeys,
  (select count(*) from sankey_transitions) as transition_cells,
  (select count(*) from sankey_endings) as ending_cells,
  (select count(*) from sankey_dirty) as marks;

-- name: import_server
select
  id,
  organization_id,
  slug
from mcp_servers
where slug = $1;

-- name: import_owner_of_walkthrough
select organization_id from walkthroughs
where id = $1;

-- name: import_step_exists
select exists (select from walkthrough_steps where id = $1);

-- name: import_steps_elsewhere
-- Which of these ids are steps of another walkthrough.
select id from walkthrough_steps
where id = any($1::text[]) and walkthrough_id <> $2;

-- name: import_walkthrough_before
select
  title,
  description,
  type::text as type,
  status::text as status,
  estimated_duration_minutes,
  tags,
  metadata,
  created_at,
  updated_at
from walkthroughs
where id = $1
for update;

-- name: import_steps_before
select
  id,
  title,
  content_fields,
  display_order,
  next_step_id,
  metadata,
  created_at,
  updated_at
from walkthrough_steps
where walkthrough_id = $1
order by display_order, created_at nulls first, id collate "C";

-- name: import_offer_before
select id from mcp_server_walkthroughs
where mcp_server_id = $1 and walkthrough_id = $2;

-- name: import_walkthrough
-- A second import updates.
insert into walkthroughs (
  id, organization_id, title, description, type, status, estimated_duration_minutes, tags, metadata,
  created_at, updated_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (id) do update
set
  title = excluded.title,
  description = excluded.description,
  type = excluded.type,
  status = excluded.status,
  estimated_duration_minutes = excluded.estimated_duration_minutes,
  tags = excluded.tags,
  metadata = excluded.metadata,
  created_at = excluded.created_at,
  updated_at = excluded.updated_at;

-- name: import_step
insert into walkthrough_steps (
  id, walkthrough_id, title, content_fields, display_order, next_step_id, metadata, created_at, updated_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (id) do update
set
  title = excluded.title,
  content_fields = excluded.content_fields,
  display_order = excluded.display_order,
  metadata = excluded.metadata,
  created_at = excluded.created_at,
  updated_at = excluded.updated_at;

-- name: import_link
update walkthrough_steps set next_step_id = $2
where id = $1;

-- name: offer_walkthrough
-- After what the server offers already.
insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id, display_order, created_at)
select
  $1,
  $2,
  $3,
  coalesce(max(display_order) + 1, 0),
  $4
from mcp_server_walkthroughs
where mcp_server_id = $2
on conflict (mcp_server_id, walkthrough_id) do nothing;

-- name: export_walkthrough
select
  id,
  organization_id,
  title,
  description,
  type::text as type,
  status::text as status,
  estimated_duration_minutes,
  tags,
  metadata,
  created_at,
  updated_at,
  (select count(*) from mcp_server_walkthroughs where walkthrough_id = walkthroughs.id) as servers
from walkthroughs
where id = $1;

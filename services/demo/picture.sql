-- name: steps
select
  walkthrough_steps.id,
  walkthrough_steps.title,
  walkthroughs.title as walkthrough
from walkthrough_steps
inner join walkthroughs on walkthrough_steps.walkthrough_id = walkthroughs.id
where walkthrough_steps.walkthrough_id = $1
order by walkthrough_steps.display_order, walkthrough_steps.created_at nulls first, walkthrough_steps.id collate "C";

-- name: transitions
select
  position,
  from_step_id,
  to_step_id,
  sum(journeys)::bigint as journeys,
  sum(elapsed_ms) / nullif(sum(timed_journeys), 0) as mean_ms
from sankey_transitions
where walkthrough_id = $1
group by position, from_step_id, to_step_id
having sum(journeys) > 0
order by journeys desc, position, from_step_id, to_step_id;

-- name: endings
-- Finished: every current step is done or skipped. In progress: active within 7 days. Else dropped.
select
  step_id,
  case
    when steps_done + steps_skipped > 0 and steps_done + steps_skipped = $2::integer then 'finished'
    when last_active_on > date '1970-01-01' + ($3::bigint / 86400000)::integer - 7 then 'in progress'
    else 'dropped'
  end as outcome,
  sum(journeys)::bigint as journeys
from sankey_endings
where walkthrough_id = $1
group by 1, 2
having sum(journeys) > 0;

-- name: journeys_counted
select coalesce(sum(journeys), 0)::bigint from sankey_endings;

-- name: rows_of_people
-- Steps in order, by people's tracking ids or ids; no steps where a walkthrough was only opened.
with people as (
  select
    id,
    coalesce(distinct_id, id) as who
  from mcp_server_user
  where coalesce(distinct_id, id) = any($1::text[])
),
found as (
  select
    mcp_server_user_id,
    walkthrough_id,
    step_id,
    completed_at,
    id
  from walkthrough_step_completions
  union all
  select
    mcp_server_user_id,
    walkthrough_id,
    null,
    null,
    id
  from walkthrough_starts
)
select
  people.who,
  found.walkthrough_id,
  coalesce(
    array_agg(found.step_id order by found.completed_at, found.id collate "C") filter (where found.step_id is not null),
    '{}'
  ) as steps
from people
inner join found on people.id = found.mcp_server_user_id
group by people.who, found.walkthrough_id;

-- name: left_to_relay_or_count
select (select count(*) from outbox) + (select count(*) from sankey_dirty);

-- name: all_transitions
select
  walkthrough_id,
  position,
  from_step_id,
  to_step_id,
  sum(journeys)::bigint as journeys
from sankey_transitions
group by walkthrough_id, position, from_step_id, to_step_id;

-- name: all_endings
select
  walkthrough_id,
  steps_done,
  step_id,
  sum(journeys)::bigint as journeys
from sankey_endings
group by walkthrough_id, steps_done, step_id;

-- name: move_a_step
-- The fifth step comes before the third; the others keep their order.
with placed as (
  select
    id,
    case when row_number() over by_order = 5 then 2.5 else row_number() over by_order end as place
  from walkthrough_steps
  where walkthrough_id = $1
  window by_order as (order by display_order, created_at nulls first, id collate "C")
),
numbered as (
  select
    id,
    row_number() over (order by place) as display_order
  from placed
)
update walkthrough_steps
set display_order = numbered.display_order
from numbered
where walkthrough_steps.id = numbered.id;

-- name: steps_in_order
select id from walkthrough_steps
where walkthrough_id = $1
order by display_order, created_at nulls first, id collate "C";

-- name: insert_people
insert into mcp_server_user (id, first_seen_at)
select
  given.id,
  given.at
from unnest($1::text[], $2::bigint[]) as given (id, at)
on conflict do nothing;

-- name: insert_sessions
insert into mcp_server_session (
  mcp_server_session_id, mcp_server_slug, connection_date, connection_timestamp, mcp_server_user_id
)
select
  given.id,
  given.slug,
  date '1970-01-01' + (given.at / 86400000)::integer,
  given.at,
  given.user_id
from unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) as given (id, slug, at, user_id)
on conflict do nothing;

-- name: demo_was_here
select exists (
  select from sankey_endings
  where mcp_server_id = any($1::text[])
);

-- What the tables hold, for a judge who shares no text with what it judges.

-- name: rows
-- All but those of a walkthrough that is judged by itself.
select
  'step' as kind,
  mcp_server_user_id,
  step_id as thing,
  completed_at as at,
  id,
  walkthrough_id,
  mcp_server_id,
  mcp_server_session_id
from walkthrough_step_completions
where walkthrough_id <> $1
union all
select
  'start',
  mcp_server_user_id,
  walkthrough_id,
  started_at,
  id,
  walkthrough_id,
  mcp_server_id,
  mcp_server_session_id
from walkthrough_starts
where walkthrough_id <> $1
union all
select
  'skip',
  mcp_server_user_id,
  step_id,
  skipped_at,
  id,
  walkthrough_id,
  mcp_server_id,
  mcp_server_session_id
from walkthrough_step_skips
where walkthrough_id <> $1
union all
select
  'shown',
  mcp_server_user_id,
  step_id,
  first_shown_at,
  first_id,
  walkthrough_id,
  mcp_server_id,
  mcp_server_session_id
from walkthrough_step_showings
where walkthrough_id <> $1;

-- name: led
-- What people have done whom agents led, by the name that their agent gives them.
select
  mcp_server_user.distinct_id as person,
  done.step_id
from walkthrough_step_completions as done
join mcp_server_user on done.mcp_server_user_id = mcp_server_user.id
where done.walkthrough_id = $1;

-- name: known_led
-- Sessions that are there, of people who are there: what an event may refer to.
select
  mcp_server_session.mcp_server_session_id as session,
  mcp_server_user.id as person
from mcp_server_session
join mcp_server_user on mcp_server_session.mcp_server_user_id = mcp_server_user.id;

-- name: led_by_id
select
  mcp_server_user_id as person,
  step_id
from walkthrough_step_completions
where walkthrough_id = $1;

-- name: left
-- Rows that are left of people who are to be forgotten.
select
  mcp_server_user_id,
  count(*) as rows
from (
  select mcp_server_user_id from walkthrough_step_completions
  union all
  select mcp_server_user_id from walkthrough_starts
  union all
  select mcp_server_user_id from walkthrough_step_skips
  union all
  select mcp_server_user_id from walkthrough_step_showings
  union all
  select mcp_server_user_id from sankey_journeys
  union all
  select mcp_server_user_id from waiting_events
) as theirs
where mcp_server_user_id = any($1::text [])
group by mcp_server_user_id;

-- name: waiting
select
  (select count(*) from outbox) as "outbox",
  (select count(*) from sankey_dirty) as "marks",
  (select count(*) from waiting_events) as "waiting events";

-- name: recorded
-- How far the recorder has come, by what is in the database.
select
  partition,
  next_offset
from recorded_offsets
where topic = $1;

-- name: counted
-- How far the aggregator has come, where that is in the database.
select
  partition,
  next_offset
from counted_offsets
where topic = $1;

-- name: is_there
select to_regclass($1) is not null as is_there;

-- name: gone
select
  topic,
  partition,
  cause::text as cause,
  from_offset,
  until_offset
from gone_events;

-- name: steps
-- How many people have done each step of a walkthrough.
select
  step_id,
  count(*) as people
from walkthrough_step_completions
where walkthrough_id = $1
group by step_id;

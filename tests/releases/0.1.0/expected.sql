-- name: completions
-- One row for each person and step.
select
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  mcp_server_id,
  mcp_server_session_id,
  completed_at,
  metadata::text
from walkthrough_step_completions
order by mcp_server_user_id collate "C", step_id collate "C";

-- name: starts
-- One row for each person and walkthrough.
select id, mcp_server_user_id, walkthrough_id, mcp_server_id, mcp_server_session_id, started_at
from walkthrough_starts
order by mcp_server_user_id collate "C", walkthrough_id collate "C";

-- name: skips
-- The first skip of each person and step.
select mcp_server_user_id, walkthrough_id, step_id, skipped_at, reason
from walkthrough_step_skips
order by mcp_server_user_id collate "C", step_id collate "C";

-- name: showings
-- The first and the last showing of each person and step.
select mcp_server_user_id, step_id, first_shown_at, last_shown_at, last_version
from walkthrough_step_showings
order by mcp_server_user_id collate "C", step_id collate "C";

-- name: erased
-- Who was forgotten.
select mcp_server_user_id from erased_users order by mcp_server_user_id collate "C";

-- name: transitions
-- How many journeys go from where to where.
select position, from_step_id, to_step_id, sum(journeys) as journeys
from sankey_transitions
group by position, from_step_id, to_step_id
having sum(journeys) > 0
order by position, from_step_id collate "C" nulls first, to_step_id collate "C";

-- name: endings
-- How many journeys end where.
select steps_done, step_id, sum(journeys) as journeys
from sankey_endings
group by steps_done, step_id
having sum(journeys) > 0
order by steps_done, step_id collate "C" nulls first;

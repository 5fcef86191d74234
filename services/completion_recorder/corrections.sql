-- name: person
-- Whether there is such a person.
select true from mcp_server_user where id = $1;

-- name: entries
-- What is known of a person's completions, or of one step's: what counts first.
select *
from (
  select
    'counts' as state,
    step_id,
    walkthrough_id,
    completed_at,
    id,
    mcp_server_id,
    mcp_server_session_id,
    null::bigint as corrected_at,
    null::bigint as covers_until
  from walkthrough_step_completions
  where mcp_server_user_id = $1
  union all
  select
    'correction',
    step_id,
    walkthrough_id,
    completed_at,
    event_id,
    mcp_server_id,
    mcp_server_session_id,
    corrected_at,
    covers_until
  from completion_corrections
  where mcp_server_user_id = $1
  union all
  select
    'later',
    step_id,
    walkthrough_id,
    completed_at,
    id,
    mcp_server_id,
    mcp_server_session_id,
    null,
    null
  from later_completions
  where mcp_server_user_id = $1
) as known
where $2::text is null or step_id = $2
order by step_id, array_position(array['counts', 'correction', 'later'], state), completed_at, id;

-- name: place
-- The walkthrough of a step, and the server of a session.
select
  step.walkthrough_id,
  server.id as mcp_server_id
from walkthrough_steps as step
cross join mcp_server_session as session
inner join mcp_servers as server on session.mcp_server_slug = server.slug
where step.id = $1 and session.mcp_server_session_id = $2;

-- name: erase_lock
select id from mcp_server_user
where id = $1
for update;

-- name: erase_names
-- What a person is called: by these names others may speak of them.
-- Where somebody else has their address in another case, it is theirs as they have it alone.
select
  distinct_id,
  email,
  array(
    select distinct registered.distinct_id from registered_people as registered
    where registered.mcp_server_user_id = person.id
  ) as registered,
  exists (
    select from mcp_server_user as other
    where lower(other.email) = lower(person.email) and other.email <> person.email
  ) as is_email_exact
from mcp_server_user as person
where id = $1;

-- name: erase_plan
select
  exists (select from mcp_server_user where id = $1) as known,
  (select erased_at from erased_users where mcp_server_user_id = $1) as erased_at,
  (select count(*) from walkthrough_step_completions where mcp_server_user_id = $1) as completions,
  (select count(*) from later_completions where mcp_server_user_id = $1) as later_completions,
  (select count(*) from completion_corrections where mcp_server_user_id = $1) as corrections,
  (select count(*) from walkthrough_starts where mcp_server_user_id = $1) as starts,
  (select count(*) from walkthrough_step_skips where mcp_server_user_id = $1) as skips,
  (select count(*) from walkthrough_step_showings where mcp_server_user_id = $1) as showings,
  (select count(*) from sankey_journeys where mcp_server_user_id = $1) as journeys,
  (select count(*) from walkthrough_progress where mcp_server_user_id = $1) as progress,
  (select count(*) from mcp_server_session where mcp_server_user_id = $1) as sessions,
  (select count(*) from mcp_user_identities where mcp_server_user_id = $1) as identities,
  (select count(*) from waiting_events where mcp_server_user_id = $1) as waiting_events;

-- name: erase_journeys
select walkthrough_id from walkthrough_step_completions where mcp_server_user_id = $1
union
select walkthrough_id from walkthrough_starts where mcp_server_user_id = $1
union
select walkthrough_id from walkthrough_step_skips where mcp_server_user_id = $1
union
select walkthrough_id from walkthrough_step_showings where mcp_server_user_id = $1
union
select walkthrough_id from sankey_journeys where mcp_server_user_id = $1;

-- name: erase_user
delete from mcp_server_user where id = $1;

-- name: erase_marks
delete from sankey_dirty where mcp_server_user_id = $1;

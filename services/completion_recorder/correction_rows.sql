-- name: lock_corrected
-- The people whose completions are corrected: while we hold them nobody records a completion of theirs, which keeps
-- the row of the person. `nowait`, as `count_references`.
select id from mcp_server_user where id = any($1::text[]) order by id for update nowait;

-- name: find_corrections
-- What was decided about these users and steps before.
select
  kept.event_id,
  kept.mcp_server_user_id,
  kept.walkthrough_id,
  kept.step_id,
  kept.mcp_server_id,
  kept.mcp_server_session_id,
  kept.corrected_at,
  kept.covers_until,
  kept.completed_at
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id;

-- name: write_corrections
-- What corrections come to, one row for each user and step.
insert into completion_corrections (
  event_id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, corrected_at,
  covers_until, completed_at
)
select *
from unnest(
  $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[]
)
on conflict (mcp_server_user_id, step_id) do update
set
  event_id = excluded.event_id,
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  corrected_at = excluded.corrected_at,
  covers_until = excluded.covers_until,
  completed_at = excluded.completed_at;

-- name: delete_superseded
-- Rows of corrections that decide no more.
delete from walkthrough_step_completions as kept
using unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as given (id, mcp_server_user_id, step_id, completed_at)
where
  kept.mcp_server_user_id = given.mcp_server_user_id and kept.step_id = given.step_id
  and kept.id = given.id and kept.completed_at = given.completed_at;

-- name: delete_covered
-- Rows of these users and steps that their correction covers, but for the row that is the correction's.
delete from walkthrough_step_completions as kept
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where
  kept.mcp_server_user_id = given.mcp_server_user_id and kept.step_id = given.step_id
  and kept.completed_at <= correction.covers_until
  and (kept.id, kept.completed_at) is distinct from ('wtsc_' || correction.event_id, correction.completed_at);

-- name: delete_covered_later
-- Later completions of these users and steps that their correction covers.
delete from later_completions as later
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where
  later.mcp_server_user_id = given.mcp_server_user_id and later.step_id = given.step_id
  and later.completed_at <= correction.covers_until;

-- name: take_candidates
-- What may count now of these users and steps, beside the row that is there: what the correction says, and what is
-- later than it covers. New events may not name these journeys, so each change leaves a mark.
insert into incoming (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata,
  is_replayed, of_correction
)
select
  'wtsc_' || correction.event_id,
  correction.mcp_server_user_id,
  correction.walkthrough_id,
  correction.step_id,
  correction.mcp_server_id,
  correction.mcp_server_session_id,
  correction.completed_at,
  null,
  true,
  true
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where correction.completed_at is not null
union all
select
  later.id,
  later.mcp_server_user_id,
  later.walkthrough_id,
  later.step_id,
  later.mcp_server_id,
  later.mcp_server_session_id,
  later.completed_at,
  later.metadata,
  true,
  false
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join later_completions as later on given.mcp_server_user_id = later.mcp_server_user_id
  and given.step_id = later.step_id;

-- name: forget_counted
-- What counts now is no later completion any more.
delete from later_completions as later
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id
where
  later.mcp_server_user_id = given.mcp_server_user_id and later.step_id = given.step_id
  and later.id = kept.id and later.completed_at = kept.completed_at;

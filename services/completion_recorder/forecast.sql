-- name: find_recorded
-- Which of these events a row is of: under their id, of their person and step, or walkthrough.
with given as (
  select *
  from unnest($1::integer[], $2::text[], $3::text[], $4::text[], $5::text[])
    as given (number, relation, event_id, mcp_server_user_id, of_what)
)
select given.number
from given
inner join walkthrough_step_completions as kept on kept.id = 'wtsc_' || given.event_id
where
  given.relation = 'walkthrough_step_completions'
  and (given.mcp_server_user_id, given.of_what) = (kept.mcp_server_user_id, kept.step_id)
union all
select given.number
from given
inner join walkthrough_starts as kept on kept.id = 'wtst_' || given.event_id
where
  given.relation = 'walkthrough_starts'
  and (given.mcp_server_user_id, given.of_what) = (kept.mcp_server_user_id, kept.walkthrough_id)
union all
select given.number
from given
inner join walkthrough_step_skips as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.of_what = kept.step_id
where given.relation = 'walkthrough_step_skips' and kept.id = 'wtss_' || given.event_id
union all
select given.number
from given
inner join walkthrough_step_showings as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.of_what = kept.step_id
where
  given.relation = 'walkthrough_step_showings'
  and 'wtsh_' || given.event_id in (kept.first_id, kept.last_id);

-- name: find_covered
-- Which of these completions a correction covers.
select given.number
from unnest($1::integer[], $2::text[], $3::text[], $4::bigint[])
  as given (number, mcp_server_user_id, step_id, completed_at)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where given.completed_at <= correction.covers_until;

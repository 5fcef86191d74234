-- name: swap_lock
lock table sankey_journeys in exclusive mode;

-- name: swap_touched
-- Of the differing journeys, those that the aggregator has counted anew since they were surveyed: it has
-- looked at their rows, so they stay as they are.
delete from differing_journeys as found
using differing_journeys as same
left join sankey_journeys as counted on same.mcp_server_user_id = counted.mcp_server_user_id
  and same.walkthrough_id = counted.walkthrough_id
where
  found.mcp_server_user_id = same.mcp_server_user_id and found.walkthrough_id = same.walkthrough_id
  and (
    counted.step_ids is distinct from found.counted_step_ids
    or counted.completed_at is distinct from found.counted_completed_at
    or counted.started_at is distinct from found.counted_started_at
    or counted.mcp_server_id is distinct from found.counted_server_id
    or counted.first_shown_at is distinct from found.counted_first_shown_at
    or counted.skipped is distinct from found.counted_skipped
    or counted.shown_at is distinct from found.counted_shown_at
    or counted.shown_step_id is distinct from found.counted_shown_step_id
  )
returning
  found.walkthrough_id,
  found.counted_server_id,
  found.counted_step_ids,
  found.counted_completed_at,
  found.counted_started_at,
  found.counted_first_shown_at,
  found.counted_skipped,
  found.counted_shown_at,
  found.counted_shown_step_id,
  found.expected_server_id,
  found.expected_step_ids,
  found.expected_completed_at,
  found.expected_started_at,
  found.expected_first_shown_at,
  found.expected_skipped,
  found.expected_shown_at,
  found.expected_shown_step_id;

-- name: swap_delete_journeys
delete from sankey_journeys as counted
using differing_journeys as found
where
  counted.mcp_server_user_id = found.mcp_server_user_id and counted.walkthrough_id = found.walkthrough_id
  and found.expected_server_id is null;

-- name: swap_write_journeys
insert into sankey_journeys as counted (
  mcp_server_user_id,
  walkthrough_id,
  mcp_server_id,
  step_ids,
  completed_at,
  started_at,
  first_shown_at,
  skipped,
  shown_at,
  shown_step_id
)
select
  mcp_server_user_id,
  walkthrough_id,
  expected_server_id,
  expected_step_ids,
  expected_completed_at,
  expected_started_at,
  expected_first_shown_at,
  expected_skipped,
  expected_shown_at,
  expected_shown_step_id
from differing_journeys
where expected_server_id is not null
on conflict (mcp_server_user_id, walkthrough_id) do update
set
  mcp_server_id = excluded.mcp_server_id,
  step_ids = excluded.step_ids,
  completed_at = excluded.completed_at,
  started_at = excluded.started_at,
  first_shown_at = excluded.first_shown_at,
  skipped = excluded.skipped,
  shown_at = excluded.shown_at,
  shown_step_id = excluded.shown_step_id;

-- name: swap_transitions
-- What the cells lack, together with what changed since (`given`), as the deltas that are added.
insert into transition_deltas (
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  skipped,
  journeys,
  elapsed_ms,
  timed_journeys,
  active_ms,
  active_journeys
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  skipped,
  sum(journeys),
  sum(elapsed_ms),
  sum(timed_journeys),
  sum(active_ms),
  sum(active_journeys)
from (
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    skipped,
    expected_journeys - counted_journeys as journeys,
    expected_elapsed_ms - counted_elapsed_ms as elapsed_ms,
    expected_timed_journeys - counted_timed_journeys as timed_journeys,
    expected_active_ms - counted_active_ms as active_ms,
    expected_active_journeys - counted_active_journeys as active_journeys
  from differing_transitions
  union all
  select * from unnest(
    $1::text[], $2::text[], $3::date[], $4::integer[], $5::text[], $6::text[], $7::boolean[], $8::bigint[],
    $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[]
  )
) as part
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped
having
  sum(journeys) <> 0
  or sum(elapsed_ms) <> 0
  or sum(timed_journeys) <> 0
  or sum(active_ms) <> 0
  or sum(active_journeys) <> 0;

-- name: swap_endings
insert into ending_deltas (
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done,
  step_id,
  last_active_on,
  steps_skipped,
  shown_step_id,
  journeys
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done,
  step_id,
  last_active_on,
  steps_skipped,
  shown_step_id,
  sum(journeys)
from (
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    last_active_on,
    steps_skipped,
    shown_step_id,
    expected_journeys - counted_journeys as journeys
  from differing_endings
  union all
  select * from unnest(
    $1::text[], $2::text[], $3::date[], $4::integer[], $5::text[], $6::date[], $7::integer[], $8::text[],
    $9::bigint[]
  )
) as part
group by
  walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, steps_skipped, shown_step_id
having sum(journeys) <> 0;

-- name: swap_mark
-- Rows may have changed since the survey in a way that the aggregator saw before the swap: it looks again.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select
  mcp_server_user_id,
  walkthrough_id
from differing_journeys;

-- name: swap_freshness
-- Whoever keeps figures of a walkthrough by its change number reads them again.
insert into sankey_freshness as kept (walkthrough_id, newest_at, changes)
select
  walkthrough_id,
  0,
  (extract(epoch from clock_timestamp()) * 1000000)::bigint
from (
  select walkthrough_id from differing_journeys
  union
  select walkthrough_id from transition_deltas
  union
  select walkthrough_id from ending_deltas
) as changed
order by walkthrough_id
on conflict (walkthrough_id) do update
set changes = greatest(kept.changes + 1, excluded.changes);

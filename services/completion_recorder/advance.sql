-- name: advance_offsets
-- How far the recorder comes with this transaction, never backwards; and how far it had come before.
-- The row locks make a member that lost its partitions and the one that got them take turns.
insert into recorded_offsets (topic, partition, next_offset)
select
  $1,
  given.partition,
  given.next_offset
from unnest($2::integer[], $3::bigint[]) as given (partition, next_offset)
order by given.partition
on conflict (topic, partition) do update
set next_offset = greatest(recorded_offsets.next_offset, excluded.next_offset)
returning
  partition,
  coalesce(old.next_offset, 0) as next_offset,
  coalesce(old.recent_events, 0) as recent_events,
  coalesce(old.recent_broken, 0) as recent_refused;

-- name: mark_all
-- Every journey that there is: of completions, starts, skips and showings.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select
  mcp_server_user_id,
  walkthrough_id
from walkthrough_step_completions
union
select
  mcp_server_user_id,
  walkthrough_id
from walkthrough_starts
union
select
  mcp_server_user_id,
  walkthrough_id
from walkthrough_step_skips
union
select
  mcp_server_user_id,
  walkthrough_id
from walkthrough_step_showings;

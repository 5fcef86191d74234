-- name: create_temporary_tables
-- Where a batch's results land before they are written; one set per connection, empty between transactions.
create temporary table if not exists counted (
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text,
  step_ids text [] not null,
  completed_at bigint [] not null,
  started_at bigint
) on commit delete rows;
create temporary table if not exists transition_deltas (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  position integer not null,
  from_step_id text,
  to_step_id text not null,
  journeys bigint not null,
  elapsed_ms bigint not null,
  timed_journeys bigint not null
) on commit delete rows;
create temporary table if not exists ending_deltas (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  steps_done integer not null,
  step_id text,
  last_active_on date not null,
  journeys bigint not null
) on commit delete rows;

-- name: recorded
-- How far the recorder has judged these partitions.
select
  partition,
  next_offset
from recorded_offsets
where topic = $1 and partition = any($2::integer[]);

-- name: take_marks
-- The oldest marks that nobody else is draining. They are gone when the transaction commits.
delete from sankey_dirty
where id = any(array(
  select id from sankey_dirty order by id limit $1 for update skip locked
))
returning mcp_server_user_id, walkthrough_id;

-- name: mark_all
-- Every journey that there is, or was counted.
with marked as (
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
  from sankey_journeys
  returning 1
)
select count(*) from marked;

-- name: lock_journeys
-- Locks the journeys in key order, those never seen before included: they get an empty row, and are
-- returned. An update whose condition is false changes nothing, but locks the row.
insert into sankey_journeys as kept (mcp_server_user_id, walkthrough_id)
select
  given.mcp_server_user_id,
  given.walkthrough_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
order by given.mcp_server_user_id, given.walkthrough_id
on conflict (mcp_server_user_id, walkthrough_id) do update
set mcp_server_id = kept.mcp_server_id
where false
returning mcp_server_user_id, walkthrough_id;

-- name: read_changed
-- Of the locked journeys, those whose rows differ from what was counted. A start counts where it is not later
-- than the first completion; the journey then has its server. A statement of its own: its snapshot is taken
-- after the locks, so it sees what the previous holder of a lock has committed.
select
  counted.mcp_server_user_id,
  counted.walkthrough_id,
  counted.mcp_server_id as old_server_id,
  counted.step_ids as old_step_ids,
  counted.completed_at as old_completed_at,
  counted.started_at as old_started_at,
  coalesce(start.mcp_server_id, done.mcp_server_id) as new_server_id,
  coalesce(done.step_ids, '{}') as new_step_ids,
  coalesce(done.completed_at, '{}') as new_completed_at,
  start.started_at as new_started_at
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join sankey_journeys as counted on given.mcp_server_user_id = counted.mcp_server_user_id
  and given.walkthrough_id = counted.walkthrough_id
cross join lateral (
  select
    (array_agg(row_.mcp_server_id order by row_.completed_at, row_.id collate "C"))[1] as mcp_server_id,
    array_agg(row_.step_id order by row_.completed_at, row_.id collate "C") as step_ids,
    array_agg(row_.completed_at order by row_.completed_at, row_.id collate "C") as completed_at
  from walkthrough_step_completions as row_
  where row_.mcp_server_user_id = given.mcp_server_user_id and row_.walkthrough_id = given.walkthrough_id
) as done
left join walkthrough_starts as start on given.mcp_server_user_id = start.mcp_server_user_id
  and given.walkthrough_id = start.walkthrough_id
  and start.started_at <= coalesce(done.completed_at[1], start.started_at)
where
  counted.step_ids is distinct from coalesce(done.step_ids, '{}')
  or counted.completed_at is distinct from coalesce(done.completed_at, '{}')
  or counted.started_at is distinct from start.started_at
  or counted.mcp_server_id is distinct from coalesce(start.mcp_server_id, done.mcp_server_id);

-- name: write_journeys
update sankey_journeys as kept
set
  mcp_server_id = counted.mcp_server_id,
  step_ids = counted.step_ids,
  completed_at = counted.completed_at,
  started_at = counted.started_at
from counted
where kept.mcp_server_user_id = counted.mcp_server_user_id and kept.walkthrough_id = counted.walkthrough_id;

-- name: delete_journeys
-- Journeys without completions and without a start.
delete from sankey_journeys as kept
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
where kept.mcp_server_user_id = given.mcp_server_user_id and kept.walkthrough_id = given.walkthrough_id;

-- name: add_transitions
-- Adds the deltas in key order, and returns the keys of those that came to nothing.
with written as (
  insert into sankey_transitions as kept (
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    journeys,
    elapsed_ms,
    timed_journeys
  )
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    journeys,
    elapsed_ms,
    timed_journeys
  from transition_deltas
  order by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id
  on conflict on constraint sankey_transitions_unique do update
  set
    journeys = kept.journeys + excluded.journeys,
    elapsed_ms = kept.elapsed_ms + excluded.elapsed_ms,
    timed_journeys = kept.timed_journeys + excluded.timed_journeys
  returning *
)
select count(*) from written where journeys = 0;

-- name: delete_empty_transitions
-- Cells of nothing; where only the number of journeys is 0 something is wrong, and stays to be found.
delete from sankey_transitions as kept
using transition_deltas as delta
where kept.walkthrough_id = delta.walkthrough_id
  and kept.mcp_server_id = delta.mcp_server_id
  and kept.began_on = delta.began_on
  and kept.position = delta.position
  and kept.from_step_id is not distinct from delta.from_step_id
  and kept.to_step_id = delta.to_step_id
  and kept.journeys = 0
  and kept.elapsed_ms = 0
  and kept.timed_journeys = 0;

-- name: add_endings
with written as (
  insert into sankey_endings as kept (
    walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, journeys
  )
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    last_active_on,
    journeys
  from ending_deltas
  order by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on
  on conflict on constraint sankey_endings_unique do update
  set journeys = kept.journeys + excluded.journeys
  returning *
)
select count(*) from written where journeys = 0;

-- name: delete_empty_endings
delete from sankey_endings as kept
using ending_deltas as delta
where kept.walkthrough_id = delta.walkthrough_id
  and kept.mcp_server_id = delta.mcp_server_id
  and kept.began_on = delta.began_on
  and kept.steps_done = delta.steps_done
  and kept.step_id is not distinct from delta.step_id
  and kept.last_active_on = delta.last_active_on
  and kept.journeys = 0;

-- name: note_changes
-- Each batch that changes a walkthrough's counts gives it another number, whichever journeys they were: of
-- microseconds, so that a database that went back never gives one again.
insert into sankey_freshness as kept (walkthrough_id, newest_at, changes)
select
  given.walkthrough_id,
  given.newest_at,
  (extract(epoch from clock_timestamp()) * 1000000)::bigint
from unnest($1::text[], $2::bigint[]) as given (walkthrough_id, newest_at)
order by given.walkthrough_id
on conflict (walkthrough_id) do update
set newest_at = greatest(kept.newest_at, excluded.newest_at), changes = greatest(kept.changes + 1, excluded.changes);

-- name: create_temporary_tables
-- Where a batch's results land before they are written; one set per connection, empty between transactions.
create temporary table if not exists new_journeys (
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text,
  step_ids text [] not null,
  completed_at bigint [] not null,
  started_at bigint,
  first_shown_at bigint,
  skipped boolean [],
  shown_at bigint [],
  shown_step_id text
) on commit delete rows;
create temporary table if not exists transition_deltas (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  position integer not null,
  from_step_id text,
  to_step_id text not null,
  skipped boolean not null,
  journeys bigint not null,
  elapsed_ms bigint not null,
  timed_journeys bigint not null,
  active_ms bigint not null,
  active_journeys bigint not null
) on commit delete rows;
create temporary table if not exists ending_deltas (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  steps_done integer not null,
  step_id text,
  last_active_on date not null,
  steps_skipped integer not null,
  shown_step_id text,
  journeys bigint not null
) on commit delete rows;

-- name: recorded
-- How far the recorder has judged the partitions.
select
  partition,
  next_offset
from recorded_offsets
where topic = $1;

-- name: take_marks
-- The oldest marks that nobody else is draining, and that wait for no lock. They are gone when the transaction commits.
delete from sankey_dirty
where id = any(array(
  select id from sankey_dirty
  where waits_for is null
  order by id
  limit $1
  for update skip locked
))
returning mcp_server_user_id, walkthrough_id;

-- name: set_aside
-- Marks of journeys that wait for a lock. One that waits already is enough if it is ours to lock: whoever works marks
-- off has not taken it then, and reads the journey's rows after us.
with known as materialized (
  select
    mark.mcp_server_user_id,
    mark.walkthrough_id
  from sankey_dirty as mark
  where
    mark.waits_for is not null
    and (mark.walkthrough_id, mark.mcp_server_user_id) in (select * from unnest($2::text[], $1::text[]))
  for share of mark skip locked
)
insert into sankey_dirty (mcp_server_user_id, walkthrough_id, waits_for, since)
select
  given.mcp_server_user_id,
  given.walkthrough_id,
  given.waits_for,
  clock_timestamp()
from unnest($1::text[], $2::text[], $3::text[]) as given (mcp_server_user_id, walkthrough_id, waits_for)
where not exists (
  select from known
  where
    known.mcp_server_user_id = given.mcp_server_user_id and known.walkthrough_id = given.walkthrough_id
);

-- name: take_first_waiting
-- For each lock that marks wait for, the first of them: by it the others are known to wait, too. But for those that
-- another aggregator looks at just now.
with recursive firsts as (
  (
    select waits_for, id from sankey_dirty
    where waits_for > $1
    order by waits_for, id
    limit 1
  )
  union all
  select following.waits_for, following.id
  from firsts
  cross join lateral (
    select waits_for, id from sankey_dirty
    where waits_for > firsts.waits_for
    order by waits_for, id
    limit 1
  ) as following
)
select
  mark.id,
  mark.mcp_server_user_id,
  mark.walkthrough_id,
  mark.waits_for
from (select id from firsts limit $2) as first
inner join sankey_dirty as mark on first.id = mark.id
order by mark.waits_for
for update of mark skip locked;

-- name: take_waiting
-- The next marks that wait for one of these locks.
select
  id,
  mcp_server_user_id,
  walkthrough_id,
  waits_for
from sankey_dirty
where waits_for = any($1::text[]) and id > $2
order by id
limit $3
for update skip locked;

-- name: wait_for_another
-- What these marks wait for now.
update sankey_dirty as mark set waits_for = given.waits_for
from unnest($1::bigint[], $2::text[]) as given (id, waits_for)
where mark.id = given.id and mark.waits_for is distinct from given.waits_for;

-- name: forget_marks
delete from sankey_dirty
where id = any($1::bigint[]);

-- name: count_waiting
select
  count(*) as journeys,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 as oldest_seconds
from sankey_dirty
where waits_for is not null;

-- name: lock_tables
-- Who locks a table whole is waited for, as a rebuild's swap; for longer with a new try, so that a consumer that waits
-- is not taken for one that is stuck. Rows are not waited for, but a moment.
set local lock_timeout = '5s';
lock table sankey_journeys, sankey_transitions, sankey_endings, sankey_freshness in row exclusive mode;
set local lock_timeout = '50ms';

-- name: clear_temporary_tables
-- What a part of this transaction has left.
delete from new_journeys;
delete from transition_deltas;
delete from ending_deltas;

-- name: locked_journeys
-- Those of these journeys that somebody else has locked; the others are ours now.
with ours as materialized (
  select
    kept.mcp_server_user_id,
    kept.walkthrough_id
  from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
  inner join sankey_journeys as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.walkthrough_id = kept.walkthrough_id
  for update of kept skip locked
)
select
  kept.mcp_server_user_id,
  kept.walkthrough_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join sankey_journeys as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.walkthrough_id = kept.walkthrough_id
except
select * from ours;

-- name: locked_freshness
-- As locked_journeys, of walkthroughs.
with ours as materialized (
  select walkthrough_id from sankey_freshness
  where walkthrough_id = any($1::text[])
  for no key update skip locked
)
select walkthrough_id from sankey_freshness
where walkthrough_id = any($1::text[])
except
select * from ours;

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
  from walkthrough_step_skips
  union
  select
    mcp_server_user_id,
    walkthrough_id
  from walkthrough_step_showings
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
-- Of the locked journeys, those whose rows differ from what was counted. A statement of its own: its snapshot is taken
-- after the locks, so it sees what the previous holder of a lock has committed.
select
  old.mcp_server_user_id,
  old.walkthrough_id,
  old.mcp_server_id as old_server_id,
  old.step_ids as old_step_ids,
  old.completed_at as old_completed_at,
  old.started_at as old_started_at,
  old.first_shown_at as old_first_shown_at,
  old.skipped as old_skipped,
  old.shown_at as old_shown_at,
  old.shown_step_id as old_shown_step_id,
  new.mcp_server_id as new_server_id,
  new.step_ids as new_step_ids,
  new.completed_at as new_completed_at,
  new.started_at as new_started_at,
  new.first_shown_at as new_first_shown_at,
  new.skipped as new_skipped,
  new.shown_at as new_shown_at,
  new.shown_step_id as new_shown_step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join sankey_journeys as old on given.mcp_server_user_id = old.mcp_server_user_id
  and given.walkthrough_id = old.walkthrough_id
cross join lateral sankey_journey_from_rows(given.mcp_server_user_id, given.walkthrough_id) as new
where
  old.step_ids is distinct from new.step_ids
  or old.completed_at is distinct from new.completed_at
  or old.started_at is distinct from new.started_at
  or old.mcp_server_id is distinct from new.mcp_server_id
  or old.shown_step_id is distinct from new.shown_step_id
  or old.shown_at is distinct from new.shown_at
  or old.skipped is distinct from new.skipped
  or old.first_shown_at is distinct from new.first_shown_at;

-- name: write_journeys
update sankey_journeys as kept
set
  mcp_server_id = new_journeys.mcp_server_id,
  step_ids = new_journeys.step_ids,
  completed_at = new_journeys.completed_at,
  started_at = new_journeys.started_at,
  first_shown_at = new_journeys.first_shown_at,
  skipped = new_journeys.skipped,
  shown_at = new_journeys.shown_at,
  shown_step_id = new_journeys.shown_step_id
from new_journeys
where kept.mcp_server_user_id = new_journeys.mcp_server_user_id and kept.walkthrough_id = new_journeys.walkthrough_id;

-- name: write_journey
-- One of `write_journeys`.
update sankey_journeys
set
  mcp_server_id = $3,
  step_ids = $4,
  completed_at = $5,
  started_at = $6,
  first_shown_at = $7,
  skipped = $8,
  shown_at = $9,
  shown_step_id = $10
where mcp_server_user_id = $1 and walkthrough_id = $2;

-- name: delete_journeys
-- Journeys without a start, a step or a showing.
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
    journeys,
    elapsed_ms,
    timed_journeys,
    active_ms,
    active_journeys
  from transition_deltas
  order by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped
  on conflict on constraint sankey_transitions_unique do update
  set
    journeys = kept.journeys + excluded.journeys,
    elapsed_ms = kept.elapsed_ms + excluded.elapsed_ms,
    timed_journeys = kept.timed_journeys + excluded.timed_journeys,
    active_ms = kept.active_ms + excluded.active_ms,
    active_journeys = kept.active_journeys + excluded.active_journeys
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
  and kept.skipped = delta.skipped
  and kept.journeys = 0
  and kept.elapsed_ms = 0
  and kept.timed_journeys = 0
  and kept.active_ms = 0
  and kept.active_journeys = 0;

-- name: add_endings
with written as (
  insert into sankey_endings as kept (
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
    journeys
  from ending_deltas
  order by
    walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, steps_skipped, shown_step_id
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
  and kept.steps_skipped = delta.steps_skipped
  and kept.shown_step_id is not distinct from delta.shown_step_id
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

-- name: follow_showings
-- Where an aggregator of before has passed over skips and showings: all journeys that have any, once.
with followed as (
  update counted_offsets set follows_showings = true
  where not follows_showings
  returning 1
)
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select
  mcp_server_user_id,
  walkthrough_id
from (
  select mcp_server_user_id, walkthrough_id from walkthrough_step_skips
  union
  select mcp_server_user_id, walkthrough_id from walkthrough_step_showings
) as theirs
where exists (select from followed);

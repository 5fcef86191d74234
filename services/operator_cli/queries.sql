-- name: create_survey
-- What a survey finds: journeys that are not what their rows say, and cells that are not what journeys say.
create temporary table if not exists differing_journeys (
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  counted_server_id text,
  counted_step_ids text [],
  counted_completed_at bigint [],
  counted_started_at bigint,
  expected_server_id text,
  expected_step_ids text [],
  expected_completed_at bigint [],
  expected_started_at bigint,
  primary key (mcp_server_user_id, walkthrough_id)
);
create temporary table if not exists differing_transitions (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  position integer not null,
  from_step_id text,
  to_step_id text not null,
  expected_journeys bigint not null,
  counted_journeys bigint not null,
  expected_elapsed_ms bigint not null,
  counted_elapsed_ms bigint not null,
  expected_timed_journeys bigint not null,
  counted_timed_journeys bigint not null
);
create temporary table if not exists differing_endings (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  steps_done integer not null,
  step_id text,
  last_active_on date not null,
  expected_journeys bigint not null,
  counted_journeys bigint not null
);
truncate differing_journeys, differing_transitions, differing_endings;

-- name: survey_journeys
-- Journeys of one share of all users whose rows are not what was counted of them. A start counts where it is
-- not later than the first completion; the journey then has its server.
insert into differing_journeys
with
done as (
  select
    mcp_server_user_id,
    walkthrough_id,
    array_agg(step_id order by completed_at, id collate "C") as step_ids,
    array_agg(completed_at order by completed_at, id collate "C") as completed_at,
    (array_agg(mcp_server_id order by completed_at, id collate "C"))[1] as mcp_server_id
  from walkthrough_step_completions
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
  group by mcp_server_user_id, walkthrough_id
),
starts as (
  select * from walkthrough_starts
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
),
expected as (
  select
    coalesce(done.mcp_server_user_id, starts.mcp_server_user_id) as mcp_server_user_id,
    coalesce(done.walkthrough_id, starts.walkthrough_id) as walkthrough_id,
    coalesce(done.step_ids, '{}') as step_ids,
    coalesce(done.completed_at, '{}') as completed_at,
    case when counts.it_does then starts.started_at end as started_at,
    case when counts.it_does then starts.mcp_server_id else done.mcp_server_id end as mcp_server_id
  from done
  full join starts on done.mcp_server_user_id = starts.mcp_server_user_id
    and done.walkthrough_id = starts.walkthrough_id
  cross join lateral (
    select coalesce(starts.started_at <= coalesce(done.completed_at[1], starts.started_at), false) as it_does
  ) as counts
),
counted as (
  select * from sankey_journeys
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
)
select
  coalesce(expected.mcp_server_user_id, counted.mcp_server_user_id) as mcp_server_user_id,
  coalesce(expected.walkthrough_id, counted.walkthrough_id) as walkthrough_id,
  counted.mcp_server_id,
  counted.step_ids,
  counted.completed_at,
  counted.started_at,
  expected.mcp_server_id,
  expected.step_ids,
  expected.completed_at,
  expected.started_at
from expected
full join counted on expected.mcp_server_user_id = counted.mcp_server_user_id
  and expected.walkthrough_id = counted.walkthrough_id
where
  expected.step_ids is distinct from counted.step_ids
  or expected.completed_at is distinct from counted.completed_at
  or expected.started_at is distinct from counted.started_at
  or expected.mcp_server_id is distinct from counted.mcp_server_id;

-- name: survey_transitions
-- Cells that are not what the journeys contribute, the differing ones as they should be.
insert into differing_transitions
with
journeys as (
  select 1 as sign, walkthrough_id, mcp_server_id, started_at, step_ids, completed_at
  from sankey_journeys
  union all
  select
    1, walkthrough_id, expected_server_id, expected_started_at, expected_step_ids, expected_completed_at
  from differing_journeys
  union all
  select
    -1, walkthrough_id, counted_server_id, counted_started_at, counted_step_ids, counted_completed_at
  from differing_journeys
),
cells as (
  select
    journeys.walkthrough_id,
    journeys.mcp_server_id,
    date '1970-01-01'
    + (coalesce(journeys.started_at, journeys.completed_at[1]) / 86400000)::integer as began_on,
    (step.number - 1)::integer as position,
    step.from_id as from_step_id,
    step.to_id as to_step_id,
    journeys.sign as expected_journeys,
    case when step.from_at is null then 0 else journeys.sign * (step.at - step.from_at) end
    as expected_elapsed_ms,
    case when step.from_at is null then 0 else journeys.sign end as expected_timed_journeys,
    0 as counted_journeys,
    0 as counted_elapsed_ms,
    0 as counted_timed_journeys
  from journeys
  cross join lateral unnest(
    journeys.step_ids,
    journeys.completed_at,
    array_prepend(null, journeys.step_ids),
    array_prepend(journeys.started_at, journeys.completed_at)
  ) with ordinality as step (to_id, at, from_id, from_at, number)
  where journeys.mcp_server_id is not null and step.to_id is not null
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    0,
    0,
    0,
    journeys,
    elapsed_ms,
    timed_journeys
  from sankey_transitions
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys,
  sum(expected_elapsed_ms)::bigint as expected_elapsed_ms,
  sum(counted_elapsed_ms)::bigint as counted_elapsed_ms,
  sum(expected_timed_journeys)::bigint as expected_timed_journeys,
  sum(counted_timed_journeys)::bigint as counted_timed_journeys
from cells
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id
having
  sum(expected_journeys) <> sum(counted_journeys)
  or sum(expected_elapsed_ms) <> sum(counted_elapsed_ms)
  or sum(expected_timed_journeys) <> sum(counted_timed_journeys);

-- name: survey_endings
insert into differing_endings
with
journeys as (
  select 1 as sign, walkthrough_id, mcp_server_id, started_at, step_ids, completed_at
  from sankey_journeys
  union all
  select
    1, walkthrough_id, expected_server_id, expected_started_at, expected_step_ids, expected_completed_at
  from differing_journeys
  union all
  select
    -1, walkthrough_id, counted_server_id, counted_started_at, counted_step_ids, counted_completed_at
  from differing_journeys
),
cells as (
  select
    walkthrough_id,
    mcp_server_id,
    date '1970-01-01' + (coalesce(started_at, completed_at[1]) / 86400000)::integer as began_on,
    cardinality(step_ids) as steps_done,
    step_ids[cardinality(step_ids)] as step_id,
    date '1970-01-01'
    + (coalesce(completed_at[cardinality(completed_at)], started_at) / 86400000)::integer as last_active_on,
    sign as expected_journeys,
    0 as counted_journeys
  from journeys
  where mcp_server_id is not null
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    last_active_on,
    0,
    journeys
  from sankey_endings
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done,
  step_id,
  last_active_on,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys
from cells
group by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on
having sum(expected_journeys) <> sum(counted_journeys);

-- name: survey_nodes
-- Conservation: at every node of every cohort, journeys in = journeys out + journeys that ended there. It is
-- looked at where all cells are right, as a check of the check.
with flows as (
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position + 1 as steps_done,
    to_step_id as step_id,
    journeys as arrived,
    0 as went_on_or_ended
  from sankey_transitions
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    0,
    journeys
  from sankey_transitions
  where position > 0
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    0,
    journeys
  from sankey_endings
  where steps_done > 0
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done - 1 as position,
  step_id,
  sum(arrived)::bigint as arrived,
  sum(went_on_or_ended)::bigint as went_on_or_ended
from flows
group by walkthrough_id, mcp_server_id, began_on, steps_done, step_id
having sum(arrived) <> sum(went_on_or_ended)
order by walkthrough_id, mcp_server_id, began_on, steps_done, step_id
limit $1;

-- name: list_transitions
select * from differing_transitions
order by walkthrough_id, mcp_server_id, began_on, position, from_step_id nulls first, to_step_id
limit $1;

-- name: list_endings
select * from differing_endings
order by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on
limit $1;

-- name: list_journeys
select
  mcp_server_user_id,
  walkthrough_id,
  expected_started_at,
  counted_started_at,
  expected_step_ids,
  counted_step_ids
from differing_journeys
order by mcp_server_user_id, walkthrough_id
limit $1;

-- name: survey_size
-- About how many rows a survey reads, by the planner's statistics.
select coalesce(sum(greatest(reltuples, 0)), 0)::bigint as rows
from pg_class
where oid in ('walkthrough_step_completions'::regclass, 'walkthrough_starts'::regclass);

-- name: survey_counts
select
  (select count(*) from differing_journeys) as journeys,
  (select count(*) from differing_transitions) as transitions,
  (select count(*) from differing_endings) as endings;

-- name: survey_rows
-- The differing journeys, as `look_again` shows them.
select
  mcp_server_user_id,
  walkthrough_id,
  counted_server_id,
  counted_step_ids,
  counted_completed_at,
  counted_started_at,
  expected_server_id,
  expected_step_ids,
  expected_completed_at,
  expected_started_at
from differing_journeys;

-- name: survey_forget
delete from differing_journeys
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
where differing_journeys.mcp_server_user_id = given.mcp_server_user_id
  and differing_journeys.walkthrough_id = given.walkthrough_id;

-- name: look_again
-- Of these journeys, those whose rows are not what is counted of them now.
select
  given.mcp_server_user_id,
  given.walkthrough_id,
  counted.mcp_server_id as counted_server_id,
  counted.step_ids as counted_step_ids,
  counted.completed_at as counted_completed_at,
  counted.started_at as counted_started_at,
  coalesce(start.mcp_server_id, done.mcp_server_id) as expected_server_id,
  coalesce(done.step_ids, '{}') as expected_step_ids,
  coalesce(done.completed_at, '{}') as expected_completed_at,
  start.started_at as expected_started_at
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
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
left join sankey_journeys as counted on given.mcp_server_user_id = counted.mcp_server_user_id
  and given.walkthrough_id = counted.walkthrough_id
where
  coalesce(counted.step_ids, '{}') is distinct from coalesce(done.step_ids, '{}')
  or coalesce(counted.completed_at, '{}') is distinct from coalesce(done.completed_at, '{}')
  or counted.started_at is distinct from start.started_at
  or counted.mcp_server_id is distinct from coalesce(start.mcp_server_id, done.mcp_server_id);

-- name: horizon
-- How far the recorder is, and the newest mark.
select
  coalesce((select max(id) from sankey_dirty), 0) as newest_mark,
  array(select partition from recorded_offsets where topic = $1 order by partition) as partitions,
  array(select next_offset from recorded_offsets where topic = $1 order by partition) as next_offsets;

-- name: marks_up_to
select exists (select from sankey_dirty where id <= $1 and waits_for is null);

-- name: survey_waiting
-- Those of these journeys that wait for a lock on what is counted of them: they are counted when it goes.
select distinct
  mcp_server_user_id,
  walkthrough_id
from sankey_dirty
where
  waits_for is not null
  and (walkthrough_id, mcp_server_user_id) in (select * from unnest($2::text[], $1::text[]));

-- name: triggers
-- Whether the triggers that leave marks are there and on.
select
  relation.relname as table_name,
  wanted.name as trigger_name
from unnest(array['walkthrough_step_completions', 'walkthrough_starts']) as relation (relname)
cross join unnest(
  array['sankey_deleted', 'sankey_inserted', 'sankey_truncated', 'sankey_updated']
) as wanted (name)
where not exists (
  select from pg_trigger
  inner join pg_proc on pg_trigger.tgfoid = pg_proc.oid
  inner join pg_class as marks on pg_proc.pronamespace = marks.relnamespace and pg_proc.proowner = marks.relowner
  where
    pg_trigger.tgrelid = relation.relname::regclass and pg_trigger.tgname = wanted.name
    and pg_trigger.tgenabled in ('O', 'A')
    -- Somebody may have put another function in its place.
    and pg_proc.proname = replace(wanted.name, 'sankey_', 'sankey_mark_') and marks.oid = 'sankey_dirty'::regclass
)
order by 1, 2;

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
  )
returning
  found.walkthrough_id,
  found.counted_server_id,
  found.counted_step_ids,
  found.counted_completed_at,
  found.counted_started_at,
  found.expected_server_id,
  found.expected_step_ids,
  found.expected_completed_at,
  found.expected_started_at;

-- name: swap_delete_journeys
delete from sankey_journeys as counted
using differing_journeys as found
where
  counted.mcp_server_user_id = found.mcp_server_user_id and counted.walkthrough_id = found.walkthrough_id
  and found.expected_server_id is null;

-- name: swap_write_journeys
insert into sankey_journeys as counted (
  mcp_server_user_id, walkthrough_id, mcp_server_id, step_ids, completed_at, started_at
)
select
  mcp_server_user_id,
  walkthrough_id,
  expected_server_id,
  expected_step_ids,
  expected_completed_at,
  expected_started_at
from differing_journeys
where expected_server_id is not null
on conflict (mcp_server_user_id, walkthrough_id) do update
set
  mcp_server_id = excluded.mcp_server_id,
  step_ids = excluded.step_ids,
  completed_at = excluded.completed_at,
  started_at = excluded.started_at;

-- name: swap_transitions
-- What the cells lack, together with what changed since (`given`), as the deltas that are added.
insert into transition_deltas (
  walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, journeys, elapsed_ms,
  timed_journeys
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  sum(journeys),
  sum(elapsed_ms),
  sum(timed_journeys)
from (
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    expected_journeys - counted_journeys as journeys,
    expected_elapsed_ms - counted_elapsed_ms as elapsed_ms,
    expected_timed_journeys - counted_timed_journeys as timed_journeys
  from differing_transitions
  union all
  select * from unnest(
    $1::text[], $2::text[], $3::date[], $4::integer[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
    $9::bigint[]
  )
) as part
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id
having sum(journeys) <> 0 or sum(elapsed_ms) <> 0 or sum(timed_journeys) <> 0;

-- name: swap_endings
insert into ending_deltas (
  walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, journeys
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  steps_done,
  step_id,
  last_active_on,
  sum(journeys)
from (
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    steps_done,
    step_id,
    last_active_on,
    expected_journeys - counted_journeys as journeys
  from differing_endings
  union all
  select * from unnest(
    $1::text[], $2::text[], $3::date[], $4::integer[], $5::text[], $6::date[], $7::bigint[]
  )
) as part
group by walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on
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

-- name: totals
select
  (select count(*) from walkthrough_step_completions) as completions,
  (select count(*) from walkthrough_starts) as starts,
  (select count(*) from sankey_journeys) as journeys,
  (select count(*) from sankey_transitions) as transition_cells,
  (select count(*) from sankey_endings) as ending_cells,
  (select count(*) from sankey_dirty) as marks;

-- name: status_newest_recorded
-- The newest of each server's, by the index on (server, time).
select max(newest.completed_at) as newest_recorded
from mcp_servers
cross join lateral (
  select completed_at from walkthrough_step_completions as row_
  where row_.mcp_server_id = mcp_servers.id
  order by completed_at desc
  limit 1
) as newest;

-- name: status_newest_counted
select nullif(max(newest_at), 0) as newest_counted from sankey_freshness;

-- name: status_marks
-- And those that wait for a lock, and for which rows, as far as the first say.
select
  count(*) filter (where waits_for is null) as marks,
  count(*) filter (where waits_for is not null) as journeys_waiting,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::double precision as journeys_waiting_seconds,
  array(
    select waits_for
    from (select id, waits_for from sankey_dirty where waits_for is not null order by id limit 1000) as first
    group by waits_for
    order by min(id)
    limit 3
  ) as journeys_wait_for
from sankey_dirty;

-- name: status_count_lockers
-- Whose transaction has locked one of these rows of the counts; a service of ours last, which holds them for a moment.
select
  holder.pid,
  coalesce(holder.usename, '') as role,
  coalesce(holder.application_name, '') as application
from (
  select xmax from sankey_journeys where mcp_server_user_id = any($1::text[])
  union all
  select xmax from sankey_transitions where walkthrough_id = any($1::text[])
  union all
  select xmax from sankey_endings where walkthrough_id = any($1::text[])
  union all
  select xmax from sankey_freshness where walkthrough_id = any($1::text[])
) as locked
inner join pg_locks as held on locked.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
inner join pg_stat_activity as holder on held.pid = holder.pid
group by holder.pid, holder.usename, holder.application_name
order by holder.application_name = 'stepstream sankey-aggregator', holder.pid
limit 3;

-- name: status_positions
-- Positions that somebody but the services has locked: their partitions stand still.
select coalesce(jsonb_agg(to_jsonb(locked) order by locked.service, locked.partition), '[]') as positions_locked
from (
  select
    kept.service,
    kept.partition,
    holder.pid,
    holder.usename as role,
    holder.application_name as application
  from (
    select 'completion-recorder' as service, topic, partition, xmax from recorded_offsets
    union all
    select 'sankey-aggregator', topic, partition, xmax from counted_offsets
  ) as kept
  inner join pg_locks as held on kept.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
  inner join pg_stat_activity as holder on held.pid = holder.pid
  where
    kept.topic = $1
    and holder.application_name is distinct from 'stepstream ' || kept.service
) as locked;

-- name: status_outbox
select
  count(*) as outbox,
  coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::double precision as outbox_seconds
from outbox;

-- name: status_set_aside
select count(*) as set_aside from outbox_set_aside;

-- name: status_waiting
-- Events that wait for a lock, and for which rows, as far as the oldest say.
select
  count(*) as events_waiting,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::double precision as events_waiting_seconds,
  array(
    select waits_for from (select id, waits_for from waiting_events order by id limit 1000) as oldest
    group by waits_for
    order by min(id)
    limit 3
  ) as waits_for
from waiting_events;

-- name: status_lockers
-- Whose transaction has locked one of these rows. A row that several have locked at once does not say.
select distinct
  holder.pid,
  coalesce(holder.usename, '') as role,
  coalesce(holder.application_name, '') as application
from (
  select xmax from mcp_server_user where id = any($1::text[])
  union all
  select xmax from mcp_server_session where mcp_server_session_id = any($1::text[])
  union all
  select xmax from mcp_servers where id = any($1::text[])
  union all
  select xmax from walkthroughs where id = any($1::text[])
  union all
  select xmax from walkthrough_steps where id = any($1::text[])
  union all
  select xmax from walkthrough_step_completions where mcp_server_user_id = any($1::text[])
  union all
  select xmax from walkthrough_starts where mcp_server_user_id = any($1::text[])
) as locked
inner join pg_locks as held on locked.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
inner join pg_stat_activity as holder on held.pid = holder.pid
order by holder.pid
limit 3;

-- name: status_handled
select count(*) as handled from dead_letters_handled;

-- name: status_sources
-- Of which sources events were refused within the last day, and which do not partition as they should.
select
  coalesce((
    select jsonb_agg(to_jsonb(refused) order by refused.last_at desc)
    from (
      select
        source,
        sum(events)::bigint as events,
        max(last_at) as last_at,
        array_agg(distinct rejection) as classes
      from refused_events
      where topic = $1 and last_at > clock_timestamp() - interval '1 day'
      group by source
      order by max(last_at) desc
      limit 10
    ) as refused
  ), '[]') as refused_by_source,
  coalesce((
    select jsonb_agg(to_jsonb(odd) order by odd.events desc)
    from (
      select
        source,
        events,
        looked_at,
        elsewhere,
        without_key
      from event_sources
      where topic = $1 and looked_at >= $2::bigint and 100 * (elsewhere + without_key) >= $3::bigint * looked_at
      order by events desc
      limit 10
    ) as odd
  ), '[]') as odd_partitions;

-- name: status_services
-- Who is connected to this database; each service says its name.
select
  substr(application_name, length('stepstream ') + 1) as service,
  count(*)::integer as connections
from pg_stat_activity
where datname = current_database() and application_name like 'stepstream _%'
group by 1;

-- name: events_waiting
select count(*) from waiting_events;

-- name: letters_handled
-- What operators did with refused records of these partitions.
select
  topic,
  partition,
  "offset",
  action,
  handled_at,
  to_partition,
  searched_from,
  to_offset
from dead_letters_handled
where topic = any($1::text[]);

-- name: letters_begin_reading
-- Which dead letters were read, on this connection. Without migrations this fails also where there are none.
select from dead_letters_handled limit 0;
create temporary table if not exists letters_read (
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  primary key (topic, partition, "offset")
);
truncate letters_read;

-- name: letters_note_read
-- Those that were not read before, and what operators did with them.
with new as (
  insert into letters_read (topic, partition, "offset")
  select distinct
    given.topic,
    given.partition,
    given."offset"
  from unnest($1::text[], $2::integer[], $3::bigint[]) as given (topic, partition, "offset")
  on conflict (topic, partition, "offset") do nothing
  returning topic, partition, "offset"
)
select
  new.topic,
  new.partition,
  new."offset",
  handled.action
from new
left join dead_letters_handled as handled on new.topic = handled.topic and new.partition = handled.partition
  and new."offset" = handled."offset";

-- name: letters_begin_redrive
-- Before a copy is sent: where it can be found, should nobody be there to note that it arrived.
insert into dead_letters_handled (topic, partition, "offset", action, to_partition, searched_from)
select * from unnest(
  $1::text[], $2::integer[], $3::bigint[], array_fill('redriving'::text, array[cardinality($1)]), $4::integer[],
  $5::bigint[]
)
on conflict (topic, partition, "offset") do update
set
  action = excluded.action,
  handled_at = clock_timestamp(),
  to_partition = excluded.to_partition,
  searched_from = excluded.searched_from;

-- name: letters_redriven
update dead_letters_handled as kept
set
  action = 'redriven',
  handled_at = clock_timestamp(),
  to_offset = given.to_offset
from unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) as given (
  topic, partition, "offset", to_offset
)
where
  kept.topic = given.topic and kept.partition = given.partition and kept."offset" = given."offset";

-- name: letters_not_redriven
delete from dead_letters_handled as kept
using unnest($1::text[], $2::integer[], $3::bigint[]) as given (topic, partition, "offset")
where
  kept.topic = given.topic and kept.partition = given.partition and kept."offset" = given."offset"
  and kept.action = 'redriving';

-- name: letters_drop
insert into dead_letters_handled (topic, partition, "offset", action)
select * from unnest(
  $1::text[], $2::integer[], $3::bigint[], array_fill('dropped'::text, array[cardinality($1)])
)
on conflict (topic, partition, "offset") do nothing;

-- name: say_who
select set_config('application_name', $1, false);

-- name: lock_act
-- One operator at a time, until the connection ends.
select pg_try_advisory_lock($1::bigint);

-- name: holder_of_act
-- Whose connection has the lock. Of other roles' connections PostgreSQL shows not everything to everybody.
select
  holder.pid,
  holder.usename as role,
  holder.application_name,
  host(holder.client_addr) as address,
  holder.backend_start as since
from pg_locks
inner join pg_stat_activity as holder on pg_locks.pid = holder.pid
where
  pg_locks.locktype = 'advisory' and pg_locks.granted and pg_locks.objsubid = 1
  and pg_locks.database = (select oid from pg_database where datname = current_database())
  and pg_locks.classid::bigint = $1::bigint >> 32 and pg_locks.objid::bigint = $1::bigint & 4294967295;

-- name: erase_find
select id from mcp_server_user
where id = $1 or distinct_id = $1 or email = $1
order by id;

-- name: erase_lock
select id from mcp_server_user
where id = $1
for update;

-- name: erase_names
-- What a person is called: by these names others may speak of them.
select
  distinct_id,
  email
from mcp_server_user
where id = $1;

-- name: erase_count_sources
-- Rows about who sent what that name a person, as a source or in an example of what was refused. Which sources are
-- a person the first pattern says; the second argument are sources that are nobody's, and the first of them takes
-- what the others had.
select
  (select count(*) from event_sources where source ~ $1::text and source <> all($2::text[]))
  + (select count(*) from source_organizations where source ~ $1::text and source <> all($2::text[]))
  + (
    select count(*) from refused_events
    where
      source ~ $1::text and source <> all($2::text[])
      or message ~ $3::text
      or fields::text ~ $3::text
  ) as sources;

-- name: erase_lock_sources
-- Recorders write these tables in this order; what they cannot write now they write later.
lock table refused_events, event_sources, source_organizations in share row exclusive mode;

-- name: erase_refusals
-- Refused events of a source that is a person become those of no source.
with theirs as (
  delete from refused_events where source ~ $1::text and source <> all($2::text[])
  returning *
)
insert into refused_events as kept (
  topic, source, organization_id, rejection, events, first_at, last_at, partition, last_offset, message, fields
)
select
  topic,
  ($2::text[])[1],
  organization_id,
  rejection,
  sum(events),
  min(first_at),
  max(last_at),
  (array_agg(partition order by last_at desc))[1],
  (array_agg(last_offset order by last_at desc))[1],
  (array_agg(message order by last_at desc))[1],
  (array_agg(fields order by last_at desc))[1]
from theirs
group by topic, organization_id, rejection
on conflict (topic, source, organization_id, rejection) do update
set
  events = kept.events + excluded.events,
  first_at = least(kept.first_at, excluded.first_at),
  last_at = greatest(kept.last_at, excluded.last_at);

-- name: erase_examples
-- Examples of what was refused say nothing of the person; the names of fields go where one of them does.
update refused_events
set
  message = regexp_replace(message, $1::text, '…', 'g'),
  fields = case when fields::text ~ $1::text then '{}' else fields end
where message ~ $1::text or fields::text ~ $1::text;

-- name: erase_sources
-- What a source that is a person has sent is what no source has sent.
with theirs as (
  delete from event_sources where source ~ $1::text and source <> all($2::text[])
  returning *
)
insert into event_sources as kept (
  topic, source, events, refused, looked_at, elsewhere, without_key, known, first_at, last_at
)
select
  topic,
  ($2::text[])[1],
  sum(events),
  sum(refused),
  sum(looked_at),
  sum(elsewhere),
  sum(without_key),
  bool_or(known),
  min(first_at),
  max(last_at)
from theirs
group by topic
on conflict (topic, source) do update
set
  events = kept.events + excluded.events,
  refused = kept.refused + excluded.refused,
  looked_at = kept.looked_at + excluded.looked_at,
  elsewhere = kept.elsewhere + excluded.elsewhere,
  without_key = kept.without_key + excluded.without_key,
  known = kept.known or excluded.known,
  first_at = least(kept.first_at, excluded.first_at),
  last_at = greatest(kept.last_at, excluded.last_at);

-- name: erase_places
with theirs as (
  delete from source_organizations where source ~ $1::text and source <> all($2::text[])
  returning *
)
insert into source_organizations as kept (topic, source, organization_id, last_at)
select
  topic,
  ($2::text[])[1],
  organization_id,
  max(last_at)
from theirs
group by topic, organization_id
on conflict (topic, source, organization_id) do update
set last_at = greatest(kept.last_at, excluded.last_at);

-- name: erase_plan
select
  exists (select from mcp_server_user where id = $1) as known,
  (select erased_at from erased_users where mcp_server_user_id = $1) as erased_at,
  (select count(*) from walkthrough_step_completions where mcp_server_user_id = $1) as completions,
  (select count(*) from later_completions where mcp_server_user_id = $1) as later_completions,
  (select count(*) from completion_corrections where mcp_server_user_id = $1) as corrections,
  (select count(*) from walkthrough_starts where mcp_server_user_id = $1) as starts,
  (select count(*) from sankey_journeys where mcp_server_user_id = $1) as journeys,
  (select count(*) from walkthrough_progress where mcp_server_user_id = $1) as progress,
  (select count(*) from mcp_server_session where mcp_server_user_id = $1) as sessions,
  (select count(*) from mcp_user_identities where mcp_server_user_id = $1) as identities,
  (
    select count(*) from outbox
    where IS_THEIRS and is_erasure_of($1, type, headers) is not true
  ) as outbox,
  (
    select count(*) from outbox_set_aside
    where IS_THEIRS and is_erasure_of($1, type, headers) is not true
  ) as outbox_set_aside,
  (select count(*) from waiting_events where mcp_server_user_id = $1) as waiting_events;

-- name: erase_is_theirs
-- Whether an event of the outbox, or one that was set aside, is a person's: by its key, or by what its value says,
-- for whoever writes there may choose another key. One that cannot be read is theirs if it names them.
(
  key = $1
  or (position($1 in value) > 0 or position('\u' in value) > 0)  -- JSON may write any character as \u…
  and case
    when pg_input_is_valid(value, 'jsonb')
      then coalesce(value::jsonb ->> 'mcp_server_user_id', case when position($1 in value) > 0 then $1 end) = $1
    else position($1 in value) > 0
  end
)

-- name: erase_waiting_events
delete from waiting_events where mcp_server_user_id = $1;

-- name: erase_note
insert into erased_users (mcp_server_user_id, erased_at, event_id) values ($1, $2, $3)
on conflict (mcp_server_user_id) do nothing
returning true;

-- name: erase_told
select
  erased_at,
  event_id
from erased_users
where mcp_server_user_id = $1;

-- name: erase_journeys
select walkthrough_id from walkthrough_step_completions where mcp_server_user_id = $1
union
select walkthrough_id from walkthrough_starts where mcp_server_user_id = $1
union
select walkthrough_id from sankey_journeys where mcp_server_user_id = $1;

-- name: erase_outbox
-- All that is on its way of a person but the event that says that they are erased. IS_THEIRS is `erase_is_theirs`.
delete from outbox
where IS_THEIRS and is_erasure_of($1, type, headers) is not true;

-- name: erase_set_aside
delete from outbox_set_aside
where IS_THEIRS and is_erasure_of($1, type, headers) is not true;

-- name: erase_user
delete from mcp_server_user where id = $1;

-- name: erase_marks
delete from sankey_dirty where mcp_server_user_id = $1;

-- name: erase_announce
insert into outbox (key, value, headers, type) values ($1, $2, $3, 'user-erased');

-- name: erase_waiting
select
  id,
  key,
  value,
  headers
from outbox
where
  shard = (hashtextextended($1, 0) & 63)::integer and key = $1
  and is_erasure_of($1, type, headers)
order by id
limit 1;

-- name: erase_sent
delete from outbox where id = $1;

-- name: keys_organization
select name from organization where id = $1;

-- name: keys_create
insert into api_keys (id, organization_id, name, hash, expires_at) values ($1, $2, $3, $4, $5);

-- name: keys_list
select
  id,
  organization_id,
  name,
  created_at,
  expires_at,
  revoked_at,
  case
    when revoked_at is not null then 'revoked'
    when expires_at <= clock_timestamp() then 'expired'
    else 'valid'
  end as state
from api_keys
where $1::text is null or organization_id = $1
order by organization_id, created_at, id;

-- name: keys_find
select
  id,
  organization_id,
  name,
  revoked_at
from api_keys
where id = $1;

-- name: keys_revoke
update api_keys set revoked_at = clock_timestamp()
where id = $1 and revoked_at is null;

-- name: backfill_progress
-- Progress in the order of its id, with the real times of steps that are completions already.
select
  progress.id,
  progress.mcp_server_user_id,
  progress.walkthrough_id,
  progress.completed_steps,
  progress.started_at,
  progress.last_activity_at,
  progress.completed_at,
  array(
    select id from walkthrough_steps where walkthrough_id = progress.walkthrough_id
  ) as steps,
  (
    select coalesce(jsonb_object_agg(done.step_id, done.completed_at), '{}')
    from walkthrough_step_completions as done
    where
      done.mcp_server_user_id = progress.mcp_server_user_id and done.walkthrough_id = progress.walkthrough_id
  ) as times,
  exists (
    select from walkthrough_starts as start
    where
      start.mcp_server_user_id = progress.mcp_server_user_id and start.walkthrough_id = progress.walkthrough_id
  ) as has_start,
  exists (
    select from erased_users where mcp_server_user_id = progress.mcp_server_user_id
  ) as erased,
  exists (
    select from outbox
    where
      shard = (hashtextextended(progress.mcp_server_user_id, 0) & 63)::integer
      and key = progress.mcp_server_user_id
  ) as on_its_way
from walkthrough_progress as progress
where progress.id > $1
order by progress.id
limit $2;

-- name: backfill_sessions
-- For each (user, walkthrough, time): the user's last session before the time, else the first after it, on a
-- server that offers the walkthrough.
select
  given.number,
  session.mcp_server_session_id,
  session.mcp_server_id
from unnest($1::text[], $2::text[], $3::bigint[]) with ordinality as given (
  mcp_server_user_id, walkthrough_id, at, number
)
cross join lateral (
  select
    own.mcp_server_session_id,
    server.id as mcp_server_id
  from mcp_server_session as own
  inner join mcp_servers as server on own.mcp_server_slug = server.slug
  inner join mcp_server_walkthroughs as offer on server.id = offer.mcp_server_id
    and offer.walkthrough_id = given.walkthrough_id
  inner join walkthroughs on offer.walkthrough_id = walkthroughs.id
    and server.organization_id = walkthroughs.organization_id
  where own.mcp_server_user_id = given.mcp_server_user_id
  order by
    coalesce(own.connection_timestamp, 0) <= given.at desc,
    case when coalesce(own.connection_timestamp, 0) <= given.at then -own.connection_timestamp
    else own.connection_timestamp end nulls last,
    own.mcp_server_session_id
  limit 1
) as session;

-- name: backfill_known
-- Which of these rows exist.
select
  array(select id from mcp_server_user where id = any($1::text[])) as users,
  array(select mcp_server_user_id from erased_users where mcp_server_user_id = any($1::text[])) as erased,
  array(select id || chr(31) || walkthrough_id from walkthrough_steps where id = any($2::text[])) as steps,
  array(select id || chr(31) || slug from mcp_servers where id = any($3::text[]) or slug = $5) as servers,
  array(
    select mcp_server_session_id from mcp_server_session where mcp_server_session_id = any($4::text[])
  ) as sessions;

-- name: backfill_done
-- Which of these (user, step) are completions already, or were decided about by a correction.
select
  given.mcp_server_user_id,
  given.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
where
  exists (
    select from walkthrough_step_completions as done
    where done.mcp_server_user_id = given.mcp_server_user_id and done.step_id = given.step_id
  )
  or exists (
    select from completion_corrections as done
    where done.mcp_server_user_id = given.mcp_server_user_id and done.step_id = given.step_id
  );

-- name: backfill_server
select true from mcp_servers where slug = $1;

-- name: backfill_make_sessions
insert into mcp_server_session (
  mcp_server_session_id, title, mcp_server_slug, connection_date, connection_timestamp, mcp_server_user_id
)
select
  given.mcp_server_session_id,
  'backfill',
  given.slug,
  date '1970-01-01' + (given.at / 86400000)::integer,
  given.at,
  given.mcp_server_user_id
from unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) as given (
  mcp_server_session_id, slug, at, mcp_server_user_id
)
on conflict (mcp_server_session_id) do nothing;

-- name: import_server
select
  id,
  organization_id,
  slug
from mcp_servers
where slug = $1;

-- name: import_owner_of_walkthrough
select organization_id from walkthroughs
where id = $1;

-- name: import_step_exists
select exists (select from walkthrough_steps where id = $1);

-- name: import_steps_elsewhere
-- Which of these ids are steps of another walkthrough.
select id from walkthrough_steps
where id = any($1::text[]) and walkthrough_id <> $2;

-- name: import_walkthrough_before
select
  title,
  description,
  type::text as type,
  status::text as status,
  estimated_duration_minutes,
  tags,
  metadata,
  created_at,
  updated_at
from walkthroughs
where id = $1
for update;

-- name: import_steps_before
select
  id,
  title,
  content_fields,
  display_order,
  next_step_id,
  metadata,
  created_at,
  updated_at
from walkthrough_steps
where walkthrough_id = $1
order by display_order, created_at nulls first, id collate "C";

-- name: import_offer_before
select id from mcp_server_walkthroughs
where mcp_server_id = $1 and walkthrough_id = $2;

-- name: import_walkthrough
-- A second import updates.
insert into walkthroughs (
  id, organization_id, title, description, type, status, estimated_duration_minutes, tags, metadata,
  created_at, updated_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
on conflict (id) do update
set
  title = excluded.title,
  description = excluded.description,
  type = excluded.type,
  status = excluded.status,
  estimated_duration_minutes = excluded.estimated_duration_minutes,
  tags = excluded.tags,
  metadata = excluded.metadata,
  created_at = excluded.created_at,
  updated_at = excluded.updated_at;

-- name: import_step
insert into walkthrough_steps (
  id, walkthrough_id, title, content_fields, display_order, next_step_id, metadata, created_at, updated_at
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (id) do update
set
  title = excluded.title,
  content_fields = excluded.content_fields,
  display_order = excluded.display_order,
  metadata = excluded.metadata,
  created_at = excluded.created_at,
  updated_at = excluded.updated_at;

-- name: import_link
update walkthrough_steps set next_step_id = $2
where id = $1;

-- name: offer_walkthrough
-- After what the server offers already.
insert into mcp_server_walkthroughs (id, mcp_server_id, walkthrough_id, display_order, created_at)
select
  $1,
  $2,
  $3,
  coalesce(max(display_order) + 1, 0),
  $4
from mcp_server_walkthroughs
where mcp_server_id = $2
on conflict (mcp_server_id, walkthrough_id) do nothing;

-- name: export_walkthrough
select
  id,
  organization_id,
  title,
  description,
  type::text as type,
  status::text as status,
  estimated_duration_minutes,
  tags,
  metadata,
  created_at,
  updated_at,
  (select count(*) from mcp_server_walkthroughs where walkthrough_id = walkthroughs.id) as servers
from walkthroughs
where id = $1;

-- name: gone_list
-- The times as they are told: in milliseconds since the epoch.
select
  id,
  (extract(epoch from noticed_at) * 1000)::bigint as noticed_at,
  topic,
  partition,
  cause,
  from_offset,
  until_offset,
  before_at,
  after_at,
  judged_until,
  (extract(epoch from acknowledged_at) * 1000)::bigint as acknowledged_at
from gone_events
where $1 or acknowledged_at is null
order by id;

-- name: gone_acknowledge
update gone_events set acknowledged_at = clock_timestamp()
where id = any($1::bigint[]) and acknowledged_at is null;

-- name: corrections_person
select true from mcp_server_user where id = $1;

-- name: corrections_entries
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

-- name: corrections_place
select
  step.walkthrough_id,
  server.id as mcp_server_id
from walkthrough_steps as step
cross join mcp_server_session as session
inner join mcp_servers as server on session.mcp_server_slug = server.slug
where step.id = $1 and session.mcp_server_session_id = $2;

-- name: against_create
-- Where a portion of the topic lands, and what is found of it; empty at the end of each transaction, or kept to
-- the end of the session.
create temporary table heard_completions (
  number integer not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  completed_at bigint not null,
  metadata jsonb
) on commit delete rows;
create temporary table heard_starts (
  number integer not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  started_at bigint not null,
  metadata jsonb
) on commit delete rows;
create temporary table heard_corrections (
  number integer not null,
  event_id text not null,
  mcp_server_user_id text not null,
  step_id text not null,
  corrected_at bigint not null,
  covers_until bigint not null,
  completed_at bigint
) on commit delete rows;
-- Rows whose own event was read.
create temporary table seen_completions (id text not null);
create temporary table seen_starts (id text not null);
-- Events that the tables do not show.
create temporary table doubted (
  kind text not null,
  partition integer not null,
  "offset" bigint not null,
  checksum bigint not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text,
  step_id text,
  mcp_server_id text,
  mcp_server_session_id text,
  happened_at bigint not null,
  metadata jsonb,
  cause text not null,
  row_id text,
  row_at bigint
);
create temporary table heard_letters (
  partition integer not null,
  "offset" bigint not null,
  checksum bigint not null
) on commit delete rows;
create temporary table unseen_rows (
  kind text not null,
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text
);

-- name: against_by_keys
-- A portion is held against a large table by its keys; else the table would be read whole for each.
set enable_hashjoin = off;
set enable_mergejoin = off;

-- name: against_as_a_whole
-- What is left is compared at once.
reset enable_hashjoin;
reset enable_mergejoin;
create index if not exists seen_completions_idx on seen_completions (id);
create index if not exists seen_starts_idx on seen_starts (id);

-- name: against_completions
-- The completions of a portion that the table does not show: there is no row of user and step (no-row), it is of
-- a later event (later-row), or it has the event's id and other content (other-content). A row of an earlier event
-- is right, and what a correction covers needs none (covered). Rows that are what their event says are seen.
with
compared as (
  select
    given.number,
    given.id,
    case
      when given.completed_at <= correction.covers_until then 'covered'
      when kept.id is null then 'no-row'
      when
        kept.id = given.id and kept.completed_at = given.completed_at and kept.walkthrough_id = given.walkthrough_id
        and kept.mcp_server_id = given.mcp_server_id and kept.mcp_server_session_id = given.mcp_server_session_id
        and kept.metadata is not distinct from given.metadata
        then 'same'
      when kept.id = given.id and kept.completed_at = given.completed_at then 'other-content'
      when
        (
          kept.completed_at,
          kept.id collate "C",
          kept.mcp_server_id collate "C",
          kept.mcp_server_session_id collate "C",
          coalesce(kept.metadata::text, '') collate "C"
        ) > (
          given.completed_at,
          given.id collate "C",
          given.mcp_server_id collate "C",
          given.mcp_server_session_id collate "C",
          coalesce(given.metadata::text, '') collate "C"
        )
        then 'later-row'
      when kept.id = given.id then 'other-content'
      else 'earlier'
    end as cause,
    kept.id as row_id,
    kept.completed_at as row_at
  from heard_completions as given
  left join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.step_id = kept.step_id
  left join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
    and given.step_id = correction.step_id
),
seen as (
  insert into seen_completions (id)
  select id from compared
  where cause = 'same'
)
select
  number,
  cause,
  row_id,
  row_at
from compared
where cause in ('covered', 'no-row', 'later-row', 'other-content');

-- name: against_starts
-- As `against_completions`, for starts.
with
compared as (
  select
    given.number,
    given.id,
    case
      when kept.id is null then 'no-row'
      when
        kept.id = given.id and kept.started_at = given.started_at and kept.mcp_server_id = given.mcp_server_id
        and kept.mcp_server_session_id = given.mcp_server_session_id
        and kept.metadata is not distinct from given.metadata
        then 'same'
      when kept.id = given.id and kept.started_at = given.started_at then 'other-content'
      when
        (
          kept.started_at,
          kept.id collate "C",
          kept.mcp_server_id collate "C",
          kept.mcp_server_session_id collate "C",
          coalesce(kept.metadata::text, '') collate "C"
        ) > (
          given.started_at,
          given.id collate "C",
          given.mcp_server_id collate "C",
          given.mcp_server_session_id collate "C",
          coalesce(given.metadata::text, '') collate "C"
        )
        then 'later-row'
      when kept.id = given.id then 'other-content'
      else 'earlier'
    end as cause,
    kept.id as row_id,
    kept.started_at as row_at
  from heard_starts as given
  left join walkthrough_starts as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.walkthrough_id = kept.walkthrough_id
),
seen as (
  insert into seen_starts (id)
  select id from compared
  where cause = 'same'
)
select
  number,
  cause,
  row_id,
  row_at
from compared
where cause in ('no-row', 'later-row', 'other-content');

-- name: against_corrections
-- The corrections of a portion that the tables do not show: neither it nor a newer one decides (not-corrected); it
-- decides, and there is no row (no-row), or one that it covers (covered-row). Rows that are of a correction are seen.
with
compared as (
  select
    given.number,
    given.event_id,
    given.covers_until,
    kept.id as row_id,
    case
      when
        correction.event_id is null
        or (correction.corrected_at, correction.event_id collate "C")
        < (given.corrected_at, given.event_id collate "C")
        or correction.covers_until < given.covers_until
        then 'not-corrected'
      when
        kept.completed_at <= correction.covers_until
        and (kept.id, kept.completed_at) is distinct from ('wtsc_' || correction.event_id, correction.completed_at)
        then 'covered-row'
      when correction.completed_at is not null and kept.id is null then 'no-row'
      else 'right'
    end as cause
  from heard_corrections as given
  left join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
    and given.step_id = correction.step_id
  left join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
    and given.step_id = kept.step_id
),
seen as (
  insert into seen_completions (id)
  select row_id from compared
  where row_id = 'wtsc_' || event_id
)
select
  number,
  cause,
  row_id,
  covers_until as row_at
from compared
where cause <> 'right';

-- name: against_erasures
-- Which of these people are not noted as erased, and of whom rows are left.
select
  given.mcp_server_user_id,
  case when erased.mcp_server_user_id is null then 'not-noted' else 'rows-left' end as cause
from unnest($1::text[]) as given (mcp_server_user_id)
left join erased_users as erased on given.mcp_server_user_id = erased.mcp_server_user_id
where
  erased.mcp_server_user_id is null
  or exists (select from walkthrough_step_completions where mcp_server_user_id = given.mcp_server_user_id)
  or exists (select from walkthrough_starts where mcp_server_user_id = given.mcp_server_user_id);

-- name: against_look_again
-- What is right now, in one snapshot: removes from what is doubted and says how many for which reason. What is
-- doubted for its content is right where an event that says what the row says was read, too.
with
now_right as (
  select
    doubted.ctid as place,
    case
      when doubted.kind <> 'erasure' and exists (
        select from erased_users where mcp_server_user_id = doubted.mcp_server_user_id
      ) then 'of_erased'
      when exists (
        select from waiting_events as event
        where event.topic = $1 and event.partition = doubted.partition and event."offset" = doubted."offset"
      ) then 'waiting'
      when doubted.kind = 'completion' and exists (
        select from completion_corrections as correction
        where
          correction.mcp_server_user_id = doubted.mcp_server_user_id and correction.step_id = doubted.step_id
          and doubted.happened_at <= correction.covers_until
      ) then 'covered'
      when doubted.kind = 'correction' and exists (
        select from completion_corrections as correction
        left join walkthrough_step_completions as kept on correction.mcp_server_user_id = kept.mcp_server_user_id
          and correction.step_id = kept.step_id
        where
          correction.mcp_server_user_id = doubted.mcp_server_user_id and correction.step_id = doubted.step_id
          and (correction.corrected_at, 'wtsc_' || correction.event_id collate "C")
          >= (doubted.happened_at, doubted.id collate "C")
          and correction.covers_until >= doubted.row_at
          and (
            kept.id is null and correction.completed_at is null
            or kept.completed_at > correction.covers_until
            or (kept.id, kept.completed_at) = ('wtsc_' || correction.event_id, correction.completed_at)
          )
      ) then 'changed'
      when doubted.kind = 'completion' and exists (
        select from walkthrough_step_completions as kept
        where
          kept.mcp_server_user_id = doubted.mcp_server_user_id and kept.step_id = doubted.step_id
          and (
            (
              kept.completed_at,
              kept.id collate "C",
              kept.mcp_server_id collate "C",
              kept.mcp_server_session_id collate "C",
              coalesce(kept.metadata::text, '') collate "C"
            ) < (
              doubted.happened_at,
              doubted.id collate "C",
              doubted.mcp_server_id collate "C",
              doubted.mcp_server_session_id collate "C",
              coalesce(doubted.metadata::text, '') collate "C"
            )
            and (
              kept.id <> doubted.id
              or exists (select from seen_completions as seen where seen.id = kept.id)
            )
            or kept.id = doubted.id and kept.completed_at = doubted.happened_at
            and kept.walkthrough_id = doubted.walkthrough_id and kept.mcp_server_id = doubted.mcp_server_id
            and kept.mcp_server_session_id = doubted.mcp_server_session_id
            and kept.metadata is not distinct from doubted.metadata
          )
      ) then 'changed'
      when doubted.kind = 'start' and exists (
        select from walkthrough_starts as kept
        where
          kept.mcp_server_user_id = doubted.mcp_server_user_id and kept.walkthrough_id = doubted.walkthrough_id
          and (
            (
              kept.started_at,
              kept.id collate "C",
              kept.mcp_server_id collate "C",
              kept.mcp_server_session_id collate "C",
              coalesce(kept.metadata::text, '') collate "C"
            ) < (
              doubted.happened_at,
              doubted.id collate "C",
              doubted.mcp_server_id collate "C",
              doubted.mcp_server_session_id collate "C",
              coalesce(doubted.metadata::text, '') collate "C"
            )
            and (
              kept.id <> doubted.id
              or exists (select from seen_starts as seen where seen.id = kept.id)
            )
            or kept.id = doubted.id and kept.started_at = doubted.happened_at
            and kept.mcp_server_id = doubted.mcp_server_id
            and kept.mcp_server_session_id = doubted.mcp_server_session_id
            and kept.metadata is not distinct from doubted.metadata
          )
      ) then 'changed'
      when
        doubted.kind = 'erasure'
        and exists (select from erased_users where mcp_server_user_id = doubted.mcp_server_user_id)
        and not exists (
          select from walkthrough_step_completions where mcp_server_user_id = doubted.mcp_server_user_id
        )
        and not exists (select from walkthrough_starts where mcp_server_user_id = doubted.mcp_server_user_id)
        then 'changed'
      when exists (
        select from gone_events as gone
        where
          gone.topic = $1 and gone.partition = doubted.partition and gone.cause = 'skipped'
          and gone.acknowledged_at is not null and gone.from_offset <= doubted."offset"
          and (gone.until_offset is null or gone.until_offset > doubted."offset")
      ) then 'skipped'
    end as reason
  from doubted
),
removed as (
  delete from doubted
  using now_right
  where doubted.ctid = now_right.place and now_right.reason is not null
  returning now_right.reason
)
select
  reason,
  count(*) as events
from removed
group by reason;

-- name: against_letters
-- What has a dead letter was refused, whatever would be said of it today.
with removed as (
  delete from doubted
  using heard_letters as letter
  where
    doubted.partition = letter.partition and doubted."offset" = letter."offset"
    and doubted.checksum = letter.checksum
  returning doubted.partition
)
select count(*) from removed;

-- name: against_skipped
-- What an operator left behind, which nobody has acknowledged.
update doubted
set cause = 'skipped'
from gone_events as gone
where
  gone.topic = $1 and gone.partition = doubted.partition and gone.cause = 'skipped'
  and gone.from_offset <= doubted."offset"
  and (gone.until_offset is null or gone.until_offset > doubted."offset");

-- name: against_causes
select
  cause,
  count(*) as events
from doubted
group by cause
order by cause;

-- name: against_list
select
  kind,
  partition,
  "offset",
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  happened_at,
  cause,
  row_id,
  row_at
from doubted
order by partition, "offset"
limit $1;

-- name: against_unseen
-- Rows whose event was not read; what is listed as the row of an event is not listed again.
with
completions as (
  insert into unseen_rows
  select
    'completion',
    id,
    mcp_server_user_id,
    walkthrough_id,
    step_id
  from walkthrough_step_completions as kept
  where
    not exists (select from seen_completions as seen where seen.id = kept.id)
    and not exists (select from doubted where doubted.row_id = kept.id)
)
insert into unseen_rows
select
  'start',
  id,
  mcp_server_user_id,
  walkthrough_id
from walkthrough_starts as kept
where
  not exists (select from seen_starts as seen where seen.id = kept.id)
  and not exists (select from doubted where doubted.row_id = kept.id);

-- name: against_seen_later
delete from unseen_rows where id = any($1::text[]);

-- name: against_unseen_list
select
  kind,
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id
from unseen_rows
order by kind, id collate "C"
limit $1;

-- name: forget_handled
delete from dead_letters_handled where topic = $1;

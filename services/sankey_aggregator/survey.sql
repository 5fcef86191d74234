-- name: create_survey
-- What a survey finds: journeys that are not what their rows say, and cells that are not what journeys say.
create temporary table if not exists differing_journeys (
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  counted_server_id text,
  counted_step_ids text [],
  counted_completed_at bigint [],
  counted_started_at bigint,
  counted_first_shown_at bigint,
  counted_skipped boolean [],
  counted_shown_at bigint [],
  counted_shown_step_id text,
  expected_server_id text,
  expected_step_ids text [],
  expected_completed_at bigint [],
  expected_started_at bigint,
  expected_first_shown_at bigint,
  expected_skipped boolean [],
  expected_shown_at bigint [],
  expected_shown_step_id text,
  primary key (mcp_server_user_id, walkthrough_id)
);
create temporary table if not exists differing_transitions (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  position integer not null,
  from_step_id text,
  to_step_id text not null,
  skipped boolean not null,
  expected_journeys bigint not null,
  counted_journeys bigint not null,
  expected_elapsed_ms bigint not null,
  counted_elapsed_ms bigint not null,
  expected_timed_journeys bigint not null,
  counted_timed_journeys bigint not null,
  expected_active_ms bigint not null,
  counted_active_ms bigint not null,
  expected_active_journeys bigint not null,
  counted_active_journeys bigint not null
);
create temporary table if not exists differing_endings (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  steps_done integer not null,
  step_id text,
  last_active_on date not null,
  steps_skipped integer not null,
  shown_step_id text,
  expected_journeys bigint not null,
  counted_journeys bigint not null
);
truncate differing_journeys, differing_transitions, differing_endings;

-- name: survey_journeys
-- Journeys of one share of all users whose rows are not what was counted of them.
insert into differing_journeys
with
known as (
  select mcp_server_user_id, walkthrough_id from walkthrough_step_completions
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
  union
  select mcp_server_user_id, walkthrough_id from walkthrough_starts
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
  union
  select mcp_server_user_id, walkthrough_id from walkthrough_step_skips
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
  union
  select mcp_server_user_id, walkthrough_id from walkthrough_step_showings
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
  union
  select mcp_server_user_id, walkthrough_id from sankey_journeys
  where (hashtextextended(mcp_server_user_id, 0) & 1048575) between $1::integer and $2::integer
)
select
  known.mcp_server_user_id,
  known.walkthrough_id,
  counted.mcp_server_id,
  counted.step_ids,
  counted.completed_at,
  counted.started_at,
  counted.first_shown_at,
  counted.skipped,
  counted.shown_at,
  counted.shown_step_id,
  expected.mcp_server_id,
  case when expected.mcp_server_id is not null then expected.step_ids end,
  case when expected.mcp_server_id is not null then expected.completed_at end,
  expected.started_at,
  expected.first_shown_at,
  expected.skipped,
  expected.shown_at,
  expected.shown_step_id
from known
left join sankey_journeys as counted on known.mcp_server_user_id = counted.mcp_server_user_id
  and known.walkthrough_id = counted.walkthrough_id
cross join lateral sankey_journey_from_rows(known.mcp_server_user_id, known.walkthrough_id) as expected
where
  expected.mcp_server_id is null
  or expected.step_ids is distinct from counted.step_ids
  or expected.completed_at is distinct from counted.completed_at
  or expected.started_at is distinct from counted.started_at
  or expected.mcp_server_id is distinct from counted.mcp_server_id
  or expected.first_shown_at is distinct from counted.first_shown_at
  or expected.skipped is distinct from counted.skipped
  or expected.shown_at is distinct from counted.shown_at
  or expected.shown_step_id is distinct from counted.shown_step_id;

-- name: survey_transitions
-- Cells that are not what the journeys contribute, the differing ones as they should be.
insert into differing_transitions
with
journeys as (
  select
    1 as sign,
    walkthrough_id,
    mcp_server_id,
    started_at,
    step_ids,
    completed_at,
    skipped,
    shown_at
  from sankey_journeys
  union all
  select
    1,
    walkthrough_id,
    expected_server_id,
    expected_started_at,
    expected_step_ids,
    expected_completed_at,
    expected_skipped,
    expected_shown_at
  from differing_journeys
  union all
  select
    -1,
    walkthrough_id,
    counted_server_id,
    counted_started_at,
    counted_step_ids,
    counted_completed_at,
    counted_skipped,
    counted_shown_at
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
    coalesce(step.skipped, false) as skipped,
    journeys.sign as expected_journeys,
    case when step.from_at is null then 0 else journeys.sign * (step.at - step.from_at) end
    as expected_elapsed_ms,
    case when step.from_at is null then 0 else journeys.sign end as expected_timed_journeys,
    case when step.shown_at is null then 0 else journeys.sign * (step.at - step.shown_at) end
    as expected_active_ms,
    case when step.shown_at is null then 0 else journeys.sign end as expected_active_journeys,
    0 as counted_journeys,
    0 as counted_elapsed_ms,
    0 as counted_timed_journeys,
    0 as counted_active_ms,
    0 as counted_active_journeys
  from journeys
  cross join lateral unnest(
    journeys.step_ids,
    journeys.completed_at,
    array_prepend(null, journeys.step_ids),
    array_prepend(journeys.started_at, journeys.completed_at),
    journeys.skipped,
    journeys.shown_at
  ) with ordinality as step (to_id, at, from_id, from_at, skipped, shown_at, number)
  where journeys.mcp_server_id is not null and step.to_id is not null
  union all
  select
    walkthrough_id,
    mcp_server_id,
    began_on,
    position,
    from_step_id,
    to_step_id,
    skipped,
    0,
    0,
    0,
    0,
    0,
    journeys,
    elapsed_ms,
    timed_journeys,
    active_ms,
    active_journeys
  from sankey_transitions
)
select
  walkthrough_id,
  mcp_server_id,
  began_on,
  position,
  from_step_id,
  to_step_id,
  skipped,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys,
  sum(expected_elapsed_ms)::bigint as expected_elapsed_ms,
  sum(counted_elapsed_ms)::bigint as counted_elapsed_ms,
  sum(expected_timed_journeys)::bigint as expected_timed_journeys,
  sum(counted_timed_journeys)::bigint as counted_timed_journeys,
  sum(expected_active_ms)::bigint as expected_active_ms,
  sum(counted_active_ms)::bigint as counted_active_ms,
  sum(expected_active_journeys)::bigint as expected_active_journeys,
  sum(counted_active_journeys)::bigint as counted_active_journeys
from cells
group by walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id, skipped
having
  sum(expected_journeys) <> sum(counted_journeys)
  or sum(expected_elapsed_ms) <> sum(counted_elapsed_ms)
  or sum(expected_timed_journeys) <> sum(counted_timed_journeys)
  or sum(expected_active_ms) <> sum(counted_active_ms)
  or sum(expected_active_journeys) <> sum(counted_active_journeys);

-- name: survey_endings
insert into differing_endings
with
journeys as (
  select
    1 as sign,
    walkthrough_id,
    mcp_server_id,
    started_at,
    step_ids,
    completed_at,
    first_shown_at,
    skipped,
    shown_step_id
  from sankey_journeys
  union all
  select
    1,
    walkthrough_id,
    expected_server_id,
    expected_started_at,
    expected_step_ids,
    expected_completed_at,
    expected_first_shown_at,
    expected_skipped,
    expected_shown_step_id
  from differing_journeys
  union all
  select
    -1,
    walkthrough_id,
    counted_server_id,
    counted_started_at,
    counted_step_ids,
    counted_completed_at,
    counted_first_shown_at,
    counted_skipped,
    counted_shown_step_id
  from differing_journeys
),
cells as (
  select
    walkthrough_id,
    mcp_server_id,
    date '1970-01-01' + (coalesce(started_at, completed_at[1], first_shown_at) / 86400000)::integer as began_on,
    cardinality(step_ids) - coalesce(cardinality(array_positions(skipped, true)), 0) as steps_done,
    step_ids[cardinality(step_ids)] as step_id,
    date '1970-01-01'
    + (coalesce(completed_at[cardinality(completed_at)], started_at, first_shown_at) / 86400000)::integer
    as last_active_on,
    coalesce(cardinality(array_positions(skipped, true)), 0) as steps_skipped,
    shown_step_id,
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
    steps_skipped,
    shown_step_id,
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
  steps_skipped,
  shown_step_id,
  sum(expected_journeys)::bigint as expected_journeys,
  sum(counted_journeys)::bigint as counted_journeys
from cells
group by
  walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, steps_skipped, shown_step_id
having sum(expected_journeys) <> sum(counted_journeys);

-- name: list_transitions
select * from differing_transitions
order by walkthrough_id, mcp_server_id, began_on, position, from_step_id nulls first, to_step_id, skipped
limit $1;

-- name: list_endings
select * from differing_endings
order by
  walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on, steps_skipped, shown_step_id
limit $1;

-- name: list_journeys
select
  mcp_server_user_id,
  walkthrough_id,
  expected_started_at,
  counted_started_at,
  expected_step_ids,
  counted_step_ids,
  expected_skipped,
  counted_skipped,
  expected_shown_step_id,
  counted_shown_step_id
from differing_journeys
order by mcp_server_user_id, walkthrough_id
limit $1;

-- name: survey_size
-- About how many rows a survey reads, by the planner's statistics.
select coalesce(sum(greatest(reltuples, 0)), 0)::bigint as rows
from pg_class
where
  oid in (
    'walkthrough_step_completions'::regclass,
    'walkthrough_starts'::regclass,
    'walkthrough_step_skips'::regclass,
    'walkthrough_step_showings'::regclass
  );

-- name: survey_counts
select
  (select count(*) from differing_journeys) as journeys,
  (select count(*) from differing_transitions) as transitions,
  (select count(*) from differing_endings) as endings;

-- name: survey_rows
-- The differing journeys, as `recheck` shows them.
select
  mcp_server_user_id,
  walkthrough_id,
  counted_server_id,
  counted_step_ids,
  counted_completed_at,
  counted_started_at,
  counted_first_shown_at,
  counted_skipped,
  counted_shown_at,
  counted_shown_step_id,
  expected_server_id,
  expected_step_ids,
  expected_completed_at,
  expected_started_at,
  expected_first_shown_at,
  expected_skipped,
  expected_shown_at,
  expected_shown_step_id
from differing_journeys;

-- name: survey_forget
delete from differing_journeys
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
where differing_journeys.mcp_server_user_id = given.mcp_server_user_id
  and differing_journeys.walkthrough_id = given.walkthrough_id;

-- name: recheck
-- Of these journeys, those whose rows are not what is counted of them now.
select
  given.mcp_server_user_id,
  given.walkthrough_id,
  counted.mcp_server_id as counted_server_id,
  counted.step_ids as counted_step_ids,
  counted.completed_at as counted_completed_at,
  counted.started_at as counted_started_at,
  counted.first_shown_at as counted_first_shown_at,
  counted.skipped as counted_skipped,
  counted.shown_at as counted_shown_at,
  counted.shown_step_id as counted_shown_step_id,
  expected.mcp_server_id as expected_server_id,
  expected.step_ids as expected_step_ids,
  expected.completed_at as expected_completed_at,
  expected.started_at as expected_started_at,
  expected.first_shown_at as expected_first_shown_at,
  expected.skipped as expected_skipped,
  expected.shown_at as expected_shown_at,
  expected.shown_step_id as expected_shown_step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
cross join lateral sankey_journey_from_rows(given.mcp_server_user_id, given.walkthrough_id) as expected
left join sankey_journeys as counted on given.mcp_server_user_id = counted.mcp_server_user_id
  and given.walkthrough_id = counted.walkthrough_id
where
  coalesce(counted.step_ids, '{}') is distinct from expected.step_ids
  or coalesce(counted.completed_at, '{}') is distinct from expected.completed_at
  or counted.started_at is distinct from expected.started_at
  or counted.mcp_server_id is distinct from expected.mcp_server_id
  or counted.first_shown_at is distinct from expected.first_shown_at
  or counted.skipped is distinct from expected.skipped
  or counted.shown_at is distinct from expected.shown_at
  or counted.shown_step_id is distinct from expected.shown_step_id;

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

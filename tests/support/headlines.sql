-- What the dashboard's sentences must say, from the tables of events alone: it shares nothing with how the project counts.

-- name: make_tables
-- Journeys of every walkthrough, as temporary tables: `journeys` as they are now, `passes` step by step; and the order in
-- which the steps are before an edit.
create temporary table order_then as select id, walkthrough_id, display_order from walkthrough_steps;

create temporary table passed as
select mcp_server_user_id as person, walkthrough_id, step_id, completed_at as at, id, mcp_server_session_id as session_id,
  mcp_server_id, false as skipped
from walkthrough_step_completions
union all
select skip.mcp_server_user_id, skip.walkthrough_id, skip.step_id, skip.skipped_at, skip.id, skip.mcp_server_session_id,
  skip.mcp_server_id, true
from walkthrough_step_skips as skip
where not exists (
  select from walkthrough_step_completions as done
  where done.mcp_server_user_id = skip.mcp_server_user_id and done.step_id = skip.step_id
);

create index on passed (person, walkthrough_id, step_id);
analyze passed;

create temporary table begins as
-- The first of what happened, if what was passed or the start; else the first showing.
select distinct on (person, walkthrough_id) person, walkthrough_id, at as began_at, mcp_server_id, is_start
from (
  select mcp_server_user_id as person, walkthrough_id, started_at as at, mcp_server_id, true as is_start, 0 as rank
  from walkthrough_starts
  union all
  select person, walkthrough_id, at, mcp_server_id, false, 0 from passed
  union all
  select mcp_server_user_id, walkthrough_id, first_shown_at, mcp_server_id, false, 1 from walkthrough_step_showings
) as events
order by person, walkthrough_id, rank, at, is_start desc;

create temporary table passes as
select
  passed.*,
  row_number() over journey - 1 as position,
  lag(step_id) over journey as from_step_id,
  -- From the step before, or from the start: the time of a first step without a start is not known.
  at - coalesce(lag(at) over journey, case when is_start then began_at end) as took
from passed
join begins using (person, walkthrough_id)
window journey as (partition by person, walkthrough_id order by at, passed.id collate "C");

create temporary table journeys as
select
  begins.*,
  coalesce(done.last_at, began_at) as last_at,
  coalesce(done.steps, 0) as steps,
  coalesce(done.steps, 0) = (select count(*) from walkthrough_steps where walkthrough_id = begins.walkthrough_id)
    as finished,
  coalesce(shown.step_id, assumed.id) as stands_at
from begins
left join (
  select person, walkthrough_id, max(at) as last_at, count(*) as steps from passed group by 1, 2
) as done using (person, walkthrough_id)
left join lateral (
  -- What was shown last, of what is not passed.
  select step_id from walkthrough_step_showings as showing
  where
    showing.mcp_server_user_id = begins.person and showing.walkthrough_id = begins.walkthrough_id
    and not exists (select from passed where person = begins.person and step_id = showing.step_id)
  order by last_shown_at desc, last_id collate "C" desc
  limit 1
) as shown on true
left join lateral (
  select id from walkthrough_steps as step
  where
    step.walkthrough_id = begins.walkthrough_id
    and not exists (select from passed where person = begins.person and step_id = step.id)
  order by display_order, id collate "C"
  limit 1
) as assumed on true;

create index on journeys (person);
create index on passes (person);
analyze begins, journeys, passes;

-- name: key_figures
-- $2: when today began, $3: after how many days they are judged.
select
  count(*) as started,
  count(*) filter (where finished) as finished,
  count(*) filter (where not finished and last_at >= $2::bigint - 6 * 86400000) as in_progress,
  count(*) filter (where not finished and last_at < $2::bigint - 6 * 86400000) as dropped,
  count(*) filter (where began_at <= $2::bigint - $3::bigint * 86400000) as had_time,
  count(*) filter (where began_at <= $2::bigint - $3::bigint * 86400000 and finished and last_at < began_at + $3::bigint * 86400000)
    as finished_within,
  percentile_cont(array[0.5, 0.9]) within group (order by last_at - began_at) filter (where finished) as took
from journeys
where walkthrough_id = $1;

-- name: sessions
select
  count(*) as people,
  sum(steps)::bigint as steps,
  sum(sessions)::bigint as sessions,
  count(*) filter (where sessions > 1) as came_back
from (
  select person, count(distinct session_id) as sessions, count(step_id) filter (where not skipped) as steps
  from (
    select person, session_id, step_id, skipped from passed where walkthrough_id = $1
    union all
    select mcp_server_user_id, mcp_server_session_id, null, false from walkthrough_starts where walkthrough_id = $1
    union all
    select person, null, null, false from journeys where walkthrough_id = $1
  ) as visits
  group by person
) as people;

-- name: steps
-- In the order of the walkthrough, of those that began before $3; $2: when today began.
with cohort as (
  select * from journeys where walkthrough_id = $1 and began_at < $3::bigint
),
passed_by as (
  select passes.* from passes join cohort using (person, walkthrough_id)
),
times as (
  select step_id, percentile_cont(array[0.5, 0.9]) within group (order by took) as took, count(took) as timed
  from passed_by
  where not skipped
  group by step_id
),
stopped as (
  select stands_at as step_id, count(*) as unfinished, count(*) filter (where last_at < $2::bigint - 6 * 86400000) as dropped
  from cohort
  where not finished
  group by stands_at
)
select
  step.id,
  step.title,
  (select count(*) from passed_by where step_id = step.id) + coalesce(unfinished, 0) as reached,
  coalesce(dropped, 0) as dropped,
  took[1] as median,
  took[2] as p90,
  coalesce(timed, 0) as timed
from walkthrough_steps as step
left join times on times.step_id = step.id
left join stopped on stopped.step_id = step.id
where step.walkthrough_id = $1
order by display_order, step.id collate "C";

-- name: paths
-- How many took each path to the same end, the most frequent first; $2: when today began.
select count(*) as journeys
from (
  select
    person,
    finished,
    not finished and last_at < $2::bigint - 6 * 86400000 as stopped,
    array(
      select (step_id, skipped) from passed
      where passed.person = journeys.person and passed.walkthrough_id = $1
      order by at, id collate "C"
    ) as steps
  from journeys
  where walkthrough_id = $1
) as paths
group by steps, finished, stopped
order by journeys desc;

-- name: times_to_finish
-- How long each has taken, or is on the way; $2: until when.
select
  case when finished then last_at - began_at else $2::bigint - began_at end as ms,
  finished
from journeys
where walkthrough_id = $1;

-- name: newest_event
select max(at) from (
  select at from passed where walkthrough_id = $1
  union all
  select started_at from walkthrough_starts where walkthrough_id = $1
  union all
  select last_shown_at from walkthrough_step_showings where walkthrough_id = $1
) as events;

-- name: side
-- Those that began from $3 on and before $4, on server $5 if that is given, as they stood $2 milliseconds later, where
-- that is no later than $6, when today began; and how many began too late for it.
with cohort as (
  select * from journeys
  where
    walkthrough_id = $1 and began_at >= $3::bigint and began_at < $4::bigint and ($5::text is null or mcp_server_id = $5)
),
stood as (
  select cohort.person, count(passed.step_id) as steps
  from cohort
  left join passed
    on passed.person = cohort.person and passed.walkthrough_id = $1 and passed.at < cohort.began_at + $2::bigint
  where cohort.began_at <= $6::bigint - $2::bigint
  group by cohort.person
)
select
  count(*) as journeys,
  count(*) filter (where steps = (select count(*) from walkthrough_steps where walkthrough_id = $1)) as finished,
  (select count(*) from cohort where began_at > $6::bigint - $2::bigint) as too_young
from stood;

-- name: steps_of_side
-- By step, of the same journeys: who did it by then, and who had passed it or stood before it in the order of that time
-- (`order_then`).
with stood as (
  select
    person,
    array(
      select step_id from passed
      where passed.person = journeys.person and passed.walkthrough_id = $1 and at < began_at + $2::bigint
    ) as passed_ids,
    array(
      select step_id from passed
      where
        passed.person = journeys.person and passed.walkthrough_id = $1 and at < began_at + $2::bigint and not skipped
    ) as done_ids
  from journeys
  where
    walkthrough_id = $1 and began_at >= $3::bigint and began_at < $4::bigint
    and ($5::text is null or mcp_server_id = $5) and began_at <= $6::bigint - $2::bigint
),
waits as (
  select (
    select id from order_then
    where walkthrough_id = $1 and id <> all(passed_ids)
    order by display_order, id collate "C"
    limit 1
  ) as step_id
  from stood
)
select
  id,
  title,
  (select count(*) from stood where step.id = any(done_ids)) as done,
  (select count(*) from stood where step.id = any(passed_ids)) + (select count(*) from waits where step_id = step.id)
    as reached
from walkthrough_steps as step
where walkthrough_id = $1
order by display_order, id collate "C";

-- name: places_of_side
-- By place and step, of the same journeys: who went on how, and who had not gone on by then and had not finished.
with stood as (
  select passes.*, count(*) over (partition by passes.person) as steps
  from passes
  join journeys using (person, walkthrough_id)
  where
    walkthrough_id = $1 and journeys.began_at >= $3::bigint and journeys.began_at < $4::bigint
    and ($5::text is null or journeys.mcp_server_id = $5)
    and journeys.began_at <= $6::bigint - $2::bigint and passes.at < journeys.began_at + $2::bigint
)
select position, from_step_id, step_id, skipped, count(*) as journeys from stood group by 1, 2, 3, 4
union all
select distinct_last.position + 1, distinct_last.step_id, null, false, count(*)
from (select distinct on (person) * from stood order by person, position desc) as distinct_last
where steps < (select count(*) from walkthrough_steps where walkthrough_id = $1)
group by 1, 2;

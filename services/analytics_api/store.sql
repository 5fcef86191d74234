-- name: find_key
select
  organization_id,
  hash,
  revoked_at is null and (expires_at is null or expires_at > now()) as is_valid
from api_keys
where id = $1;

-- name: key_ids
-- The ids of the newest keys that are good.
select id from api_keys
where revoked_at is null and (expires_at is null or expires_at > now())
order by created_at desc
limit $1;

-- name: walkthrough
-- A walkthrough of an organization: its steps in display order, the organization's servers that offer it or that
-- have journeys in it, and the number that changes with its counts and with its steps.
select
  walkthroughs.id,
  walkthroughs.title,
  walkthroughs.type::text,
  walkthroughs.status::text,
  coalesce(sankey_freshness.changes, 0) as changes,
  nullif(sankey_freshness.newest_at, 0) as newest_at,
  recorded.newest_at as recorded_at,
  steps.fingerprint,
  steps.listed::text as steps,
  servers.listed::text as servers
from walkthroughs
left join sankey_freshness on walkthroughs.id = sankey_freshness.walkthrough_id
cross join lateral (
  select
    coalesce(
      jsonb_agg(
        jsonb_build_object('id', id, 'title', title)
        order by display_order, created_at nulls first, id collate "C"
      ),
      '[]'
    ) as listed,
    coalesce(
      md5(string_agg(id || title, ',' order by display_order, created_at nulls first, id collate "C")), ''
    ) as fingerprint
  from walkthrough_steps
  where walkthrough_id = walkthroughs.id
) as steps
cross join lateral (
  select coalesce(jsonb_agg(jsonb_build_object('id', id, 'name', name, 'slug', slug) order by name, id), '[]') as listed
  from mcp_servers
  where organization_id = walkthroughs.organization_id and id in (
    select mcp_server_id from mcp_server_walkthroughs
    where walkthrough_id = walkthroughs.id
    union
    select mcp_server_id from sankey_endings
    where walkthrough_id = walkthroughs.id
  )
) as servers
cross join lateral (
  select max(newest.at) as newest_at
  from walkthrough_steps
  cross join lateral (
    select completed_at as at
    from walkthrough_step_completions
    where walkthrough_id = walkthroughs.id and step_id = walkthrough_steps.id
    order by completed_at desc
    limit 1
  ) as newest
  where walkthrough_steps.walkthrough_id = walkthroughs.id
) as recorded
where walkthroughs.id = $1 and walkthroughs.organization_id = $2;

-- name: changes
-- Whose these walkthroughs are, how often their counts changed, and what their steps are now.
select
  walkthroughs.id,
  walkthroughs.organization_id,
  coalesce(sankey_freshness.changes, 0) as changes,
  nullif(sankey_freshness.newest_at, 0) as newest_at,
  recorded.newest_at as recorded_at,
  steps.fingerprint
from walkthroughs
left join sankey_freshness on walkthroughs.id = sankey_freshness.walkthrough_id
cross join lateral (
  select
    coalesce(
      md5(string_agg(id || title, ',' order by display_order, created_at nulls first, id collate "C")), ''
    ) as fingerprint
  from walkthrough_steps
  where walkthrough_id = walkthroughs.id
) as steps
cross join lateral (
  select max(newest.at) as newest_at
  from walkthrough_steps
  cross join lateral (
    select completed_at as at
    from walkthrough_step_completions
    where walkthrough_id = walkthroughs.id and step_id = walkthrough_steps.id
    order by completed_at desc
    limit 1
  ) as newest
  where walkthrough_steps.walkthrough_id = walkthroughs.id
) as recorded
where walkthroughs.id = any($1::text[]);

-- name: servers_of
-- Of these servers, those of the organization.
select id from mcp_servers
where id = any($1::text[]) and organization_id = $2;

-- name: counts
-- Links and endings from the counts, in one snapshot. It reads cells, of which there are as many as servers,
-- days and different links, however many journeys they count.
select
  true as is_link,
  position,
  from_step_id,
  to_step_id,
  null::boolean as is_recent,
  sum(journeys)::bigint as journeys,
  sum(elapsed_ms) as elapsed_ms,
  sum(timed_journeys)::bigint as timed_journeys
from sankey_transitions
where
  walkthrough_id = $1
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_on >= $3)
  and ($4::date is null or began_on <= $4)
group by position, from_step_id, to_step_id
union all
select
  false,
  steps_done,
  step_id,
  null,
  last_active_on > $5::date,
  sum(journeys)::bigint,
  0,
  0
from sankey_endings
where
  walkthrough_id = $1
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_on >= $3)
  and ($4::date is null or began_on <= $4)
group by steps_done, step_id, last_active_on > $5::date;

-- name: most_steps
-- How long the longest journey is.
select coalesce(max(steps_done), 0) from sankey_endings
where walkthrough_id = $1;

-- name: variants
-- Distinct paths, and how many journeys took each. SUMS stands for the sum of each step's time since the
-- journey began, one expression for each step of the longest journey.
select
  step_ids,
  started_at is not null as is_started,
  coalesce(completed_at[cardinality(completed_at)], started_at) >= $5::bigint as is_recent,
  count(*) as journeys,
  array[SUMS]::numeric[] as since_began_ms
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id is not null
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::bigint is null or coalesce(started_at, completed_at[1]) >= $3)
  and ($4::bigint is null or coalesce(started_at, completed_at[1]) < $4)
group by 1, 2, 3;

-- name: journeys_counted
-- How many journeys a cohort has, from the counts.
select coalesce(sum(journeys), 0)::bigint from sankey_endings
where
  walkthrough_id = $1
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_on >= $3)
  and ($4::date is null or began_on <= $4);

-- name: step_times
-- Time before each step, over every $5th person by the hash of their id.
select
  step.id,
  count(*) as timed,
  avg(step.ms)::float8 as mean_ms,
  percentile_cont(array[0.5, 0.9]) within group (order by step.ms) as percentiles
from sankey_journeys as journey
cross join lateral (
  select
    done.id,
    done.at - coalesce(journey.completed_at[done.place - 1], journey.started_at) as ms
  from unnest(journey.step_ids, journey.completed_at) with ordinality as done (id, at, place)
) as step
where
  journey.walkthrough_id = $1
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or coalesce(journey.started_at, journey.completed_at[1]) >= $3)
  and ($4::bigint is null or coalesce(journey.started_at, journey.completed_at[1]) < $4)
  and ($5::bigint = 1 or hashtextextended(journey.mcp_server_user_id, 0) % $5 = 0)
  and step.ms is not null
group by step.id;

-- name: time_to_finish
-- From the beginning of a journey to its last step, where all $6 steps are done.
select
  count(*) as journeys,
  avg(ms)::float8 as mean_ms,
  percentile_cont(array[0.5, 0.9]) within group (order by ms) as percentiles
from (
  select completed_at[$6::integer] - coalesce(started_at, completed_at[1]) as ms
  from sankey_journeys
  where
    walkthrough_id = $1
    and $6 > 0
    and cardinality(step_ids) = $6
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::bigint is null or coalesce(started_at, completed_at[1]) >= $3)
    and ($4::bigint is null or coalesce(started_at, completed_at[1]) < $4)
    and ($5::bigint = 1 or hashtextextended(mcp_server_user_id, 0) % $5 = 0)
) as finished;

-- name: sessions_and_days
-- In how many sessions and on how many days people were active, over every $5th person.
select
  count(*) as journeys,
  coalesce(sum(active.steps), 0)::bigint as steps,
  coalesce(sum(active.sessions), 0)::bigint as sessions,
  count(*) filter (where active.sessions > 1) as resumed,
  count(*) filter (where active.days > 1) as returned
from sankey_journeys as journey
cross join lateral (
  select
    count(step_id) as steps,
    count(distinct mcp_server_session_id) as sessions,
    count(distinct at / 86400000) as days
  from (
    select step_id, mcp_server_session_id, completed_at as at
    from walkthrough_step_completions
    where mcp_server_user_id = journey.mcp_server_user_id and walkthrough_id = journey.walkthrough_id
    union all
    select null, mcp_server_session_id, started_at
    from walkthrough_starts
    where mcp_server_user_id = journey.mcp_server_user_id and walkthrough_id = journey.walkthrough_id
  ) as events
) as active
where
  journey.walkthrough_id = $1
  and journey.mcp_server_id is not null
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or coalesce(journey.started_at, journey.completed_at[1]) >= $3)
  and ($4::bigint is null or coalesce(journey.started_at, journey.completed_at[1]) < $4)
  and ($5::bigint = 1 or hashtextextended(journey.mcp_server_user_id, 0) % $5 = 0);

-- name: trends
-- Journeys by the day or week in which they began, and those finished by when they were.
select
  began.since,
  sum(began.started)::bigint as started,
  sum(began.finished)::bigint as finished,
  sum(began.finished_then)::bigint as finished_then
from (
  select
    date_trunc($5, began_on::timestamp)::date as since,
    sum(journeys) as started,
    sum(journeys) filter (where steps_done = $6::integer and $6 > 0) as finished,
    0 as finished_then
  from sankey_endings
  where
    walkthrough_id = $1
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::date is null or began_on >= $3)
    and ($4::date is null or began_on <= $4)
  group by 1
  union all
  select
    date_trunc($5, last_active_on::timestamp)::date,
    0,
    0,
    sum(journeys)
  from sankey_endings
  where
    walkthrough_id = $1
    and steps_done = $6 and $6 > 0
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::date is null or last_active_on >= $3)
    and ($4::date is null or last_active_on <= $4)
  group by 1
) as began
group by began.since
order by began.since;

-- name: active_people
-- People with a start or a step in a day, or in a week from its Monday. By numbers of days: dividing is faster
-- than truncating timestamps. The epoch was a Thursday.
select
  date '1970-01-01' + active.day::integer as since,
  count(*) as people
from sankey_journeys as journey
cross join lateral (
  select distinct case when $5 = 'week' then (at / 86400000 + 3) / 7 * 7 - 3 else at / 86400000 end as day
  from unnest(journey.completed_at || journey.started_at) as at
  where
    at is not null
    and ($3::bigint is null or at >= $3)
    and ($4::bigint is null or at < $4)
) as active
where
  journey.walkthrough_id = $1
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or coalesce(journey.completed_at[cardinality(journey.completed_at)], journey.started_at) >= $3)
group by active.day;

-- name: journeys
-- Journeys that may be behind a figure, the last active first. What a view changes is decided afterwards.
select
  mcp_server_user_id,
  mcp_server_id,
  started_at,
  step_ids,
  completed_at,
  coalesce(completed_at[cardinality(completed_at)], started_at) as last_active_at
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id = any($2::text[])
  and ($3::bigint is null or coalesce(started_at, completed_at[1]) >= $3)
  and ($4::bigint is null or coalesce(started_at, completed_at[1]) < $4)
  and ($5::bigint is null or coalesce(completed_at[cardinality(completed_at)], started_at) >= $5)
  and ($6::bigint is null or coalesce(completed_at[cardinality(completed_at)], started_at) < $6)
  and (cardinality($7::text[]) = 0 or step_ids @> $7)
  and (cardinality($8::text[]) = 0 or step_ids && $8)
  and (
    $9::bigint is null
    or (coalesce(completed_at[cardinality(completed_at)], started_at), mcp_server_user_id collate "C") < ($9, $10)
  )
order by last_active_at desc, mcp_server_user_id collate "C" desc;

-- name: journey
-- One journey as it was counted.
select
  mcp_server_user_id,
  mcp_server_id,
  started_at,
  step_ids,
  completed_at,
  coalesce(completed_at[cardinality(completed_at)], started_at) as last_active_at
from sankey_journeys
where mcp_server_user_id = $1 and walkthrough_id = $2 and mcp_server_id = any($3::text[]);

-- name: journey_events
-- What a person did in a walkthrough on servers of the organization, in order.
select
  walkthrough_id,
  step_id,
  mcp_server_user_id,
  mcp_server_id,
  mcp_server_session_id,
  completed_at as at,
  id
from walkthrough_step_completions
where
  mcp_server_user_id = $1 and walkthrough_id = $2
  and mcp_server_id in (select id from mcp_servers where organization_id = $3)
union all
select
  walkthrough_id,
  null,
  mcp_server_user_id,
  mcp_server_id,
  mcp_server_session_id,
  started_at,
  id
from walkthrough_starts
where
  mcp_server_user_id = $1 and walkthrough_id = $2
  and mcp_server_id in (select id from mcp_servers where organization_id = $3)
order by at, step_id nulls first, id;

-- name: session
-- A session on a server of the organization.
select
  mcp_server_session.mcp_server_session_id as id,
  mcp_server_session.title,
  mcp_server_session.mcp_server_user_id,
  mcp_server_session.connection_timestamp,
  mcp_servers.id as mcp_server_id,
  mcp_servers.name as server
from mcp_server_session
inner join mcp_servers on mcp_server_session.mcp_server_slug = mcp_servers.slug
where mcp_server_session.mcp_server_session_id = $1 and mcp_servers.organization_id = $2;

-- name: session_events
-- What happened in a session, in walkthroughs of the organization, in order: the first $3 events.
select
  events.walkthrough_id,
  events.step_id,
  events.mcp_server_user_id,
  events.mcp_server_id,
  events.mcp_server_session_id,
  events.at,
  walkthroughs.title as walkthrough,
  walkthrough_steps.title as step
from (
  select walkthrough_id, step_id, mcp_server_user_id, mcp_server_id, mcp_server_session_id, completed_at as at, id
  from walkthrough_step_completions
  where mcp_server_session_id = $1
  union all
  select walkthrough_id, null, mcp_server_user_id, mcp_server_id, mcp_server_session_id, started_at, id
  from walkthrough_starts
  where mcp_server_session_id = $1
) as events
inner join walkthroughs on events.walkthrough_id = walkthroughs.id and walkthroughs.organization_id = $2
left join walkthrough_steps on events.step_id = walkthrough_steps.id
order by events.at, events.step_id nulls first, events.id
limit $3;

-- name: organization
select
  id,
  name
from organization
where id = $1;

-- name: servers
select
  id,
  name,
  slug
from mcp_servers
where organization_id = $1
order by name, id;

-- name: overview
-- Each walkthrough of an organization with its journeys by server; a walkthrough without any has one row.
select
  walkthroughs.id,
  walkthroughs.title,
  walkthroughs.type::text,
  walkthroughs.status::text,
  coalesce(sankey_freshness.changes, 0) as changes,
  nullif(sankey_freshness.newest_at, 0) as newest_at,
  steps.number as steps,
  counted.mcp_server_id,
  coalesce(counted.started, 0)::bigint as started,
  coalesce(counted.finished, 0)::bigint as finished,
  coalesce(counted.in_progress, 0)::bigint as in_progress,
  coalesce(counted.steps_done, 0)::bigint as steps_done,
  counted.last_active_on
from walkthroughs
left join sankey_freshness on walkthroughs.id = sankey_freshness.walkthrough_id
cross join lateral (
  select count(*)::integer as number
  from walkthrough_steps
  where walkthrough_id = walkthroughs.id
) as steps
left join lateral (
  select
    mcp_server_id,
    sum(journeys) as started,
    sum(journeys) filter (where steps_done = steps.number and steps.number > 0) as finished,
    sum(journeys) filter (
      where (steps_done <> steps.number or steps.number = 0) and last_active_on > $5::date
    ) as in_progress,
    sum(least(steps_done, steps.number) * journeys) as steps_done,
    max(last_active_on) filter (where journeys > 0) as last_active_on
  from sankey_endings
  where
    walkthrough_id = walkthroughs.id
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::date is null or began_on >= $3)
    and ($4::date is null or began_on <= $4)
  group by mcp_server_id
  having sum(journeys) > 0
) as counted on true
where walkthroughs.organization_id = $1
order by walkthroughs.title, walkthroughs.id, counted.mcp_server_id;

-- name: refused
-- What was refused since $3, by source and class, and who sent it: events that name a server or a walkthrough of
-- organization $2, and those that name nobody from sources that send its events alone. That is, some of theirs were
-- recorded of this organization, none of theirs was recorded or refused of another, and each says who it is: the
-- sources of $5 are everybody's. Only of such sources the totals are given. At most 200 classes and 200 sources, the
-- last ones.
with alone as materialized (
  select place.source
  from source_organizations as place
  where
    place.topic = $1
    and place.organization_id = $2
    and place.source <> all($5::text[])
    and ($4::text[] is null or place.source = any($4))
    and not exists (
      select from source_organizations as other
      where other.topic = $1 and other.source = place.source and other.organization_id <> $2
    )
    and not exists (
      select from refused_events as other
      where other.topic = $1 and other.source = place.source and other.organization_id not in ('', $2)
    )
),
latest as materialized (
  select
    source,
    rejection,
    max(last_at) as last_at
  from (
    -- A class has two rows at most: one that names the organization, and one that names nobody.
    select
      source,
      rejection,
      last_at
    from (
      select
        source,
        rejection,
        last_at
      from refused_events
      where
        topic = $1
        and organization_id = $2
        and last_at >= $3
        and ($4::text[] is null or source = any($4))
      union all
      select
        nobodys.source,
        nobodys.rejection,
        nobodys.last_at
      from alone
      inner join refused_events as nobodys on alone.source = nobodys.source
      where nobodys.topic = $1 and nobodys.organization_id = '' and nobodys.last_at >= $3
    ) as shown
    order by last_at desc
    limit 400
  ) as rows
  group by source, rejection
  order by max(last_at) desc, source, rejection
  limit 200
),
classes as materialized (
  select
    latest.source,
    latest.rejection,
    latest.last_at,
    kept.events,
    kept.first_at,
    kept.partition,
    kept.last_offset,
    kept.message,
    kept.fields
  from latest
  cross join lateral (
    select
      sum(events)::bigint as events,
      min(first_at) as first_at,
      (array_agg(partition order by last_at desc))[1] as partition,
      (array_agg(last_offset order by last_at desc))[1] as last_offset,
      (array_agg(message order by last_at desc))[1] as message,
      (array_agg(fields order by last_at desc))[1] as fields
    from refused_events
    where
      topic = $1
      and source = latest.source
      and rejection = latest.rejection
      and last_at >= $3
      and (
        organization_id = $2
        or (organization_id = '' and latest.source in (select source from alone))
      )
  ) as kept
),
totals as (
  select
    sent.source,
    sent.events,
    sent.refused,
    sent.looked_at,
    sent.elsewhere,
    sent.without_key
  from alone
  inner join event_sources as sent on alone.source = sent.source
  where sent.topic = $1 and (sent.last_at >= $3 or sent.source in (select source from classes))
  order by sent.source in (select source from classes) desc, sent.last_at desc, sent.source
  limit 200
)
select
  coalesce(classes.source, totals.source) as source,
  classes.rejection,
  classes.events,
  (extract(epoch from classes.first_at) * 1000)::bigint as first_at,
  (extract(epoch from classes.last_at) * 1000)::bigint as last_at,
  classes.partition,
  classes.last_offset,
  classes.message,
  classes.fields,
  totals.events as sent,
  totals.refused as sent_refused,
  totals.looked_at,
  totals.elsewhere,
  totals.without_key
from classes
full join totals on classes.source = totals.source
order by classes.last_at desc nulls last, 1, classes.rejection;

-- name: offered_by
-- The walkthroughs that a server offers.
select walkthrough_id from mcp_server_walkthroughs
where mcp_server_id = $1;

-- name: marks
-- Journeys that wait to be counted again, up to 10,000. And what waits for a lock, which holds up no others: journeys
-- and events by walkthrough, each up to 10,000, with whose it is. An erasure that waits is of every walkthrough of
-- its person.
with recursive locked as (
  (
    select walkthrough_id from sankey_dirty
    where waits_for is not null
    order by walkthrough_id
    limit 1
  )
  union all
  select following.walkthrough_id
  from locked
  cross join lateral (
    select walkthrough_id from sankey_dirty
    where waits_for is not null and walkthrough_id > locked.walkthrough_id
    order by walkthrough_id
    limit 1
  ) as following
),
of_events as (
  (
    select walkthrough_id from waiting_events
    where walkthrough_id is not null
    order by walkthrough_id
    limit 1
  )
  union all
  select following.walkthrough_id
  from of_events
  cross join lateral (
    select walkthrough_id from waiting_events
    where walkthrough_id > of_events.walkthrough_id
    order by walkthrough_id
    limit 1
  ) as following
),
held as (
  select
    locked.walkthrough_id,
    (
      select count(*) from (
        select from sankey_dirty as mark
        where mark.waits_for is not null and mark.walkthrough_id = locked.walkthrough_id
        limit 10000
      ) as limited
    ) as journeys,
    0 as events
  from locked
  union all
  select
    of_events.walkthrough_id,
    0,
    (
      select count(*) from (
        select event.id from waiting_events as event
        where event.walkthrough_id = of_events.walkthrough_id
        limit 10000
      ) as limited
    )
  from of_events
  union all
  select
    journey.walkthrough_id,
    0,
    count(*)
  from waiting_events as erasure
  inner join sankey_journeys as journey on erasure.mcp_server_user_id = journey.mcp_server_user_id
  where erasure.walkthrough_id is null
  group by journey.walkthrough_id
)
select
  (select count(*) from (select from sankey_dirty where waits_for is null limit 10000) as marks) as waiting,
  (
    select coalesce(
      jsonb_agg(jsonb_build_array(held.walkthrough_id, walkthroughs.organization_id, held.journeys, held.events)), '[]'
    )
    from held
    inner join walkthroughs on held.walkthrough_id = walkthroughs.id
  ) as held,
  pg_is_in_recovery() as on_replica;

-- name: server
select concat_ws(' ', pg_postmaster_start_time(), inet_server_addr(), inet_server_port());

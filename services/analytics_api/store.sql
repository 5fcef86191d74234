-- Titles and names are read up to 500 characters: an answer has each many times, and whoever writes them may be hostile.

-- name: find_key
select
  organization_id,
  hash,
  revoked_at is null and (expires_at is null or expires_at > now()) as is_valid,
  may_edit,
  may_read,
  may_write,
  may_register,
  write_types,
  write_server_ids,
  source
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
  left(walkthroughs.title, 500) as title,
  walkthroughs.type::text,
  walkthroughs.status::text,
  coalesce(sankey_freshness.changes, 0) as changes,
  nullif(sankey_freshness.newest_at, 0) as newest_at,
  recorded.newest_at as recorded_at,
  steps.fingerprint,
  edits.newest_id as version_id,
  steps.listed::text as steps,
  coalesce(rule.goal_step_ids, '{}') as goal_step_ids,
  coalesce(rule.end_step_ids, '{}') as end_step_ids,
  servers.listed::text as servers
from walkthroughs
left join sankey_freshness on walkthroughs.id = sankey_freshness.walkthrough_id
left join walkthrough_finish_rules as rule on walkthroughs.id = rule.walkthrough_id
cross join lateral (
  select
    coalesce(
      jsonb_agg(
        jsonb_build_object(
          'id', step.id,
          'title', left(step.title, 500),
          'optional', step.is_optional or coalesce(step.id = any(rule.optional_step_ids), false)
        )
        order by step.display_order, step.created_at nulls first, step.id collate "C"
      ),
      '[]'
    ) as listed,
    coalesce(
      md5(
        string_agg(
          step.id || step.title || step.is_optional, ','
          order by step.display_order, step.created_at nulls first, step.id collate "C"
        ) || coalesce(extract(epoch from rule.changed_at)::text, '')
      ),
      ''
    ) as fingerprint
  from (
    select
      *,
      step_is_optional(metadata, title) as is_optional
    from walkthrough_steps
    where walkthrough_id = walkthroughs.id
  ) as step
) as steps
cross join lateral (
  select coalesce(jsonb_agg(jsonb_build_object('id', id, 'name', left(name, 500), 'slug', slug) order by name, id), '[]') as listed
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
cross join lateral (
  select max(id) as newest_id from walkthrough_versions
  where walkthrough_id = walkthroughs.id and step_ids is not null
) as edits
where walkthroughs.id = $1 and walkthroughs.organization_id = $2;

-- name: is_walkthrough_of
select exists(select from walkthroughs where id = $1 and organization_id = $2);

-- name: changes
-- Whose these walkthroughs are, how often their counts changed, and what their steps are now.
select
  walkthroughs.id,
  walkthroughs.organization_id,
  coalesce(sankey_freshness.changes, 0) as changes,
  nullif(sankey_freshness.newest_at, 0) as newest_at,
  recorded.newest_at as recorded_at,
  steps.fingerprint,
  edits.newest_id as version_id
from walkthroughs
left join sankey_freshness on walkthroughs.id = sankey_freshness.walkthrough_id
left join walkthrough_finish_rules as rule on walkthroughs.id = rule.walkthrough_id
cross join lateral (
  select
    coalesce(
      md5(
        string_agg(
          id || title || step_is_optional(metadata, title), ','
          order by display_order, created_at nulls first, id collate "C"
        ) || coalesce(extract(epoch from rule.changed_at)::text, '')
      ),
      ''
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
cross join lateral (
  select max(id) as newest_id from walkthrough_versions
  where walkthrough_id = walkthroughs.id and step_ids is not null
) as edits
where walkthroughs.id = any($1::text[]);

-- name: servers_of
-- Of these servers, those of the organization.
select id from mcp_servers
where id = any($1::text[]) and organization_id = $2;

-- name: links
-- Links from the counts; `counts` has endings below them, in one snapshot. It reads cells, of which there are as many as
-- servers, days and different links, however many journeys they count.
select
  true as is_link,
  position,
  from_step_id,
  to_step_id,
  null::boolean as is_recent,
  sum(journeys)::bigint as journeys,
  sum(elapsed_ms) as elapsed_ms,
  sum(timed_journeys)::bigint as timed_journeys,
  skipped::integer as skipped,
  sum(active_ms) as active_ms,
  sum(active_journeys)::bigint as active_journeys,
  null::boolean as is_finished
from sankey_transitions
where
  walkthrough_id = $1
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_on >= $3)
  and ($4::date is null or began_on <= $4)
group by position, from_step_id, to_step_id, skipped;

-- name: endings
-- Endings from the counts.
select
  false,
  steps_done + steps_skipped,
  step_id,
  null,
  last_active_on > $5::date,
  sum(journeys)::bigint,
  0,
  0,
  steps_skipped,
  0,
  0,
  null
from sankey_endings
where
  walkthrough_id = $1
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_on >= $3)
  and ($4::date is null or began_on <= $4)
group by steps_done, steps_skipped, step_id, last_active_on > $5::date;

-- name: endings_by_rule
-- Endings from the journeys, where the finish rule takes more than the cells have.
select
  false,
  cardinality(step_ids),
  step_ids[cardinality(step_ids)],
  null,
  last_active_at >= day_ms($5::date + 1),
  count(*),
  0,
  0,
  steps_skipped,
  0,
  0,
  is_finished($6, $7, $8, $9)
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id is not null
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_at >= day_ms($3))
  and ($4::date is null or began_at < day_ms($4 + 1))
group by 2, 3, 5, 9, 12;

-- name: most_steps
-- How long the longest journey is, and whether of any step is known when it was shown.
select
  coalesce(max(steps_done + steps_skipped), 0) as steps,
  exists (
    select from sankey_transitions
    where walkthrough_id = $1 and active_journeys > 0
  ) as is_shown
from sankey_endings
where walkthrough_id = $1;

-- name: variants
-- Distinct paths, and how many journeys took each. SUMS stands for the sum of each step's time since the
-- journey began, one expression for each step of the longest journey; ACTIVE for that since the step was shown, and
-- SHOWN for how many journeys that is of. By the version of their last activity,
-- too, unless one of the steps $7 was shown since: $6 is when each version but the first began.
select
  step_ids,
  started_at is not null as is_started,
  last_active_at >= $5::bigint as is_recent,
  skipped,
  shown_step_id,
  case
    when cardinality($6::bigint[]) > 0 and (shown_step_id = any($7::text[])) is not true
      then width_bucket(last_active_at, $6::bigint[]) + 1
  end as version,
  count(*) as journeys,
  array[SUMS]::numeric[] as since_began_ms,
  array[ACTIVE]::numeric[] as active_ms,
  array[SHOWN]::bigint[] as active_journeys
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id is not null
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::bigint is null or began_at >= $3)
  and ($4::bigint is null or began_at < $4)
group by 1, 2, 3, 4, 5, 6;

-- name: variants_within
-- Distinct paths as journeys stood $5 milliseconds after their beginning, of those that began at $6 or before, and how
-- many journeys took each; those that began later are counted, without a path. SUMS as in `variants`.
select
  journey.step_ids[1:(within.steps)] as step_ids,
  journey.started_at is not null as is_started,
  case when true = any(journey.skipped[1:(within.steps)]) then journey.skipped[1:(within.steps)] end as skipped,
  journey.began_at <= $6::bigint as had_time,
  width_bucket(coalesce(journey.completed_at[(within.steps)], journey.began_at), $7::bigint[]) + 1 as version,
  count(*) as journeys,
  min(journey.began_at) as first_began_at,
  max(journey.began_at) as last_began_at,
  array[SUMS]::numeric[] as since_began_ms
from sankey_journeys as journey
cross join lateral (
  -- Times are in order: so many of them are before the moment.
  select
    case
      when journey.began_at <= $6 and cardinality(journey.completed_at) > 0
        then width_bucket(journey.began_at + $5::bigint - 1, journey.completed_at)
      else 0
    end as steps
) as within
where
  journey.walkthrough_id = $1
  and journey.mcp_server_id is not null
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or journey.began_at >= $3)
  and ($4::bigint is null or journey.began_at < $4)
group by 1, 2, 3, 4, 5;

-- name: days_to_finish
-- Journeys by the day on which they began, how many whole days before $5 that was, and within how many days they
-- finished.
select
  journey.began_at / 86400000 as day,
  case when journey.began_at > $5::bigint then -1 else ($5 - journey.began_at) / 86400000 end as age_days,
  least((finished_at($6, $7, $8, $9) - journey.began_at) / 86400000 + 1, 367) as finish_days,
  count(*) as journeys
from sankey_journeys as journey
where
  journey.walkthrough_id = $1
  and journey.mcp_server_id is not null
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or journey.began_at >= $3)
  and ($4::bigint is null or journey.began_at < $4)
group by 1, 2, 3;

-- name: finish_times
-- How long finished journeys took, and for how long the others have been on their way at $10, over every $5th person.
select
  coalesce(array_agg(seen.finished_ms) filter (where seen.finished_ms is not null), '{}') as finished_ms,
  coalesce(array_agg(seen.age_ms) filter (where seen.finished_ms is null), '{}') as unfinished_ms
from (
  select
    (finished_at($6, $7, $8, $9) - journey.began_at) as finished_ms,
    greatest($10::bigint - journey.began_at, 0) as age_ms
  from sankey_journeys as journey
  where
    journey.walkthrough_id = $1
    and journey.mcp_server_id is not null
    and ($2::text[] is null or journey.mcp_server_id = any($2))
    and ($3::bigint is null or journey.began_at >= $3)
    and ($4::bigint is null or journey.began_at < $4)
    and ($5::bigint = 1 or hashtextextended(journey.mcp_server_user_id, 0) % $5 = 0)
) as seen;

-- name: steps_since
-- Since when each step is there: since it was made, or, where it was imported later, first done. Null: not known. Whether
-- it was made then: what was imported later may have been there for long before it was done.
select
  step.id,
  case when step.created_at is not null then least(step.created_at, done.first_at) end as since,
  step.created_at <= coalesce(done.first_at, step.created_at) as is_made_then
from walkthrough_steps as step
cross join lateral (
  select min(completed_at) as first_at
  from walkthrough_step_completions
  where walkthrough_id = step.walkthrough_id and step_id = step.id
) as done
where step.walkthrough_id = $1;

-- name: journeys_counted
-- How many journeys a cohort has, from the counts.
select coalesce(sum(journeys), 0)::bigint from sankey_endings
where
  walkthrough_id = $1
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::date is null or began_on >= $3)
  and ($4::date is null or began_on <= $4);

-- name: timed_journeys
-- Journeys with their times, of every $5th person by the hash of their id.
select
  step_ids,
  completed_at,
  started_at,
  skipped,
  shown_at,
  last_active_at >= $6::bigint as is_recent,
  case when (shown_step_id = any($8::text[])) is not true then width_bucket(last_active_at, $7::bigint[]) + 1 end as version
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id is not null
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::bigint is null or began_at >= $3)
  and ($4::bigint is null or began_at < $4)
  and ($5::bigint = 1 or hashtextextended(mcp_server_user_id, 0) % $5 = 0);

-- name: time_to_finish
-- From the beginning of a journey until it was finished.
select
  count(finished.ms) as journeys,
  avg(finished.ms)::float8 as mean_ms,
  percentile_cont(array[0.5, 0.9]) within group (order by finished.ms) as percentiles
from (
  select finished_at($6, $7, $8, $9) - began_at as ms
  from sankey_journeys
  where
    walkthrough_id = $1
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::bigint is null or began_at >= $3)
    and ($4::bigint is null or began_at < $4)
    and ($5::bigint = 1 or hashtextextended(mcp_server_user_id, 0) % $5 = 0)
) as finished
where ms is not null;

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
    union all
    select null, mcp_server_session_id, skipped_at
    from walkthrough_step_skips
    where mcp_server_user_id = journey.mcp_server_user_id and walkthrough_id = journey.walkthrough_id
  ) as events
) as active
where
  journey.walkthrough_id = $1
  and journey.mcp_server_id is not null
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or journey.began_at >= $3)
  and ($4::bigint is null or journey.began_at < $4)
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
    sum(journeys) filter (
      where (steps_done + steps_skipped = $6::integer and $6 > 0) or step_id = any($7::text[])
    ) as finished,
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
    and ((steps_done + steps_skipped = $6 and $6 > 0) or step_id = any($7))
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::date is null or last_active_on >= $3)
    and ($4::date is null or last_active_on <= $4)
  group by 1
) as began
group by began.since
order by began.since;

-- name: trends_by_rule
-- The same from the journeys: where the finish rule takes more than the cells have, or versions are asked about.
with journeys as materialized (
  select
    mcp_server_id,
    began_at,
    finished_at($6, $7, $8, $9) as finished_at
  from sankey_journeys
  where walkthrough_id = $1 and mcp_server_id is not null and ($2::text[] is null or mcp_server_id = any($2))
)
select
  began.since,
  sum(began.started)::bigint as started,
  sum(began.finished)::bigint as finished,
  sum(began.finished_then)::bigint as finished_then
from (
  select
    date_trunc($5, (date '1970-01-01' + (began_at / 86400000)::integer)::timestamp)::date as since,
    count(*) as started,
    count(finished_at) as finished,
    0 as finished_then
  from journeys
  where ($3::date is null or began_at >= day_ms($3)) and ($4::date is null or began_at < day_ms($4 + 1))
  group by 1
  union all
  select
    date_trunc($5, (date '1970-01-01' + (finished_at / 86400000)::integer)::timestamp)::date,
    0,
    0,
    count(*)
  from journeys
  where
    finished_at is not null
    and ($3::date is null or finished_at >= day_ms($3))
    and ($4::date is null or finished_at < day_ms($4 + 1))
  group by 1
) as began
group by began.since
order by began.since;

-- name: active_people
-- People with a start, a step, or nothing but a showing in a day, or in a week from its Monday. By numbers of days: dividing is faster
-- than truncating timestamps. The epoch was a Thursday.
select
  date '1970-01-01' + active.day::integer as since,
  count(*) as people
from sankey_journeys as journey
cross join lateral (
  select distinct case when $5 = 'week' then (at / 86400000 + 3) / 7 * 7 - 3 else at / 86400000 end as day
  from unnest(journey.completed_at || journey.started_at || journey.first_shown_at) as at
  where
    at is not null
    and ($3::bigint is null or at >= $3)
    and ($4::bigint is null or at < $4)
) as active
where
  journey.walkthrough_id = $1
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or journey.last_active_at >= $3)
group by active.day;

-- name: journeys
-- Journeys that may be behind a figure, the last active first. What a view changes is decided afterwards.
select
  mcp_server_user_id,
  mcp_server_id,
  began_at,
  step_ids,
  skipped,
  shown_step_id,
  last_active_at
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id = any($2::text[])
  and ($3::bigint is null or began_at >= $3)
  and ($4::bigint is null or began_at < $4)
  and ($5::bigint is null or last_active_at >= $5)
  and ($6::bigint is null or last_active_at < $6)
  and (cardinality($7::text[]) = 0 or step_ids @> $7)
  and (cardinality($8::text[]) = 0 or step_ids && $8)
  and (
    $9::bigint is null
    or (last_active_at, mcp_server_user_id collate "C") < ($9, $10)
  )
order by last_active_at desc, mcp_server_user_id collate "C" desc;

-- name: journey
-- One journey as it was counted.
select
  mcp_server_user_id,
  mcp_server_id,
  began_at,
  step_ids,
  skipped,
  shown_step_id,
  last_active_at
from sankey_journeys
where mcp_server_user_id = $1 and walkthrough_id = $2 and mcp_server_id = any($3::text[]);

-- name: journey_events
-- What a person did in a walkthrough on servers of the organization, and what was shown to them, in order.
select
  events.kind,
  events.walkthrough_id,
  events.step_id,
  events.mcp_server_user_id,
  events.mcp_server_id,
  events.mcp_server_session_id,
  events.at,
  events.reason
from (
  select
    'completed' as kind,
    walkthrough_id,
    step_id,
    mcp_server_user_id,
    mcp_server_id,
    mcp_server_session_id,
    completed_at as at,
    id,
    null as reason
  from walkthrough_step_completions
  where mcp_server_user_id = $1 and walkthrough_id = $2
  union all
  select
    'started', walkthrough_id, null, mcp_server_user_id, mcp_server_id, mcp_server_session_id, started_at, id, null
  from walkthrough_starts
  where mcp_server_user_id = $1 and walkthrough_id = $2
  union all
  select
    'skipped',
    walkthrough_id,
    step_id,
    mcp_server_user_id,
    mcp_server_id,
    mcp_server_session_id,
    skipped_at,
    id,
    reason
  from walkthrough_step_skips
  where mcp_server_user_id = $1 and walkthrough_id = $2
  union all
  select
    'shown',
    walkthrough_id,
    step_id,
    mcp_server_user_id,
    mcp_server_id,
    mcp_server_session_id,
    first_shown_at,
    first_id,
    null
  from walkthrough_step_showings
  where mcp_server_user_id = $1 and walkthrough_id = $2
) as events
where events.mcp_server_id in (select id from mcp_servers where organization_id = $3)
order by events.at, array_position(array['started', 'completed', 'skipped', 'shown'], events.kind), events.id;

-- name: session
-- A session on a server of the organization.
select
  mcp_server_session.mcp_server_session_id as id,
  left(mcp_server_session.title, 500) as title,
  mcp_server_session.mcp_server_user_id,
  mcp_server_session.connection_timestamp,
  mcp_servers.id as mcp_server_id,
  left(mcp_servers.name, 500) as server,
  client.name as client,
  client.version as client_version
from mcp_server_session
inner join mcp_servers on mcp_server_session.mcp_server_slug = mcp_servers.slug
left join mcp_session_clients as client on mcp_server_session.mcp_server_session_id = client.mcp_server_session_id
where mcp_server_session.mcp_server_session_id = $1 and mcp_servers.organization_id = $2;

-- name: session_events
-- What happened in a session, in walkthroughs of the organization, in order: the first $3 events.
select
  events.kind,
  events.walkthrough_id,
  events.step_id,
  events.mcp_server_user_id,
  events.mcp_server_id,
  events.mcp_server_session_id,
  events.at,
  events.reason,
  left(walkthroughs.title, 500) as walkthrough,
  left(walkthrough_steps.title, 500) as step
from (
  select
    'completed' as kind,
    walkthrough_id,
    step_id,
    mcp_server_user_id,
    mcp_server_id,
    mcp_server_session_id,
    completed_at as at,
    id,
    null as reason
  from walkthrough_step_completions
  where mcp_server_session_id = $1
  union all
  select
    'started', walkthrough_id, null, mcp_server_user_id, mcp_server_id, mcp_server_session_id, started_at, id, null
  from walkthrough_starts
  where mcp_server_session_id = $1
  union all
  select
    'skipped',
    walkthrough_id,
    step_id,
    mcp_server_user_id,
    mcp_server_id,
    mcp_server_session_id,
    skipped_at,
    id,
    reason
  from walkthrough_step_skips
  where mcp_server_session_id = $1
  union all
  select
    'shown',
    walkthrough_id,
    step_id,
    mcp_server_user_id,
    mcp_server_id,
    mcp_server_session_id,
    first_shown_at,
    first_id,
    null
  from walkthrough_step_showings
  where mcp_server_session_id = $1
) as events
inner join walkthroughs on events.walkthrough_id = walkthroughs.id and walkthroughs.organization_id = $2
left join walkthrough_steps on events.step_id = walkthrough_steps.id
order by events.at, array_position(array['started', 'completed', 'skipped', 'shown'], events.kind), events.id
limit $3;

-- name: organization
select
  id,
  left(name, 500) as name
from organization
where id = $1;

-- name: titles
-- The titles by which agents name walkthroughs.
select
  id,
  title
from walkthroughs
where organization_id = $1
order by title, id;

-- name: servers
select
  id,
  left(name, 500) as name,
  slug
from mcp_servers
where organization_id = $1
order by mcp_servers.name, id;

-- name: overview
-- Each walkthrough of an organization with its journeys by server; a walkthrough without any has one row, and so has one
-- whose finish rule takes more than the cells have: `overview_by_rule` reads it.
select
  walkthroughs.id,
  left(walkthroughs.title, 500) as title,
  walkthroughs.type::text,
  walkthroughs.status::text,
  coalesce(sankey_freshness.changes, 0) as changes,
  nullif(sankey_freshness.newest_at, 0) as newest_at,
  steps.number as steps,
  rule.optional,
  rule.goal_titles,
  rule.end_titles,
  rule.needs_journeys,
  counted.mcp_server_id,
  coalesce(counted.started, 0)::bigint as started,
  coalesce(counted.finished, 0)::bigint as finished,
  coalesce(counted.in_progress, 0)::bigint as in_progress,
  coalesce(counted.steps_done, 0)::bigint as steps_done,
  counted.last_active_on
from walkthroughs
left join sankey_freshness on walkthroughs.id = sankey_freshness.walkthrough_id
left join walkthrough_finish_rules as given on walkthroughs.id = given.walkthrough_id
cross join lateral (
  select
    count(*)::integer as number,
    coalesce(array_agg(step.id) filter (where not step.is_optional), array_agg(step.id), '{}') as required,
    coalesce(array_agg(step.id) filter (where step.id = any(given.goal_step_ids)), '{}') as goal,
    coalesce(
      array_agg(left(step.title, 500) order by step.place) filter (where step.id = any(given.goal_step_ids)), '{}'
    ) as goal_titles,
    coalesce(array_agg(left(step.title, 500) order by step.place) filter (where step.id = any(given.end_step_ids)), '{}') as end_titles
  from (
    select
      id,
      title,
      step_is_optional(metadata, title) or coalesce(id = any(given.optional_step_ids), false) as is_optional,
      row_number() over (order by display_order, created_at nulls first, id collate "C") as place
    from walkthrough_steps
    where walkthrough_id = walkthroughs.id
  ) as step
) as steps
cross join lateral (
  select
    steps.number - cardinality(steps.required) as optional,
    cardinality(steps.goal) > 0
    or cardinality(steps.required) < steps.number
    or exists (
      select from walkthrough_versions as edit
      where edit.walkthrough_id = walkthroughs.id and not edit.step_ids @> steps.required
    ) as needs_journeys,
    coalesce(given.end_step_ids, '{}') as ends,
    steps.goal_titles,
    steps.end_titles
) as rule
left join lateral (
  select
    mcp_server_id,
    sum(journeys) as started,
    sum(journeys) filter (where is_finished) as finished,
    sum(journeys) filter (where not is_finished and is_recent) as in_progress,
    sum(least(steps_done, steps.number) * journeys) as steps_done,
    max(last_active_on) filter (where journeys > 0) as last_active_on
  from (
    select
      mcp_server_id,
      journeys,
      steps_done,
      last_active_on,
      last_active_on > $5::date as is_recent,
      (steps_done + steps_skipped = steps.number and steps.number > 0)
      or coalesce(step_id = any(rule.ends), false) as is_finished
    from sankey_endings
    where
      walkthrough_id = walkthroughs.id
      and not rule.needs_journeys
      and ($2::text[] is null or mcp_server_id = any($2))
      and ($3::date is null or began_on >= $3)
      and ($4::date is null or began_on <= $4)
  ) as ending
  group by mcp_server_id
  having sum(journeys) > 0
) as counted on true
where walkthroughs.organization_id = $1
order by walkthroughs.title, walkthroughs.id, counted.mcp_server_id;

-- name: overview_by_rule
-- The journeys of a walkthrough by server, from the journeys.
select
  mcp_server_id,
  count(*) as started,
  count(*) filter (where is_finished) as finished,
  count(*) filter (where not is_finished and last_active_at >= day_ms($5::date + 1)) as in_progress,
  sum(cardinality(step_ids) - steps_skipped)::bigint as steps_done,
  date '1970-01-01' + (max(last_active_at) / 86400000)::integer as last_active_on
from (
  select
    *,
    is_finished($6, $7, $8, $9) as is_finished
  from sankey_journeys
  where
    walkthrough_id = $1
    and mcp_server_id is not null
    and ($2::text[] is null or mcp_server_id = any($2))
    and ($3::date is null or began_at >= day_ms($3))
    and ($4::date is null or began_at < day_ms($4 + 1))
) as journey
group by mcp_server_id
order by mcp_server_id;

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

-- name: refused_in_all
-- Behind `alone` of the query before: how many classes and sources it chooses the last ones of; at most 10,200.
select
  (
    select count(*) from (
      select distinct
        source,
        rejection
      from refused_events
      where
        topic = $1
        and last_at >= $3
        and ($4::text[] is null or source = any($4))
        and (organization_id = $2 or (organization_id = '' and source in (select source from alone)))
      limit 10200
    ) as classes
  ) as classes,
  (
    select count(*) from (
      select from alone
      inner join event_sources as sent on alone.source = sent.source
      where
        sent.topic = $1
        and (
          sent.last_at >= $3
          or exists (
            select from refused_events as refused
            where
              refused.topic = $1
              and refused.source = sent.source
              and refused.last_at >= $3
              and refused.organization_id in ('', $2)
          )
        )
      limit 10200
    ) as sources
  ) as sources;

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

-- name: versions
-- The versions of a walkthrough in order.
select
  id,
  made_at,
  step_ids,
  array(select left(title, 500) from unnest(titles) with ordinality as step (title, place) order by place) as titles,
  contents
from walkthrough_versions
where walkthrough_id = $1 and step_ids is not null
order by made_at, id;

-- name: began_with_version
-- How many journeys began with each version: $5 is when each but the first began.
select
  width_bucket(began_at, $5::bigint[]) + 1 as number,
  count(*) as journeys
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id is not null
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::bigint is null or began_at >= $3)
  and ($4::bigint is null or began_at < $4)
group by 1;

-- name: number_of_journeys
-- As journeys_counted, one by one: of versions, which begin at any time of a day.
select count(*) as journeys
from sankey_journeys
where
  walkthrough_id = $1
  and mcp_server_id is not null
  and ($2::text[] is null or mcp_server_id = any($2))
  and ($3::bigint is null or began_at >= $3)
  and ($4::bigint is null or began_at < $4);

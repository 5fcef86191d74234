-- name: began_with
-- The journeys of a walkthrough with what each began with: the agent and the metadata of its start or, without one, of its
-- first event. A showing has no metadata, so there it is not known whether there would be some: `is_told` says so. A client
-- counts where its session is on a server of the organization. Starts, sessions and clients are joined by hash; what is
-- needed for journeys without a start alone is read by its keys.
select
  begun.*,
  client.name as agent,
  client.version as agent_version
from (
  select
    journey.*,
    start.mcp_server_session_id,
    start.metadata,
    true as is_told
  from sankey_journeys as journey
  left join walkthrough_starts as start on journey.mcp_server_user_id = start.mcp_server_user_id
    and start.walkthrough_id = $1
  where journey.walkthrough_id = $1 and journey.started_at is not null
  union all
  select
    journey.*,
    earliest.mcp_server_session_id,
    earliest.metadata,
    earliest.is_told
  from sankey_journeys as journey
  left join lateral (
    (
      select
        done.mcp_server_session_id,
        done.metadata,
        true as is_told,
        done.completed_at as at
      from walkthrough_step_completions as done
      where
        journey.skipped[1] is not true
        and done.mcp_server_user_id = journey.mcp_server_user_id
        and done.step_id = journey.step_ids[1]
        and done.walkthrough_id = $1
    )
    union all
    (
      select
        skip.mcp_server_session_id,
        skip.metadata,
        true,
        skip.skipped_at
      from walkthrough_step_skips as skip
      where
        journey.skipped[1]
        and skip.mcp_server_user_id = journey.mcp_server_user_id
        and skip.step_id = journey.step_ids[1]
        and skip.walkthrough_id = $1
    )
    union all
    (
      select
        showing.mcp_server_session_id,
        null,
        false,
        showing.first_shown_at
      from walkthrough_step_showings as showing
      where showing.mcp_server_user_id = journey.mcp_server_user_id and showing.walkthrough_id = $1
      order by showing.first_shown_at, showing.first_id collate "C"
      limit 1
    )
    -- What is done in the millisecond in which it is shown is done after that.
    order by at, is_told
    limit 1
  ) as earliest on true
  where journey.walkthrough_id = $1 and journey.started_at is null
) as begun
left join (
  mcp_session_clients as client
  inner join mcp_server_session as session on client.mcp_server_session_id = session.mcp_server_session_id
    and session.mcp_server_slug = any(
      array(
        select server.slug from mcp_servers as server
        inner join walkthroughs on server.organization_id = walkthroughs.organization_id
        where walkthroughs.id = $1
      )
    )
) on begun.mcp_server_session_id = client.mcp_server_session_id;

-- name: metadata_keys
-- The keys of metadata that journeys began with, over every $5th person: how many journeys have each, and how many
-- values it has. At most 1,000, those that most have.
select
  left(told.key, 101) as key,
  count(*) as journeys,
  count(distinct told.value) as differing
from sankey_journeys as journey
cross join lateral jsonb_each_text(
  case when jsonb_typeof(journey.metadata) = 'object' then journey.metadata else '{}' end
) as told (key, value)
where
  journey.walkthrough_id = $1
  and journey.mcp_server_id is not null
  and ($2::text[] is null or journey.mcp_server_id = any($2))
  and ($3::bigint is null or journey.began_at >= $3)
  and ($4::bigint is null or journey.began_at < $4)
  and ($5::bigint = 1 or hashtextextended(journey.mcp_server_user_id, 0) % $5 = 0)
  and told.value is not null
group by left(told.key, 101)
order by count(*) desc, left(told.key, 101) collate "C"
limit 1000;

-- name: values_of
-- How many journeys have each value of what $5 names: `agent`, `agent_version`, `server`, or `metadata` by its key $6. The $7
-- most frequent values of at most $8 characters are told; `rest` has the others, and `unknown` those of which nobody told.
with counted as (
  select
    told.value,
    count(*) as journeys
  from (
    select
      case $5::text
        when 'agent' then coalesce(journey.agent, '')
        when 'agent_version' then coalesce(journey.agent_version, '')
        when 'server' then journey.mcp_server_id
        when 'metadata' then case when journey.is_told then coalesce(journey.metadata ->> $6::text, '') end
      end as value
    from sankey_journeys as journey
    where
      journey.walkthrough_id = $1
      and journey.mcp_server_id is not null
      and ($2::text[] is null or journey.mcp_server_id = any($2))
      and ($3::bigint is null or journey.began_at >= $3)
      and ($4::bigint is null or journey.began_at < $4)
  ) as told
  group by told.value
),
placed as (
  select
    counted.value,
    counted.journeys,
    case
      when counted.value is null then 'unknown'
      when
        length(counted.value) <= $8::integer
        and row_number() over (
          order by
            counted.value is null, length(counted.value) > $8, counted.journeys desc, counted.value collate "C"
        ) <= $7::bigint
        then 'value'
      else 'rest'
    end as kind
  from counted
)
select
  placed.kind,
  case when placed.kind = 'value' then placed.value end as value,
  sum(placed.journeys)::bigint as journeys,
  count(*) as differing
from placed
group by 1, 2
order by sum(placed.journeys) desc, 2;

-- name: by_segment
-- Journeys as they stood $5 milliseconds after their beginning, of those that began at $6 or before, by what they began
-- with and by the steps of $14 that were done. Of each value how many journeys there are, and how many of them were
-- finished; or, with a step $12, how many came to it and how many of them did not pass it. $13 are the steps that somebody
-- has to have passed who stands at it, for each version. By steps that were done only those are divided who had passed all
-- of these: who jumps over a step cannot stop at one behind it, so all who stop would have done it. $15 are keys of metadata, $16 the kinds that are asked for. The
-- $17 most frequent values of each are told, and the others as one: too long ones too. `all` has everybody.
with before_it as materialized (
  select
    given.version,
    array(select jsonb_array_elements_text(given.steps)) as steps
  from jsonb_array_elements($13::jsonb) with ordinality as given (steps, version)
),
stood as (
  select
    journey.agent,
    journey.agent_version,
    journey.metadata,
    journey.is_told,
    journey.step_ids[1:(within.steps)] as step_ids,
    case when true = any(journey.skipped[1:(within.steps)]) then journey.skipped[1:(within.steps)] end as skipped,
    coalesce(journey.completed_at[(within.steps)], journey.began_at) as last_active_at,
    -- What was shown by then is not known.
    null::text as shown_step_id
  from sankey_journeys as journey
  cross join lateral (
    select
      case
        when cardinality(journey.completed_at) > 0 then width_bucket(journey.began_at + $5::bigint - 1, journey.completed_at)
        else 0
      end as steps
  ) as within
  where
    journey.walkthrough_id = $1
    and journey.mcp_server_id is not null
    and ($2::text[] is null or journey.mcp_server_id = any($2))
    and ($3::bigint is null or journey.began_at >= $3)
    and ($4::bigint is null or journey.began_at < $4)
    and journey.began_at <= $6::bigint
  -- A fence: what is computed is computed once, and not in each place that names it.
  offset 0
),
judged as (
  select
    *,
    is_finished($8, $9, $10, $11) as is_finished,
    array_position(step_ids, $12::text) as place
  from stood
  offset 0
),
counted as materialized (
  select
    judged.agent,
    judged.agent_version,
    judged.metadata,
    judged.is_told,
    $12 is null or judged.step_ids[1:(coalesce(judged.place, 1 + cardinality(judged.step_ids)) - 1)] @> before_it.steps as is_in_order,
    case when $12 is null then judged.is_finished else judged.place is null end as is_one,
    case
      when cardinality($14::text[]) = 0 then '{}'
      when judged.skipped is null then judged.step_ids[1:(coalesce(judged.place, 1 + cardinality(judged.step_ids)) - 1)]
      else array(
        select passed.id from unnest(judged.step_ids, judged.skipped) with ordinality as passed (id, is_skip, number)
        where not passed.is_skip and passed.number < coalesce(judged.place, 1 + cardinality(judged.step_ids))
      )
    end as done
  from judged
  left join before_it on before_it.version = width_bucket(judged.last_active_at, $7::bigint[]) + 1
  where $12 is null or judged.place is not null or (not judged.is_finished and judged.step_ids @> before_it.steps)
),
valued as (
  select
    'all' as kind,
    null as key,
    '' as value,
    null as agent,
    count(*) as journeys,
    count(*) filter (where is_one) as those
  from counted
  union all
  select
    'agent',
    null,
    coalesce(agent, ''),
    null,
    count(*),
    count(*) filter (where is_one)
  from counted
  where 'agent' = any($16::text[])
  group by agent
  union all
  select
    'agent_version',
    null,
    coalesce(agent_version, ''),
    agent,
    count(*),
    count(*) filter (where is_one)
  from counted
  where 'agent_version' = any($16) and agent is not null
  group by agent, agent_version
  union all
  select
    'metadata',
    told.key,
    coalesce(counted.metadata ->> told.key, ''),
    null,
    count(*),
    count(*) filter (where counted.is_one)
  from counted
  cross join unnest($15::text[]) as told (key)
  where counted.is_told
  group by told.key, coalesce(counted.metadata ->> told.key, '')
  union all
  -- All that are divided by steps.
  select
    'did',
    null,
    '',
    null,
    count(*),
    count(*) filter (where is_one)
  from counted
  where cardinality($14) > 0 and is_in_order
  union all
  select
    'did',
    null,
    step.id,
    null,
    count(*),
    count(*) filter (where counted.is_one)
  from counted
  cross join unnest(counted.done) as step (id)
  where step.id = any($14) and counted.is_in_order
  group by step.id
),
ranked as (
  select
    *,
    sum(journeys) over (partition by kind, key, agent) as of_all,
    sum(those) over (partition by kind, key, agent) as those_of_all,
    length(value) + coalesce(length(key), length(agent), 0) > 150 as is_long,
    row_number() over (
      partition by kind, key
      order by length(value) + coalesce(length(key), length(agent), 0) > 150, journeys desc, value collate "C", agent collate "C"
    ) as number
  from valued
)
select
  kind,
  key,
  case when not is_long and number <= $17::integer then value end as value,
  agent,
  count(*) as differing,
  sum(journeys)::bigint as journeys,
  sum(those)::bigint as those,
  min(of_all)::bigint as of_all,
  min(those_of_all)::bigint as those_of_all
from (
  select
    kind,
    key,
    value,
    case when not is_long and number <= $17 then agent end as agent,
    journeys,
    those,
    of_all,
    those_of_all,
    is_long,
    number
  from ranked
) as told
group by 1, 2, 3, 4
order by 1, 2, journeys desc, 3, 4;

-- name: find_server
select
  id,
  organization_id,
  slug,
  name,
  coalesce(auth_type::text, 'none') as auth_type,
  oauth_issuer_url,
  coalesce(walkthrough_tools_enabled, 'true') = 'true' as tools_enabled
from mcp_servers
where slug = $1;

-- name: lock_by_tracking_id
-- The person, locked until the transaction ends, so that the calls of one person take turns. Who cannot have the
-- lock tries again later, and holds no connection meanwhile; `begun_at` and `asked_at` are when the transaction, and
-- this, came. The lock lets foreign keys refer to the row. With a server the person is somebody who was there: of others
-- nothing is found, nor whether they are locked.
select
  id,
  distinct_id as tracking_id,
  upstream_sub is not null as signs_in,
  (extract(epoch from transaction_timestamp()) * 1000)::bigint as begun_at,
  (extract(epoch from statement_timestamp()) * 1000)::bigint as asked_at
from mcp_server_user
where distinct_id = $1
  and (
    $2::text is null
    or exists (
      select from mcp_live_sessions as live
      where live.mcp_server_user_id = mcp_server_user.id and live.mcp_server_id = $2
    )
  )
for no key update nowait;

-- name: lock_by_identity
select
  person.id,
  null as tracking_id,
  false as signs_in,
  (extract(epoch from transaction_timestamp()) * 1000)::bigint as begun_at,
  (extract(epoch from statement_timestamp()) * 1000)::bigint as asked_at
from mcp_user_identities as identity
inner join mcp_server_user as person on identity.mcp_server_user_id = person.id
where identity.issuer = $1 and identity.subject = $2
for no key update of person nowait;

-- name: lock_by_session
select
  person.id,
  person.distinct_id as tracking_id,
  false as signs_in,
  (extract(epoch from transaction_timestamp()) * 1000)::bigint as begun_at,
  (extract(epoch from statement_timestamp()) * 1000)::bigint as asked_at
from mcp_server_session as session
inner join mcp_server_user as person on session.mcp_server_user_id = person.id
where session.mcp_server_session_id = $1 and session.mcp_server_slug = $2
for no key update of person nowait;

-- name: create_by_tracking_id
insert into mcp_server_user (id, distinct_id, first_seen_at)
values ($1, $2, (extract(epoch from clock_timestamp()) * 1000)::bigint)
on conflict do nothing;

-- name: create_by_identity
-- The identity decides between two first calls at once; whoever lost makes no user.
with mine as (
  insert into mcp_user_identities (issuer, subject, mcp_server_user_id)
  values ($2, $3, $1)
  on conflict do nothing
  returning mcp_server_user_id
)
insert into mcp_server_user (id, upstream_sub, email, first_seen_at)
select
  mcp_server_user_id,
  $3,
  $4,
  (extract(epoch from clock_timestamp()) * 1000)::bigint
from mine;

-- name: create_by_session
-- The session decides between two first calls at once; whoever lost makes no user.
with mine as (
  insert into mcp_server_session as kept (
    mcp_server_session_id, mcp_server_slug, connection_date, connection_timestamp, mcp_server_user_id
  )
  values (
    $2, $3, (clock_timestamp() at time zone 'utc')::date,
    (extract(epoch from clock_timestamp()) * 1000)::bigint, $1
  )
  on conflict (mcp_server_session_id) do update
  set mcp_server_user_id = excluded.mcp_server_user_id
  where kept.mcp_server_user_id is null and kept.mcp_server_slug = excluded.mcp_server_slug
  returning mcp_server_user_id
)
insert into mcp_server_user (id, distinct_id, first_seen_at)
select
  mcp_server_user_id,
  $4,
  (extract(epoch from clock_timestamp()) * 1000)::bigint
from mine;

-- name: look
-- All that a decision needs, seen after the lock: the time, the session that goes on, whether the transport's may
-- be the person's, when what is current was shown, at whichever server, and what this server offers with the person's progress. Ids and titles only: the content of the one step comes with the write.
select
  (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms,
  (
    select live.mcp_server_session_id
    from mcp_live_sessions as live
    where live.mcp_server_user_id = $2 and live.mcp_server_id = $1
      and live.last_activity_at > (extract(epoch from clock_timestamp()) * 1000)::bigint - $3::bigint
  ) as live_session_id,
  not exists (
    select from mcp_server_session as kept
    inner join mcp_servers as server on server.id = $1
    where kept.mcp_server_session_id = $4
      and (kept.mcp_server_user_id <> $2 or kept.mcp_server_slug <> server.slug)
  ) as is_own_session,
  (
    select max(live.shown_at)
    from mcp_live_sessions as live
    where live.mcp_server_user_id = $2
  ) as shown_at,
  coalesce((
    select
      jsonb_agg(
        jsonb_build_object(
          'walkthrough_id', walkthroughs.id,
          'title', walkthroughs.title,
          'description', walkthroughs.description,
          'type', walkthroughs.type,
          'minutes', walkthroughs.estimated_duration_minutes,
          'tags', walkthroughs.tags,
          'steps', steps.steps,
          'progress', progress.progress,
          'recorded', recorded.recorded
        )
        order by offered.display_order, walkthroughs.title, walkthroughs.id
      )
    from mcp_server_walkthroughs as offered
    inner join mcp_servers as server on offered.mcp_server_id = server.id
    -- What another organization has is not this server's to offer: no completion of it would count.
    inner join walkthroughs on offered.walkthrough_id = walkthroughs.id
      and server.organization_id = walkthroughs.organization_id
    cross join lateral (
      select jsonb_agg(jsonb_build_array(id, title, display_order) order by display_order, created_at nulls first, id collate "C") as steps
      from walkthrough_steps
      where walkthrough_steps.walkthrough_id = walkthroughs.id
    ) as steps
    left join lateral (
      select
        jsonb_build_object(
          'id', id,
          'completed', completed_steps,
          'current_step_id', current_step_id,
          'started_at', started_at,
          'completed_at', completed_at,
          'last_activity_at', last_activity_at
        ) as progress
      from walkthrough_progress
      where walkthrough_progress.mcp_server_user_id = $2
        and walkthrough_progress.walkthrough_id = walkthroughs.id
      -- An existing platform may hold several; the last one used is the one.
      order by last_activity_at desc nulls last, id
      limit 1
    ) as progress on true
    -- What is recorded since the progress was written: a failover may have lost progress whose events were sent.
    cross join lateral (
      select jsonb_agg(done.step_id order by done.completed_at, done.id collate "C") as recorded
      from walkthrough_step_completions as done
      where done.mcp_server_user_id = $2
        and done.walkthrough_id = walkthroughs.id
        and done.completed_at > coalesce((progress.progress ->> 'last_activity_at')::bigint, -1)
    ) as recorded
    where offered.mcp_server_id = $1
      and offered.is_enabled = 'true'
      and walkthroughs.status = 'published'
      and steps.steps is not null
  ), '[]') as offers;

-- name: save
-- Progress, session and events together, and the content of the step to show. Server, walkthrough and step are
-- locked first, from the outside in; the call tries again later where one of them is being deleted, or locked.
-- Where one of them is gone nothing is written, and `places` or `content` says so.
with
place as materialized (
  select 1 as there
  from mcp_servers
  cross join walkthroughs
  where mcp_servers.id = $3 and walkthroughs.id = $8
  for key share of mcp_servers, walkthroughs nowait
),
shown as materialized (
  select content_fields from walkthrough_steps
  where id = $10 and exists (select from place)
  for key share nowait
),
session as (
  insert into mcp_server_session (
    mcp_server_session_id, mcp_server_slug, connection_date, connection_timestamp, mcp_server_user_id
  )
  select
    $1,
    $2,
    (to_timestamp($5::bigint / 1000.0) at time zone 'utc')::date,
    $5::bigint,
    $4
  from place
  left join shown on true
  on conflict (mcp_server_session_id) do nothing
),
live as (
  insert into mcp_live_sessions as kept (
    mcp_server_user_id, mcp_server_id, mcp_server_session_id, last_activity_at, shown_at
  )
  select
    $4,
    $3,
    $1,
    case when $6::boolean then $5::bigint else 0 end,
    $17::bigint
  from place
  left join shown on true
  on conflict (mcp_server_user_id, mcp_server_id) do update
  set
    mcp_server_session_id = case when $6 then excluded.mcp_server_session_id else kept.mcp_server_session_id end,
    last_activity_at = greatest(kept.last_activity_at, excluded.last_activity_at),
    shown_at = excluded.shown_at
),
progress as (
  insert into walkthrough_progress (
    id, mcp_server_user_id, walkthrough_id, completed_steps, current_step_id, started_at, completed_at,
    last_activity_at
  )
  select
    $7,
    $4,
    $8,
    $9::jsonb,
    $10,
    $11::bigint,
    $12::bigint,
    $5::bigint
  from place
  left join shown on true
  on conflict (id) do update
  set
    completed_steps = excluded.completed_steps,
    current_step_id = excluded.current_step_id,
    started_at = excluded.started_at,
    completed_at = excluded.completed_at,
    last_activity_at = excluded.last_activity_at
),
events as (
  insert into outbox (key, value, headers, type)
  select
    given.key,
    given.value,
    given.headers,
    given.type
  from place
  cross join unnest($13::text[], $14::text[], $15::jsonb[], $16::text[]) with ordinality as given (
    key, value, headers, type, number
  )
  order by given.number
)
select
  (select count(*) from place) as places,
  (select count(*) from shown) as steps,
  (select content_fields from shown) as content;

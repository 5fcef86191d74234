-- name: find_server
-- The server alone, where more cannot be looked at.
select
  id,
  organization_id,
  slug,
  name,
  product_platform_or_tool as product,
  coalesce(auth_type::text, 'none') as auth_type,
  oauth_issuer_url,
  coalesce(walkthrough_tools_enabled, 'true') = 'true' as tools_enabled
from mcp_servers
where slug = $1;

-- name: look
-- Server, person, and where they are, in one snapshot and without a lock: `save` sees under its lock whether that is
-- how it still is. No row where there is no such server. A tracking id is that of the person whom the server's
-- organization registered under it; with $3 the person is somebody who was there. `version` says
-- which rows make up what the server offers: each that changes has another xmin; after a failover a transaction may
-- have the number of one that was lost, so the start of PostgreSQL is part of it. `sessions` says the same of rows of
-- which each call of the person writes one, at whichever server.
with
server as materialized (
  select
    id,
    organization_id,
    slug,
    name,
    product_platform_or_tool as product,
    coalesce(auth_type::text, 'none') as auth_type,
    oauth_issuer_url,
    coalesce(walkthrough_tools_enabled, 'true') = 'true' as tools_enabled,
    xmin as version
  from mcp_servers
  where slug = $1
),
registered as materialized (
  select mcp_server_user_id as id
  from registered_people
  where organization_id = (select organization_id from server) and distinct_id = $2 and not $3::boolean
),
person as materialized (
  select
    person.id,
    $2 as tracking_id,
    person.upstream_sub is not null as signs_in
  from registered
  inner join mcp_server_user as person on registered.id = person.id
  union all
  select
    id,
    distinct_id as tracking_id,
    upstream_sub is not null as signs_in
  from mcp_server_user
  where distinct_id = $2
    and not exists (select from registered)
    and (
      not $3::boolean
      or exists (
        select from mcp_live_sessions as live
        where live.mcp_server_user_id = mcp_server_user.id and live.mcp_server_id = (select id from server)
      )
    )
  union all
  select
    person.id,
    null as tracking_id,
    false as signs_in
  from mcp_user_identities as identity
  inner join mcp_server_user as person on identity.mcp_server_user_id = person.id
  where identity.issuer = $4 and identity.subject = $5
  union all
  select
    person.id,
    person.distinct_id as tracking_id,
    false as signs_in
  from mcp_server_session as session
  inner join mcp_server_user as person on session.mcp_server_user_id = person.id
  where session.mcp_server_session_id = $6 and session.mcp_server_slug = $1
    and $2 is null and $4 is null
)
select
  (extract(epoch from transaction_timestamp()) * 1000)::bigint as begun_at,
  (extract(epoch from clock_timestamp()) * 1000)::bigint as read_at,
  server.id,
  server.organization_id,
  server.slug,
  server.name,
  server.product,
  server.auth_type,
  server.oauth_issuer_url,
  server.tools_enabled,
  concat_ws(' ', pg_postmaster_start_time(), server.version, (
    select string_agg(concat_ws(',', offered.xmin, walkthroughs.xmin, steps.versions), ' ')
    from mcp_server_walkthroughs as offered
    inner join walkthroughs on offered.walkthrough_id = walkthroughs.id
    cross join lateral (
      select string_agg(xmin::text, ',') as versions
      from walkthrough_steps
      where walkthrough_steps.walkthrough_id = walkthroughs.id
    ) as steps
    where offered.mcp_server_id = server.id
      and offered.is_enabled = 'true'
      and walkthroughs.status = 'published'
  )) as version,
  person.id as person_id,
  person.tracking_id,
  person.signs_in,
  live.sessions,
  live.live_session,
  live.session_used_at,
  live.shown_at,
  not exists (
    select from mcp_server_session as kept
    where kept.mcp_server_session_id = $6
      and (kept.mcp_server_user_id <> person.id or kept.mcp_server_slug <> server.slug)
  ) as is_own_session,
  (
    select json_agg(json_build_array(offered.walkthrough_id, progress.progress, recorded.steps, skipped.steps))
    from mcp_server_walkthroughs as offered
    left join lateral (
      select
        json_build_array(
          id,
          completed_steps,
          current_step_id,
          started_at,
          completed_at,
          last_activity_at,
          metadata -> 'skippedSteps',
          xmin::text
        ) as progress,
        last_activity_at
      from walkthrough_progress
      where walkthrough_progress.mcp_server_user_id = person.id
        and walkthrough_progress.walkthrough_id = offered.walkthrough_id
      -- An existing platform may hold several; the last one used is the one.
      order by last_activity_at desc nulls last, id
      limit 1
    ) as progress on true
    -- What is recorded since the progress was written: a failover may have lost progress whose events were sent.
    cross join lateral (
      select json_agg(done.step_id order by done.completed_at, done.id collate "C") as steps
      from walkthrough_step_completions as done
      where done.mcp_server_user_id = person.id
        and done.walkthrough_id = offered.walkthrough_id
        and done.completed_at > coalesce(progress.last_activity_at, -1)
    ) as recorded
    cross join lateral (
      select json_agg(skip.step_id order by skip.skipped_at, skip.step_id collate "C") as steps
      from walkthrough_step_skips as skip
      where skip.mcp_server_user_id = person.id
        and skip.walkthrough_id = offered.walkthrough_id
        and skip.skipped_at > coalesce(progress.last_activity_at, -1)
    ) as skipped
    where offered.mcp_server_id = server.id
      and (progress.progress is not null or recorded.steps is not null or skipped.steps is not null)
  )::text as walkthroughs
from server
left join person on true
cross join lateral (
  select
    string_agg(xmin::text, ' ' order by mcp_server_id) as sessions,
    max(mcp_server_session_id) filter (where mcp_server_id = server.id) as live_session,
    max(last_activity_at) filter (where mcp_server_id = server.id) as session_used_at,
    max(shown_at) as shown_at
  from mcp_live_sessions
  where mcp_server_user_id = person.id
) as live;

-- name: offers
-- What a server offers: ids and titles only, the content of the one step comes with the write. Of a title 500 characters,
-- for an answer has the titles of all steps.
select
  coalesce(
    jsonb_agg(
      jsonb_build_object(
        'walkthrough_id', walkthroughs.id,
        'title', left(walkthroughs.title, 500),
        'description', left(walkthroughs.description, 4000),
        'type', walkthroughs.type,
        'minutes', walkthroughs.estimated_duration_minutes,
        'tags', walkthroughs.tags,
        'steps', steps.steps
      )
      order by offered.display_order, walkthroughs.title, walkthroughs.id
    ),
    '[]'
  ) as offers
from mcp_servers as server
inner join mcp_server_walkthroughs as offered on server.id = offered.mcp_server_id
-- What another organization has is not this server's to offer: no completion of it would count.
inner join walkthroughs on offered.walkthrough_id = walkthroughs.id
  and server.organization_id = walkthroughs.organization_id
cross join lateral (
  select
    jsonb_agg(
      jsonb_build_array(
        id,
        left(title, 500),
        display_order,
        step_is_optional(metadata, title)
      )
      order by display_order, created_at nulls first, id collate "C"
    ) as steps
  from walkthrough_steps
  where walkthrough_steps.walkthrough_id = walkthroughs.id
) as steps
where server.slug = $1
  and offered.is_enabled = 'true'
  and walkthroughs.status = 'published'
  and steps.steps is not null;

-- name: lock_first_visit
-- Nobody registers somebody of the organization under this id until the transaction ends: whoever does takes the same lock
-- together with others, see `lock_first_visits` of the API.
select pg_advisory_xact_lock(hashtext('people of ' || $1), hashtext($2) & 127);

-- name: create_by_tracking_id
-- Not where the organization has registered somebody under it meanwhile.
insert into mcp_server_user (id, distinct_id, first_seen_at)
select
  $1,
  $2,
  (extract(epoch from clock_timestamp()) * 1000)::bigint
where not exists (
  select from registered_people
  where organization_id = $3 and distinct_id = $2
)
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

-- name: read_step
-- The content of a step that is looked up.
select content_fields from walkthrough_steps where id = $1;

-- name: save
-- All that a call writes. It says how it came out, and returns the content of the step to show.
select
  outcome,
  content
from
  mcp_save(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::jsonb, $13::jsonb, $14, $15, $16,
    $17::text[], $18::text[], $19::jsonb[], $20::text[], $21, $22
  );

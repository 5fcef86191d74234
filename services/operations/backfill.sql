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
      shard = outbox_shard(progress.mcp_server_user_id)
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

-- name: backfill_organizations
-- Whose these walkthroughs are.
select
  id,
  organization_id
from walkthroughs
where id = any($1::text[]);

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

-- name: find_organization
-- By id or slug; an id first.
select id
from organization
where id = $1 or slug = $1
order by id = $1 desc
limit 1;

-- name: find_people
-- Whom an organization means by ids of its own, each once: who is registered; else who came to one of its servers under
-- that tracking id. Both are null of somebody whom it does not know, and of who was erased, whose row may still be there.
select
  given.distinct_id,
  registered.mcp_server_user_id as registered_id,
  known.id as known_id
from unnest($2::text[]) as given (distinct_id)
left join registered_people as registered
  on registered.organization_id = $1 and given.distinct_id = registered.distinct_id
  and not exists (select from erased_users where mcp_server_user_id = registered.mcp_server_user_id)
left join lateral (
  select person.id
  from mcp_server_user as person
  where
    registered.mcp_server_user_id is null
    and person.distinct_id = given.distinct_id
    and not exists (select from erased_users where mcp_server_user_id = person.id)
    and exists (
      select from mcp_server_session as session
      inner join mcp_servers as server on session.mcp_server_slug = server.slug
      where session.mcp_server_user_id = person.id and server.organization_id = $1
    )
) as known on true;

-- name: being_erased
-- Of these ids of an organization's own, those of people who were erased and whose row, which somebody has locked, is still
-- there: it goes soon.
select registered.distinct_id
from registered_people as registered
inner join erased_users as erased on registered.mcp_server_user_id = erased.mcp_server_user_id
where registered.organization_id = $1 and registered.distinct_id = any($2::text[]);

-- name: lock_first_visits
-- Nobody comes to one of the organization's servers for the first time under one of these ids, until the transaction ends:
-- see `lock_first_visit` of the MCP servers, which takes the same lock alone. Each id has one of 128; in their order.
select pg_advisory_xact_lock_shared(hashtext('people of ' || $1), shard)
from (
  select distinct hashtext(given.distinct_id) & 127 as shard
  from unnest($2::text[]) as given (distinct_id)
  order by shard
  offset 0
) as shards;

-- name: register_people
-- Registers whoever is not: as the one whom the organization knows, else as a new user, whose id is that of $3. `people`
-- is the query before. Answers who they are; one that is missing is being registered by somebody else, whose row no
-- snapshot of this statement has: another try has it. In the order of the ids, so that two of these never wait for
-- each other. The row decides between two at once; whoever lost makes no user.
with found as materialized (
  select
    people.distinct_id,
    people.registered_id,
    people.known_id,
    given.new_id
  from people
  inner join unnest($2::text[], $3::text[]) as given (distinct_id, new_id) on people.distinct_id = given.distinct_id
),
mine as (
  insert into registered_people (organization_id, distinct_id, mcp_server_user_id)
  select
    $1,
    distinct_id,
    coalesce(known_id, new_id)
  from found
  where registered_id is null
  order by distinct_id collate "C"
  on conflict (organization_id, distinct_id) do nothing
  returning distinct_id, mcp_server_user_id
),
made as (
  insert into mcp_server_user (id, first_seen_at)
  select
    mine.mcp_server_user_id,
    (extract(epoch from clock_timestamp()) * 1000)::bigint
  from mine
  inner join found on mine.mcp_server_user_id = found.new_id
  returning id
)
select
  distinct_id,
  registered_id as user_id,
  false as created
from found
where registered_id is not null
union all
select
  mine.distinct_id,
  mine.mcp_server_user_id,
  made.id is not null
from mine
left join made on mine.mcp_server_user_id = made.id;

-- name: known_users
-- Those of the users whom an organization knows: it registered them, or they had a session at one of its servers.
select given.id
from unnest($2::text[]) as given (id)
where
  exists (select from mcp_server_user as person where person.id = given.id)
  and not exists (select from erased_users where mcp_server_user_id = given.id)
  and (
    exists (
      select from registered_people as registered
      where registered.mcp_server_user_id = given.id and registered.organization_id = $1
    )
    or exists (
      select from mcp_server_session as session
      inner join mcp_servers as server on session.mcp_server_slug = server.slug
      where session.mcp_server_user_id = given.id and server.organization_id = $1
    )
  );

-- name: find_servers
-- The servers of an organization that have one of these ids or slugs; and one or two of those that may be meant where none
-- is named, so that an only one is known: of $3, or of all where that is null.
select
  id,
  slug,
  true as is_named
from mcp_servers
where organization_id = $1 and (id = any($2::text[]) or slug = any($2::text[]))
union all
(
  select
    id,
    slug,
    false
  from mcp_servers
  where organization_id = $1 and ($3::text[] is null or id = any($3::text[]))
  limit 2
);

-- name: register_sessions
-- Makes the sessions that are not there; gives one of nobody yet to its user, if it has one now, and is at the same
-- server. Answers how each is, and what of it was made. One that is missing is being made by somebody else, whose
-- row no snapshot of this statement has: another try has it. In the order of the ids, as above.
with given as materialized (
  select
    given.*,
    session.mcp_server_slug as kept_slug,
    session.mcp_server_user_id as kept_user_id,
    session.mcp_server_session_id is null
    or (
      session.mcp_server_user_id is null
      and given.user_id is not null
      and session.mcp_server_slug = given.slug
    ) as is_to_write
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
    as given (id, slug, user_id, title, started_at)
  left join mcp_server_session as session on given.id = session.mcp_server_session_id
),
written as (
  insert into mcp_server_session as kept (
    mcp_server_session_id, mcp_server_slug, mcp_server_user_id, title, connection_timestamp, connection_date
  )
  select
    id,
    slug,
    user_id,
    title,
    started_at,
    (to_timestamp(started_at / 1000.0) at time zone 'utc')::date
  from given
  where is_to_write
  order by id collate "C"
  on conflict (mcp_server_session_id) do update
  set mcp_server_user_id = excluded.mcp_server_user_id
  where
    kept.mcp_server_user_id is null
    and excluded.mcp_server_user_id is not null
    and kept.mcp_server_slug = excluded.mcp_server_slug
  returning mcp_server_session_id as id, mcp_server_slug as slug, mcp_server_user_id as user_id, xmax = 0 as created
)
select
  id,
  slug,
  user_id,
  created
from written
union all
select
  id,
  kept_slug,
  kept_user_id,
  false
from given
where not is_to_write;

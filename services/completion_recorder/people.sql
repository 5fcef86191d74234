-- name: find_organization
-- By id or slug; an id first.
select id
from organization
where id = $1 or slug = $1
order by id = $1 desc
limit 1;

-- name: find_people
-- Who has this id, tracking id or e-mail address, or is registered under this id, and which organizations registered them
-- so; with $2 only whom that organization knows. Addresses are compared without case: nobody gives two of them to
-- two people that differ in no more, and people write theirs in several ways.
with meant as (
  select
    id,
    null::text as registered_by
  from mcp_server_user
  where id = $1 or distinct_id = $1 or lower(email) = lower($1)
  union all
  select
    registered.mcp_server_user_id,
    coalesce(owner.slug, owner.id)
  from organization as owner
  inner join registered_people as registered
    on owner.id = registered.organization_id and registered.distinct_id = $1
  where $2::text is null or owner.id = $2
)
select
  id,
  coalesce(array_agg(registered_by order by registered_by) filter (where registered_by is not null), '{}') as registered_by
from meant
where
  $2::text is null
  or registered_by is not null
  or exists (
    select from registered_people as registered
    where registered.mcp_server_user_id = meant.id and registered.organization_id = $2
  )
  or exists (
    select from mcp_server_session as session
    inner join mcp_servers as server on session.mcp_server_slug = server.slug
    where session.mcp_server_user_id = meant.id and server.organization_id = $2
  )
group by id
order by id;

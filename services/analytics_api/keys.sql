-- name: create_key
insert into api_keys (
  id, organization_id, name, hash, expires_at, may_edit, may_read, may_write, may_register, write_types,
  write_server_ids, source
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: find_servers
-- The servers of an organization that have one of these slugs, or ids.
select
  id,
  slug
from mcp_servers
where organization_id = $1 and (id = any($2::text[]) or slug = any($2::text[]));

-- name: list_keys
select
  id,
  organization_id,
  name,
  created_at,
  expires_at,
  revoked_at,
  may_edit,
  may_read,
  may_write,
  may_register,
  write_types,
  write_server_ids,
  source,
  case
    when revoked_at is not null then 'revoked'
    when expires_at <= clock_timestamp() then 'expired'
    else 'valid'
  end as state
from api_keys
where $1::text is null or organization_id = $1
order by organization_id, created_at, id;

-- name: find_key
select
  id,
  organization_id,
  name,
  revoked_at
from api_keys
where id = $1;

-- name: revoke_key
update api_keys set revoked_at = clock_timestamp()
where id = $1 and revoked_at is null;

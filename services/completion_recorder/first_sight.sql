-- name: register
-- People and sessions on first sight; what is there meanwhile stays as it is. In the order of their ids, so that two
-- of these never wait for each other.
with people as (
  insert into mcp_server_user (id, first_seen_at)
  select
    id,
    min(at)
  from unnest($1::text[], $2::bigint[]) as given (id, at)
  group by id
  order by id collate "C"
  on conflict (id) do nothing
)
insert into mcp_server_session (
  mcp_server_session_id, mcp_server_slug, mcp_server_user_id, connection_timestamp, connection_date
)
select
  given.id,
  server.slug,
  given.user_id,
  given.at,
  (to_timestamp(given.at / 1000.0) at time zone 'utc')::date
from unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) as given (id, server_id, user_id, at)
inner join mcp_servers as server on given.server_id = server.id
order by given.id collate "C"
on conflict (mcp_server_session_id) do nothing;

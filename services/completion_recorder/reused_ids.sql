-- name: find_reused_ids_of_completions
-- Of these events those whose id another row has, or that are doubled ($7): whether they would be written, and
-- whose row it is.
select
  given.number,
  own.id is null
  or (given.happened_at, given.id collate "C") <= (own.completed_at, own.id collate "C") as wins,
  server.organization_id as organization,
  holder.mcp_server_user_id as holder_user,
  holder.completed_at as holder_at,
  its_server.organization_id as holder_organization
from (
  select
    number,
    'wtsc_' || event_id as id,
    mcp_server_user_id,
    step_id,
    mcp_server_id,
    happened_at,
    doubled
  from unnest(
    $1::integer[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::boolean[]
  ) as given (number, event_id, mcp_server_user_id, step_id, mcp_server_id, happened_at, doubled)
) as given
inner join mcp_servers as server on given.mcp_server_id = server.id
left join walkthrough_step_completions as holder on given.id = holder.id
  and (given.mcp_server_user_id, given.step_id) <> (holder.mcp_server_user_id, holder.step_id)
left join mcp_servers as its_server on holder.mcp_server_id = its_server.id
left join walkthrough_step_completions as own on given.mcp_server_user_id = own.mcp_server_user_id
  and given.step_id = own.step_id
where holder.id is not null or given.doubled;

-- name: find_reused_ids_of_starts
-- Of these events those whose id another row has, or that are doubled ($7): whether they would be written, and
-- whose row it is.
select
  given.number,
  own.id is null
  or (given.happened_at, given.id collate "C") <= (own.started_at, own.id collate "C") as wins,
  server.organization_id as organization,
  holder.mcp_server_user_id as holder_user,
  holder.started_at as holder_at,
  its_server.organization_id as holder_organization
from (
  select
    number,
    'wtst_' || event_id as id,
    mcp_server_user_id,
    walkthrough_id,
    mcp_server_id,
    happened_at,
    doubled
  from unnest(
    $1::integer[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::boolean[]
  ) as given (number, event_id, mcp_server_user_id, walkthrough_id, mcp_server_id, happened_at, doubled)
) as given
inner join mcp_servers as server on given.mcp_server_id = server.id
left join walkthrough_starts as holder on given.id = holder.id
  and (given.mcp_server_user_id, given.walkthrough_id) <> (holder.mcp_server_user_id, holder.walkthrough_id)
left join mcp_servers as its_server on holder.mcp_server_id = its_server.id
left join walkthrough_starts as own on given.mcp_server_user_id = own.mcp_server_user_id
  and given.walkthrough_id = own.walkthrough_id
where holder.id is not null or given.doubled;

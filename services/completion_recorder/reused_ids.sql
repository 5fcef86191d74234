-- name: find_reused_ids_of_completions
-- Of these events those whose id another row has, or that are doubled ($7): whether they claim the id, and whose row
-- it is. A completion that an earlier one has beaten keeps its id. What is recorded under its id already claims it no
-- more, and what a correction covers is not recorded.
select
  given.number,
  not (
    exists (
      select from walkthrough_step_completions as own
      where own.id = given.id and own.mcp_server_user_id = given.mcp_server_user_id and own.step_id = given.step_id
    )
    or exists (
      select from later_completions as own
      where own.mcp_server_user_id = given.mcp_server_user_id and own.step_id = given.step_id and own.id = given.id
    )
    or exists (
      select from completion_corrections as correction
      where
        correction.mcp_server_user_id = given.mcp_server_user_id and correction.step_id = given.step_id
        and correction.covers_until >= given.happened_at
    )
  ) as claims,
  server.organization_id as organization,
  coalesce(holder.mcp_server_user_id, later.mcp_server_user_id) as holder_user,
  coalesce(holder.completed_at, later.completed_at) as holder_at,
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
left join lateral (
  select
    other.mcp_server_user_id,
    other.mcp_server_id,
    other.completed_at
  from later_completions as other
  where
    other.id = given.id
    and (other.mcp_server_user_id, other.step_id) <> (given.mcp_server_user_id, given.step_id)
  order by other.completed_at
  limit 1
) as later on true
left join mcp_servers as its_server on coalesce(holder.mcp_server_id, later.mcp_server_id) = its_server.id
where holder.id is not null or later.mcp_server_user_id is not null or given.doubled;

-- name: find_reused_ids_of_starts
-- Of these events those whose id another row has, or that are doubled ($7): whether they claim the id, as they would be
-- written, and whose row it is.
select
  given.number,
  own.id is null
  or (given.happened_at, given.id collate "C") <= (own.started_at, own.id collate "C") as claims,
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

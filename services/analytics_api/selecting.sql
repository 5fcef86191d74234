-- name: began_with
-- The journeys of a walkthrough with what each began with: the agent and the metadata of its start or, without one, of its
-- first step, or of what was shown first. A client counts where its session is on a server of the organization. Of most
-- journeys the start is joined; the other tables are read by their keys, for journeys without one alone.
select
  journey.*,
  client.name as agent,
  client.version as agent_version,
  coalesce(start.metadata, earliest.metadata) as metadata
from sankey_journeys as journey
left join walkthrough_starts as start on journey.mcp_server_user_id = start.mcp_server_user_id
  and start.walkthrough_id = $1
  and journey.started_at is not null
left join lateral (
  (
    select
      done.mcp_server_session_id,
      done.metadata
    from walkthrough_step_completions as done
    where
      journey.started_at is null
      and journey.skipped[1] is not true
      and done.mcp_server_user_id = journey.mcp_server_user_id
      and done.step_id = journey.step_ids[1]
      and done.walkthrough_id = $1
  )
  union all
  (
    select
      skip.mcp_server_session_id,
      skip.metadata
    from walkthrough_step_skips as skip
    where
      journey.started_at is null
      and journey.skipped[1]
      and skip.mcp_server_user_id = journey.mcp_server_user_id
      and skip.step_id = journey.step_ids[1]
      and skip.walkthrough_id = $1
  )
  union all
  (
    select
      showing.mcp_server_session_id,
      null
    from walkthrough_step_showings as showing
    where
      journey.first_shown_at is not null
      and showing.mcp_server_user_id = journey.mcp_server_user_id
      and showing.walkthrough_id = $1
    order by showing.first_shown_at, showing.first_id collate "C"
    limit 1
  )
) as earliest on true
left join (
  mcp_session_clients as client
  inner join mcp_server_session as session on client.mcp_server_session_id = session.mcp_server_session_id
    and session.mcp_server_slug in (
      select server.slug from mcp_servers as server
      inner join walkthroughs on server.organization_id = walkthroughs.organization_id
      where walkthroughs.id = $1
    )
) on coalesce(start.mcp_server_session_id, earliest.mcp_server_session_id) = client.mcp_server_session_id
where journey.walkthrough_id = $1;

-- name: create_incoming
-- Where a load lands before the upsert; one set per connection, empty between transactions.
create temporary table if not exists incoming (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  completed_at bigint not null,
  metadata jsonb,
  is_replayed boolean not null,
  of_correction boolean not null default false
) on commit delete rows;
create temporary table if not exists incoming_starts (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  started_at bigint not null,
  metadata jsonb,
  is_replayed boolean not null
) on commit delete rows;
create temporary table if not exists incoming_skips (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  skipped_at bigint not null,
  reason text,
  metadata jsonb,
  is_replayed boolean not null
) on commit delete rows;
create temporary table if not exists incoming_showings (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  shown_at bigint not null,
  version text,
  is_replayed boolean not null
) on commit delete rows;

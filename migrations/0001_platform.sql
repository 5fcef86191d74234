-- The platform's tables, with its names and shapes. An existing database keeps what it has.
set local lock_timeout = '10s';

do $$
begin
  if to_regtype('mcp_server_auth_type') is null then
    create type mcp_server_auth_type as enum ('platform_oauth', 'custom_oauth', 'none', 'collect_email');
  end if;
  if to_regtype('walkthrough_type') is null then
    create type walkthrough_type as enum ('course', 'installer', 'troubleshooting', 'integration', 'quickstart');
  end if;
  if to_regtype('walkthrough_status') is null then
    create type walkthrough_status as enum ('draft', 'published', 'archived');
  end if;
end
$$;

create table if not exists organization (
  id text primary key,
  name text not null,
  slug text unique,
  logo text,
  created_at timestamptz not null,
  metadata text
);

create table if not exists mcp_servers (
  id text primary key,
  organization_id text not null references organization (id) on delete cascade,
  oauth_issuer_url text,
  name text not null,
  product_platform_or_tool text not null,
  slug text not null unique,
  created_at bigint,
  auth_type mcp_server_auth_type default 'none',
  support_ticket_type text,
  walkthrough_tools_enabled text default 'true',
  custom_oauth_config_id text
);

create table if not exists mcp_server_user (
  id text primary key,
  distinct_id text unique,
  email text,
  upstream_sub text,
  profile_data jsonb,
  first_seen_at bigint
);

create table if not exists mcp_server_session (
  mcp_server_session_id text primary key,
  title text,
  mcp_server_slug text not null references mcp_servers (slug) on delete cascade,
  connection_date date not null,
  connection_timestamp bigint,
  mcp_server_user_id text references mcp_server_user (id) on delete cascade
);

create table if not exists walkthroughs (
  id text primary key,
  organization_id text not null references organization (id) on delete cascade,
  title text not null,
  description text,
  type walkthrough_type default 'course',
  status walkthrough_status default 'draft',
  created_at bigint,
  updated_at bigint,
  estimated_duration_minutes integer,
  tags jsonb default '[]',
  metadata jsonb
);

create table if not exists mcp_server_walkthroughs (
  id text primary key,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  display_order integer not null default 0,
  is_enabled text not null default 'true',
  created_at bigint,
  unique (mcp_server_id, walkthrough_id)
);

create table if not exists walkthrough_steps (
  id text primary key,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  title text not null,
  content_fields jsonb not null,
  display_order integer not null default 0,
  next_step_id text references walkthrough_steps (id) on delete set null,
  created_at bigint,
  updated_at bigint,
  metadata jsonb
);

create table if not exists walkthrough_progress (
  id text primary key,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  completed_steps jsonb default '[]',
  current_step_id text references walkthrough_steps (id) on delete set null,
  completed_at bigint,
  started_at bigint,
  last_activity_at bigint,
  metadata jsonb,
  unique (mcp_server_user_id, walkthrough_id)
);

create table if not exists walkthrough_step_completions (
  id text primary key,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  step_id text not null references walkthrough_steps (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  completed_at bigint not null,
  metadata jsonb,
  constraint wtsc_user_step_unique unique (mcp_server_user_id, step_id)
);

-- Foreign keys that cascade, and reads by parent, need an index on the child's side.
create index if not exists wtsc_server_time_idx on walkthrough_step_completions (mcp_server_id, completed_at);
create index if not exists wtsc_walkthrough_step_time_idx on walkthrough_step_completions (walkthrough_id, step_id, completed_at);
create index if not exists wtsc_user_walkthrough_idx on walkthrough_step_completions (mcp_server_user_id, walkthrough_id);
create index if not exists wtsc_session_idx on walkthrough_step_completions (mcp_server_session_id);
create index if not exists wtsc_server_walkthrough_idx on walkthrough_step_completions (mcp_server_id, walkthrough_id);
create index if not exists walkthrough_steps_walkthrough_idx on walkthrough_steps (walkthrough_id);
create index if not exists mcp_server_session_user_idx on mcp_server_session (mcp_server_user_id);
create index if not exists mcp_server_session_server_idx on mcp_server_session (mcp_server_slug);
create index if not exists walkthrough_progress_walkthrough_idx on walkthrough_progress (walkthrough_id);

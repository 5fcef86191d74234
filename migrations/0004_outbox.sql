-- What the MCP layer keeps beside the platform's tables: events on their way to Kafka, who signs in as whom,
-- and the session that goes on where the protocol has none.
set local lock_timeout = '10s';

-- The rows of a key share a shard, and one relay at a time has a shard, so that a key's events stay in order.
create table if not exists outbox (
  id bigint generated always as identity primary key,
  key text not null,
  value text not null,
  headers jsonb not null default '{}',
  created_at timestamptz not null default clock_timestamp(),
  shard integer not null generated always as ((hashtextextended(key, 0) & 63)::integer) stored
) with (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
  autovacuum_vacuum_cost_delay = 0
);
comment on table outbox is
  'Events that Kafka has not acknowledged yet, written in the transaction that made them; in id order per key.';
create index if not exists outbox_shard_idx on outbox (shard, id);

create table if not exists outbox_set_aside (
  id bigint primary key,
  key text not null,
  value text not null,
  headers jsonb not null,
  created_at timestamptz not null,
  set_aside_at timestamptz not null default clock_timestamp(),
  error text not null
);
comment on table outbox_set_aside is
  'Events that Kafka refuses for what they are. They hold nobody up, and wait here for an operator.';

create or replace function outbox_notify() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  perform pg_notify('stepstream_outbox', '');
  return null;
end
$$;

drop trigger if exists outbox_written on outbox;
create trigger outbox_written after insert on outbox
for each statement execute function outbox_notify();

create table if not exists mcp_user_identities (
  issuer text not null,
  subject text not null,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  primary key (issuer, subject)
);
comment on table mcp_user_identities is
  'Who signs in as which user: a subject is a person only together with its issuer.';
create index if not exists mcp_user_identities_user_idx on mcp_user_identities (mcp_server_user_id);

create table if not exists mcp_live_sessions (
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  last_activity_at bigint not null,
  primary key (mcp_server_user_id, mcp_server_id)
) with (fillfactor = 80);
comment on table mcp_live_sessions is
  'The session of a user on a server where the transport has none, and when it was last used, in milliseconds.';
create index if not exists mcp_live_sessions_server_idx on mcp_live_sessions (mcp_server_id);
create index if not exists mcp_live_sessions_session_idx on mcp_live_sessions (mcp_server_session_id);

-- Where the platform's table has no key on (user, walkthrough), each call of an agent would read all of it.
do $$
begin
  if not exists (
    select from pg_index
    where indrelid = 'walkthrough_progress'::regclass
      and indkey[0] = (
        select attnum from pg_attribute
        where attrelid = 'walkthrough_progress'::regclass and attname = 'mcp_server_user_id'
      )
  ) then
    create index walkthrough_progress_user_idx on walkthrough_progress (mcp_server_user_id, walkthrough_id);
  end if;
end
$$;

-- What waits for a lock waits alone: events that refer to a row on which somebody else holds a lock.
set local lock_timeout = '10s';

create table if not exists waiting_events (
  id bigint generated always as identity primary key,
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  timestamp bigint not null,
  key bytea,
  value bytea not null,
  headers jsonb not null default '[]',
  mcp_server_user_id text not null,
  waits_for text not null,
  since timestamptz not null default clock_timestamp()
);
comment on table waiting_events is
  'Events of the topic that the recorder has passed, and that are recorded or refused once a lock of somebody else goes.';
comment on column waiting_events.headers is 'Pairs of a header''s name and its value, both in base64.';
comment on column waiting_events.waits_for is 'Table and key of the row that is locked.';
create index if not exists waiting_events_lock_idx on waiting_events (waits_for, id);
create index if not exists waiting_events_user_idx on waiting_events (mcp_server_user_id);
create index if not exists waiting_events_offset_idx on waiting_events (topic, partition, "offset");

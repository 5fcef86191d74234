-- Who sends events from another system: keys that may write, and the people whom an organization knows by ids of its own.
set local lock_timeout = '10s';

create table if not exists registered_people (
  organization_id text not null references organization (id) on delete cascade,
  distinct_id text not null,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  created_at timestamptz not null default clock_timestamp(),
  primary key (organization_id, distinct_id),
  constraint registered_people_are_short check (length(distinct_id) between 1 and 200)
);
comment on table registered_people is
'Which user stands for whom an organization knows by this id. Another organization''s same id is another person.';
create index if not exists registered_people_user_idx on registered_people (mcp_server_user_id);

alter table api_keys
add column if not exists may_read boolean not null default true,
add column if not exists may_write boolean not null default false,
add column if not exists may_register boolean not null default false,
add column if not exists write_types text [],
add column if not exists write_server_ids text [],
add column if not exists source text;
comment on column api_keys.may_read is 'Whether it opens figures.';
comment on column api_keys.may_write is 'Whether it sends events, and registers people and sessions.';
comment on column api_keys.may_register is 'Whether people and sessions that its events name and nobody knows are registered.';
comment on column api_keys.write_types is 'The types of events that it may send; null is each that producers may.';
comment on column api_keys.write_server_ids is 'The servers that its events may name; null is each of its organization.';
comment on column api_keys.source is 'The source under which its events are counted; null where its id stands for one.';

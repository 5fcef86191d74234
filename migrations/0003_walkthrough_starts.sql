-- When somebody opened a walkthrough: a journey begins there, also one without a step.
set local lock_timeout = '10s';

create table if not exists walkthrough_starts (
  id text primary key,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  started_at bigint not null,
  metadata jsonb,
  constraint walkthrough_starts_user_unique unique (mcp_server_user_id, walkthrough_id)
);
comment on table walkthrough_starts is
  'The start that counts for each user and walkthrough: the event with the smallest (started_at, event id).';
create index if not exists walkthrough_starts_walkthrough_idx on walkthrough_starts (walkthrough_id);
create index if not exists walkthrough_starts_server_idx on walkthrough_starts (mcp_server_id);
create index if not exists walkthrough_starts_session_idx on walkthrough_starts (mcp_server_session_id);

-- Changes of starts leave the same marks as changes of completions.
drop trigger if exists sankey_deleted on walkthrough_starts;
create trigger sankey_deleted after delete on walkthrough_starts
referencing old table as old_rows
for each statement execute function sankey_mark_deleted();

drop trigger if exists sankey_truncated on walkthrough_starts;
create trigger sankey_truncated after truncate on walkthrough_starts
for each statement execute function sankey_mark_truncated();

drop trigger if exists sankey_inserted on walkthrough_starts;
create trigger sankey_inserted after insert on walkthrough_starts
referencing new table as new_rows
for each statement when (current_setting('stepstream.recorder', true) is distinct from 'on')
execute function sankey_mark_inserted();

drop trigger if exists sankey_updated on walkthrough_starts;
create trigger sankey_updated after update on walkthrough_starts
referencing old table as old_rows new table as new_rows
for each statement execute function sankey_mark_updated();

alter table sankey_journeys add column if not exists started_at bigint;
comment on column sankey_journeys.started_at is
  'When the journey was opened, in milliseconds; null where its first completion is what is known of its beginning.';
comment on table sankey_journeys is
  'What has been counted of each journey: its start, its server, its steps in order and their times in milliseconds.';

alter table sankey_transitions add column if not exists timed_journeys bigint not null default 0;
comment on column sankey_transitions.timed_journeys is
  'Over how many of the journeys elapsed_ms is the sum: the time of a first step is known only after a start.';
update sankey_transitions set timed_journeys = journeys
where position > 0;

-- What people skipped, and what they were shown: facts of their own, beside what they completed.
set local lock_timeout = '10s';

create table if not exists walkthrough_step_skips (
  id text not null,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  step_id text not null references walkthrough_steps (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  skipped_at bigint not null,
  reason text,
  metadata jsonb,
  constraint walkthrough_step_skips_make_sense check (skipped_at between 0 and 253402300799999),
  constraint walkthrough_step_skips_user_step_unique primary key (mcp_server_user_id, step_id)
);
comment on table walkthrough_step_skips is
'The skip that counts for each user and step: the event with the smallest (skipped_at, event id). A step that was '
'completed as well, before or after, counts as completed.';
create index if not exists walkthrough_step_skips_walkthrough_idx on walkthrough_step_skips (walkthrough_id);
create index if not exists walkthrough_step_skips_step_idx on walkthrough_step_skips (step_id);
create index if not exists walkthrough_step_skips_server_idx on walkthrough_step_skips (mcp_server_id);
create index if not exists walkthrough_step_skips_session_idx on walkthrough_step_skips (mcp_server_session_id);

create table if not exists walkthrough_step_showings (
  first_id text not null,
  last_id text not null,
  mcp_server_user_id text not null references mcp_server_user (id) on delete cascade,
  walkthrough_id text not null references walkthroughs (id) on delete cascade,
  step_id text not null references walkthrough_steps (id) on delete cascade,
  mcp_server_id text not null references mcp_servers (id) on delete cascade,
  mcp_server_session_id text not null references mcp_server_session (mcp_server_session_id) on delete cascade,
  first_shown_at bigint not null,
  last_shown_at bigint not null,
  last_version text,
  constraint walkthrough_step_showings_make_sense check (
    first_shown_at <= last_shown_at and first_shown_at >= 0 and last_shown_at <= 253402300799999
  ),
  constraint walkthrough_step_showings_user_step_unique primary key (mcp_server_user_id, step_id)
) with (fillfactor = 85);
comment on table walkthrough_step_showings is
'When each step was first and last shown to each user: the events with the smallest and the largest (shown_at, event '
'id). Server and session are those of the first, the version is that of the last. The walkthrough is the step''s, as the '
'newest change found it.';
create index if not exists walkthrough_step_showings_walkthrough_idx on walkthrough_step_showings (walkthrough_id);
create index if not exists walkthrough_step_showings_step_idx on walkthrough_step_showings (step_id);
create index if not exists walkthrough_step_showings_server_idx on walkthrough_step_showings (mcp_server_id);
create index if not exists walkthrough_step_showings_session_idx on walkthrough_step_showings (mcp_server_session_id);

-- Changes of both leave the same marks as changes of completions. What the recorder inserts is followed by its event;
-- only who may move the recorder's offsets is believed to be it.
do $$
declare
  relation text;
begin
  foreach relation in array array['walkthrough_step_skips', 'walkthrough_step_showings'] loop
    execute format(
      'create or replace trigger sankey_deleted after delete on %I'
      ' referencing old table as old_rows'
      ' for each statement execute function sankey_mark_deleted()', relation);
    execute format(
      'create or replace trigger sankey_truncated after truncate on %I'
      ' for each statement execute function sankey_mark_truncated()', relation);
    execute format(
      'create or replace trigger sankey_updated after update on %I'
      ' referencing old table as old_rows new table as new_rows'
      ' for each statement execute function sankey_mark_updated()', relation);
    execute format(
      'create or replace trigger sankey_inserted after insert on %I'
      ' referencing new table as new_rows'
      ' for each statement when ('
      '   pg_catalog.current_setting(''stepstream.recorder'', true) is distinct from ''on'''
      '   or not pg_catalog.has_table_privilege(session_user, ''recorded_offsets''::pg_catalog.regclass, ''update''))'
      ' execute function sankey_mark_inserted()', relation);
  end loop;
end
$$;

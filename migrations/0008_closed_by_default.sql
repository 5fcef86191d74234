-- Whoever may change completions gets none of their owner's rights. Functions that run with these look nowhere but
-- among PostgreSQL's own functions, and name our tables with the schema of the table whose trigger they are: also when
-- that was renamed. (old_rows and new_rows are the trigger's own, which no other object hides.)
set local lock_timeout = '10s';

create or replace function sankey_mark_deleted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format(
    'insert into %I.sankey_dirty (mcp_server_user_id, walkthrough_id)'
    ' select distinct mcp_server_user_id, walkthrough_id from old_rows',
    tg_table_schema
  );
  return null;
end
$$;

create or replace function sankey_mark_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format(
    'insert into %I.sankey_dirty (mcp_server_user_id, walkthrough_id)'
    ' select distinct mcp_server_user_id, walkthrough_id from new_rows',
    tg_table_schema
  );
  return null;
end
$$;

create or replace function sankey_mark_updated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  -- Only who may move the recorder's offsets is the recorder. The right is that of who signed in: the current user is
  -- this function's owner.
  by_recorder constant boolean := current_setting('stepstream.recorder', true) = 'on'
    and has_table_privilege(session_user, format('%I.recorded_offsets', tg_table_schema), 'update');
begin
  -- The recorder's events name the journeys that the rows are in now. When a step has moved to another walkthrough,
  -- its row leaves a journey that no event names.
  execute format(
    'insert into %I.sankey_dirty (mcp_server_user_id, walkthrough_id)'
    ' select mcp_server_user_id, walkthrough_id from old_rows'
    ' %s'
    ' select mcp_server_user_id, walkthrough_id from new_rows',
    tg_table_schema,
    case when by_recorder then 'except' else 'union' end
  );
  return null;
end
$$;

create or replace function sankey_mark_truncated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format(
    'insert into %1$I.sankey_dirty (mcp_server_user_id, walkthrough_id)'
    ' select mcp_server_user_id, walkthrough_id from %1$I.sankey_journeys',
    tg_table_schema
  );
  return null;
end
$$;

-- It needs nobody's rights but those of who writes.
create or replace function outbox_notify() returns trigger
language plpgsql security invoker set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_notify('stepstream_outbox', '');
  return null;
end
$$;

-- A trigger on a table of one's own would write marks, as many as one likes. Triggers that are there go on.
revoke execute on function
  sankey_mark_deleted(), sankey_mark_inserted(), sankey_mark_updated(), sankey_mark_truncated()
from public;

-- The recorder's own changes are followed by the event that made them. It says so in its transaction, and only who
-- may move its offsets is believed: the table and the functions are named here and now, not when the trigger fires.
create or replace trigger sankey_inserted after insert on walkthrough_step_completions
referencing new table as new_rows
for each statement when (
  pg_catalog.current_setting('stepstream.recorder', true) is distinct from 'on'
  or not pg_catalog.has_table_privilege(session_user, 'recorded_offsets'::pg_catalog.regclass, 'update')
)
execute function sankey_mark_inserted();

create or replace trigger sankey_inserted after insert on walkthrough_starts
referencing new table as new_rows
for each statement when (
  pg_catalog.current_setting('stepstream.recorder', true) is distinct from 'on'
  or not pg_catalog.has_table_privilege(session_user, 'recorded_offsets'::pg_catalog.regclass, 'update')
)
execute function sankey_mark_inserted();

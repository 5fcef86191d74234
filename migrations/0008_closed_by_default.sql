-- Whoever may change completions gets none of their owner's rights: functions that run with these name everything
-- with its schema, and look among temporary objects last. And the outbox says what each of its events is.
set local lock_timeout = '10s';

-- The bodies hold the schema's name, which a plain `create function` has no way to take from anywhere. Names that
-- are no tables (old_rows, new_rows) are the trigger's own, which no other object hides.
do $migration$
declare
  ours constant name := (
    select nspname from pg_namespace
    inner join pg_class on pg_namespace.oid = pg_class.relnamespace
    where pg_class.oid = 'sankey_dirty'::regclass
  );
begin
  execute format($create$
    create or replace function %1$I.sankey_mark_deleted() returns trigger
    language plpgsql security definer set search_path = pg_catalog, %1$I, pg_temp as $body$
    begin
      insert into %1$I.sankey_dirty (mcp_server_user_id, walkthrough_id)
      select distinct mcp_server_user_id, walkthrough_id from old_rows;
      return null;
    end
    $body$;

    create or replace function %1$I.sankey_mark_inserted() returns trigger
    language plpgsql security definer set search_path = pg_catalog, %1$I, pg_temp as $body$
    begin
      insert into %1$I.sankey_dirty (mcp_server_user_id, walkthrough_id)
      select distinct mcp_server_user_id, walkthrough_id from new_rows;
      return null;
    end
    $body$;

    create or replace function %1$I.sankey_mark_updated() returns trigger
    language plpgsql security definer set search_path = pg_catalog, %1$I, pg_temp as $body$
    begin
      -- Only who may move the recorder's offsets is the recorder. The rights are those of who signed in: the
      -- current user is this function's owner.
      if pg_catalog.current_setting('stepstream.recorder', true) operator(pg_catalog.=) 'on'
        and pg_catalog.has_table_privilege(session_user, %2$L::pg_catalog.regclass, 'update')
      then
        -- The events name the journeys that the rows are in now. When a step has moved to another walkthrough,
        -- its row leaves a journey that no event names.
        insert into %1$I.sankey_dirty (mcp_server_user_id, walkthrough_id)
        select mcp_server_user_id, walkthrough_id from old_rows
        except
        select mcp_server_user_id, walkthrough_id from new_rows;
      else
        insert into %1$I.sankey_dirty (mcp_server_user_id, walkthrough_id)
        select mcp_server_user_id, walkthrough_id from old_rows
        union
        select mcp_server_user_id, walkthrough_id from new_rows;
      end if;
      return null;
    end
    $body$;

    create or replace function %1$I.sankey_mark_truncated() returns trigger
    language plpgsql security definer set search_path = pg_catalog, %1$I, pg_temp as $body$
    begin
      insert into %1$I.sankey_dirty (mcp_server_user_id, walkthrough_id)
      select mcp_server_user_id, walkthrough_id from %1$I.sankey_journeys;
      return null;
    end
    $body$;

    -- It needs nobody's rights but those of who writes.
    create or replace function %1$I.outbox_notify() returns trigger
    language plpgsql security invoker set search_path = pg_catalog, pg_temp as $body$
    begin
      perform pg_catalog.pg_notify('stepstream_outbox', '');
      return null;
    end
    $body$;

    -- A trigger on a table of one's own would write marks, as many as one likes. Triggers that are there go on.
    revoke execute on function
      %1$I.sankey_mark_deleted(), %1$I.sankey_mark_inserted(), %1$I.sankey_mark_updated(),
      %1$I.sankey_mark_truncated()
    from public;
  $create$, ours, format('%I.recorded_offsets', ours));
end
$migration$;

-- The recorder's own changes are followed by the event that made them. It says so in its transaction, and only who
-- may move its offsets is believed: the table is named here and now, not when the trigger fires.
drop trigger if exists sankey_inserted on walkthrough_step_completions;
create trigger sankey_inserted after insert on walkthrough_step_completions
referencing new table as new_rows
for each statement when (
  current_setting('stepstream.recorder', true) is distinct from 'on'
  or not has_table_privilege('recorded_offsets'::regclass, 'update')
)
execute function sankey_mark_inserted();

drop trigger if exists sankey_inserted on walkthrough_starts;
create trigger sankey_inserted after insert on walkthrough_starts
referencing new table as new_rows
for each statement when (
  current_setting('stepstream.recorder', true) is distinct from 'on'
  or not has_table_privilege('recorded_offsets'::regclass, 'update')
)
execute function sankey_mark_inserted();

-- What an event is, beside what it holds: only its writer knows for sure. Null is a row of a version before this one.
alter table outbox add column if not exists type text;
comment on column outbox.type is
  'The type of the event, as its value says it; null where the version that wrote the row did not tell.';
alter table outbox_set_aside add column if not exists type text;
comment on column outbox_set_aside.type is 'As in the outbox.';
update outbox set type = headers ->> 'ce_type'
where type is null;
update outbox_set_aside set type = headers ->> 'ce_type'
where type is null;

-- Each edit of a walkthrough's steps makes a version: what order people of that time had before them.
set local lock_timeout = '10s';

create table if not exists walkthrough_versions (
  id bigint generated always as identity primary key,
  walkthrough_id text not null,
  made_at bigint,
  step_ids text [],
  titles text [],
  contents text [],
  constraint walkthrough_versions_make_sense check (
    (made_at is null) = (step_ids is null)
    and (titles is null) = (step_ids is null)
    and (contents is null) = (step_ids is null)
    and cardinality(titles) = cardinality(step_ids)
    and cardinality(contents) = cardinality(step_ids)
    and array_position(step_ids, null) is null
  )
);
create index if not exists walkthrough_versions_walkthrough_idx on walkthrough_versions (walkthrough_id);
create index if not exists walkthrough_versions_begun_idx on walkthrough_versions (walkthrough_id) where step_ids is null;
comment on table walkthrough_versions is
'The steps of each walkthrough in display order, a row for each edit, in the order (made_at, id): its number, from 1, is its '
'place. The first counts for all before the second. There is no foreign key: to lock a walkthrough that somebody else has '
'locked would make an edit wait, and the edits of both wait for each other. Triggers on walkthroughs remove the rows.';
comment on column walkthrough_versions.made_at is
'When the edit was committed, in milliseconds; later than that of the version before.';
comment on column walkthrough_versions.step_ids is
'Null while the edit is under way: never outside its transaction.';
comment on column walkthrough_versions.contents is
'A hash of what each step says, and of whether it is optional: so that an edit of it is told.';

-- Statements that edit steps leave a row without steps, one for each transaction and walkthrough. At the commit it becomes
-- the version, so that a transaction makes one, locks for a moment only, and sees what other edits have committed.
create or replace function walkthrough_version_begin() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format(
    'insert into %1$I.walkthrough_versions (walkthrough_id)'
    ' select distinct edited.walkthrough_id from (%2$s) as edited'
    ' where not exists ('
    '   select from %1$I.walkthrough_versions as begun'
    '   where begun.walkthrough_id = edited.walkthrough_id and begun.step_ids is null)',
    tg_table_schema,
    case tg_op
      when 'INSERT' then 'select walkthrough_id from new_rows'
      when 'DELETE' then 'select walkthrough_id from old_rows'
      -- What nobody sees is no edit. Rows are read as they are: a table of the platform may have fewer columns.
      when 'UPDATE' then
        'select walkthrough_id from ('
        ' (select walkthrough_id, to_jsonb(step) - array[''updated_at'', ''next_step_id''] from old_rows as step'
        '  except select walkthrough_id, to_jsonb(step) - array[''updated_at'', ''next_step_id''] from new_rows as step)'
        ' union all'
        ' (select walkthrough_id, to_jsonb(step) - array[''updated_at'', ''next_step_id''] from new_rows as step'
        '  except select walkthrough_id, to_jsonb(step) - array[''updated_at'', ''next_step_id''] from old_rows as step)'
        ') as changed'
      else format('select walkthrough_id from %I.walkthrough_versions', tg_table_schema)
    end
  );
  return null;
end
$$;

create or replace function walkthrough_version_finish() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  patience constant timestamptz := clock_timestamp() + interval '2 s';
  newest constant text := format(
    'select id, made_at, step_ids, titles, contents from %I.walkthrough_versions'
    ' where walkthrough_id = $1 and step_ids is not null order by made_at desc, id desc limit 1',
    tg_table_schema
  );
  begun record;
  edited record;
  before record;
  is_met boolean;
begin
  -- All that the transaction began, in one order, so that two never wait for each other. The rest of its rows find nothing.
  for begun in execute format(
    'with removed as (delete from %I.walkthrough_versions where step_ids is null returning walkthrough_id)'
    ' select walkthrough_id, row_number() over (order by walkthrough_id) as number'
    ' from (select distinct walkthrough_id from removed) as once order by 1', tg_table_schema
  ) loop
  begin
    -- Edits of a walkthrough take turns. One that waits longer goes on, and so do masses: locks are few.
    while begun.number <= 100 and clock_timestamp() < patience loop
      exit when pg_try_advisory_xact_lock(
        hashtextextended(format('%s.walkthrough_versions %s', tg_table_schema, begun.walkthrough_id), 0)
      );
      perform pg_sleep(0.01);
    end loop;
    -- A statement of its own: its snapshot is taken after the lock.
    execute format(
      'select'
      ' coalesce(array_agg(id order by place), ''{}'') as step_ids,'
      ' coalesce(array_agg(title order by place), ''{}'') as titles,'
      ' coalesce(array_agg(content order by place), ''{}'') as contents'
      ' from ('
      '  select id, title, md5(concat_ws('' '', content_fields::text, to_jsonb(step) #>> ''{metadata,optional}'')) as content,'
      '   row_number() over ('
      '    order by display_order, (to_jsonb(step) ->> ''created_at'')::bigint nulls first, id collate "C") as place'
      '  from %I.walkthrough_steps as step where walkthrough_id = $1) as placed',
      tg_table_schema
    ) into strict edited using begun.walkthrough_id;
    execute newest into before using begun.walkthrough_id;
    continue when before.id is null and edited.step_ids = '{}';
    if before.id is not null
      and (before.step_ids, before.titles, before.contents) <> (edited.step_ids, edited.titles, edited.contents)
    then
      -- A version that nobody met gives way to the next: to build a walkthrough step by step makes one. Whether anybody
      -- came at all is read from rows. Who came since a time is read from what indexes and the newest event tell: showings
      -- and starts have no index by time.
      execute format(
        'select case'
        ' when not exists ('
        '  select from %1$I.walkthrough_versions'
        '  where walkthrough_id = $1 and step_ids is not null and (made_at, id) < ($2, $3))'
        ' then exists (select from %1$I.walkthrough_step_completions where walkthrough_id = $1)'
        '  or exists (select from %1$I.walkthrough_starts where walkthrough_id = $1)'
        '  or exists (select from %1$I.walkthrough_step_skips where walkthrough_id = $1)'
        '  or exists (select from %1$I.walkthrough_step_showings where walkthrough_id = $1)'
        '  or exists (select from %1$I.walkthrough_progress where walkthrough_id = $1)'
        ' else exists (select from %1$I.sankey_freshness where walkthrough_id = $1 and newest_at >= $2)'
        '  or exists ('
        '   select from %1$I.walkthrough_step_completions'
        '   where walkthrough_id = $1 and step_id = any($4) and completed_at >= $2)'
        ' end',
        tg_table_schema
      ) into is_met using begun.walkthrough_id, before.made_at, before.id, before.step_ids;
      if not is_met then
        execute format(
          'delete from %1$I.walkthrough_versions where id ='
          ' (select id from %1$I.walkthrough_versions where id = $1 for update skip locked)', tg_table_schema
        ) using before.id;
        execute newest into before using begun.walkthrough_id;
      end if;
    end if;
    if before.id is null
      or (before.step_ids, before.titles, before.contents) <> (edited.step_ids, edited.titles, edited.contents)
    then
      execute format(
        'insert into %I.walkthrough_versions (walkthrough_id, made_at, step_ids, titles, contents)'
        ' values ($1, $2, $3, $4, $5)', tg_table_schema
      ) using
        begun.walkthrough_id,
        greatest((extract(epoch from clock_timestamp()) * 1000)::bigint, before.made_at + 1),
        edited.step_ids,
        edited.titles,
        edited.contents;
    end if;
  exception when others then
    -- An edit never fails because its version cannot be kept.
    raise warning 'the version of walkthrough % is not kept: %', begun.walkthrough_id, sqlerrm;
  end;
  end loop;
  return null;
end
$$;

create or replace function walkthrough_versions_remove() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  execute format(
    'delete from %I.walkthrough_versions %s',
    tg_table_schema,
    case tg_op when 'DELETE' then 'where walkthrough_id in (select id from old_rows)' else '' end
  );
  return null;
end
$$;

-- A trigger on a table of one's own would make versions, or remove them.
revoke execute on function
walkthrough_version_begin(), walkthrough_version_finish(), walkthrough_versions_remove()
from public;

drop trigger if exists walkthrough_version_finish on walkthrough_versions;
create constraint trigger walkthrough_version_finish after insert on walkthrough_versions
deferrable initially deferred
for each row when (new.step_ids is null) execute function walkthrough_version_finish();

create or replace trigger walkthrough_version_inserted after insert on walkthrough_steps
referencing new table as new_rows
for each statement execute function walkthrough_version_begin();
create or replace trigger walkthrough_version_updated after update on walkthrough_steps
referencing old table as old_rows new table as new_rows
for each statement execute function walkthrough_version_begin();
create or replace trigger walkthrough_version_deleted after delete on walkthrough_steps
referencing old table as old_rows
for each statement execute function walkthrough_version_begin();
create or replace trigger walkthrough_version_truncated after truncate on walkthrough_steps
for each statement execute function walkthrough_version_begin();

create or replace trigger walkthrough_versions_deleted after delete on walkthroughs
referencing old table as old_rows
for each statement execute function walkthrough_versions_remove();
create or replace trigger walkthrough_versions_truncated after truncate on walkthroughs
for each statement execute function walkthrough_versions_remove();

-- The first version of what there is already: what was edited before is not known.
insert into walkthrough_versions (walkthrough_id)
select distinct walkthrough_id from walkthrough_steps;

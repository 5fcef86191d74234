-- What the two consumers keep: how far the recorder has come, what the aggregator has counted,
-- and which journeys changed where no event says so.
set local lock_timeout = '10s';

create table if not exists recorded_offsets (
  topic text not null,
  partition integer not null,
  next_offset bigint not null,
  primary key (topic, partition)
);
comment on table recorded_offsets is
  'Every offset below next_offset has been judged, and what it changed is committed.';

-- A row that holds no step is a journey being counted for the first time; it never outlives its transaction.
create table if not exists sankey_journeys (
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text,
  step_ids text [] not null default '{}',
  completed_at bigint [] not null default '{}',
  primary key (mcp_server_user_id, walkthrough_id)
) with (fillfactor = 80);
comment on table sankey_journeys is
  'What has been counted of each journey: its server, its steps in order and their times in milliseconds.';

create table if not exists sankey_transitions (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  position integer not null,
  from_step_id text,
  to_step_id text not null,
  journeys bigint not null,
  elapsed_ms numeric not null,
  constraint sankey_transitions_unique unique nulls not distinct (
    walkthrough_id, mcp_server_id, began_on, position, from_step_id, to_step_id
  )
) with (fillfactor = 60);
comment on table sankey_transitions is
  'How many journeys went from one step to the next, by position and by the server and UTC day where they began.';

create table if not exists sankey_endings (
  walkthrough_id text not null,
  mcp_server_id text not null,
  began_on date not null,
  steps_done integer not null,
  step_id text,
  last_active_on date not null,
  journeys bigint not null,
  constraint sankey_endings_unique unique nulls not distinct (
    walkthrough_id, mcp_server_id, began_on, steps_done, step_id, last_active_on
  )
) with (fillfactor = 60);
comment on table sankey_endings is
  'Where journeys stand now: steps done, the step they are at, the UTC day of their last activity.';

create table if not exists sankey_dirty (
  id bigint generated always as identity primary key,
  mcp_server_user_id text not null,
  walkthrough_id text not null
);
comment on table sankey_dirty is
  'An append-only queue of journeys to count again, written in the transaction that changed their completions.';

-- The owner's rights and a fixed search path, so that whoever may change completions also leaves the mark.
create or replace function sankey_mark_deleted() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
  select distinct mcp_server_user_id, walkthrough_id from old_rows;
  return null;
end
$$;

create or replace function sankey_mark_inserted() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
  select distinct mcp_server_user_id, walkthrough_id from new_rows;
  return null;
end
$$;

create or replace function sankey_mark_updated() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  if current_setting('stepstream.recorder', true) = 'on' then
    -- The events name the journeys that the rows are in now. When a step has moved to another walkthrough,
    -- its row leaves a journey that no event names.
    insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
    select mcp_server_user_id, walkthrough_id from old_rows
    except
    select mcp_server_user_id, walkthrough_id from new_rows;
  else
    insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
    select mcp_server_user_id, walkthrough_id from old_rows
    union
    select mcp_server_user_id, walkthrough_id from new_rows;
  end if;
  return null;
end
$$;

create or replace function sankey_mark_truncated() returns trigger
language plpgsql security definer set search_path from current as $$
begin
  insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
  select mcp_server_user_id, walkthrough_id from sankey_journeys;
  return null;
end
$$;

drop trigger if exists sankey_deleted on walkthrough_step_completions;
create trigger sankey_deleted after delete on walkthrough_step_completions
referencing old table as old_rows
for each statement execute function sankey_mark_deleted();

drop trigger if exists sankey_truncated on walkthrough_step_completions;
create trigger sankey_truncated after truncate on walkthrough_step_completions
for each statement execute function sankey_mark_truncated();

-- The recorder's own changes are followed by the event that made them; it says so in its transaction.
drop trigger if exists sankey_inserted on walkthrough_step_completions;
create trigger sankey_inserted after insert on walkthrough_step_completions
referencing new table as new_rows
for each statement when (current_setting('stepstream.recorder', true) is distinct from 'on')
execute function sankey_mark_inserted();

drop trigger if exists sankey_updated on walkthrough_step_completions;
create trigger sankey_updated after update on walkthrough_step_completions
referencing old table as old_rows new table as new_rows
for each statement execute function sankey_mark_updated();

-- Completions from before Stepstream are counted too.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  mcp_server_user_id,
  walkthrough_id
from walkthrough_step_completions;

-- name: create_incoming
-- Where a batch lands before the upsert; one set per connection, empty between transactions.
create temporary table if not exists incoming (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  step_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  completed_at bigint not null,
  metadata jsonb,
  old_ground boolean not null
) on commit delete rows;
create temporary table if not exists incoming_starts (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  started_at bigint not null,
  metadata jsonb,
  old_ground boolean not null
) on commit delete rows;

-- name: advance_offsets
-- How far the recorder comes with this transaction, never backwards; and how far it had come before.
-- The row locks make a member that lost its partitions and the one that got them take turns.
insert into recorded_offsets (topic, partition, next_offset)
select
  $1,
  given.partition,
  given.next_offset
from unnest($2::integer[], $3::bigint[]) as given (partition, next_offset)
order by given.partition
on conflict (topic, partition) do update
set next_offset = greatest(recorded_offsets.next_offset, excluded.next_offset)
returning
  partition,
  coalesce(old.next_offset, 0) as next_offset,
  coalesce(old.recent_events, 0) as recent_events,
  coalesce(old.recent_missing, 0) as recent_missing,
  coalesce(old.recent_broken, 0) as recent_broken,
  coalesce(old.broken_in_a_row, 0) as broken_in_a_row;

-- name: note_recent
-- How bad recent events were, beside how far the recorder is.
update recorded_offsets
set
  recent_events = $2,
  recent_missing = $3,
  recent_broken = $4,
  broken_in_a_row = given.in_a_row
from unnest($5::integer[], $6::integer[]) as given (partition, in_a_row)
where recorded_offsets.topic = $1 and recorded_offsets.partition = given.partition;

-- name: count_references
-- How many of the rows that the batch refers to exist. They stay locked until the commit, so that none
-- vanishes under the foreign keys; `nowait`, because a recorder that waited for a deletion while holding
-- other parents could deadlock with it. A parent being deleted right now ends the transaction; the next
-- try finds it gone.
with
users as (
  select from mcp_server_user where id = any($1::text[]) for key share nowait
),
sessions as (
  select from mcp_server_session where mcp_server_session_id = any($2::text[]) for key share nowait
),
servers as (
  select from mcp_servers where id = any($3::text[]) for key share nowait
),
known_walkthroughs as (
  select from walkthroughs where id = any($4::text[]) for key share nowait
),
steps as (
  select
  from unnest($5::text[], $6::text[]) as given (step_id, walkthrough_id)
  inner join walkthrough_steps on given.step_id = walkthrough_steps.id
    and given.walkthrough_id = walkthrough_steps.walkthrough_id
  for key share of walkthrough_steps nowait
)
select
  (select count(*) from users) as users,
  (select count(*) from sessions) as sessions,
  (select count(*) from servers) as servers,
  (select count(*) from known_walkthroughs) as walkthroughs,
  (select count(*) from steps) as steps,
  (select count(*) from erased_users where mcp_server_user_id = any($1::text[])) as erased;

-- name: find_references
-- Which of them exist; asked only when some do not.
select
  array(select id from mcp_server_user where id = any($1::text[])) as users,
  array(
    select mcp_server_session_id from mcp_server_session where mcp_server_session_id = any($2::text[])
  ) as sessions,
  array(select id from mcp_servers where id = any($3::text[])) as servers,
  array(select id from walkthroughs where id = any($4::text[])) as walkthroughs,
  array(select id from walkthrough_steps where id = any($5::text[])) as step_ids,
  array(select walkthrough_id from walkthrough_steps where id = any($5::text[])) as step_walkthroughs,
  array(select mcp_server_user_id from erased_users where mcp_server_user_id = any($1::text[])) as erased;

-- name: find_erased
select array(select mcp_server_user_id from erased_users where mcp_server_user_id = any($1::text[]));

-- name: note_erased
insert into erased_users (mcp_server_user_id, erased_at, event_id)
select distinct on (given.mcp_server_user_id)
  given.mcp_server_user_id,
  given.erased_at,
  given.event_id
from unnest($1::text[], $2::bigint[], $3::text[]) as given (mcp_server_user_id, erased_at, event_id)
order by given.mcp_server_user_id, given.erased_at, given.event_id
on conflict (mcp_server_user_id) do nothing;

-- name: delete_users
delete from mcp_server_user where id = any($1::text[]);

-- name: delete_from_outbox
delete from outbox
where
  shard = any(
    select (hashtextextended(given.key, 0) & 63)::integer from unnest($1::text[]) as given (key)
  )
  and key = any($1::text[]);

-- name: delete_set_aside
delete from outbox_set_aside where key = any($1::text[]);

-- name: upsert
-- The smallest (completed_at, event id) wins; what follows in the order only decides between different
-- contents under one id, so that the table never depends on the order of arrival. Sorted by key, so that
-- two recorders cannot deadlock.
insert into walkthrough_step_completions as kept (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata
)
select distinct on (mcp_server_user_id collate "C", step_id collate "C")
  id,
  mcp_server_user_id,
  walkthrough_id,
  step_id,
  mcp_server_id,
  mcp_server_session_id,
  completed_at,
  metadata
from incoming
order by
  mcp_server_user_id collate "C",
  step_id collate "C",
  completed_at,
  id collate "C",
  mcp_server_id collate "C",
  mcp_server_session_id collate "C",
  coalesce(metadata::text, '') collate "C"
on conflict on constraint wtsc_user_step_unique do update
set
  id = excluded.id,
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  completed_at = excluded.completed_at,
  metadata = excluded.metadata
where (
  excluded.completed_at,
  excluded.id collate "C",
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C",
  coalesce(excluded.metadata::text, '') collate "C"
) < (
  kept.completed_at,
  kept.id collate "C",
  kept.mcp_server_id collate "C",
  kept.mcp_server_session_id collate "C",
  coalesce(kept.metadata::text, '') collate "C"
);

-- name: mark_changed
-- Continues `with changed as (upsert returning …)`: journeys that a replay changes at offsets which the
-- aggregator has perhaps passed. A replay that changes nothing marks nothing.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  changed.mcp_server_user_id,
  changed.walkthrough_id
from changed
inner join incoming on changed.mcp_server_user_id = incoming.mcp_server_user_id
  and changed.step_id = incoming.step_id
where incoming.old_ground;

-- name: upsert_starts
-- The same rule for starts: the smallest (started_at, event id) of a user and walkthrough wins.
insert into walkthrough_starts as kept (
  id, mcp_server_user_id, walkthrough_id, mcp_server_id, mcp_server_session_id, started_at, metadata
)
select distinct on (mcp_server_user_id collate "C", walkthrough_id collate "C")
  id,
  mcp_server_user_id,
  walkthrough_id,
  mcp_server_id,
  mcp_server_session_id,
  started_at,
  metadata
from incoming_starts
order by
  mcp_server_user_id collate "C",
  walkthrough_id collate "C",
  started_at,
  id collate "C",
  mcp_server_id collate "C",
  mcp_server_session_id collate "C",
  coalesce(metadata::text, '') collate "C"
on conflict on constraint walkthrough_starts_user_unique do update
set
  id = excluded.id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  started_at = excluded.started_at,
  metadata = excluded.metadata
where (
  excluded.started_at,
  excluded.id collate "C",
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C",
  coalesce(excluded.metadata::text, '') collate "C"
) < (
  kept.started_at,
  kept.id collate "C",
  kept.mcp_server_id collate "C",
  kept.mcp_server_session_id collate "C",
  coalesce(kept.metadata::text, '') collate "C"
);

-- name: mark_changed_starts
-- As `mark_changed`, for starts.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  changed.mcp_server_user_id,
  changed.walkthrough_id
from changed
inner join incoming_starts on changed.mcp_server_user_id = incoming_starts.mcp_server_user_id
  and changed.walkthrough_id = incoming_starts.walkthrough_id
where incoming_starts.old_ground;

-- name: clear_incoming
delete from incoming;

-- name: clear_incoming_starts
delete from incoming_starts;

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
  is_replayed boolean not null,
  of_correction boolean not null default false
) on commit delete rows;
create temporary table if not exists incoming_starts (
  id text not null,
  mcp_server_user_id text not null,
  walkthrough_id text not null,
  mcp_server_id text not null,
  mcp_server_session_id text not null,
  started_at bigint not null,
  metadata jsonb,
  is_replayed boolean not null
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
  coalesce(old.recent_broken, 0) as recent_refused;

-- name: find_recent
-- How bad recent events were, up to where each partition is.
select
  partition,
  recent_events,
  recent_broken as recent_refused
from recorded_offsets
where topic = $1 and partition = any($2::integer[]);

-- name: mark_all
-- Every journey that there is: of completions, and of starts.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select
  mcp_server_user_id,
  walkthrough_id
from walkthrough_step_completions
union
select
  mcp_server_user_id,
  walkthrough_id
from walkthrough_starts;

-- name: note_recent
-- How bad recent events were, beside how far the recorder is.
update recorded_offsets
set
  recent_events = $2,
  recent_broken = $3
where topic = $1 and partition = any($4::integer[]);

-- name: is_ours
-- Whether this database holds what was recorded of the topic, and some of it is still there; or a server or
-- walkthrough that events name which cannot be read.
select
  (
    ($4::boolean or exists (select from event_sources where topic = $1 and known))
    and (
      exists (select from walkthrough_step_completions)
      or exists (select from walkthrough_starts)
    )
  )
  or exists (select from mcp_servers where id = any($2::text[]))
  or exists (select from walkthroughs where id = any($3::text[]));

-- name: note_refused
-- Refused events by source, class and the organization that they name; in an order that all recorders share.
with given as (
  select
    given.source,
    given.rejection,
    given.events,
    given.partition,
    given.last_offset,
    given.message,
    given.fields,
    coalesce(server.organization_id, walkthrough.organization_id, '') as organization_id
  from unnest(
    $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::integer[], $8::bigint[], $9::text[],
    $10::jsonb[]
  ) as given (
    source, rejection, server_id, walkthrough_id, events, partition, last_offset, message, fields
  )
  left join mcp_servers as server on given.server_id = server.id
  left join walkthroughs as walkthrough on given.walkthrough_id = walkthrough.id
),
summed as (
  select
    source,
    organization_id,
    rejection,
    sum(events) as events,
    (array_agg(partition))[1] as partition,
    (array_agg(last_offset))[1] as last_offset,
    (array_agg(message))[1] as message,
    (array_agg(fields))[1] as fields
  from given
  group by source, organization_id, rejection
)
insert into refused_events as kept (
  topic, source, organization_id, rejection, events, partition, last_offset, message, fields
)
select
  $1,
  source,
  organization_id,
  rejection,
  events,
  partition,
  last_offset,
  message,
  fields
from summed
order by source, organization_id, rejection
on conflict (topic, source, organization_id, rejection) do update
set
  events = kept.events + excluded.events,
  last_at = clock_timestamp(),
  partition = excluded.partition,
  last_offset = excluded.last_offset,
  message = excluded.message,
  fields = excluded.fields;

-- name: note_sources
-- A source is known once twenty of its events, and one in twenty, were recorded; it stays so.
insert into event_sources as kept (
  topic, source, events, refused, looked_at, elsewhere, without_key, known
)
select
  $1,
  given.source,
  given.events,
  given.refused,
  given.looked_at,
  given.elsewhere,
  given.without_key,
  given.events - given.refused >= 20 and 20 * (given.events - given.refused) >= given.events
from unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[]) as given (
  source, events, refused, looked_at, elsewhere, without_key
)
order by given.source
on conflict (topic, source) do update
set
  events = kept.events + excluded.events,
  refused = kept.refused + excluded.refused,
  looked_at = kept.looked_at + excluded.looked_at,
  elsewhere = kept.elsewhere + excluded.elsewhere,
  without_key = kept.without_key + excluded.without_key,
  known = kept.known or (
    kept.events - kept.refused + excluded.events - excluded.refused >= 20
    and 20 * (kept.events - kept.refused + excluded.events - excluded.refused) >= kept.events + excluded.events
  ),
  last_at = clock_timestamp();

-- name: note_places
insert into source_organizations as kept (topic, source, organization_id)
select distinct
  $1,
  given.source,
  mcp_servers.organization_id
from unnest($2::text[], $3::text[]) as given (source, server_id)
inner join mcp_servers on given.server_id = mcp_servers.id
order by given.source, mcp_servers.organization_id
on conflict (topic, source, organization_id) do update
set last_at = clock_timestamp();

-- name: find_sources
select source from event_sources where topic = $1;

-- name: forget_sources
-- Names that somebody made up do not stay, and neither do old refusals.
with old_sources as (
  delete from event_sources
  where not known and last_at < clock_timestamp() - interval '7 days'
)
delete from refused_events
where last_at < clock_timestamp() - interval '90 days';

-- name: count_references
-- How many of the rows that the batch refers to exist and belong together: a session to its server, and to its
-- user where it has one; a server and a walkthrough to one organization; a step to its walkthrough. They stay
-- locked until the commit, so that none vanishes under the foreign keys; `nowait`, because a recorder that
-- waited for a deletion while holding other parents could deadlock with it. A row that somebody else has locked
-- ends the transaction.
with
users as (
  select from mcp_server_user where id = any($1::text[]) for key share nowait
),
sessions as (
  select
  from unnest($2::text[], $3::text[], $4::text[]) as given (session_id, server_id, user_id)
  inner join mcp_server_session as session on given.session_id = session.mcp_server_session_id
  inner join mcp_servers as server on given.server_id = server.id and session.mcp_server_slug = server.slug
  where session.mcp_server_user_id is null or session.mcp_server_user_id = given.user_id
  for key share of session nowait
),
places as (
  select
  from unnest($5::text[], $6::text[]) as given (server_id, walkthrough_id)
  inner join mcp_servers as server on given.server_id = server.id
  inner join walkthroughs as walkthrough on given.walkthrough_id = walkthrough.id
    and server.organization_id = walkthrough.organization_id
  for key share of server, walkthrough nowait
),
steps as (
  select
  from unnest($7::text[], $8::text[]) as given (step_id, walkthrough_id)
  inner join walkthrough_steps on given.step_id = walkthrough_steps.id
    and given.walkthrough_id = walkthrough_steps.walkthrough_id
  for key share of walkthrough_steps nowait
)
select
  (select count(*) from users) as users,
  (select count(*) from sessions) as sessions,
  (select count(*) from places) as places,
  (select count(*) from steps) as steps,
  (select count(*) from erased_users where mcp_server_user_id = any($1::text[])) as erased;

-- name: lock_references
-- Those of the rows that nobody else has locked; they are locked until the commit.
with
users as (
  select id from mcp_server_user where id = any($1::text[]) for key share skip locked
),
sessions as (
  select mcp_server_session_id as id from mcp_server_session
  where mcp_server_session_id = any($2::text[])
  for key share skip locked
),
servers as (
  select id from mcp_servers where id = any($3::text[]) for key share skip locked
),
known_walkthroughs as (
  select id from walkthroughs where id = any($4::text[]) for key share skip locked
),
steps as (
  select id from walkthrough_steps where id = any($5::text[]) for key share skip locked
)
select
  array(select id from users) as users,
  array(select id from sessions) as sessions,
  array(select id from servers) as servers,
  array(select id from known_walkthroughs) as walkthroughs,
  array(select id from steps) as steps;

-- name: find_references
-- Which of the rows exist, and what they belong to; asked only when something is missing, or locked.
select 'users' as kind, id, null as one, null as two from mcp_server_user where id = any($1::text[])
union all
select 'sessions', session.mcp_server_session_id, server.id, session.mcp_server_user_id
from mcp_server_session as session
left join mcp_servers as server on session.mcp_server_slug = server.slug
where session.mcp_server_session_id = any($2::text[])
union all
select 'servers', id, organization_id, null from mcp_servers where id = any($3::text[])
union all
select 'walkthroughs', id, organization_id, null from walkthroughs where id = any($4::text[])
union all
select 'steps', id, walkthrough_id, null from walkthrough_steps where id = any($5::text[])
union all
select 'erased', mcp_server_user_id, null, null from erased_users where mcp_server_user_id = any($1::text[]);

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

-- name: lock_people
-- Those of the people that nobody else has locked, locked as a deletion would.
select id from mcp_server_user where id = any($1::text[]) for update skip locked;

-- name: find_people
select id from mcp_server_user where id = any($1::text[]);

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

-- name: delete_waiting
delete from waiting_events where mcp_server_user_id = any($1::text[]);

-- name: lock_completions
-- Rows of these users and steps that nobody else has locked; locked as the upsert would.
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id
for update of kept skip locked;

-- name: find_completions
select
  kept.mcp_server_user_id,
  kept.step_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id;

-- name: lock_starts
-- As `lock_completions`, for starts.
select
  kept.mcp_server_user_id,
  kept.walkthrough_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join walkthrough_starts as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.walkthrough_id = kept.walkthrough_id
for update of kept skip locked;

-- name: find_starts
select
  kept.mcp_server_user_id,
  kept.walkthrough_id
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, walkthrough_id)
inner join walkthrough_starts as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.walkthrough_id = kept.walkthrough_id;

-- name: find_reused_ids_of_completions
-- Of these events those whose id another row has, or that are doubled ($7): whether they would be written, and
-- whose row it is.
select
  given.number,
  own.id is null
  or (given.happened_at, given.id collate "C") <= (own.completed_at, own.id collate "C") as wins,
  server.organization_id as organization,
  holder.mcp_server_user_id as holder_user,
  holder.completed_at as holder_at,
  its_server.organization_id as holder_organization
from (
  select
    number,
    'wtsc_' || event_id as id,
    mcp_server_user_id,
    step_id,
    mcp_server_id,
    happened_at,
    doubled
  from unnest(
    $1::integer[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::boolean[]
  ) as given (number, event_id, mcp_server_user_id, step_id, mcp_server_id, happened_at, doubled)
) as given
inner join mcp_servers as server on given.mcp_server_id = server.id
left join walkthrough_step_completions as holder on given.id = holder.id
  and (given.mcp_server_user_id, given.step_id) <> (holder.mcp_server_user_id, holder.step_id)
left join mcp_servers as its_server on holder.mcp_server_id = its_server.id
left join walkthrough_step_completions as own on given.mcp_server_user_id = own.mcp_server_user_id
  and given.step_id = own.step_id
where holder.id is not null or given.doubled;

-- name: find_reused_ids_of_starts
-- Of these events those whose id another row has, or that are doubled ($7): whether they would be written, and
-- whose row it is.
select
  given.number,
  own.id is null
  or (given.happened_at, given.id collate "C") <= (own.started_at, own.id collate "C") as wins,
  server.organization_id as organization,
  holder.mcp_server_user_id as holder_user,
  holder.started_at as holder_at,
  its_server.organization_id as holder_organization
from (
  select
    number,
    'wtst_' || event_id as id,
    mcp_server_user_id,
    walkthrough_id,
    mcp_server_id,
    happened_at,
    doubled
  from unnest(
    $1::integer[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::boolean[]
  ) as given (number, event_id, mcp_server_user_id, walkthrough_id, mcp_server_id, happened_at, doubled)
) as given
inner join mcp_servers as server on given.mcp_server_id = server.id
left join walkthrough_starts as holder on given.id = holder.id
  and (given.mcp_server_user_id, given.walkthrough_id) <> (holder.mcp_server_user_id, holder.walkthrough_id)
left join mcp_servers as its_server on holder.mcp_server_id = its_server.id
left join walkthrough_starts as own on given.mcp_server_user_id = own.mcp_server_user_id
  and given.walkthrough_id = own.walkthrough_id
where holder.id is not null or given.doubled;

-- name: set_aside
-- An event that waits already, and is read again, waits once.
insert into waiting_events (
  topic, partition, "offset", timestamp, key, value, headers, mcp_server_user_id, walkthrough_id, waits_for
)
select
  given.topic,
  given.partition,
  given."offset",
  given.timestamp,
  given.key,
  given.value,
  given.headers,
  given.mcp_server_user_id,
  given.walkthrough_id,
  given.waits_for
from unnest(
  $1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bytea[], $6::bytea[], $7::jsonb[], $8::text[],
  $9::text[], $10::text[]
) as given (
  topic, partition, "offset", timestamp, key, value, headers, mcp_server_user_id, walkthrough_id, waits_for
)
where not exists (
  select from waiting_events as there
  where there.topic = given.topic and there.partition = given.partition and there."offset" = given."offset"
    and there.value = given.value
);

-- name: take_first_waiting
-- For each lock that events wait for, the first of them: by it the others are known to wait, too. But for those
-- that another recorder looks at just now. So many, of $3 bytes in all, and at least one.
with recursive firsts as (
  (
    select waits_for, id from waiting_events
    where waits_for > $1
    order by waits_for, id
    limit 1
  )
  union all
  select following.waits_for, following.id
  from firsts
  cross join lateral (
    select waits_for, id from waiting_events
    where waits_for > firsts.waits_for
    order by waits_for, id
    limit 1
  ) as following
),
taken as materialized (
  select event.*
  from (select id from firsts limit $2) as first
  inner join waiting_events as event on first.id = event.id
  order by event.waits_for
  for update of event skip locked
),
measured as (
  select
    *,
    sum(octet_length(value) + coalesce(octet_length(key), 0) + octet_length(headers::text)) over (
      order by waits_for rows between unbounded preceding and 1 preceding
    ) as bytes_before
  from taken
)
select
  id,
  topic,
  partition,
  "offset",
  timestamp,
  key,
  value,
  headers,
  waits_for
from measured
where coalesce(bytes_before, 0) < $3
order by waits_for;

-- name: take_waiting
-- The next that waited for these locks, as above.
with taken as materialized (
  select *
  from waiting_events
  where waits_for = any($1::text[]) and id > $2
  order by id
  limit $3
  for update skip locked
),
measured as (
  select
    *,
    sum(octet_length(value) + coalesce(octet_length(key), 0) + octet_length(headers::text)) over (
      order by id rows between unbounded preceding and 1 preceding
    ) as bytes_before
  from taken
)
select
  id,
  topic,
  partition,
  "offset",
  timestamp,
  key,
  value,
  headers,
  waits_for
from measured
where coalesce(bytes_before, 0) < $4
order by id;

-- name: wait_for_another
-- What these events wait for now.
update waiting_events
set waits_for = given.waits_for
from unnest($1::bigint[], $2::text[]) as given (id, waits_for)
where waiting_events.id = given.id and waiting_events.waits_for <> given.waits_for;

-- name: take_refused
-- Those of these events that no other recorder sends to the dead letters just now, or has sent.
select id from waiting_events
where id = any($1::bigint[])
order by id
for update skip locked;

-- name: forget_waiting
delete from waiting_events where id = any($1::bigint[]);

-- name: count_waiting
select
  count(*) as events,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 as oldest_seconds
from waiting_events;

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

-- name: keep_outdone
-- Continues `with changed as (upsert returning …)`: the completions that earlier ones have taken the row from. What a
-- correction says is in its own row already.
insert into later_completions as later (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata
)
select
  changed.old_id,
  changed.mcp_server_user_id,
  changed.old_walkthrough_id,
  changed.step_id,
  changed.old_server_id,
  changed.old_session_id,
  changed.old_completed_at,
  changed.old_metadata
from changed
where
  changed.old_id is not null and (changed.old_id, changed.old_completed_at) <> (changed.id, changed.completed_at)
  and not exists (
    select from completion_corrections as correction
    where
      correction.mcp_server_user_id = changed.mcp_server_user_id and correction.step_id = changed.step_id
      and 'wtsc_' || correction.event_id = changed.old_id and correction.completed_at = changed.old_completed_at
  )
on conflict (mcp_server_user_id, step_id, completed_at, id) do nothing;

-- name: mark_changed
-- Journeys that a replay changes at offsets which the aggregator has perhaps passed. A replay that changes nothing
-- marks nothing.
insert into sankey_dirty (mcp_server_user_id, walkthrough_id)
select distinct
  changed.mcp_server_user_id,
  changed.walkthrough_id
from changed
inner join incoming on changed.mcp_server_user_id = incoming.mcp_server_user_id
  and changed.step_id = incoming.step_id
where incoming.is_replayed;

-- name: keep_later
-- Completions of the batch that do not count because the row is of an earlier one. Sorted as the upsert; row by row,
-- through the index, however large the table is.
insert into later_completions as later (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata
)
select distinct on (
  incoming.mcp_server_user_id collate "C", incoming.step_id collate "C", incoming.completed_at, incoming.id collate "C"
)
  incoming.id,
  incoming.mcp_server_user_id,
  incoming.walkthrough_id,
  incoming.step_id,
  incoming.mcp_server_id,
  incoming.mcp_server_session_id,
  incoming.completed_at,
  incoming.metadata
from incoming
cross join lateral (
  select
    kept.id,
    kept.completed_at
  from walkthrough_step_completions as kept
  where incoming.mcp_server_user_id = kept.mcp_server_user_id and incoming.step_id = kept.step_id
  limit 1
) as kept
where (incoming.id, incoming.completed_at) <> (kept.id, kept.completed_at) and not incoming.of_correction
order by
  incoming.mcp_server_user_id collate "C",
  incoming.step_id collate "C",
  incoming.completed_at,
  incoming.id collate "C",
  incoming.mcp_server_id collate "C",
  incoming.mcp_server_session_id collate "C",
  coalesce(incoming.metadata::text, '') collate "C"
on conflict (mcp_server_user_id, step_id, completed_at, id) do update
set
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  metadata = excluded.metadata
where (
  excluded.mcp_server_id collate "C",
  excluded.mcp_server_session_id collate "C",
  coalesce(excluded.metadata::text, '') collate "C"
) < (
  later.mcp_server_id collate "C",
  later.mcp_server_session_id collate "C",
  coalesce(later.metadata::text, '') collate "C"
);

-- name: drop_recorded
-- Completions of the batch that are rows already, as they are: nothing is left to do for them.
delete from incoming
where exists (
  select
  from (
    select * from walkthrough_step_completions
    where incoming.mcp_server_user_id = mcp_server_user_id and incoming.step_id = step_id
    offset 0 -- by this index: many may have been completed at one moment
  ) as kept
  where
    incoming.id = kept.id and incoming.completed_at = kept.completed_at
    and incoming.walkthrough_id = kept.walkthrough_id and incoming.mcp_server_id = kept.mcp_server_id
    and incoming.mcp_server_session_id = kept.mcp_server_session_id
    and incoming.metadata is not distinct from kept.metadata
);

-- name: drop_covered
-- Completions of the batch that a correction covers.
delete from incoming
using completion_corrections as correction
where
  incoming.mcp_server_user_id = correction.mcp_server_user_id and incoming.step_id = correction.step_id
  and incoming.completed_at <= correction.covers_until and not incoming.of_correction;

-- name: lock_corrected
-- The people whose completions are corrected: while we hold them nobody records a completion of theirs, which keeps
-- the row of the person. `nowait`, as `count_references`.
select id from mcp_server_user where id = any($1::text[]) order by id for update nowait;

-- name: find_corrections
-- What was decided about these users and steps before.
select
  kept.event_id,
  kept.mcp_server_user_id,
  kept.walkthrough_id,
  kept.step_id,
  kept.mcp_server_id,
  kept.mcp_server_session_id,
  kept.corrected_at,
  kept.covers_until,
  kept.completed_at
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id;

-- name: write_corrections
insert into completion_corrections (
  event_id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, corrected_at,
  covers_until, completed_at
)
select *
from unnest(
  $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[], $9::bigint[]
)
on conflict (mcp_server_user_id, step_id) do update
set
  event_id = excluded.event_id,
  walkthrough_id = excluded.walkthrough_id,
  mcp_server_id = excluded.mcp_server_id,
  mcp_server_session_id = excluded.mcp_server_session_id,
  corrected_at = excluded.corrected_at,
  covers_until = excluded.covers_until,
  completed_at = excluded.completed_at;

-- name: delete_superseded
-- Rows of corrections that decide no more.
delete from walkthrough_step_completions as kept
using unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) as given (id, mcp_server_user_id, step_id, completed_at)
where
  kept.mcp_server_user_id = given.mcp_server_user_id and kept.step_id = given.step_id
  and kept.id = given.id and kept.completed_at = given.completed_at;

-- name: delete_covered
-- Rows of these users and steps that their correction covers, but for the row that is the correction's.
delete from walkthrough_step_completions as kept
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where
  kept.mcp_server_user_id = given.mcp_server_user_id and kept.step_id = given.step_id
  and kept.completed_at <= correction.covers_until
  and (kept.id, kept.completed_at) is distinct from ('wtsc_' || correction.event_id, correction.completed_at);

-- name: delete_covered_later
delete from later_completions as later
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where
  later.mcp_server_user_id = given.mcp_server_user_id and later.step_id = given.step_id
  and later.completed_at <= correction.covers_until;

-- name: take_candidates
-- What may count now of these users and steps, beside the row that is there: what the correction says, and what is
-- later than it covers. New events may not name these journeys, so each change leaves a mark.
insert into incoming (
  id, mcp_server_user_id, walkthrough_id, step_id, mcp_server_id, mcp_server_session_id, completed_at, metadata,
  is_replayed, of_correction
)
select
  'wtsc_' || correction.event_id,
  correction.mcp_server_user_id,
  correction.walkthrough_id,
  correction.step_id,
  correction.mcp_server_id,
  correction.mcp_server_session_id,
  correction.completed_at,
  null,
  true,
  true
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join completion_corrections as correction on given.mcp_server_user_id = correction.mcp_server_user_id
  and given.step_id = correction.step_id
where correction.completed_at is not null
union all
select
  later.id,
  later.mcp_server_user_id,
  later.walkthrough_id,
  later.step_id,
  later.mcp_server_id,
  later.mcp_server_session_id,
  later.completed_at,
  later.metadata,
  true,
  false
from unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join later_completions as later on given.mcp_server_user_id = later.mcp_server_user_id
  and given.step_id = later.step_id;

-- name: forget_counted
-- What counts now is no later completion any more.
delete from later_completions as later
using unnest($1::text[], $2::text[]) as given (mcp_server_user_id, step_id)
inner join walkthrough_step_completions as kept on given.mcp_server_user_id = kept.mcp_server_user_id
  and given.step_id = kept.step_id
where
  later.mcp_server_user_id = given.mcp_server_user_id and later.step_id = given.step_id
  and later.id = kept.id and later.completed_at = kept.completed_at;

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
where incoming_starts.is_replayed;

-- name: clear_incoming
delete from incoming;

-- name: clear_incoming_starts
delete from incoming_starts;

-- name: count_gone
select count(*) from gone_events where acknowledged_at is null;

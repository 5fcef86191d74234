-- name: erase_lock
select id from mcp_server_user
where id = $1
for update;

-- name: erase_names
-- What a person is called: by these names others may speak of them.
select
  distinct_id,
  email
from mcp_server_user
where id = $1;

-- name: erase_count_sources
-- Rows about who sent what that name a person, as a source or in an example of what was refused. Which sources are
-- a person the first pattern says; the second argument are sources that are nobody's, and the first of them takes
-- what the others had.
select
  (select count(*) from event_sources where source ~ $1::text and source <> all($2::text[]))
  + (select count(*) from source_organizations where source ~ $1::text and source <> all($2::text[]))
  + (
    select count(*) from refused_events
    where
      source ~ $1::text and source <> all($2::text[])
      or message ~ $3::text
      or fields::text ~ $3::text
  ) as sources;

-- name: erase_lock_sources
-- Recorders write these tables in this order; what they cannot write now they write later.
lock table refused_events, event_sources, source_organizations in share row exclusive mode;

-- name: erase_refusals
-- Refused events of a source that is a person become those of no source.
with theirs as (
  delete from refused_events where source ~ $1::text and source <> all($2::text[])
  returning *
)
insert into refused_events as kept (
  topic, source, organization_id, rejection, events, first_at, last_at, partition, last_offset, message, fields
)
select
  topic,
  ($2::text[])[1],
  organization_id,
  rejection,
  sum(events),
  min(first_at),
  max(last_at),
  (array_agg(partition order by last_at desc))[1],
  (array_agg(last_offset order by last_at desc))[1],
  (array_agg(message order by last_at desc))[1],
  (array_agg(fields order by last_at desc))[1]
from theirs
group by topic, organization_id, rejection
on conflict (topic, source, organization_id, rejection) do update
set
  events = kept.events + excluded.events,
  first_at = least(kept.first_at, excluded.first_at),
  last_at = greatest(kept.last_at, excluded.last_at);

-- name: erase_examples
-- Examples of what was refused say nothing of the person; the names of fields go where one of them does.
update refused_events
set
  message = regexp_replace(message, $1::text, '…', 'g'),
  fields = case when fields::text ~ $1::text then '{}' else fields end
where message ~ $1::text or fields::text ~ $1::text;

-- name: erase_sources
-- What a source that is a person has sent is what no source has sent.
with theirs as (
  delete from event_sources where source ~ $1::text and source <> all($2::text[])
  returning *
)
insert into event_sources as kept (
  topic, source, events, refused, looked_at, elsewhere, without_key, known, first_at, last_at
)
select
  topic,
  ($2::text[])[1],
  sum(events),
  sum(refused),
  sum(looked_at),
  sum(elsewhere),
  sum(without_key),
  bool_or(known),
  min(first_at),
  max(last_at)
from theirs
group by topic
on conflict (topic, source) do update
set
  events = kept.events + excluded.events,
  refused = kept.refused + excluded.refused,
  looked_at = kept.looked_at + excluded.looked_at,
  elsewhere = kept.elsewhere + excluded.elsewhere,
  without_key = kept.without_key + excluded.without_key,
  known = kept.known or excluded.known,
  first_at = least(kept.first_at, excluded.first_at),
  last_at = greatest(kept.last_at, excluded.last_at);

-- name: erase_places
with theirs as (
  delete from source_organizations where source ~ $1::text and source <> all($2::text[])
  returning *
)
insert into source_organizations as kept (topic, source, organization_id, last_at)
select
  topic,
  ($2::text[])[1],
  organization_id,
  max(last_at)
from theirs
group by topic, organization_id
on conflict (topic, source, organization_id) do update
set last_at = greatest(kept.last_at, excluded.last_at);

-- name: erase_plan
select
  exists (select from mcp_server_user where id = $1) as known,
  (select erased_at from erased_users where mcp_server_user_id = $1) as erased_at,
  (select count(*) from walkthrough_step_completions where mcp_server_user_id = $1) as completions,
  (select count(*) from later_completions where mcp_server_user_id = $1) as later_completions,
  (select count(*) from completion_corrections where mcp_server_user_id = $1) as corrections,
  (select count(*) from walkthrough_starts where mcp_server_user_id = $1) as starts,
  (select count(*) from sankey_journeys where mcp_server_user_id = $1) as journeys,
  (select count(*) from walkthrough_progress where mcp_server_user_id = $1) as progress,
  (select count(*) from mcp_server_session where mcp_server_user_id = $1) as sessions,
  (select count(*) from mcp_user_identities where mcp_server_user_id = $1) as identities,
  (
    select count(*) from outbox
    where is_event_of($1, $2, key, value) and is_erasure_of($1, type, headers) is not true
  ) as outbox,
  (
    select count(*) from outbox_set_aside
    where is_event_of($1, $2, key, value) and is_erasure_of($1, type, headers) is not true
  ) as outbox_set_aside,
  (select count(*) from waiting_events where mcp_server_user_id = $1) as waiting_events;

-- name: erase_waiting_events
delete from waiting_events where mcp_server_user_id = $1;

-- name: erase_note
insert into erased_users (mcp_server_user_id, erased_at, event_id) values ($1, $2, $3)
on conflict (mcp_server_user_id) do nothing
returning true;

-- name: erase_told
select
  erased_at,
  event_id
from erased_users
where mcp_server_user_id = $1;

-- name: erase_journeys
select walkthrough_id from walkthrough_step_completions where mcp_server_user_id = $1
union
select walkthrough_id from walkthrough_starts where mcp_server_user_id = $1
union
select walkthrough_id from sankey_journeys where mcp_server_user_id = $1;

-- name: erase_outbox
-- All that is on its way of a person but the event that says that they are erased.
delete from outbox
where is_event_of($1, $2, key, value) and is_erasure_of($1, type, headers) is not true;

-- name: erase_set_aside
delete from outbox_set_aside
where is_event_of($1, $2, key, value) and is_erasure_of($1, type, headers) is not true;

-- name: erase_user
delete from mcp_server_user where id = $1;

-- name: erase_marks
delete from sankey_dirty where mcp_server_user_id = $1;

-- name: erase_announce
insert into outbox (key, value, headers, type) values ($1, $2, $3, 'user-erased');

-- name: erase_waiting
select
  id,
  key,
  value,
  headers
from outbox
where
  shard = (hashtextextended($1, 0) & 63)::integer and key = $1
  and is_erasure_of($1, type, headers)
order by id
limit 1;

-- name: erase_sent
delete from outbox where id = $1;

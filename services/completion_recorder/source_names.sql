-- name: count_names
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

-- name: lock_names
-- Recorders write these tables in this order; what they cannot write now they write later.
lock table refused_events, event_sources, source_organizations in share row exclusive mode;

-- name: forget_in_refusals
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

-- name: forget_in_sources
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

-- name: forget_in_organizations
-- Where a source that is a person has sent events of, no source has.
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

-- name: forget_in_examples
-- Examples of what was refused say nothing of the person; the names of fields go where one of them does.
update refused_events
set
  message = regexp_replace(message, $1::text, '…', 'g'),
  fields = case when fields::text ~ $1::text then '{}' else fields end
where message ~ $1::text or fields::text ~ $1::text;

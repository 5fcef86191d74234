-- name: note_recent
-- How bad recent events were, beside how far the recorder is.
update recorded_offsets
set
  recent_events = $2,
  recent_broken = $3
where topic = $1 and partition = any($4::integer[]);

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

-- name: note_organizations
-- To which organizations sources send, by the servers that their events name.
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
-- The sources of a topic that are told apart.
select source from event_sources where topic = $1;

-- name: forget_sources
-- Names that somebody made up do not stay, and neither do old refusals.
with old_sources as (
  delete from event_sources
  where not known and last_at < clock_timestamp() - interval '7 days'
)
delete from refused_events
where last_at < clock_timestamp() - interval '90 days';

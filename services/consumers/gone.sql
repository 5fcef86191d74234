-- name: name_gone
-- Once: what is named already is not named again.
insert into gone_events (topic, partition, cause, from_offset, until_offset, before_at, after_at, judged_until)
select
  $1,
  given.*
from unnest(
  $2::integer[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[]
) as given (partition, cause, from_offset, until_offset, before_at, after_at, judged_until)
where not exists (
  select from gone_events as known
  where
    known.topic = $1 and known.partition = given.partition and known.cause = given.cause
    and known.from_offset = given.from_offset and known.until_offset is not distinct from given.until_offset
    and known.acknowledged_at is null
);

-- name: read_skipped
-- What operators have left behind of these partitions.
select
  partition,
  from_offset,
  until_offset
from gone_events
where topic = $1 and partition = any($2::integer[]) and cause = 'skipped';

-- name: list_gone
-- The times as they are told: in milliseconds since the epoch.
select
  id,
  (extract(epoch from noticed_at) * 1000)::bigint as noticed_at,
  topic,
  partition,
  cause,
  from_offset,
  until_offset,
  before_at,
  after_at,
  judged_until,
  (extract(epoch from acknowledged_at) * 1000)::bigint as acknowledged_at
from gone_events
where $1 or acknowledged_at is null
order by id;

-- name: acknowledge_gone
update gone_events set acknowledged_at = clock_timestamp()
where id = any($1::bigint[]) and acknowledged_at is null;

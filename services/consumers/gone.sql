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

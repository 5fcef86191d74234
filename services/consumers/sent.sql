-- name: read_sent
-- The last event of each partition that was acknowledged to a relay.
select
  partition,
  last_offset,
  last_timestamp,
  last_checksum
from sent_events
where topic = $1;

-- name: contested_sent
-- Partitions that may have been cut behind the last event that was acknowledged to a relay.
select partition from sent_events
where topic = $1 and contested;

-- name: trust_sent
-- What somebody has locked is trusted the next time.
update sent_events as kept set contested = false
from (
  select partition from sent_events
  where topic = $1 and partition = any($2::integer[]) and contested
  for no key update skip locked
) as free
where kept.topic = $1 and kept.partition = free.partition;

-- name: forget_sent
delete from sent_events where topic = $1 and partition = any($2::integer[]);

-- name: read_witnessed
-- What relays knew to be in these partitions before this database took the place of another.
select
  topic_id,
  partition,
  leader_epoch,
  last_offset,
  last_timestamp,
  last_checksum
from witnessed_events
where topic = $1 and partition = any($2::integer[])
order by partition, leader_epoch, last_offset;

-- name: keep_witnessed
-- It is in the log: it is kept as if it had been noted here, where nothing later is.
insert into sent_events as kept (topic, partition, last_offset, last_timestamp, last_checksum)
values ($1, $2, $3, $4, $5)
on conflict (topic, partition) do update
set
  last_offset = excluded.last_offset,
  last_timestamp = excluded.last_timestamp,
  last_checksum = excluded.last_checksum
where not kept.contested and kept.last_offset < excluded.last_offset;

-- name: forget_witnessed
-- It was looked for.
delete from witnessed_events
where topic = $1 and topic_id = $2 and partition = $3 and leader_epoch = $4 and last_offset = $5;

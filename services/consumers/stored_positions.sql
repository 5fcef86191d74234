-- name: read_positions
-- Where a service is; the name of the table is that of the service's own.
select
  partition,
  coalesce(reads_from, next_offset) as reads_from,
  next_offset,
  marks_until,
  cluster_id,
  topic_id,
  leader_epoch,
  last_offset,
  last_timestamp,
  last_checksum,
  coalesce(digest_from, next_offset) as digest_from,
  digest_events,
  digest
from recorded_offsets
where topic = $1 and ($2::integer[] is null or partition = any($2::integer[]))
order by partition;

-- name: lock_positions
-- Before they are written: in order, so that nobody waits in a circle.
select partition
from recorded_offsets
where topic = $1 and partition = any($2::integer[])
order by partition
for update;

-- name: lock_free_positions
-- As lock_positions, and nobody is waited for: it returns the rows that somebody else has locked, and who, where only
-- one has.
with free as materialized (
  select partition from recorded_offsets
  where topic = $1 and partition = any($2::integer[])
  for no key update skip locked
)
select
  kept.partition,
  holder.pid,
  coalesce(holder.usename, '') as role,
  coalesce(holder.application_name, '') as application,
  prepared.gid as prepared
from recorded_offsets as kept
left join pg_locks as held on kept.xmax = held.transactionid and held.granted and held.mode = 'ExclusiveLock'
left join pg_stat_activity as holder on held.pid = holder.pid
left join pg_prepared_xacts as prepared on kept.xmax = prepared.transaction
where
  kept.topic = $1 and kept.partition = any($2::integer[])
  and not exists (select from free where free.partition = kept.partition)
order by kept.partition;

-- name: advance_positions
-- Behind what this transaction covers, where it begins at what is stored and nobody else has locked that; it returns the
-- partitions where it does.
with free as materialized (
  select partition from recorded_offsets
  where topic = $1 and partition = any($2::integer[])
  for no key update skip locked
)
update recorded_offsets as kept
set
  reads_from = given.reads_from,
  next_offset = given.next_offset,
  last_offset = given.last_offset,
  last_timestamp = given.last_timestamp,
  last_checksum = given.last_checksum,
  digest_from = given.digest_from,
  digest_events = given.digest_events,
  digest = given.digest
from unnest(
  $2::integer[],
  $3::bigint[],
  $4::bigint[],
  $5::text[],
  $6::bigint[],
  $7::bigint[],
  $8::bigint[],
  $9::bigint[],
  $10::bigint[],
  $11::bigint[],
  $12::bigint[],
  $13::bigint[]
) as given (
  partition,
  old_reads_from,
  old_next_offset,
  old_topic_id,
  reads_from,
  next_offset,
  last_offset,
  last_timestamp,
  last_checksum,
  digest_from,
  digest_events,
  digest
)
inner join free on given.partition = free.partition
where
  kept.topic = $1 and kept.partition = given.partition
  and coalesce(kept.reads_from, kept.next_offset) = given.old_reads_from
  and kept.next_offset = given.old_next_offset and kept.topic_id = given.old_topic_id
returning kept.partition;

-- name: set_positions
-- Where a service reads on, whatever was stored.
insert into recorded_offsets (
  topic,
  partition,
  reads_from,
  next_offset,
  marks_until,
  cluster_id,
  topic_id,
  leader_epoch,
  last_offset,
  last_timestamp,
  last_checksum,
  digest_from,
  digest_events,
  digest
)
select
  $1,
  given.*
from unnest(
  $2::integer[],
  $3::bigint[],
  $4::bigint[],
  $5::bigint[],
  $6::text[],
  $7::text[],
  $8::integer[],
  $9::bigint[],
  $10::bigint[],
  $11::bigint[],
  $12::bigint[],
  $13::bigint[],
  $14::bigint[]
) as given
on conflict (topic, partition) do update
set
  reads_from = excluded.reads_from,
  next_offset = excluded.next_offset,
  marks_until = excluded.marks_until,
  cluster_id = excluded.cluster_id,
  topic_id = excluded.topic_id,
  leader_epoch = excluded.leader_epoch,
  last_offset = excluded.last_offset,
  last_timestamp = excluded.last_timestamp,
  last_checksum = excluded.last_checksum,
  digest_from = excluded.digest_from,
  digest_events = excluded.digest_events,
  digest = excluded.digest;

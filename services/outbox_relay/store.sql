-- name: take_shards
-- The shards that hold rows and that no other relay has; locked until the transaction ends.
select shard from outbox_shards
where exists (select from outbox where outbox.shard = outbox_shards.shard)
for update skip locked;

-- name: next_rows
-- The oldest rows of these shards that nobody else has locked; ours until the transaction ends. Of a key of which somebody
-- has locked a row none is taken: its order would change. A statement of its own: its snapshot is taken after the locks
-- of the shards, so rows that the previous holder removed are not seen again.
with free as materialized (
  select
    rows_.id,
    rows_.shard,
    rows_.key,
    rows_.value,
    rows_.headers
  from unnest($1::integer[]) as taken (shard)
  cross join lateral (
    select
      id,
      shard,
      key,
      value,
      headers
    from outbox
    where outbox.shard = taken.shard
    order by id
    limit $2
    for no key update skip locked
  ) as rows_
),
held as materialized (
  select passed.key
  from (select shard, max(id) as last from free group by shard) as reach
  cross join lateral (
    select id, key from outbox
    where outbox.shard = reach.shard and outbox.id < reach.last
    order by id
    offset 0 -- by the index of shards, however much waits
  ) as passed
  where passed.id not in (select id from free)
)
select
  id,
  key,
  value,
  headers
from free
where not exists (select from held where held.key = free.key)
order by id;

-- name: remove_sent
delete from outbox
where id = any($1::bigint[]);

-- name: note_sent
-- The last that was acknowledged in each partition: who reads finds out by it whether a log was cut. Where it may have
-- been before a load, or within, because offsets go back or Kafka was away: what was there before stays as it is, for
-- the recorder to look for.
insert into sent_events as kept (topic, partition, last_offset, last_timestamp, last_checksum, contested)
select
  $1,
  given.partition,
  case when known.stays then sent.last_offset else given.last_offset end,
  case when known.stays then sent.last_timestamp else given.last_timestamp end,
  case when known.stays then sent.last_checksum else given.last_checksum end,
  known.stays or given.interrupted
from unnest(
  $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::boolean[], $8::boolean[]
) as given (partition, last_offset, last_timestamp, last_checksum, first_offset, follows_on, interrupted)
left join sent_events as sent on sent.topic = $1 and given.partition = sent.partition
cross join lateral (
  select
    sent.partition is not null
    and (sent.contested or not given.follows_on or given.first_offset <= sent.last_offset) as stays
) as known
order by given.partition
on conflict (topic, partition) do update
set
  contested = kept.contested or excluded.contested or excluded.last_offset <= kept.last_offset,
  last_offset = case
    when kept.contested or excluded.last_offset <= kept.last_offset then kept.last_offset
    else excluded.last_offset
  end,
  last_timestamp = case
    when kept.contested or excluded.last_offset <= kept.last_offset then kept.last_timestamp
    else excluded.last_timestamp
  end,
  last_checksum = case
    when kept.contested or excluded.last_offset <= kept.last_offset then kept.last_checksum
    else excluded.last_checksum
  end;

-- name: witness
-- What this relay knew before the database took the place of another, for the recorder to look for.
insert into witnessed_events (
  topic, topic_id, partition, leader_epoch, last_offset, last_timestamp, last_checksum
)
select
  $1,
  given.*
from unnest($2::text[], $3::integer[], $4::integer[], $5::bigint[], $6::bigint[], $7::bigint[]) as given
on conflict do nothing;

-- name: set_aside
-- Moves rows that Kafka refuses out of the way, with the reason. Where ids of the outbox have begun again, as in a copy of
-- the database, a row may have the id already: then it gets the next one that nothing has.
with refused as (
  delete from outbox
  using unnest($1::bigint[], $2::text[]) as given (id, error)
  where outbox.id = given.id
  returning outbox.id, outbox.key, outbox.value, outbox.headers, outbox.created_at, outbox.type, given.error
)
insert into outbox_set_aside (id, key, value, headers, created_at, type, error)
select
  case
    when exists (select from outbox_set_aside as kept where kept.id = refused.id)
      then
        (select max(id) from (select id from outbox_set_aside union all select id from refused) as used)
        + row_number() over (order by refused.id)
    else refused.id
  end,
  refused.key,
  refused.value,
  refused.headers,
  refused.created_at,
  refused.type,
  refused.error
from refused;

-- name: depth
-- How many rows wait (counted up to 100,000), how old the oldest is, in seconds, and how many are set aside.
select
  (select count(*) from (select from outbox limit 100000) as some_rows) as waiting,
  coalesce(
    extract(epoch from clock_timestamp() - (select created_at from outbox order by id limit 1)), 0
  )::float8 as age_seconds,
  (select count(*) from outbox_set_aside) as set_aside;

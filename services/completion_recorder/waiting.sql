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
-- Events that wait no more.
delete from waiting_events where id = any($1::bigint[]);

-- name: count_waiting
-- How many events wait for a lock, and for how many seconds the oldest does.
select
  count(*) as events,
  coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 as oldest_seconds
from waiting_events;

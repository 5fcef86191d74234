-- name: letters_redriving
-- Letters of a topic of which nobody noted that their copies arrived, and from where on those can be found.
select
  topic,
  partition,
  "offset",
  to_partition,
  searched_from
from dead_letters_handled
where topic = $1 and action = 'redriving';

-- name: letters_begin_reading
-- Which dead letters were read, on this connection. Without migrations this fails also where there are none.
select from dead_letters_handled limit 0;
create temporary table if not exists letters_read (
  topic text not null,
  partition integer not null,
  "offset" bigint not null,
  primary key (topic, partition, "offset")
);
truncate letters_read;

-- name: letters_note_read
-- Those that were not read before, and what operators did with them.
with new as (
  insert into letters_read (topic, partition, "offset")
  select distinct
    given.topic,
    given.partition,
    given."offset"
  from unnest($1::text[], $2::integer[], $3::bigint[]) as given (topic, partition, "offset")
  on conflict (topic, partition, "offset") do nothing
  returning topic, partition, "offset"
)
select
  new.topic,
  new.partition,
  new."offset",
  handled.action
from new
left join dead_letters_handled as handled on new.topic = handled.topic and new.partition = handled.partition
  and new."offset" = handled."offset";

-- name: letters_begin_redrive
-- Before a copy is sent: where it can be found, should nobody be there to note that it arrived.
insert into dead_letters_handled (topic, partition, "offset", action, to_partition, searched_from)
select * from unnest(
  $1::text[], $2::integer[], $3::bigint[], array_fill('redriving'::text, array[cardinality($1)]), $4::integer[],
  $5::bigint[]
)
on conflict (topic, partition, "offset") do update
set
  action = excluded.action,
  handled_at = clock_timestamp(),
  to_partition = excluded.to_partition,
  searched_from = excluded.searched_from;

-- name: letters_redriven
-- Their copies arrived: where each is.
update dead_letters_handled as kept
set
  action = 'redriven',
  handled_at = clock_timestamp(),
  to_offset = given.to_offset
from unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) as given (
  topic, partition, "offset", to_offset
)
where
  kept.topic = given.topic and kept.partition = given.partition and kept."offset" = given."offset";

-- name: letters_not_redriven
-- Their copies did not arrive: they wait again.
delete from dead_letters_handled as kept
using unnest($1::text[], $2::integer[], $3::bigint[]) as given (topic, partition, "offset")
where
  kept.topic = given.topic and kept.partition = given.partition and kept."offset" = given."offset"
  and kept.action = 'redriving';

-- name: letters_drop
-- Letters that are let go, but for those that somebody handled before.
insert into dead_letters_handled (topic, partition, "offset", action)
select * from unnest(
  $1::text[], $2::integer[], $3::bigint[], array_fill('dropped'::text, array[cardinality($1)])
)
on conflict (topic, partition, "offset") do nothing;

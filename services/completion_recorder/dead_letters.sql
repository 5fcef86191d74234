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

-- name: letters_drop
-- Letters that are let go, but for those that somebody handled before.
insert into dead_letters_handled (topic, partition, "offset", action)
select * from unnest(
  $1::text[], $2::integer[], $3::bigint[], array_fill('dropped'::text, array[cardinality($1)])
)
on conflict (topic, partition, "offset") do nothing;

-- name: letters_forget_handled
-- What was done with dead letters of a topic, once its places are those of another cluster.
delete from dead_letters_handled where topic = $1;

-- name: redrive_interrupted
-- Letters of a topic of which nobody noted that their copies arrived, and from where on those can be found.
select
  topic,
  partition,
  "offset",
  to_partition,
  searched_from
from dead_letters_handled
where topic = $1 and action = 'redriving';

-- name: redrive_begin
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

-- name: redrive_arrived
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

-- name: redrive_failed
-- Their copies did not arrive: they wait again.
delete from dead_letters_handled as kept
using unnest($1::text[], $2::integer[], $3::bigint[]) as given (topic, partition, "offset")
where
  kept.topic = given.topic and kept.partition = given.partition and kept."offset" = given."offset"
  and kept.action = 'redriving';

-- name: mended_begin
-- Of a file with mended letters: where each line begins, which letter it mends, and what is wrong with it. A line
-- that mends no letter of its own has no place.
create temporary table if not exists letters_mended (
  line bigint primary key,
  at bigint,
  topic text,
  partition integer,
  "offset" bigint,
  problem text,
  action text,
  is_found boolean not null default false,
  unique (topic, partition, "offset")
);
truncate letters_mended;

-- name: mended_note
-- Notes lines in order; returns those whose letter an earlier one mends.
with given as (
  select *
  from unnest($1::bigint[], $2::bigint[], $3::text[], $4::integer[], $5::bigint[]) as given (
    line, at, topic, partition, "offset"
  )
),

new as (
  insert into letters_mended (line, at, topic, partition, "offset")
  select * from given
  order by given.line
  on conflict (topic, partition, "offset") do nothing
  returning line
)

select given.line
from given
where not exists (select from new where new.line = given.line)
order by given.line;

-- name: mended_first
-- The lines that mend these letters.
select
  mended.line,
  mended.topic,
  mended.partition,
  mended."offset"
from letters_mended as mended
where (mended.topic, mended.partition, mended."offset") in (
  select * from unnest($1::text[], $2::integer[], $3::bigint[])
);

-- name: mended_wrong
-- What is wrong with these lines.
insert into letters_mended (line, problem)
select * from unnest($1::bigint[], $2::text[])
on conflict (line) do update set problem = excluded.problem;

-- name: mended_of
-- The lines that mend these letters, and where they begin.
update letters_mended as mended
set is_found = true
from unnest($1::text[], $2::integer[], $3::bigint[]) as given (topic, partition, "offset")
where
  mended.topic = given.topic and mended.partition = given.partition and mended."offset" = given."offset"
returning mended.line, mended.at, mended.topic, mended.partition, mended."offset";

-- name: mended_done
-- Letters that somebody has handled in the meantime.
update letters_mended as mended
set action = given.action
from unnest($1::bigint[], $2::text[]) as given (line, action)
where mended.line = given.line;

-- name: mended_of_nothing
-- Lines whose letter was not found.
update letters_mended
set problem = partition || ':' || "offset" || ': there is no such dead letter of ' || topic
where not is_found and problem is null;

-- name: mended_count
-- How many lines cannot be sent, and how many were handled in the meantime.
select
  count(*) filter (where problem is not null) as problems,
  count(*) filter (where action is not null) as handled
from letters_mended;

-- name: mended_problems
-- The next lines that cannot be sent.
select
  line,
  problem
from letters_mended
where problem is not null and line > $1
order by line
limit $2;

-- name: mended_handled
-- The next lines whose letter was handled in the meantime.
select
  line,
  topic,
  partition,
  "offset",
  action
from letters_mended
where action is not null and line > $1
order by line
limit $2;

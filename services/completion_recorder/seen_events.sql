-- name: seen_create
-- The events that were read, in SQLite: under each id the first one; and of each row and time the first id.
create table events (
  relation text,
  event_id text,
  mcp_server_user_id text,
  of_what text,
  at integer,
  place text,
  primary key (relation, event_id, mcp_server_user_id, of_what)
) without rowid;
create table times (
  relation text,
  mcp_server_user_id text,
  of_what text,
  at integer,
  event_id text,
  primary key (relation, mcp_server_user_id, of_what, at)
) without rowid;

-- name: seen_under_id
-- The event with an id.
select mcp_server_user_id, of_what, at, place from events where relation = ? and event_id = ?;

-- name: seen_under_id_of_row
-- The event with an id, of a row.
select mcp_server_user_id, of_what, at, place from events
where relation = ? and event_id = ? and mcp_server_user_id = ? and of_what = ?;

-- name: seen_note
-- One event more.
insert into events values (?, ?, ?, ?, ?, ?);

-- name: seen_note_time
-- The first id of a row and time.
insert or ignore into times values (?, ?, ?, ?, ?);

-- name: seen_id_of_time
-- The first id of a row and time.
select event_id from times where relation = ? and mcp_server_user_id = ? and of_what = ? and at = ?;

-- name: seen_count_rows
-- How many rows the events are of.
select relation, count(*)
from (select distinct relation, mcp_server_user_id, of_what from times) as rows_of_events
group by relation;

-- name: note_erased
-- Who is erased from now on; the first erasure of a person stays. Returns those of whom this is the first.
insert into erased_users (mcp_server_user_id, erased_at, event_id)
select distinct on (given.mcp_server_user_id)
  given.mcp_server_user_id,
  given.erased_at,
  given.event_id
from unnest($1::text[], $2::bigint[], $3::text[]) as given (mcp_server_user_id, erased_at, event_id)
order by given.mcp_server_user_id, given.erased_at, given.event_id
on conflict (mcp_server_user_id) do nothing
returning mcp_server_user_id;

-- name: find_erased
-- Those of these people who were erased.
select array(select mcp_server_user_id from erased_users where mcp_server_user_id = any($1::text[]));

-- name: lock_people
-- Those of the people that nobody else has locked, locked as a deletion would.
select id from mcp_server_user where id = any($1::text[]) for update skip locked;

-- name: find_people
-- Those of the people who have a row.
select id from mcp_server_user where id = any($1::text[]);

-- name: delete_users
-- Their rows, and by cascades all that refers to them; triggers leave marks for the aggregator.
delete from mcp_server_user where id = any($1::text[]);

-- name: delete_from_outbox
-- Their events that are still to be sent; by shard, as the index has it.
delete from outbox
where
  shard = any(
    select outbox_shard(given.key) from unnest($1::text[]) as given (key)
  )
  and key = any($1::text[]);

-- name: delete_set_aside
-- Their events that no relay could send.
delete from outbox_set_aside where key = any($1::text[]);

-- name: delete_waiting
-- Their events that wait for a lock.
delete from waiting_events where mcp_server_user_id = any($1::text[]);

-- name: find_note
-- Since when a person is erased, and which event says so.
select
  erased_at,
  event_id
from erased_users
where mcp_server_user_id = $1;

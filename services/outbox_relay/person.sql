-- name: count_events
-- How many events of a person wait to be sent, and how many no relay could send; without what says that they are erased.
-- JSON may write quotes, backslashes and slashes of an id with a backslash, by which `is_event_of` does not find it.
select
  (
    select count(*) from outbox
    where
      (
        is_event_of($1, $2, key, value)
        or case
          when position('\' in value) > 0 and regexp_count(value, '[[{]') < 2000 and pg_input_is_valid(value, 'jsonb')
            then value::jsonb ->> 'mcp_server_user_id' = $1
        end
      )
      and is_erasure_of($1, type, headers) is not true
  ) as outbox,
  (
    select count(*) from outbox_set_aside
    where
      (
        is_event_of($1, $2, key, value)
        or case
          when position('\' in value) > 0 and regexp_count(value, '[[{]') < 2000 and pg_input_is_valid(value, 'jsonb')
            then value::jsonb ->> 'mcp_server_user_id' = $1
        end
      )
      and is_erasure_of($1, type, headers) is not true
  ) as outbox_set_aside;

-- name: remove_waiting
-- All that is on its way of a person but the event that says that they are erased.
delete from outbox
where
  (
    is_event_of($1, $2, key, value)
    or case
      when position('\' in value) > 0 and regexp_count(value, '[[{]') < 2000 and pg_input_is_valid(value, 'jsonb')
        then value::jsonb ->> 'mcp_server_user_id' = $1
    end
  )
  and is_erasure_of($1, type, headers) is not true;

-- name: remove_set_aside
-- As `remove_waiting`, of what no relay could send.
delete from outbox_set_aside
where
  (
    is_event_of($1, $2, key, value)
    or case
      when position('\' in value) > 0 and regexp_count(value, '[[{]') < 2000 and pg_input_is_valid(value, 'jsonb')
        then value::jsonb ->> 'mcp_server_user_id' = $1
    end
  )
  and is_erasure_of($1, type, headers) is not true;

-- name: announce
-- The event that says that a person is erased.
insert into outbox (key, value, headers, type) values ($1, $2, $3, 'user-erased');

-- name: find_announcement
-- The event that says that a person is erased, while it waits.
select
  id,
  key,
  value,
  headers
from outbox
where
  shard = outbox_shard($1) and key = $1
  and is_erasure_of($1, type, headers)
order by id
limit 1;

-- name: remove
-- A row that was sent.
delete from outbox where id = $1;

-- What an event is, beside what it holds: only its writer knows for sure. A migration of its own, so that nobody who
-- writes completions waits while it waits for the outbox.
set local lock_timeout = '10s';

alter table outbox add column if not exists type text;
comment on column outbox.type is
  'The type of the event; null where a version before this column wrote the row, whose header ce_type says it.';
alter table outbox_set_aside add column if not exists type text;
comment on column outbox_set_aside.type is 'As in the outbox.';

-- Who writes into the outbox can write any type, so the event that says that a person is erased is known by its id, too.
create or replace function is_erasure_of(person text, type text, headers jsonb) returns boolean
language sql stable
return coalesce(type, headers ->> 'ce_type') = 'user-erased' and exists (
  select from erased_users
  where erased_users.mcp_server_user_id = person and erased_users.event_id = headers ->> 'ce_id'
);
comment on function is_erasure_of (text, text, jsonb) is
  'Whether an event of the outbox, or one that was set aside, is what announces that this person is erased.';

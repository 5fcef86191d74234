-- What an event is, beside what it holds: only its writer knows for sure. A migration of its own, so that nobody who
-- writes completions waits while it waits for the outbox.
set local lock_timeout = '10s';

alter table outbox add column if not exists type text;
comment on column outbox.type is
  'The type of the event; null where a version before this column wrote the row, whose header ce_type says it.';
alter table outbox_set_aside add column if not exists type text;
comment on column outbox_set_aside.type is 'As in the outbox.';

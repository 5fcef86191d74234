-- Of which walkthrough an event is that waits for a lock: it holds up no other's figures.
set local lock_timeout = '10s';

alter table waiting_events add column if not exists walkthrough_id text;
comment on column waiting_events.walkthrough_id is
  'The walkthrough that the event names; null of an erasure, which is of all walkthroughs of its person.';

update waiting_events as waiting
set walkthrough_id = said.value ->> 'walkthrough_id'
from (
  select
    id,
    convert_from(value, 'UTF8') as text
  from waiting_events
  where walkthrough_id is null
) as readable
cross join lateral (
  select case when pg_input_is_valid(readable.text, 'jsonb') then readable.text::jsonb end as value
) as said
where waiting.id = readable.id and said.value ->> 'walkthrough_id' is not null;

create index if not exists waiting_events_walkthrough_idx on waiting_events (walkthrough_id, id);

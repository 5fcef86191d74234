-- What waits for a lock waits alone, of the counts, too: marks of journeys whose journey or counts somebody has locked.
set local lock_timeout = '10s';

alter table sankey_dirty add column if not exists waits_for text;
alter table sankey_dirty add column if not exists since timestamptz;
comment on column sankey_dirty.waits_for is
  'Table and key of what is locked: the mark waits for that, and holds up no others. Null is to be drained next.';
comment on column sankey_dirty.since is 'Since when it waits.';
create index if not exists sankey_dirty_next_idx on sankey_dirty (id) where waits_for is null;
create index if not exists sankey_dirty_lock_idx on sankey_dirty (waits_for, id) where waits_for is not null;
create index if not exists sankey_dirty_waiting_idx on sankey_dirty (walkthrough_id, mcp_server_user_id)
where waits_for is not null;

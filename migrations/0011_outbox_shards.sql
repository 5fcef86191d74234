-- Who may connect may take advisory locks: with those of the relay anybody could hold it up, and nobody would see why.
-- These rows only a relay, and the owner, may lock.
set local lock_timeout = '10s';

create table if not exists outbox_shards (
  shard integer primary key check (shard between 0 and 63)
);
comment on table outbox_shards is
  'A row for each shard of the outbox: a relay that sends what is in it has the row locked.';
insert into outbox_shards (shard)
select number from generate_series(0, 63) as number
on conflict do nothing;

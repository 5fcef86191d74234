-- How bad recent events were when the recorder last judged this partition, so that a restart of a recorder
-- that stopped over a flood, or one that takes the partition over, goes on with the same count.
set local lock_timeout = '10s';

alter table recorded_offsets add column if not exists recent_events integer not null default 0;
alter table recorded_offsets add column if not exists recent_missing integer not null default 0;
alter table recorded_offsets add column if not exists recent_broken integer not null default 0;
alter table recorded_offsets add column if not exists broken_in_a_row integer not null default 0;
comment on column recorded_offsets.recent_broken is
'Of the recent_events before next_offset, on all partitions of that recorder, how many were no events of the contract.';
comment on column recorded_offsets.recent_missing is
'Of the recent_events before next_offset, how many referred to rows that do not exist.';
comment on column recorded_offsets.broken_in_a_row is
'How many bad events in a row end at next_offset.';
